# What the names of foreign.py mean in compiled code.


cdef extern from *:
    """
    static inline long long notifyloop_process(
        PyObject *function, PyObject *call, unsigned long long address, unsigned long long address_of_call) {
        long long value;
        if (address == 0) {
            PyObject *number = PyObject_CallOneArg(function, call);
            if (number == NULL) return -1;
            value = PyLong_AsLongLong(number);
            Py_DECREF(number);
            return value;
        }
        Py_BEGIN_ALLOW_THREADS
        value = ((int64_t (*)(void *))(uintptr_t)address)((void *)(uintptr_t)address_of_call);
        Py_END_ALLOW_THREADS
        return value;
    }

    static inline PyObject *notifyloop_pack(
        unsigned long long descriptor, unsigned long long key, unsigned int events, unsigned int operation, unsigned int trigger) {
        struct { uintptr_t socket; uintptr_t key; uint16_t events; uint8_t operation; uint8_t trigger; uint32_t result; }
            registration = {descriptor, key, events, operation, trigger, 0};
        return PyBytes_FromStringAndSize((const char *)&registration, sizeof registration);
    }

    static inline PyObject *notifyloop_unpack(PyObject *words, unsigned long long address, Py_ssize_t count) {
        const int64_t *word = (const int64_t *)(uintptr_t)address;
        PyObject *numbers = PyTuple_New(count), *number;
        Py_ssize_t i;
        for (i = 0; numbers != NULL && i < count; i++) {
            number = PyLong_FromLongLong(word[i]);
            if (number == NULL) Py_CLEAR(numbers);
            else PyTuple_SET_ITEM(numbers, i, number);
        }
        return numbers;
    }
    """
    long long process "notifyloop_process" (
        object function, object call, unsigned long long address, unsigned long long address_of_call) except? -1
    bytes pack "notifyloop_pack" (
        unsigned long long descriptor, unsigned long long key, unsigned int events, unsigned int operation, unsigned int trigger)
    tuple unpack "notifyloop_unpack" (object words, unsigned long long address, Py_ssize_t count)
