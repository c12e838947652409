cimport cython

from notifyloop.turn cimport primitives
from notifyloop.turn.layouts cimport TransportState

cdef object logger
cdef Py_ssize_t LATE_WRITES


cpdef receive(TransportState transport)
@cython.locals(count=Py_ssize_t, eighths=Py_ssize_t)
cpdef receive_in_context(TransportState transport)
cpdef sendto(TransportState transport, object data, object addr=*)
cdef bint is_peer(object peer, object addr) except -1
cpdef bint send(TransportState transport, object data, object addr) except -1
