"""The C interface: the verbs as a struct of function pointers in the capsule ``_C_API``. See include/virtio/capi.h."""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtio._ring cimport (
    device_add_used_burst, device_disable_notification, device_enable_notification, device_log_written,
    device_needs_notification, device_pop_burst, driver_dequeue_burst, driver_disable_intr, driver_enable_intr,
    driver_enqueue_burst, driver_notify, driver_postpone_intr,
)
from virtio.core.iov cimport iovec
from virtio.core.lock cimport queue_lock, queue_unlock
from virtio.memory.guest_memory cimport GuestMemory, memory_translate, virtio_memory, virtio_region
from virtio.virtqueue.device_queue cimport DeviceQueue
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.virtqueue.structs cimport (
    virtio_chain, virtio_completion, virtio_device_queue, virtio_driver_queue, virtio_request, virtio_sg,
)


cdef extern from "virtio/capi.h":
    const char *VIRTIO_API_CAPSULE
    uint32_t VIRTIO_API_VERSION

    ctypedef struct virtio_api:
        uint32_t version
        uint32_t size
        virtio_memory *(*memory)(object) except NULL
        virtio_driver_queue *(*driver_queue)(object) except NULL
        virtio_device_queue *(*device_queue)(object) except NULL
        void (*lock)(uint32_t *) noexcept nogil
        void (*unlock)(uint32_t *) noexcept nogil
        uint8_t *(*translate)(const virtio_memory *, uint64_t, uint64_t) noexcept nogil
        uint32_t (*driver_enqueue_burst)(virtio_driver_queue *, const virtio_sg *, virtio_request *, uint32_t,
                                         int *) noexcept nogil
        uint32_t (*driver_dequeue_burst)(virtio_driver_queue *, virtio_completion *, uint32_t) noexcept nogil
        bint (*driver_notify)(virtio_driver_queue *) noexcept nogil
        bint (*driver_enable_intr)(virtio_driver_queue *) noexcept nogil
        bint (*driver_postpone_intr)(virtio_driver_queue *, int) noexcept nogil
        void (*driver_disable_intr)(virtio_driver_queue *) noexcept nogil
        uint32_t (*device_pop_burst)(virtio_device_queue *, virtio_chain *, uint32_t, iovec *, uint32_t) noexcept nogil
        void (*device_log_written)(virtio_device_queue *, const virtio_chain *, const iovec *) noexcept nogil
        void (*device_add_used_burst)(virtio_device_queue *, const virtio_chain *, uint32_t) noexcept nogil
        bint (*device_needs_notification)(virtio_device_queue *) noexcept nogil
        bint (*device_enable_notification)(virtio_device_queue *) noexcept nogil
        void (*device_disable_notification)(virtio_device_queue *) noexcept nogil


cdef virtio_memory *memory_of(object o) except NULL:
    return &(<GuestMemory?>o).c


cdef virtio_driver_queue *driver_of(object o) except NULL:
    return (<DriverQueue?>o).q


cdef virtio_device_queue *device_of(object o) except NULL:
    return (<DeviceQueue?>o).q


cdef uint8_t *translate(const virtio_memory *memory, uint64_t gpa, uint64_t length) noexcept nogil:
    cdef virtio_region hit
    hit.gpa = hit.size = hit.uaddr = 0
    hit.host = NULL
    return memory_translate(memory, &hit, gpa, length)


cdef virtio_api api
api.version = VIRTIO_API_VERSION
api.size = sizeof(virtio_api)
api.memory = memory_of
api.driver_queue = driver_of
api.device_queue = device_of
api.lock = queue_lock
api.unlock = queue_unlock
api.translate = translate
api.driver_enqueue_burst = driver_enqueue_burst
api.driver_dequeue_burst = driver_dequeue_burst
api.driver_notify = driver_notify
api.driver_enable_intr = driver_enable_intr
api.driver_postpone_intr = driver_postpone_intr
api.driver_disable_intr = driver_disable_intr
api.device_pop_burst = device_pop_burst
api.device_log_written = device_log_written
api.device_add_used_burst = device_add_used_burst
api.device_needs_notification = device_needs_notification
api.device_enable_notification = device_enable_notification
api.device_disable_notification = device_disable_notification

_C_API = PyCapsule_New(&api, VIRTIO_API_CAPSULE, NULL)
