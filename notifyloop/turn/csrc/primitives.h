/* What the names of primitives.py mean in compiled code; see primitives.pxd. */

#pragma once

#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

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

/* ---- classes */

/* A class has another version, or none, as soon as it or a base of it is changed: so one that is as it was has what it had. For the one
 * question that every turn asks. */
static inline int notifyloop_has_method(PyObject *kind, PyObject *name, PyObject *method) {
    static PyObject *known, *had;
    static unsigned int version;
    PyObject *found;
    if (kind == known && method == had && version != 0 && ((PyTypeObject *)kind)->tp_version_tag == version) return 1;
    found = PyObject_GetAttr(kind, name);
    if (found == NULL) return -1;
    Py_DECREF(found); /* the class has it */
    if (found != method) return 0;
    known = kind;
    had = method;
    version = ((PyTypeObject *)kind)->tp_version_tag;
    return 1;
}

/* ---- sockets */

/* How an object of _socket.socket begins; looked at when it is first needed, see below. */
typedef struct { PyObject_HEAD int descriptor, family; } notifyloop_socket;

static PyTypeObject *notifyloop_socket_type;
static unsigned int notifyloop_socket_version; /* of the type, for which all methods that are used are known to be C's own */

static inline PyObject *notifyloop_in_python(const char *name) {
    PyObject *module = PyImport_ImportModule("notifyloop.turn.primitives");
    PyObject *found = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    return found;
}

/* What the function of that name in primitives.py returns. */
static inline PyObject *notifyloop_by_python(const char *name, PyObject *sock, PyObject *first, PyObject *second) {
    PyObject *function = notifyloop_in_python(name), *result;
    Py_INCREF(sock); /* which whoever called may have from a field */
    result = function == NULL || first == NULL ? NULL : PyObject_CallFunctionObjArgs(function, sock, first, second, NULL);
    Py_DECREF(sock);
    Py_XDECREF(function);
    return result;
}

static inline int notifyloop_is_own(PyObject *base, const char *name) {
    PyObject *ours = PyObject_GetAttrString((PyObject *)notifyloop_socket_type, name);
    PyObject *theirs = PyObject_GetAttrString(base, name);
    int same = ours != NULL && ours == theirs;
    Py_XDECREF(ours);
    Py_XDECREF(theirs);
    PyErr_Clear();
    return same;
}

static inline long notifyloop_number(PyObject *number) {
    long value = number == NULL ? -1 : PyLong_AsLong(number);
    Py_XDECREF(number);
    PyErr_Clear();
    return value;
}

/* Whether a true socket's methods are not replaced, and its descriptor and family are where we think. */
static inline int notifyloop_look_at_sockets(PyObject *sock) {
    static const char *const methods[] = {"recv", "recv_into", "recvfrom", "send", "sendto", "fileno"};
    const notifyloop_socket *known = (const notifyloop_socket *)sock;
    PyObject *base;
    if (notifyloop_socket_type == NULL) {
        notifyloop_socket_type = (PyTypeObject *)notifyloop_in_python("TrueSocket");
        if (notifyloop_socket_type == NULL) { PyErr_Clear(); return 0; }
    }
    if (Py_TYPE(sock) != notifyloop_socket_type) return 0;
    base = (PyObject *)notifyloop_socket_type->tp_base;
    if (base == NULL || ((PyTypeObject *)base)->tp_basicsize < (Py_ssize_t)sizeof(notifyloop_socket)) return 0;
    for (size_t i = 0; i < sizeof(methods) / sizeof(*methods); i++)
        if (!notifyloop_is_own(base, methods[i])) return 0;
    if (known->descriptor < 0 || notifyloop_number(PyObject_CallMethod(sock, "fileno", NULL)) != known->descriptor
        || notifyloop_number(PyObject_GetAttrString(sock, "family")) != known->family) return 0;
    notifyloop_socket_version = notifyloop_socket_type->tp_version_tag;
    return 1;
}

/* The descriptor, or -1 if Python is to do it. A type that is changed loses its version. */
static inline int notifyloop_descriptor(PyObject *sock) {
    if (Py_TYPE(sock) == notifyloop_socket_type && notifyloop_socket_version
        && notifyloop_socket_type->tp_version_tag == notifyloop_socket_version)
        return ((notifyloop_socket *)sock)->descriptor;
    return notifyloop_look_at_sockets(sock) ? ((notifyloop_socket *)sock)->descriptor : -1;
}

