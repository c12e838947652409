# What the names of primitives.py mean in compiled code, on Linux and where the interpreter has a lock, for nothing is
# compiled elsewhere: C, put in where it is called. What C cannot know to be what Python would do is left to Python.


cdef extern from "primitives.h":
    bint FREE_THREADED "0"
    Py_ssize_t UNSHARED "1"  # a lone variable of compiled code has the one reference that it is counted for
    Py_ssize_t getrefcount "notifyloop_references" (object handle)
    object leave_out "notifyloop_leave_out" (object handle, int frames)
    object call_in "notifyloop_call_in" (object context, object callback, object argument)
    object call_in_alone "notifyloop_call_in_alone" (object context, object callback)
    object call_in_all "notifyloop_call_in_all" (object context, object callback, object arguments)
    object call_method_in "notifyloop_call_method_in" (object context, object target, object name, object argument)
    bint has_method "notifyloop_has_method" (object kind, object name, object method) except -1
    object receive "notifyloop_receive" (object sock, Py_ssize_t size)
    Py_ssize_t receive_into "notifyloop_receive_into" (object sock, object buffer) except -2
    object receive_from "notifyloop_receive_from" (object sock, Py_ssize_t size)
    Py_ssize_t send "notifyloop_send" (object sock, object data) except -1
    bint send_to "notifyloop_send_to" (object sock, object data, object address) except -1
