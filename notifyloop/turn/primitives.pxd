# What the names of primitives.py mean in compiled code, on Linux and where the interpreter has a lock, for nothing is
# compiled elsewhere: C, put in where it is called. What C cannot know to be what Python would do is left to Python.


cdef extern from *:
    """
    /* ---- references */

    static inline Py_ssize_t notifyloop_references(PyObject *object) { return Py_REFCNT(object); }

    /* Compiled functions have no frames that could be left out. */
    static inline PyObject *notifyloop_leave_out(PyObject *handle, int frames) { return Py_NewRef(handle); }

    /* ---- calls in a context */

    static inline PyObject *notifyloop_vectorcall_in(
        PyObject *context, PyObject *callback, PyObject **arguments, Py_ssize_t count) {
        PyObject *result;
        if (PyContext_Enter(context) < 0) return NULL;
        result = PyObject_Vectorcall(callback, arguments, (size_t)count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        if (PyContext_Exit(context) < 0) Py_CLEAR(result);
        return result;
    }

    static inline PyObject *notifyloop_call_in(PyObject *context, PyObject *callback, PyObject *argument) {
        PyObject *arguments[2] = {NULL, argument};
        return notifyloop_vectorcall_in(context, callback, arguments + 1, 1);
    }

    static inline PyObject *notifyloop_call_in_alone(PyObject *context, PyObject *callback) {
        PyObject *arguments[1] = {NULL};
        return notifyloop_vectorcall_in(context, callback, arguments + 1, 0);
    }

    static inline PyObject *notifyloop_call_in_all(PyObject *context, PyObject *callback, PyObject *arguments) {
        PyObject *result;
        if (PyContext_Enter(context) < 0) return NULL;
        result = PyObject_Call(callback, arguments, NULL);
        if (PyContext_Exit(context) < 0) Py_CLEAR(result);
        return result;
    }

    static inline PyObject *notifyloop_call_method_in(
        PyObject *context, PyObject *target, PyObject *name, PyObject *argument) {
        PyObject *result, *arguments[2] = {target, argument};
        if (PyContext_Enter(context) < 0) return NULL;
        Py_INCREF(target); /* which whoever called may have from a field, as the context, which is held while it is entered */
        result = PyObject_VectorcallMethod(name, arguments, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        Py_DECREF(target);
        if (PyContext_Exit(context) < 0) Py_CLEAR(result);
        return result;
    }

    /* ---- sockets */

    #include <sys/socket.h>

    /* How an object of _socket.socket begins; looked at when it is first needed, see below. */
    typedef struct { PyObject_HEAD int descriptor; } notifyloop_socket;

    static PyTypeObject *notifyloop_socket_type;
    static unsigned int notifyloop_socket_version; /* of the type, for which recv() and send() are known to be C's own */

    static inline int notifyloop_is_own(PyObject *base, const char *name) {
        PyObject *ours = PyObject_GetAttrString((PyObject *)notifyloop_socket_type, name);
        PyObject *theirs = PyObject_GetAttrString(base, name);
        int same = ours != NULL && ours == theirs;
        Py_XDECREF(ours);
        Py_XDECREF(theirs);
        PyErr_Clear();
        return same;
    }

    /* Whether a true socket's methods are not replaced, and its descriptor is where we think. */
    static inline int notifyloop_look_at_sockets(PyObject *sock) {
        PyObject *module, *base, *number;
        long descriptor;
        int known = 0;
        if (notifyloop_socket_type == NULL) {
            module = PyImport_ImportModule("notifyloop.turn.primitives");
            if (module == NULL) { PyErr_Clear(); return 0; }
            notifyloop_socket_type = (PyTypeObject *)PyObject_GetAttrString(module, "TrueSocket");
            Py_DECREF(module);
            if (notifyloop_socket_type == NULL) { PyErr_Clear(); return 0; }
        }
        if (Py_TYPE(sock) != notifyloop_socket_type) return 0;
        base = (PyObject *)notifyloop_socket_type->tp_base;
        if (base == NULL || ((PyTypeObject *)base)->tp_basicsize < (Py_ssize_t)sizeof(notifyloop_socket)) return 0;
        if (notifyloop_is_own(base, "recv") && notifyloop_is_own(base, "send") && notifyloop_is_own(base, "fileno")) {
            number = PyObject_CallMethod(sock, "fileno", NULL);
            descriptor = number == NULL ? -2 : PyLong_AsLong(number);
            Py_XDECREF(number);
            PyErr_Clear();
            known = descriptor >= 0 && descriptor == ((notifyloop_socket *)sock)->descriptor;
        }
        if (known) notifyloop_socket_version = notifyloop_socket_type->tp_version_tag;
        return known;
    }

    /* The descriptor, or -1 if Python is to do it. A type that is changed loses its version. */
    static inline int notifyloop_descriptor(PyObject *sock) {
        if (Py_TYPE(sock) == notifyloop_socket_type && notifyloop_socket_version
            && notifyloop_socket_type->tp_version_tag == notifyloop_socket_version)
            return ((notifyloop_socket *)sock)->descriptor;
        return notifyloop_look_at_sockets(sock) ? ((notifyloop_socket *)sock)->descriptor : -1;
    }

    /* Neither lets go of the interpreter's lock: they do not wait, for the sockets are not blocking. */
    static inline PyObject *notifyloop_receive(PyObject *sock, Py_ssize_t size) {
        int descriptor = notifyloop_descriptor(sock);
        PyObject *data;
        Py_ssize_t count;
        if (descriptor < 0) {
            Py_INCREF(sock); /* which whoever called may have from a field */
            data = PyObject_CallMethod(sock, "recv", "n", size);
            Py_DECREF(sock);
            return data;
        }
        data = PyBytes_FromStringAndSize(NULL, size);
        if (data == NULL) return NULL;
        count = recv(descriptor, PyBytes_AS_STRING(data), (size_t)size, MSG_DONTWAIT);
        if (count < 0) {
            Py_DECREF(data);
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (count != size) _PyBytes_Resize(&data, count);
        return data;
    }

    static inline Py_ssize_t notifyloop_send(PyObject *sock, PyObject *data) {
        int descriptor = PyBytes_CheckExact(data) ? notifyloop_descriptor(sock) : -1;
        Py_ssize_t count;
        PyObject *number;
        if (descriptor < 0) {
            Py_INCREF(sock);
            number = PyObject_CallMethod(sock, "send", "Oi", data, MSG_NOSIGNAL);
            Py_DECREF(sock);
            if (number == NULL) return -1;
            count = PyLong_AsSsize_t(number);
            Py_DECREF(number);
            return count;
        }
        count = send(descriptor, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0) PyErr_SetFromErrno(PyExc_OSError);
        return count;
    }
    """
    bint FREE_THREADED "0"
    Py_ssize_t UNSHARED "1"  # a lone variable of compiled code has the one reference that it is counted for
    Py_ssize_t getrefcount "notifyloop_references" (object handle)
    object leave_out "notifyloop_leave_out" (object handle, int frames)
    object call_in "notifyloop_call_in" (object context, object callback, object argument)
    object call_in_alone "notifyloop_call_in_alone" (object context, object callback)
    object call_in_all "notifyloop_call_in_all" (object context, object callback, object arguments)
    object call_method_in "notifyloop_call_method_in" (object context, object target, object name, object argument)
    object receive "notifyloop_receive" (object sock, Py_ssize_t size)
    Py_ssize_t send "notifyloop_send" (object sock, object data) except -1
