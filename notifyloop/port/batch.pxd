cimport cython

from notifyloop.port cimport foreign


# Its addresses are of memory that its fields keep, and that is no part of a cycle.
@cython.no_gc_clear
cdef class Batch:
    cdef unsigned long long _address
    cdef unsigned long long _address_of_call
    cdef unsigned long long _address_of_words
    cdef object _call
    cdef Py_ssize_t _capacity
    cdef object _entries
    cdef object _failures
    cdef object _handle
    cdef list _kept
    cdef object _orders
    cdef object _process
    cdef public object _process_call
    cdef object _timeout
    cdef object _words
    cdef public long long count
    cdef public object entries
    cdef public object failures
    cdef public object words

    @cython.locals(count=cython.longlong)
    cpdef tuple turn(self, object packed, object timeout)
    cdef tuple _turn_with(self, object packed, object timeout)
    cdef tuple _unpack_rare(self, long long value)
