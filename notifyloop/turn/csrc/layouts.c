/* Compiled code reads the slots of classes that are written in Python as fields of a structure. This is what makes that right.
 *
 * Such code looks neither where a slot lies nor whether there is something in it. Where it lies is compared before anything else of the
 * package is imported: see notifyloop/form.py, which takes the files as they are written if it is elsewhere. That there is always something
 * in it, guard() sees to. Python leaves a slot empty in an object that is new, after `del`, and when the collector breaks a cycle; in a
 * guarded class there is None, from the first to the last, and it refuses `del`. Cython does the same for its own classes.
 *
 * layouts.h is written when this is compiled, by layouts_build.py: the structures, and TOLD, what they were made from.
 */

#include <Python.h>
#if PY_VERSION_HEX < 0x030C0000
#include <structmember.h>
#define Py_T_OBJECT_EX T_OBJECT_EX
#endif

#include "layouts.h"

/* Nothing but slots stands in these objects, apart from the list of weak references, which moves out of them in Python 3.12. */
#define FOR_EACH_SLOT(slot, self)                                                                                          \
    for (PyObject **slot = (PyObject **)((char *)(self) + PyBaseObject_Type.tp_basicsize);                                 \
         (char *)slot < (char *)(self) + Py_TYPE(self)->tp_basicsize; slot++)                                              \
        if ((char *)slot != (char *)(self) + Py_TYPE(self)->tp_weaklistoffset)

static PyObject *allocate(PyTypeObject *type, Py_ssize_t items)
{
    PyObject *self = PyType_GenericAlloc(type, items);
    if (self != NULL)
        FOR_EACH_SLOT(slot, self)
            *slot = Py_NewRef(Py_None);
    return self;
}

static int clear(PyObject *self)
{
    FOR_EACH_SLOT(slot, self) {
        PyObject *held = *slot;
        *slot = Py_NewRef(Py_None);
        Py_XDECREF(held);
    }
    if (PyType_HasFeature(Py_TYPE(self), Py_TPFLAGS_MANAGED_DICT)) {
        PyObject *dict = PyObject_GenericGetDict(self, NULL);
        if (dict == NULL)
            return -1;
        PyDict_Clear(dict);
        Py_DECREF(dict);
    }
    return 0;
}

static int is_slot(PyObject *descriptor)
{
    return Py_IS_TYPE(descriptor, &PyMemberDescr_Type) && ((PyMemberDescrObject *)descriptor)->d_member->type == Py_T_OBJECT_EX;
}

static int set_attribute(PyObject *self, PyObject *name, PyObject *value)
{
    if (value == NULL) {
        PyObject *descriptor = PyObject_GetAttr((PyObject *)Py_TYPE(self), name);
        int refused = descriptor != NULL && is_slot(descriptor);
        Py_XDECREF(descriptor);
        if (refused) {
            PyErr_Format(PyExc_TypeError, "cannot delete %R of '%.100s' object, which compiled code reads", name, Py_TYPE(self)->tp_name);
            return -1;
        }
        PyErr_Clear();
    }
    return PyObject_GenericSetAttr(self, name, value);
}

/* Another function than other classes have, so that no object of theirs can be made one of ours by assigning to its __class__. */
static void release(void *self)
{
    PyObject_GC_Del(self);
}

/* The number of slots of a class and its bases, or -1. */
static Py_ssize_t count_slots(PyTypeObject *type)
{
    Py_ssize_t count = 0;
    for (; type != NULL; type = type->tp_base)
        for (PyMemberDef *member = type->tp_members; member != NULL && member->name != NULL; member++)
            count += member->type == Py_T_OBJECT_EX;
    return count;
}

static int guard_with_subclasses(PyTypeObject *type);

