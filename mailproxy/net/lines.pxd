cimport cython


cdef class LineStream:
    cdef public object stream, fault, gone
    cdef public Py_ssize_t limit
    cdef public bytearray _buffer
    cdef public Py_ssize_t _searched
    cpdef bytes take_rest(self)
