"""`calls.py` in C, which says what these functions are for.

Where memory is safe, and where not: octets go through typed memoryviews, whose bounds are
checked, through buffers of `bytes` objects, or through an array on the stack. Raw are only
the functions of the OpenSSL that `ssl` uses, and the `SSL *`, which lives as long as
the object of `ssl` that `TlsCalls` holds.

The GIL is held, as nothing here can block, but while `poll` waits: descriptors are
non-blocking, and a worker has no other thread.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc cimport errno
from posix.unistd cimport read, write
from posix.unistd cimport close as close_descriptor

import ssl
import sys

cdef extern from "sys/epoll.h" nogil:
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout)
    int EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_CLOEXEC

cdef enum:
    CHUNK = 16384

# What is a number of C in `calls.pxd`, for modules in Python.
globals().update(
    READABLE=READABLE,
    WRITABLE=WRITABLE,
    HUNG_UP=HUNG_UP,
    BOTH_WAYS=BOTH_WAYS,
    READING=READING,
    LISTENING=LISTENING,
)


cdef int _failed() except -2:
    """-1 for "would block", 0 to try again; for a call that has returned -1."""
    if errno.errno == errno.EAGAIN:
        return -1
    if errno.errno == errno.EINTR:
        PyErr_CheckSignals()
        return 0
    PyErr_SetFromErrno(OSError)


cdef Py_ssize_t _read(int fd, void *to, Py_ssize_t size) except -2:
    cdef Py_ssize_t got
    while True:
        got = read(fd, to, size)
        if got >= 0:
            return got
        if _failed() < 0:
            return -1


cdef Py_ssize_t _write(int fd, const void *data, Py_ssize_t size) except -2:
    cdef Py_ssize_t sent
    while True:
        sent = write(fd, data, size)
        if sent >= 0:
            return sent
        if _failed() < 0:
            return -1


cpdef object receive(int fd, Py_ssize_t size):
    cdef char chunk[CHUNK]
    cdef Py_ssize_t got
    cdef bytes data
    if size < 0:
        errno.errno = errno.EINVAL
        PyErr_SetFromErrno(OSError)
    if size <= CHUNK:
        got = _read(fd, chunk, size)
        return None if got < 0 else PyBytes_FromStringAndSize(chunk, got)
    data = PyBytes_FromStringAndSize(NULL, size)
    got = _read(fd, PyBytes_AS_STRING(data), size)
    return None if got < 0 else data[:got]


cpdef Py_ssize_t receive_into(int fd, unsigned char[::1] view) except -2:
    return _read(fd, &view[0], view.shape[0]) if view.shape[0] else 0


cpdef Py_ssize_t send(int fd, data) except -2:
    cdef Py_buffer octets
    if type(data) is bytes:
        return _write(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    PyObject_GetBuffer(data, &octets, PyBUF_SIMPLE)
    try:
        return _write(fd, octets.buf, octets.len)
    finally:
        PyBuffer_Release(&octets)


cpdef Py_ssize_t send_from(int fd, const unsigned char[::1] view) except -2:
    return _write(fd, &view[0], view.shape[0]) if view.shape[0] else 0


# OpenSSL

ctypedef int (*reading)(void *ssl, void *to, size_t size, size_t *done) noexcept
ctypedef int (*writing)(void *ssl, const void *data, size_t size, size_t *done) noexcept
ctypedef int (*asking)(const void *ssl, int result) noexcept
ctypedef int (*counting)(const void *ssl) noexcept
ctypedef void (*clearing)() noexcept

cdef reading SSL_read_ex = NULL
cdef writing SSL_write_ex = NULL
cdef asking SSL_get_error = NULL
cdef counting SSL_pending = NULL
cdef clearing ERR_clear_error = NULL

cdef enum:
    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_WANT_WRITE = 3
    SSL_ERROR_SYSCALL = 5

cdef enum:
    FAILED = 0
    BLOCKED = 1
    BROKEN = 2

cdef bint NUMBERS_ARE_KEPT = (
    sys.version_info >= (3, 12, 3) or (3, 11, 9) <= sys.version_info < (3, 12)
)
"""Whether `ssl` says which error of the system has broken the connection."""


cdef bint _find_openssl() except -1:
    """Find the functions; False if they cannot be called."""
    global SSL_read_ex, SSL_write_ex, SSL_get_error, SSL_pending, ERR_clear_error
    if ERR_clear_error != NULL:
        return True
    from mailproxy.net.openssl import library

    if library.unreachable() is not None:
        return False
    functions = library.addresses()
    SSL_read_ex = <reading><void *><size_t>functions["SSL_read_ex"]
    SSL_write_ex = <writing><void *><size_t>functions["SSL_write_ex"]
    SSL_get_error = <asking><void *><size_t>functions["SSL_get_error"]
    SSL_pending = <counting><void *><size_t>functions["SSL_pending"]
    ERR_clear_error = <clearing><void *><size_t>functions["ERR_clear_error"]
    return True


cdef class TlsCalls:
    """Calls OpenSSL's functions, and the methods of `ssl` for what has failed.

    A call that has failed says so again when it is repeated: the connection is over, and
    its error still stands in OpenSSL's queue. So the exception is made by `ssl`, and is
    the same as without this module. Only errors of the system are told once.
    """

    def __init__(self, connection):
        self._connection = connection
        self.needs = READABLE
        self._owner = connection._sslobj
        # It has none if the connection broke before TLS began.
        if self._owner is not None and _find_openssl():
            from mailproxy.net.openssl import library

            self._ssl = <void *><size_t>library.ssl_of(connection)

    cdef int _outcome(self, int result) except -1:
        """What it means that a call has returned `result`.

        BLOCKED: it has to wait for `needs`. BROKEN: by an error of the system, which
        `ssl` does not tell, and takes for an end when it reads. FAILED: ask `ssl`.
        """
        cdef int number = errno.errno
        cdef int reason = SSL_get_error(self._ssl, result)
        if reason == SSL_ERROR_WANT_READ:
            self.needs = READABLE
            return BLOCKED
        if reason == SSL_ERROR_WANT_WRITE:
            self.needs = WRITABLE
            return BLOCKED
        if reason != SSL_ERROR_SYSCALL or not number:
            return FAILED
        ERR_clear_error()  # as `ssl` does: it looks there after calls for others
        if NUMBERS_ARE_KEPT:
            errno.errno = number
            PyErr_SetFromErrno(OSError)
        return BROKEN

    cpdef object receive(self, Py_ssize_t size):
        cdef char chunk[CHUNK]
        cdef size_t done = 0
        cdef int result
        if self._ssl != NULL and 0 < size:
            ERR_clear_error()
            # A record has no more octets than that.
            result = SSL_read_ex(self._ssl, chunk, min(size, <Py_ssize_t>CHUNK), &done)
            if result > 0:
                return PyBytes_FromStringAndSize(chunk, done)
            result = self._outcome(result)
            if result != FAILED:
                return None if result == BLOCKED else b""
        try:
            return self._connection.recv(size)
        except ssl.SSLWantReadError:
            self.needs = READABLE
        except ssl.SSLWantWriteError:
            self.needs = WRITABLE
        return None

    cpdef Py_ssize_t receive_into(self, unsigned char[::1] view) except -2:
        cdef size_t done = 0
        cdef int result
        if self._ssl != NULL and view.shape[0]:
            ERR_clear_error()
            result = SSL_read_ex(self._ssl, &view[0], view.shape[0], &done)
            if result > 0:
                return done
            result = self._outcome(result)
            if result != FAILED:
                return -1 if result == BLOCKED else 0
        try:
            return self._connection.recv_into(view)
        except ssl.SSLWantReadError:
            self.needs = READABLE
        except ssl.SSLWantWriteError:
            self.needs = WRITABLE
        return -1

    cpdef Py_ssize_t send(self, data) except -2:
        cdef const unsigned char[::1] view
        cdef size_t done = 0
        cdef int result
        if type(data) is not bytes:
            view = data
            return self.send_from(view)
        if self._ssl != NULL and PyBytes_GET_SIZE(data):
            ERR_clear_error()
            result = SSL_write_ex(
                self._ssl, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &done
            )
            if result > 0:
                return done
            if self._outcome(result) == BLOCKED:
                return -1
        return self._send_by_ssl(data)

    cpdef Py_ssize_t send_from(self, const unsigned char[::1] view) except -2:
        cdef size_t done = 0
        cdef int result
        if self._ssl != NULL and view.shape[0]:
            ERR_clear_error()
            result = SSL_write_ex(self._ssl, &view[0], view.shape[0], &done)
            if result > 0:
                return done
            if self._outcome(result) == BLOCKED:
                return -1
        return self._send_by_ssl(view)

    def _send_by_ssl(self, data):
        try:
            return self._connection.send(data)
        except ssl.SSLWantReadError:
            self.needs = READABLE
        except ssl.SSLWantWriteError:
            self.needs = WRITABLE
        return -1

    cpdef Py_ssize_t pending(self) except -2:
        if self._ssl != NULL:
            return SSL_pending(self._ssl)
        return self._connection.pending()

    cpdef close(self):
        self._ssl = NULL
        self._owner = None


cdef class Epoll:
    """`select.epoll`, without its detours."""

    def __cinit__(self):
        self._fd = epoll_create1(EPOLL_CLOEXEC)
        if self._fd < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        if self._fd >= 0:
            close_descriptor(self._fd)

    def fileno(self):
        return self._fd

    cpdef register(self, int fd, unsigned int events):
        self._control(EPOLL_CTL_ADD, fd, events)

    cpdef modify(self, int fd, unsigned int events):
        self._control(EPOLL_CTL_MOD, fd, events)

    cpdef unregister(self, int fd):
        self._control(EPOLL_CTL_DEL, fd, 0)

    cdef int _control(self, int operation, int fd, unsigned int events) except -1:
        cdef epoll_event event
        event.data.fd = fd
        event.events = events
        if epoll_ctl(self._fd, operation, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)
        return 0

    cpdef list poll(self, double patience, int most):
        cdef int number, each
        # Milliseconds, as in `select`: a wait that ends too early would be repeated.
        cdef int timeout = <int>min(patience * 1000 + 0.999999, 2e9)
        cdef list changes = []
        most = min(most, <int>MAX_CHANGES)
        if timeout > 0:
            with nogil:
                number = epoll_wait(self._fd, self._events, most, timeout)
        else:
            number = epoll_wait(self._fd, self._events, most, 0)
        if number < 0:
            if errno.errno != errno.EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
            return changes
        for each in range(number):
            changes.append((self._events[each].data.fd, self._events[each].events))
        return changes

    def close(self):
        cdef int fd = self._fd
        self._fd = -1
        if fd >= 0 and close_descriptor(fd) < 0:
            PyErr_SetFromErrno(OSError)
