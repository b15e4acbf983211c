cimport cython

from mailproxy.net cimport calls
from mailproxy.net.engine cimport Engine, Handler
from mailproxy.net.wire cimport Wire


cdef class _End(Handler):
    cdef public _Session session
    cdef public Wire wire
    cdef public calls.TlsCalls tls
    cdef public _End peer
    cdef public int fd
    cdef public object side, pipe, failed
    cdef public bytes pending
    cdef public Py_ssize_t in_pipe
    cdef public bint hung_up, queued, dry
    cdef public long long armed
    @cython.locals(session=_Session)
    cpdef ready(self, unsigned int events)
    cpdef work(self)
    @cython.locals(data=bytes, tls=calls.TlsCalls, sent=Py_ssize_t)
    cpdef bint flush(self) except -1
    @cython.locals(session=_Session)
    cpdef pump(self)
    @cython.locals(
        relay=Relay, peer=_End, bound=Py_ssize_t, tls=calls.TlsCalls, size=Py_ssize_t,
        sent=Py_ssize_t, view="unsigned char[::1]", _=int,
    )
    cpdef _copy(self)
    @cython.locals(tls=calls.TlsCalls, sent=Py_ssize_t)
    cpdef Py_ssize_t send(self, const unsigned char[::1] data) except -2
    @cython.locals(engine=Engine, burst=bint, size=Py_ssize_t, got=Py_ssize_t, _=int)
    cpdef Py_ssize_t _receive_tls(
        self, calls.TlsCalls tls, unsigned char[::1] view
    ) except -2
    @cython.locals(peer=_End)
    cpdef _splice(self)
    cpdef _later(self)


cdef class _Session:
    cdef public Relay relay
    cdef public bint alive
    cdef public object ended, task
    cdef public double timeout, last
    cdef public Py_ssize_t bound
    cdef public tuple ends


cdef class Relay:
    cdef public Engine engine
    cdef public unsigned char[::1] buffer
    cdef public set _sessions
    cdef public list _pipes
    cdef public int _opened
    cdef public object _sweep
    cdef public double _next