/* For what a socket that would block says; else there is an exception. */
static inline int notifyloop_would_block(void) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 1;
    PyErr_SetFromErrno(PyExc_OSError);
    return 0;
}

/* None of these lets go of the interpreter's lock: they do not wait. */

static inline PyObject *notifyloop_receive(PyObject *sock, Py_ssize_t size) {
    int descriptor = size < 0 ? -1 : notifyloop_descriptor(sock);
    PyObject *data, *number;
    Py_ssize_t count;
    if (descriptor < 0) {
        number = PyLong_FromSsize_t(size);
        data = notifyloop_by_python("receive", sock, number, NULL);
        Py_XDECREF(number);
        return data;
    }
    data = PyBytes_FromStringAndSize(NULL, size);
    if (data == NULL) return NULL;
    count = recv(descriptor, PyBytes_AS_STRING(data), (size_t)size, MSG_DONTWAIT);
    if (count < 0) {
        Py_DECREF(data);
        return notifyloop_would_block() ? Py_NewRef(Py_None) : NULL;
    }
    if (count != size) _PyBytes_Resize(&data, count);
    return data;
}

/* -2 for an exception. */
static inline Py_ssize_t notifyloop_receive_into(PyObject *sock, PyObject *buffer) {
    int descriptor = notifyloop_descriptor(sock);
    Py_buffer view;
    Py_ssize_t count;
    PyObject *number;
    if (descriptor >= 0 && PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE) == 0) {
        count = view.len == 0 ? 0 : recv(descriptor, view.buf, (size_t)view.len, MSG_DONTWAIT);
        if (count < 0 && !notifyloop_would_block()) count = -2;
        PyBuffer_Release(&view);
        return count;
    }
    PyErr_Clear();
    number = notifyloop_by_python("receive_into", sock, buffer, NULL);
    count = number == NULL ? -2 : PyLong_AsSsize_t(number);
    Py_XDECREF(number);
    return count;
}

/* Written by hand, for inet_ntop() takes longer than all the rest of a datagram's way. */
static inline Py_ssize_t notifyloop_write_address(char *host, const unsigned char *bytes) {
    char *to = host;
    for (int i = 0; i < 4; i++) {
        unsigned value = bytes[i];
        if (i) *to++ = '.';
        if (value >= 100) *to++ = (char)('0' + value / 100);
        if (value >= 10) *to++ = (char)('0' + value / 10 % 10);
        *to++ = (char)('0' + value % 10);
    }
    return to - host;
}

static inline PyObject *notifyloop_address(const struct sockaddr_storage *address) {
    char host[INET6_ADDRSTRLEN];
    const struct sockaddr_in *four = (const struct sockaddr_in *)address;
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)address;
    PyObject *name, *port, *both;
    if (address->ss_family == AF_INET6) {
        inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof(host));
        return Py_BuildValue("(siII)", host, ntohs(six->sin6_port), ntohl(six->sin6_flowinfo), six->sin6_scope_id);
    }
    name = PyUnicode_FromStringAndSize(host, notifyloop_write_address(host, (const unsigned char *)&four->sin_addr));
    port = PyLong_FromLong(ntohs(four->sin_port));
    both = name == NULL || port == NULL ? NULL : PyTuple_Pack(2, name, port);
    Py_XDECREF(name);
    Py_XDECREF(port);
    return both;
}

static inline int notifyloop_is_internet(int family) { return family == AF_INET || family == AF_INET6; }

#define NOTIFYLOOP_LARGEST 65536 /* bytes; no Internet datagram has so many */

