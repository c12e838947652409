cdef extern from "layouts.h":

    ctypedef class notifyloop.turn.sample_classes.SampleHandle [object SampleHandleStruct, check_size error]:
        cdef object _callback, _args

    ctypedef class notifyloop.turn.sample_classes.LargerHandle(SampleHandle) [object LargerHandleStruct, check_size error]:
        cdef object more  # its own alone

    ctypedef class notifyloop.turn.sample_classes.SampleTimer [object SampleTimerStruct, check_size error]:
        cdef object _when
