"""The corners of the legacy registers, where texts contradict each other or drivers rely on more: one table."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from legacy_model import CONFIG, MEMORY, OFFERED, SIZES, Recorder

from virtio import GuestMemory
from virtio.pci import LegacyFunction

COMMAND, MASTER, MSIX_CONTROL, ENABLE = 4, 4, 0x42, 1 << 15
FEATURES, DRIVER_FEATURES, PFN, SIZE, SELECT, NOTIFY, STATUS, ISR = 0, 4, 8, 0xC, 0xE, 0x10, 0x12, 0x13
CONFIG_VECTOR, QUEUE_VECTOR = 0x14, 0x16
LATER = 0x20  # of what a row looks at, beside registers
LIVE, BUS_MASTER = range(LATER << 8, (LATER << 8) + 2)


class Row(NamedTuple):
    """An access in a state (a value: it is a write; None: a read that gives the first expectation), and what follows.

    ``then`` are reads after it: (register, width) to value.
    """

    register: int
    width: int
    value: int | None
    state: str  # words of STATES
    then: dict[tuple[int, int], int]
    peer: str


STATES = {
    "reset": [],
    "up": [(STATUS, 1, 1), (STATUS, 1, 3), (DRIVER_FEATURES, 4, 1), (SELECT, 2, 0), (PFN, 4, 0x100), (STATUS, 1, 7)],
    "stopped": [(STATUS, 1, 3)],
    "failed": [(STATUS, 1, 0x87)],
    "absent": [(SELECT, 2, len(SIZES))],
    "vectors": [(CONFIG_VECTOR, 2, 2), (QUEUE_VECTOR, 2, 1)],
}

ROWS = [
    # the status
    Row(STATUS, 1, 3, "up", {(STATUS, 1): 3, (LIVE, 1): 0, (PFN, 4): 0x100}, "virtio-win, SUSE: DRIVER_OK is cleared"),
    Row(STATUS, 1, 7, "up stopped", {(STATUS, 1): 7, (LIVE, 1): 1, (PFN, 4): 0x100}, "QEMU: it goes on"),
    Row(NOTIFY, 2, 0, "up stopped", {(STATUS, 1): 3, (LIVE, 1): 0}, "virtio-win: the queue's memory goes next"),
    Row(STATUS, 1, 4, "up", {(STATUS, 1): 7, (LIVE, 1): 1}, "VIRTIO 1.4, 2.1.1: only a reset clears; QEMU has 4"),
    Row(STATUS, 1, 0x83, "up", {(STATUS, 1): 0x83, (LIVE, 1): 0}, "Linux: FAILED"),
    Row(STATUS, 1, 7, "up failed", {(STATUS, 1): 0x87, (LIVE, 1): 0}, "VIRTIO 1.4, 3.1.1: a reset comes first"),
    Row(STATUS, 1, 8, "up", {(STATUS, 1): 3, (LIVE, 1): 0}, "FEATURES_OK is not part of the interface"),
    Row(STATUS, 1, 0, "up", {(STATUS, 1): 0, (PFN, 4): 0, (DRIVER_FEATURES, 4): 0}, "all drivers: reset"),
    Row(STATUS, 4, 0, "up msix vectors", {(STATUS, 1): 0, (CONFIG_VECTOR, 2): 0}, "one access is one to each register"),
    Row(STATUS, 1, 3, "reset nomaster", {(BUS_MASTER, 1): 1}, "Linux before 2.6.34"),
    Row(STATUS, 1, 1, "reset nomaster", {(BUS_MASTER, 1): 0}, "QEMU"),
    # the ISR status
    Row(ISR, 1, None, "up interrupt", {(ISR, 1): 1, (STATUS, 1): 7}, "all drivers: a read clears it"),
    Row(ISR, 4, None, "up interrupt", {(ISR, 4): int.from_bytes(b"\1" + CONFIG[:3], "little")}, "QEMU"),
    Row(STATUS, 2, None, "up interrupt", {(STATUS, 2): 7, (ISR, 1): 1}, "QEMU: a wider read takes no interrupt"),
    Row(ISR, 1, 0, "up interrupt", {(ISR, 1): 1}, "read-only"),
    Row(ISR, 1, None, "up msix vectors interrupt", {(ISR, 1): 1}, "virtio-win of 2015 polls it with MSI-X"),
    # queues
    Row(PFN, 4, 0, "up", {(STATUS, 1): 0, (LIVE, 1): 0, (DRIVER_FEATURES, 4): 0}, "QEMU; Linux and FreeBSD write it"),
    Row(PFN, 4, 0, "reset", {(STATUS, 1): 0, (PFN, 4): 0}, "Linux and FreeBSD, after a reset"),
    Row(PFN, 2, 0x200, "reset", {(PFN, 4): 0x200}, "no peer: an address counts with its last byte"),
    Row(PFN, 4, 0x200, "up absent", {(PFN, 4): 0, (STATUS, 1): 7}, "QEMU: no such queue"),
    Row(SIZE, 2, None, "absent", {(SIZE, 2): 0}, "Linux and FreeBSD: 0 is no queue"),
    Row(SIZE, 2, 8, "reset", {(SIZE, 2): SIZES[0]}, "read-only: legacy rings have the device's size"),
    Row(SELECT, 2, 0xFFFF, "reset", {(SELECT, 2): 0xFFFF, (SIZE, 2): 0}, "VIRTIO 1.4: any number may be written"),
    Row(NOTIFY, 2, None, "up", {(NOTIFY, 2): 0xFFFF}, "QEMU"),
    Row(NOTIFY, 2, len(SIZES), "up", {(STATUS, 1): 7, (LIVE, 1): 1}, "QEMU: ignored"),
    # features
    Row(FEATURES, 4, 0, "reset", {(FEATURES, 4): OFFERED}, "read-only"),
    Row(DRIVER_FEATURES, 4, 2, "up", {(DRIVER_FEATURES, 4): 2, (LIVE, 1): 1}, "Linux before 2.6.30: after DRIVER_OK"),
    Row(DRIVER_FEATURES, 4, 1 << 31 | 2, "reset", {(DRIVER_FEATURES, 4): 2}, "QEMU: what is not offered is left out"),
    # vectors, and the configuration behind them
    Row(CONFIG_VECTOR, 2, 99, "msix", {(CONFIG_VECTOR, 2): 0xFFFF}, "Linux: reads it back"),
    Row(QUEUE_VECTOR, 2, 1, "msix absent", {(QUEUE_VECTOR, 2): 0xFFFF}, "QEMU: no such queue"),
    Row(0x14, 1, None, "reset", {(0x14, 1): CONFIG[0]}, "all drivers: MSI-X is off"),
    Row(0x18, 1, None, "msix", {(0x18, 1): CONFIG[0]}, "all drivers: MSI-X is on"),
    Row(0x14 + len(CONFIG), 4, None, "reset", {(0x14 + len(CONFIG), 4): 0xFFFFFFFF}, "QEMU: ones past its end"),
]


def read(function: LegacyFunction, register: int, width: int) -> int:
    if register == LIVE:
        return int(function.device.live)
    if register == BUS_MASTER:
        return int(bool(function.config_read(COMMAND, 2) & MASTER))
    return function.read(register, width)


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row.register:#x}-{row.width}-{row.value}-{row.state.replace(' ', '_')}"
)
def test_corner(row: Row) -> None:
    words = row.state.split()
    function = LegacyFunction(Recorder(), GuestMemory.allocate(MEMORY))
    function.config_write(COMMAND, 2, 3 if "nomaster" in words else 7)
    if "msix" in words:
        function.config_write(MSIX_CONTROL, 2, ENABLE)
    for word in words:
        for register, width, value in STATES.get(word, []):
            function.write(register, width, value)
    if "interrupt" in words:
        function.device.interrupt(0)
    if row.value is not None:
        function.write(row.register, row.width, row.value)
    for (register, width), expected in row.then.items():
        assert read(function, register, width) == expected, (hex(register), row.peer)
    if row.register == ISR and row.value is None:
        assert function.read(ISR, 1) == 0
