# What another Cython extension cimports: the classes. The burst verbs and the C structs are in virtio._ring.
from virtio._chain cimport Chain
from virtio._device_queue cimport DeviceQueue
from virtio._driver_queue cimport DriverQueue
from virtio._memory cimport GuestMemory
from virtio._region cimport Region
