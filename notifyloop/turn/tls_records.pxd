cimport cython

from notifyloop.turn.layouts cimport TLSState, TLSTransportState

cdef Py_ssize_t RECORD, ALL_OF_ONE, AT_ONCE, MOST_SEALED


cpdef data_received(TLSState tls, object data)
cpdef do_read(TLSState tls)
cdef read(TLSState tls, object data)
cdef bint is_empty(TLSState tls) except -1
cdef Py_ssize_t feed(object incoming, object data, Py_ssize_t place) except -1
@cython.locals(size=Py_ssize_t, place=Py_ssize_t, is_true=bint, ended=bint, unread=bint)
cdef read_pieces(TLSState tls, object data)
@cython.locals(room=Py_ssize_t, received=Py_ssize_t, size=Py_ssize_t, place=Py_ssize_t)
@cython.locals(count=Py_ssize_t, is_true=bint, ended=bint, unread=bint)
cdef read_into_buffer(TLSState tls, object data)
@cython.locals(count=Py_ssize_t)
cpdef Py_ssize_t drop_incoming(TLSState tls) except -1
cpdef go_on_reading(TLSState tls)
cpdef go_on(TLSState tls)
cdef control_reading(TLSState tls)
@cython.locals(tls=TLSState, sent=Py_ssize_t)
cpdef write(TLSTransportState transport, object data)
cpdef write_appdata(TLSState tls, object list_of_data)
cpdef kept(object data)
cdef keep(TLSState tls, object piece)
@cython.locals(again=bint)
cpdef do_write(TLSState tls)
@cython.locals(count=Py_ssize_t, before=Py_ssize_t)
cdef bint seal(TLSState tls) except -1
@cython.locals(size=Py_ssize_t)
cdef join_small(object backlog)
cdef put_back(TLSState tls, object piece)
cdef send(TLSState tls)
cpdef process_outgoing(TLSState tls)
cdef control_writing(TLSState tls)