static int guard_subclasses(PyTypeObject *type)
{
    PyObject *subclasses = PyObject_CallMethod((PyObject *)type, "__subclasses__", NULL);
    if (subclasses == NULL)
        return -1;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(subclasses); index++)
        if (guard_with_subclasses((PyTypeObject *)PyList_GET_ITEM(subclasses, index)) < 0) {
            Py_DECREF(subclasses);
            return -1;
        }
    Py_DECREF(subclasses);
    return 0;
}

static int guard_with_subclasses(PyTypeObject *type)
{
    Py_ssize_t words = (type->tp_basicsize - PyBaseObject_Type.tp_basicsize) / (Py_ssize_t)sizeof(PyObject *);
    if (words != count_slots(type) + (type->tp_weaklistoffset > 0)) {
        PyErr_Format(PyExc_TypeError, "'%.100s' objects have more in them than slots", type->tp_name);
        return -1;
    }
    type->tp_alloc = allocate;
    type->tp_clear = clear;
    type->tp_free = release;
    if (type->tp_setattro == PyObject_GenericSetAttr)
        type->tp_setattro = set_attribute;
    PyType_Modified(type);
    return guard_subclasses(type);
}

/* The __init_subclass__ of a guarded class, which is `self`. */
static PyObject *init_subclass(PyObject *self, PyObject *args, PyObject *keywords)
{
    PyObject *subclass;
    if (!PyArg_ParseTuple(args, "O!", &PyType_Type, &subclass))
        return NULL;
    PyObject *next = PyObject_CallFunctionObjArgs((PyObject *)&PySuper_Type, self, subclass, NULL);
    PyObject *method = next != NULL ? PyObject_GetAttrString(next, "__init_subclass__") : NULL;
    Py_XDECREF(next);
    if (method == NULL)
        return NULL;
    PyObject *result = PyObject_VectorcallDict(method, NULL, 0, keywords);
    Py_DECREF(method);
    if (result != NULL && guard_with_subclasses((PyTypeObject *)subclass) < 0)
        Py_CLEAR(result);
    return result;
}

static PyMethodDef init_subclass_definition = {
    "__init_subclass__", (PyCFunction)(void (*)(void))init_subclass, METH_VARARGS | METH_KEYWORDS, NULL,
};

static PyObject *guard(PyObject *module, PyObject *type)
{
    (void)module;
    if (!PyType_Check(type) || !PyType_HasFeature((PyTypeObject *)type, Py_TPFLAGS_HEAPTYPE) || !PyType_IS_GC((PyTypeObject *)type))
        return PyErr_Format(PyExc_TypeError, "%R is no class that can be guarded", type);
    PyObject *function = PyCFunction_New(&init_subclass_definition, type);
    PyObject *hook = function != NULL ? PyClassMethod_New(function) : NULL;
    int failed = hook == NULL || PyObject_SetAttrString(type, "__init_subclass__", hook) < 0;
    Py_XDECREF(function);
    Py_XDECREF(hook);
    if (failed || guard_with_subclasses((PyTypeObject *)type) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *offset(PyObject *module, PyObject *descriptor)
{
    (void)module;
    return PyLong_FromSsize_t(is_slot(descriptor) ? ((PyMemberDescrObject *)descriptor)->d_member->offset : -1);
}

static PyMethodDef methods[] = {
    {"guard", guard, METH_O, "Have no slot of a class and its subclasses ever be empty."},
    {"offset", offset, METH_O, "Where a slot lies in an object, or -1 if it is none."},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    /* What is compiled knows one interpreter: the main one, and not whichever came first. */
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "this is a sub-interpreter");
        return -1;
    }
    PyObject *names = PyModule_GetDict(module);
    PyObject *result = PyRun_String(TOLD, Py_file_input, names, names);
    Py_XDECREF(result);
    return result != NULL ? 0 : -1;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "layouts",
    .m_doc = "What the compiled modules beside were told, and how the classes that they read are kept as they expect.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_layouts(void)
{
    return PyModuleDef_Init(&definition);
}
