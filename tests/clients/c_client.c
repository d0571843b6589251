/* A client of virtio's C interface: an extension module that moves chains through the function pointers. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "virtio/capi.h"

static const virtio_api *api;

/* through(driver, device, memory, gpa, count) -> (chains back, sum of cookies, first byte of the buffer) */
static PyObject *through(PyObject *self, PyObject *args)
{
    PyObject *driver, *device, *memory;
    unsigned long long gpa;
    unsigned int count, back = 0, sent = 0;
    unsigned long long cookies = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOKI", &driver, &device, &memory, &gpa, &count))
        return NULL;
    virtio_driver_queue *dq = api->driver_queue(driver);
    virtio_device_queue *vq = dq ? api->device_queue(device) : NULL;
    virtio_memory *mem = vq ? api->memory(memory) : NULL;
    if (mem == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    while (back < count) {
        virtio_sg sg = {.gpa = gpa, .len = 8};
        virtio_request req = {.cookie = sent, .writable = 1};
        virtio_completion out;
        virtio_chain chain;
        struct iovec segs[8];
        int why;
        api->lock(&dq->lock);
        sent += api->driver_enqueue_burst(dq, &sg, &req, 1, &why);
        api->unlock(&dq->lock);
        api->lock(&vq->lock);
        if (api->device_pop_burst(vq, &chain, 1, segs, 8)) {
            memset(segs[chain.first].iov_base, 'c', 8);
            chain.written = 8;
            api->device_log_written(vq, &chain, segs);
            api->device_add_used_burst(vq, &chain, 1);
        }
        api->unlock(&vq->lock);
        api->lock(&dq->lock);
        uint32_t n = api->driver_dequeue_burst(dq, &out, 1);
        api->unlock(&dq->lock);
        if (n == 0)
            break;
        back += n;
        cookies += out.cookie * (out.len == 8);
    }
    Py_END_ALLOW_THREADS
    return Py_BuildValue("IKi", back, cookies, (int)*api->translate(mem, gpa, 8));
}

static PyMethodDef methods[] = {{"through", through, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "c_client", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_c_client(void)
{
    api = virtio_import_api();
    return api ? PyModule_Create(&module) : NULL;
}
