/* SPDX-License-Identifier: BSD-2-Clause
 *
 * virtio for C: the verbs of the rings as function pointers, behind one versioned capsule.
 *
 *   const virtio_api *api = virtio_import_api();   with the GIL; NULL and a Python exception when it fails
 *   virtio_driver_queue *q = api->driver_queue(o); the struct of a virtio.DriverQueue, valid while you hold a reference
 *
 * Every other function may be called without the GIL and raises nothing; hold the queue's lock for each burst. What
 * they do stands in virtio/_ring.pxd. Compile with -I of virtio.get_include().
 */
#ifndef VIRTIO_CAPI_H
#define VIRTIO_CAPI_H

#include <Python.h>

#include "virtio/queue.h"

#define VIRTIO_API_CAPSULE "virtio._capi._C_API"
#define VIRTIO_API_VERSION 1u /* grows when a struct or a meaning changes; new functions only make `size` grow */

typedef struct virtio_api {
    uint32_t version;
    uint32_t size; /* of this struct, as the package has it */

    /* with the GIL; NULL and TypeError for another object. Borrowed: they live as long as the object */
    virtio_memory *(*memory)(PyObject *guest_memory);
    virtio_driver_queue *(*driver_queue)(PyObject *driver_queue);
    virtio_device_queue *(*device_queue)(PyObject *device_queue);

    void (*lock)(uint32_t *lock); /* &q->lock */
    void (*unlock)(uint32_t *lock);
    uint8_t *(*translate)(const virtio_memory *memory, uint64_t gpa, uint64_t length);

    uint32_t (*driver_enqueue_burst)(virtio_driver_queue *q, const virtio_sg *sg, virtio_request *req, uint32_t n,
                                     int *why);
    uint32_t (*driver_dequeue_burst)(virtio_driver_queue *q, virtio_completion *out, uint32_t limit);
    int (*driver_notify)(virtio_driver_queue *q);
    int (*driver_enable_intr)(virtio_driver_queue *q);
    int (*driver_postpone_intr)(virtio_driver_queue *q, int hint);
    void (*driver_disable_intr)(virtio_driver_queue *q);

    uint32_t (*device_pop_burst)(virtio_device_queue *q, virtio_chain *chains, uint32_t limit, struct iovec *segs,
                                 uint32_t nsegs);
    void (*device_log_written)(virtio_device_queue *q, const virtio_chain *chain, const struct iovec *segs);
    void (*device_add_used_burst)(virtio_device_queue *q, const virtio_chain *chains, uint32_t n);
    int (*device_needs_notification)(virtio_device_queue *q);
    int (*device_enable_notification)(virtio_device_queue *q);
    void (*device_disable_notification)(virtio_device_queue *q);
} virtio_api;

static inline const virtio_api *virtio_import_api(void)
{
    const virtio_api *api;
    PyObject *module = PyImport_ImportModule("virtio._capi");
    if (module == NULL)
        return NULL;
    Py_DECREF(module); /* sys.modules keeps it */
    api = (const virtio_api *)PyCapsule_Import(VIRTIO_API_CAPSULE, 0);
    if (api == NULL)
        return NULL;
    if (api->version != VIRTIO_API_VERSION || api->size < sizeof(virtio_api)) {
        PyErr_Format(PyExc_ImportError, "virtio has C API version %u of %u bytes; this was compiled for %u of %u bytes",
                     api->version, api->size, VIRTIO_API_VERSION, (unsigned)sizeof(virtio_api));
        return NULL;
    }
    return api;
}

#endif
