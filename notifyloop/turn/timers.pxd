cimport cython


cdef class Timers:
    cdef public long long cancelled
    cdef public bint interrupted
    cdef public double resolution
    cdef public list scheduled

    cpdef schedule(self, object timer)
    @cython.locals(scheduled=list, seconds=double)
    cpdef long long until_next(self, double now) except -2
    @cython.locals(scheduled=list, end=double)
    cpdef move_due(self, double now, object ready)
    cpdef _drop_cancelled(self)
