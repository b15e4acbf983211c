cimport cython

from mailproxy.net cimport calls


cdef class Handler:
    cpdef ready(self, unsigned int events)


cdef class Engine:
    cdef public dict _handlers
    cdef public object _epoll, _again, _bell, _fault, _parked, _waiting, _stopped
    cdef public object current, clock, time
    cdef public set limited
    cdef public Py_ssize_t limit
    cdef public long long turn
    cdef public double now, due
    cdef public bint woke, moved
    cpdef hand_over(self, int fd, Handler handler)
    cpdef rearm(self, int fd, unsigned int events)
    cpdef unregister(self, int fd)
    cpdef forget(self, int fd)
    cpdef again(self, work)
    cpdef waiter(self)
    cpdef hand_out(self)
    @cython.locals(changes=list, handlers=dict, handler=Handler, now=double)
    cpdef _round(self, double patience)
    @cython.locals(now=double, patience=double)
    cpdef double wait_in_place(self, double deadline) except *
    cpdef bring_forward(self, double deadline)


cdef class Readiness(Handler):
    cdef public Engine engine
    cdef public bint readable, hung_up
    cdef public object _waiter
    cdef public unsigned int _mask
    cpdef wait(self, unsigned int mask)
