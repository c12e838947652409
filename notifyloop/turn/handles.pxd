cimport cython

from notifyloop.turn.layouts cimport HandleState, TimerHandleState
from notifyloop.turn.state cimport Turn


cpdef begin(HandleState handle, object callback, object args, object loop, object context=*)
cpdef cancel(HandleState handle)
cpdef begin_timer(TimerHandleState timer, object when, object callback, object args, object loop, object context=*)
cpdef bint is_before(TimerHandleState timer, object other) except -1
@cython.locals(turn=Turn)
cpdef cancel_timer(TimerHandleState timer)
