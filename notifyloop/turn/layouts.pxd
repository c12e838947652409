# How compiled code sees classes that are written in Python: as structures, with the slots named here as fields.
#
# In any order, and without those that it does not use: where they lie, the classes are asked when this is compiled (see
# layouts_build.py), and again when it is imported (see notifyloop/form.py). Always `object`, for interpreted code may put
# anything into a slot. The module of such a class imports nothing of ours that is compiled, and has no .pxd.

cdef extern from "layouts.h":

    ctypedef class notifyloop.turn.handle_state.HandleState [object HandleStruct, check_size error]:
        cdef object _args, _callback, _cancelled, _context, _loop

    ctypedef class notifyloop.turn.handle_state.TimerHandleState [object TimerHandleStruct, check_size error]:
        cdef object _args, _callback, _cancelled, _context, _loop, _scheduled, _when

    ctypedef class notifyloop.turn.transport_state.TransportState [object TransportStruct, check_size error]:
        cdef object _address, _buffer, _buffer_size, _buffered_protocol, _cancelled, _closing, _conn_lost, _context
        cdef object _direct, _eighths, _empty_waiter, _eof, _extra, _high_water, _interest, _largest, _loop, _low_water
        cdef object _paused, _peername, _protocol, _protocol_paused, _server, _sock, _sock_fd

    ctypedef class notifyloop.turn.tls_state.TLSState [object TLSStruct, check_size error]:
        cdef object _app_protocol, _app_protocol_is_buffer, _app_reading_paused, _app_writing_paused, _conn_lost, _context
        cdef object _eof_received, _going_on, _incoming, _incoming_high_water, _incoming_low_water, _openssl, _outgoing
        cdef object _outgoing_high_water, _sealed, _ssl_reading_paused, _ssl_writing_paused, _state, _transport, _true, _unread
        cdef object _write_backlog, _write_buffer_size

    ctypedef class notifyloop.turn.tls_state.TLSTransportState [object TLSTransportStruct, check_size error]:
        cdef object _closed, _ssl_protocol
