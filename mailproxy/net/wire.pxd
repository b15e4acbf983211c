cimport cython

from mailproxy.net cimport calls
from mailproxy.net.engine cimport Engine, Handler, Readiness


cdef class Wire(Readiness):
    cdef public int fd
    cdef public object tls, _socket
    cdef public calls.TlsCalls tls_calls
    cdef public bint closed, connecting
    cdef public long long received, sent
    cdef public unsigned int _needs
    @cython.locals(data=bytes)
    cpdef receive_now(self, Py_ssize_t size)
    @cython.locals(data=bytes)
    cpdef _receive_tls(self, calls.TlsCalls tls, Py_ssize_t size)
    @cython.locals(tls=calls.TlsCalls, sent=Py_ssize_t)
    cpdef Py_ssize_t send_now(self, data) except -2
    cpdef wait_to_retry(self)
    cpdef watch(self, Handler handler)
    cpdef resume(self)
