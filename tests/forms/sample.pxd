from notifyloop.turn.layouts cimport LargerHandle, SampleHandle, SampleTimer

cpdef look(SampleHandle handle)
cpdef look_at_more(LargerHandle handle)
cpdef due(SampleTimer timer)
cpdef empty(SampleHandle handle)
