"""A device as plain data, and again from it: what Device.snapshot and Device.restore do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from virtio.constants import Feature, Status
from virtio.device.queue_state import QueueSlot
from virtio.errors import SnapshotError, SnapshotFeatures
from virtio.features import missing
from virtio.memory.guest_memory import GuestMemory
from virtio.virtqueue import saved
from virtio.virtqueue.device_queue import DeviceQueue

if TYPE_CHECKING:
    from virtio.device import Device


def take(device: Device) -> dict[str, Any]:
    """Return the state of a device, of which the caller has the lock. The device goes on."""
    if device.live and device.dma:
        device.pause()
    try:
        return {
            "device_type": int(device.device_type),
            "legacy": device.legacy,
            "acked": int(device.acked),
            "negotiated": int(device.negotiated),
            "status": int(device.status),
            "reason": device.reason,
            "generation": device.generation,
            "config": device.config.hex(),
            "queues": [
                {
                    "layout": asdict(slot.layout) if slot.layout else None,
                    "broken": slot.broken,
                    "early": None if slot.stood is None else slot.early,
                    "state": slot.queue.state() if slot.queue else None,
                }
                for slot in device.queues
            ],
            "own": device.save(),
        }
    finally:
        if device.live and device.dma:
            device.resume()


def put(device: Device, state: Mapping[str, Any], memory: GuestMemory) -> None:
    """Make a device, of which the caller has the lock, go on where a state was taken; reset it if that cannot be."""
    device.reset()
    device.memory = memory
    try:
        _put(device, state, memory)
    except BaseException:
        device.reset()
        raise


def _shape(device: Device) -> saved.Check:
    """Return the check of all that needs no other field."""
    queue = {
        "layout": saved.optional(saved.LAYOUT),
        "broken": saved.optional(saved.text),
        "early": saved.optional(saved.flag),  # None: kicks before DRIVER_OK start nothing
        "state": saved.optional(saved.mapping),
    }
    return saved.fields(
        {
            "device_type": saved.number(0, saved.U32),
            "legacy": saved.flag,
            "acked": saved.number(0, saved.FEATURES_MAX),
            "negotiated": saved.number(0, saved.FEATURES_MAX),
            "status": saved.number(0, saved.U8),
            "reason": saved.optional(saved.text),
            "generation": saved.number(0, saved.U64),
            "config": saved.hexadecimal(len(device.config)),
            "queues": saved.entries(saved.fields(queue), len(device.queues)),
            "own": saved.mapping,
        }
    )


def _put(device: Device, state: Mapping[str, Any], memory: GuestMemory) -> None:
    _shape(device)(state, "")
    _check_features(device, state)
    device.config[:] = bytes.fromhex(state["config"])
    device.acked, device.negotiated = state["acked"], state["negotiated"]
    device.status, device.reason, device.generation = state["status"], state["reason"], state["generation"]
    for slot, entry in zip(device.queues, state["queues"], strict=True):
        with saved.within(f"queues[{slot.index}]"):
            _put_queue(device, slot, entry, memory)
    with saved.within("own"):
        try:
            device.load(state["own"])
        except SnapshotError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError, ValueError) as error:
            raise SnapshotError("", f"is malformed: {type(error).__name__}: {error}") from error
    if device.dma and device.status & Status.DRIVER_OK and not device.status & Status.FAILED:
        device.go_live()
    # kicks are the driver's word that a legacy queue may be used before DRIVER_OK: then only those that came count
    kicks = not device.legacy or device.status & Status.DRIVER_OK or any(entry["early"] for entry in state["queues"])
    for slot in device.queues:
        if slot.enabled:
            slot.owed = device.live
            if kicks:
                slot.kick.ring()
            else:  # what waits is served after DRIVER_OK
                slot.kicked = device.handles(slot.index)
    device.begin_early()


def _check_features(device: Device, state: Mapping[str, Any]) -> None:
    kind, negotiated = int(device.device_type), state["negotiated"]
    if state["device_type"] != kind:
        raise SnapshotError("device_type", f"is {state['device_type']}: this device is of type {kind}")
    if bool(state["legacy"]) != device.legacy:
        kinds = ("modern", "legacy")
        raise SnapshotError(
            "legacy", f"is of the {kinds[state['legacy']]} interface, not of the {kinds[device.legacy]} one"
        )
    if lacking := negotiated & ~device.offered:
        raise SnapshotFeatures("negotiated", device.offered, negotiated, tuple(device.names(lacking)))
    for name, needs in missing(negotiated, kind):
        raise SnapshotError("negotiated", f"has {name} without {needs}")


def _put_queue(device: Device, slot: QueueSlot, entry: Mapping[str, Any], memory: GuestMemory) -> None:
    if entry["layout"] is not None:
        layout = saved.layout_of(entry["layout"], "layout")
        if layout.size > slot.size_max or layout.is_packed != bool(device.negotiated & Feature.RING_PACKED):
            raise SnapshotError("layout", f"is {layout}, which this device cannot have")
        slot.layout, slot.size, slot.enabled, slot.broken = layout, layout.size, True, entry["broken"]
        if entry["early"] is not None:
            slot.await_kick()
    if entry["state"] is not None:
        with saved.within("state"):
            queue = DeviceQueue.restore(memory, entry["state"])
            if (queue.layout, queue.features, queue.index) != (slot.layout, device.negotiated, slot.index):
                raise SnapshotError("", "is of a queue with another layout, other features or another index")
        slot.queue = queue
