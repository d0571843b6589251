# What another Cython extension cimports: the classes. The burst verbs and the C structs are in virtio._ring.
from virtio.virtqueue.chain cimport Chain
from virtio.virtqueue.device_queue cimport DeviceQueue
from virtio.virtqueue.driver_queue cimport DriverQueue
from virtio.memory.guest_memory cimport GuestMemory
from virtio.memory.region cimport Region