static inline PyObject *notifyloop_receive_from(PyObject *sock, Py_ssize_t size) {
    static char datagram[NOTIFYLOOP_LARGEST]; /* nobody else is here meanwhile: there is the interpreter's lock */
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);
    int descriptor = size < 0 || size > NOTIFYLOOP_LARGEST ? -1 : notifyloop_descriptor(sock);
    PyObject *data, *sender, *number, *both;
    Py_ssize_t count;
    if (descriptor < 0 || !notifyloop_is_internet(((notifyloop_socket *)sock)->family)) {
        number = PyLong_FromSsize_t(size);
        both = notifyloop_by_python("receive_from", sock, number, NULL);
        Py_XDECREF(number);
        return both;
    }
    memset(&address, 0, sizeof(struct sockaddr_in6));
    count = recvfrom(descriptor, datagram, (size_t)size, MSG_DONTWAIT, (struct sockaddr *)&address, &length);
    if (count < 0) return notifyloop_would_block() ? Py_NewRef(Py_None) : NULL;
    data = PyBytes_FromStringAndSize(datagram, count);
    sender = length && notifyloop_is_internet(address.ss_family) ? notifyloop_address(&address) : Py_NewRef(Py_None);
    both = data == NULL || sender == NULL ? NULL : PyTuple_Pack(2, data, sender);
    Py_XDECREF(data);
    Py_XDECREF(sender);
    return both;
}

static inline Py_ssize_t notifyloop_send(PyObject *sock, PyObject *data) {
    int descriptor = notifyloop_descriptor(sock);
    Py_ssize_t count;
    Py_buffer view;
    PyObject *number;
    if (descriptor >= 0 && PyBytes_CheckExact(data)) {
        count = send(descriptor, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL);
        return count < 0 && notifyloop_would_block() ? 0 : count;
    }
    if (descriptor >= 0 && PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) == 0) {
        count = send(descriptor, view.buf, (size_t)view.len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0 && notifyloop_would_block()) count = 0;
        PyBuffer_Release(&view);
        return count;
    }
    PyErr_Clear();
    number = notifyloop_by_python("send", sock, data, NULL);
    count = number == NULL ? -1 : PyLong_AsSsize_t(number);
    Py_XDECREF(number);
    return count;
}

/* An address that needs not be looked up. Returns its length, or 0 if it is Python's to understand. */
static inline socklen_t notifyloop_plain_address(PyObject *address, int family, struct sockaddr_storage *parsed) {
    struct sockaddr_in *four = (struct sockaddr_in *)parsed;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)parsed;
    const char *host;
    Py_ssize_t length;
    long port;
    if (!PyTuple_CheckExact(address) || PyTuple_GET_SIZE(address) != 2) return 0;
    if (!PyUnicode_CheckExact(PyTuple_GET_ITEM(address, 0)) || !PyLong_CheckExact(PyTuple_GET_ITEM(address, 1))) return 0;
    host = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(address, 0), &length);
    port = PyLong_AsLong(PyTuple_GET_ITEM(address, 1));
    if (host == NULL || (port == -1 && PyErr_Occurred())) { PyErr_Clear(); return 0; }
    if (port < 0 || port > 65535 || strlen(host) != (size_t)length) return 0;
    memset(parsed, 0, sizeof(*six));
    parsed->ss_family = (sa_family_t)family;
    if (family == AF_INET) {
        four->sin_port = htons((uint16_t)port);
        return inet_pton(AF_INET, host, &four->sin_addr) == 1 ? sizeof(*four) : 0;
    }
    six->sin6_port = htons((uint16_t)port);
    return inet_pton(AF_INET6, host, &six->sin6_addr) == 1 ? sizeof(*six) : 0;
}

static inline int notifyloop_send_to(PyObject *sock, PyObject *data, PyObject *address) {
    struct sockaddr_storage parsed;
    socklen_t length = 0;
    int descriptor = notifyloop_descriptor(sock), sent;
    Py_ssize_t count;
    Py_buffer view;
    PyObject *result;
    if (descriptor >= 0 && address != Py_None) {
        int family = ((notifyloop_socket *)sock)->family;
        length = notifyloop_is_internet(family) ? notifyloop_plain_address(address, family, &parsed) : 0;
        if (length == 0) descriptor = -1;
        else if (PySys_Audit("socket.sendto", "OO", sock, address) < 0) return -1;
    }
    if (descriptor >= 0 && PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) == 0) {
        count = sendto(descriptor, view.buf, (size_t)view.len, MSG_DONTWAIT | MSG_NOSIGNAL,
                       length ? (struct sockaddr *)&parsed : NULL, length);
        sent = count >= 0 ? 1 : notifyloop_would_block() ? 0 : -1;
        PyBuffer_Release(&view);
        return sent;
    }
    PyErr_Clear();
    result = notifyloop_by_python("send_to", sock, data, address);
    sent = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    return sent;
}
