"""A device as plain data, and again from it: what Device.snapshot and Device.restore do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from virtio._device_queue import DeviceQueue
from virtio._memory import GuestMemory
from virtio.constants import Feature, Status
from virtio.errors import NegotiationError
from virtio.layout import QueueLayout

if TYPE_CHECKING:
    from virtio.device import Device


def take(device: Device) -> dict[str, Any]:
    """Return the state of a device, which goes on."""
    with device._control():
        if device.live and device._dma:
            device.pause()
        try:
            return {
                "device_type": int(device.device_type),
                "legacy": device.legacy,
                "acked": int(device._acked),
                "negotiated": int(device.negotiated),
                "status": int(device.status),
                "reason": device.reason,
                "generation": device.generation,
                "config": device.config.hex(),
                "queues": [
                    {
                        "layout": asdict(slot.layout) if slot.layout else None,
                        "broken": slot.broken,
                        "early": slot.early,
                        "state": slot.queue.state() if slot.queue else None,
                    }
                    for slot in device.queues
                ],
                "own": device.save(),
            }
        finally:
            if device.live and device._dma:
                device.resume()


def put(device: Device, state: Mapping[str, Any], memory: GuestMemory) -> None:
    """Make a device go on where a state was taken; reset it if that cannot be."""
    with device._control():
        device.reset()
        device.memory = memory
        try:
            _put(device, state, memory)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            device.reset()
            raise ValueError(f"state is malformed: {type(error).__name__}: {error}") from error
        except BaseException:
            device.reset()
            raise


def _put(device: Device, state: Mapping[str, Any], memory: GuestMemory) -> None:
    if state["device_type"] != device.device_type:
        raise ValueError(
            f"state is of a device of type {state['device_type']}, this one is of {int(device.device_type)}"
        )
    for key in ("status", "generation", "acked", "negotiated"):
        if type(state[key]) is not int or state[key] < 0 or (key == "status" and state[key] > 0xFF):
            raise ValueError(f"state has {key} {state[key]!r}")
    if bool(state["legacy"]) != device.legacy:
        kinds = ("modern", "legacy")
        raise ValueError(
            f"state is of the {kinds[bool(state['legacy'])]} interface, not of the {kinds[device.legacy]} one"
        )
    if len(state["queues"]) != len(device.queues):
        raise ValueError(f"state has {len(state['queues'])} queues, this device {len(device.queues)}")
    if lacking := state["negotiated"] & ~device.offered:
        names = tuple(device.names(lacking))
        text = f"state has features that this device does not offer: {', '.join(names)}"
        raise NegotiationError(text, device.offered, state["negotiated"], names)
    config = bytes.fromhex(state["config"])
    if len(config) != len(device.config):
        raise ValueError(f"state has a config space of {len(config)} bytes, this device {len(device.config)}")
    device.config[:] = config
    device._acked, device.negotiated = state["acked"], state["negotiated"]
    device.status, device.reason, device.generation = state["status"], state["reason"], state["generation"]
    for slot, saved in zip(device.queues, state["queues"], strict=True):
        if saved["layout"]:
            layout = QueueLayout(**saved["layout"])
            if layout.size > slot.size_max or layout.is_packed != bool(device.negotiated & Feature.RING_PACKED):
                raise ValueError(f"state has queue {slot.index} as {layout}, which this device cannot have")
            slot.layout, slot.size, slot.enabled, slot.broken = layout, layout.size, True, saved["broken"]
            slot.stood = slot.kick.rings
        if saved["state"]:
            slot.queue = DeviceQueue.restore(memory, saved["state"])
    device.load(state["own"])
    if device._dma and device.status & Status.DRIVER_OK and not device.status & Status.FAILED:
        device._start()
    # kicks are the driver's word that a legacy queue may be used before DRIVER_OK: then only those that came count
    kicks = not device.legacy or device.status & Status.DRIVER_OK or any(saved["early"] for saved in state["queues"])
    for slot in device.queues:
        if slot.enabled:
            slot.owed = device.live
            if kicks:
                slot.kick.ring()
    device._begin()
