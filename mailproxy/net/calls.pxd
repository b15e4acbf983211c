"""The types of `calls.pyx` for the other compiled modules."""

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data

cdef extern from * nogil:
    """
    #include <sys/epoll.h>
    #define CALLS_READABLE (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)
    #define CALLS_WRITABLE (EPOLLOUT | EPOLLHUP | EPOLLERR)
    #define CALLS_HUNG_UP (EPOLLRDHUP | EPOLLHUP | EPOLLERR)
    #define CALLS_BOTH_WAYS ((unsigned)EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)
    #define CALLS_READING ((unsigned)EPOLLIN | EPOLLRDHUP | EPOLLET)
    #define CALLS_LISTENING ((unsigned)EPOLLIN | EPOLLET)
    """
    const unsigned int READABLE "CALLS_READABLE"
    const unsigned int WRITABLE "CALLS_WRITABLE"
    const unsigned int HUNG_UP "CALLS_HUNG_UP"
    const unsigned int BOTH_WAYS "CALLS_BOTH_WAYS"
    const unsigned int READING "CALLS_READING"
    const unsigned int LISTENING "CALLS_LISTENING"

cdef enum:
    MAX_CHANGES = 256

cpdef object receive(int fd, Py_ssize_t size)
cpdef Py_ssize_t receive_into(int fd, unsigned char[::1] view) except -2
cpdef Py_ssize_t send(int fd, data) except -2
cpdef Py_ssize_t send_from(int fd, const unsigned char[::1] view) except -2


cdef class TlsCalls:
    cdef object _connection, _owner
    cdef void *_ssl
    cdef readonly unsigned int needs
    cdef int _outcome(self, int result) except -1
    cpdef object receive(self, Py_ssize_t size)
    cpdef Py_ssize_t receive_into(self, unsigned char[::1] view) except -2
    cpdef Py_ssize_t send(self, data) except -2
    cpdef Py_ssize_t send_from(self, const unsigned char[::1] view) except -2
    cpdef Py_ssize_t pending(self) except -2
    cpdef close(self)


cdef class Epoll:
    cdef int _fd
    cdef epoll_event _events[MAX_CHANGES]
    cdef int _control(self, int operation, int fd, unsigned int events) except -1
    cpdef register(self, int fd, unsigned int events)
    cpdef modify(self, int fd, unsigned int events)
    cpdef unregister(self, int fd)
    cpdef list poll(self, double patience, int most)
