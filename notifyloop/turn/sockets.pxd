from notifyloop.turn cimport primitives
from notifyloop.turn.readiness cimport begin_wait, end_wait, wait_in
from notifyloop.turn.scheduling cimport Scheduler
from notifyloop.turn.waits cimport Wait

cdef object SSLSocket, TrueSocket
cdef int EVENT_READ, EVENT_WRITE


cdef check_socket(Scheduler loop, object sock)
