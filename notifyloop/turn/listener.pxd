from notifyloop.turn cimport primitives

cdef object true_family, true_kind
