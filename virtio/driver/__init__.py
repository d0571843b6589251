"""A virtio driver: negotiation and queues of a device that a bus found."""

from virtio.driver.driver import RING_FEATURES, AttachedQueue, Driver, QueuePlan, Transport

__all__ = ["RING_FEATURES", "AttachedQueue", "Driver", "QueuePlan", "Transport"]
