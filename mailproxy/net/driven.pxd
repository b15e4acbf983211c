cimport cython

from mailproxy.net.engine cimport Engine


cdef class DrivenTask:
    cdef public Engine _engine
    cdef public object _task, _send, _expired
    cdef public bint _fresh, _queued
    cdef public double deadline
    cdef public int interrupted
    @cython.locals(engine=Engine)
    cpdef resume(self)
    cpdef _go_on_later(self)
    cpdef _go_on(self)
    cpdef park(self)
    cpdef end_phase(self)
    @cython.locals(engine=Engine, deadline=double)
    cpdef limit(self, double seconds, expired=*)
    cpdef stop(self)
    cpdef restore(self, double deadline)
