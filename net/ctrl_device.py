"""What a driver tells a network device by its control queue (VIRTIO 1.4, 5.1.9.5).

Off the hot path, in Python. Nothing of a command is believed: lengths are checked, and what was not negotiated, is
unknown or makes no sense is answered with ERR and changes nothing. Bytes behind a command's data are ignored, as in
QEMU: Windows' NetKVM sends the whole buffer that holds its MAC tables.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from virtio.constants import NetFeature
from virtio.errors import SnapshotError
from virtio.features import missing
from virtio.virtqueue import saved

OK, ERR = 0, 1

RX, MAC, VLAN, ANNOUNCE, MQ, GUEST_OFFLOADS = range(6)  # classes
NAMES = ("rx", "mac", "vlan", "announce", "mq", "guest_offloads")

# receive modes, in the order of their commands; values are those of the filter (filter.pxd)
PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST = MODES = (1, 2, 4, 8, 16, 32)
UNI_OVERFLOW, MULTI_OVERFLOW = 64, 128
TABLE_SIZE = 64  # MAC addresses, unicast and multicast together
VLANS = 4096

GUEST_OFFLOAD_FEATURES = (
    NetFeature.GUEST_CSUM
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
    | NetFeature.GUEST_UFO
    | NetFeature.GUEST_USO4
    | NetFeature.GUEST_USO6
    | NetFeature.GUEST_UDP_TUNNEL_GSO
    | NetFeature.GUEST_UDP_TUNNEL_GSO_CSUM
)
# in the command they have their features' numbers, but for those beyond 63
MOVED = {46: NetFeature.GUEST_UDP_TUNNEL_GSO, 47: NetFeature.GUEST_UDP_TUNNEL_GSO_CSUM}

# no command that makes sense is longer: both MAC tables full of what an Ethernet has room for
COMMAND_MAX = 0x10000


class Controlled(Protocol):
    """What a control queue changes: the device."""

    negotiated: int
    max_pairs: int

    def filter_changed(self) -> None:
        """Take note of other receive modes or tables."""

    def mac_changed(self) -> None:
        """Take note of another MAC address."""

    def offloads_changed(self) -> None:
        """Take note of other guest offloads."""

    def pairs_changed(self) -> None:
        """Take note of another number of queue pairs in use."""

    def announced(self) -> None:
        """Take note that the driver has announced itself."""


class Refused(Exception):
    """A command that is answered with ERR; the text says why."""


class Control:
    """The state that a control queue changes, and the commands. One thread at a time: the device's lock."""

    def __init__(self, device: Controlled, mac: bytes) -> None:
        self.device = device
        self.own_mac = mac
        self.mac = mac
        self.counters: Counter[str] = Counter()
        self.last_refused = ""
        self.reset(0)

    def reset(self, features: int) -> None:
        """Go back to what a driver finds that negotiated these features: promiscuous, as in QEMU. The MAC stays."""
        self.modes = PROMISC
        self.unicast: tuple[bytes, ...] = ()
        self.multicast: tuple[bytes, ...] = ()
        self.vlans = bytearray(VLANS // 8) if features & NetFeature.CTRL_VLAN else None
        self.offloads = int(features & GUEST_OFFLOAD_FEATURES)
        self.pairs = 1

    def filter(self) -> dict[str, Any]:
        """Return the receive filter, as NetReceive.filter takes it."""
        return {
            "modes": self.modes,
            "mac": self.mac,
            "unicast": self.unicast,
            "multicast": self.multicast,
            "vlans": None if self.vlans is None else bytes(self.vlans),
        }

    # ---- commands ----

    def execute(self, command: bytes) -> int:
        """Do what a command says; return OK or ERR."""
        try:
            if len(command) < 2:
                raise Refused(f"command of {len(command)} bytes")
            kind, number = command[0], command[1]
            if kind >= len(NAMES):
                raise Refused(f"unknown class {kind}")
            handlers: tuple[Callable[[int, bytes], None], ...]
            handlers = (self._rx, self._mac, self._vlan, self._announce, self._mq, self._guest_offloads)
            handlers[kind](number, command[2:])
        except Refused as error:
            self.refuse(str(error))
            return ERR
        self.counters[NAMES[kind]] += 1
        return OK

    def refuse(self, why: str) -> None:
        """Count a command that was not done."""
        self.counters["refused"] += 1
        self.last_refused = why

    def _need(self, feature: NetFeature) -> None:
        if not self.device.negotiated & feature:
            raise Refused(f"{feature.name} is not negotiated")

    @staticmethod
    def _unpack(form: str, data: bytes, what: str) -> int:
        if len(data) < struct.calcsize(form):
            raise Refused(f"{what} of {len(data)} bytes (must be {struct.calcsize(form)})")
        value: int = struct.unpack_from(form, data)[0]
        return value

    def _rx(self, number: int, data: bytes) -> None:
        if number >= len(MODES):
            raise Refused(f"unknown receive mode {number}")
        self._need(NetFeature.CTRL_RX if number < 2 else NetFeature.CTRL_RX_EXTRA)
        on = self._unpack("B", data, "receive mode")  # any value but 0, as in QEMU
        self.modes = self.modes & ~MODES[number] | (MODES[number] if on else 0)
        self.device.filter_changed()

    def _mac(self, number: int, data: bytes) -> None:
        if number == 0:
            self._need(NetFeature.CTRL_RX)
            unicast, rest = self._table(data)
            multicast, _ = self._table(rest)
            self._set_tables(unicast, multicast)
            self.device.filter_changed()
        elif number == 1:
            self._need(NetFeature.CTRL_MAC_ADDR)
            if len(data) < 6:
                raise Refused(f"MAC address of {len(data)} bytes (must be 6)")
            self.mac = data[:6]
            self.device.mac_changed()
            self.device.filter_changed()
        else:
            raise Refused(f"unknown MAC command {number}")

    def _table(self, data: bytes) -> tuple[list[bytes], bytes]:
        count = self._unpack("<I", data, "MAC table's count")
        if count > (len(data) - 4) // 6:
            raise Refused(f"MAC table of {count} addresses in {len(data) - 4} bytes")
        end = 4 + 6 * count
        return [data[at : at + 6] for at in range(4, end, 6)], data[end:]

    def _set_tables(self, unicast: list[bytes], multicast: list[bytes]) -> None:
        """Take new tables; one that finds no room passes everything, as in QEMU."""
        self.modes &= ~(UNI_OVERFLOW | MULTI_OVERFLOW)
        if len(unicast) > TABLE_SIZE:
            self.modes |= UNI_OVERFLOW
            unicast = []
        if len(unicast) + len(multicast) > TABLE_SIZE:
            self.modes |= MULTI_OVERFLOW
            multicast = []
        self.unicast, self.multicast = tuple(unicast), tuple(multicast)

    def _vlan(self, number: int, data: bytes) -> None:
        self._need(NetFeature.CTRL_VLAN)
        vid = self._unpack("<H", data, "VLAN id")
        if vid >= VLANS or self.vlans is None:
            raise Refused(f"VLAN id {vid} (limit {VLANS - 1})")
        if number == 0:
            self.vlans[vid >> 3] |= 1 << (vid & 7)
        elif number == 1:
            self.vlans[vid >> 3] &= ~(1 << (vid & 7))
        else:
            raise Refused(f"unknown VLAN command {number}")
        self.device.filter_changed()

    def _announce(self, number: int, data: bytes) -> None:
        self._need(NetFeature.GUEST_ANNOUNCE)
        if number != 0:
            raise Refused(f"unknown announce command {number}")
        self.device.announced()

    def _mq(self, number: int, data: bytes) -> None:
        self._need(NetFeature.MQ)
        if number != 0:
            raise Refused(f"unknown multiqueue command {number}")
        pairs = self._unpack("<H", data, "number of queue pairs")
        if not 1 <= pairs <= self.device.max_pairs:
            raise Refused(f"{pairs} queue pairs (1 to {self.device.max_pairs})")
        self.pairs = pairs
        self.device.pairs_changed()

    def _guest_offloads(self, number: int, data: bytes) -> None:
        self._need(NetFeature.CTRL_GUEST_OFFLOADS)
        if number != 0:
            raise Refused(f"unknown guest offloads command {number}")
        word = self._unpack("<Q", data, "guest offloads")
        bits = word
        for at, feature in MOVED.items():
            if word >> at & 1:
                bits = bits & ~(1 << at) | feature
        allowed = self.device.negotiated & GUEST_OFFLOAD_FEATURES
        if bits & ~allowed:
            raise Refused(f"guest offloads {word:#x} are not all negotiated")
        if lacking := missing(bits, 1):
            raise Refused(f"guest offloads {word:#x}: {lacking[0][0]} needs {lacking[0][1]}")
        self.offloads = bits
        self.device.offloads_changed()

    # ---- snapshot ----

    def save(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "modes": self.modes,
            "mac": self.mac.hex(),
            "unicast": [address.hex() for address in self.unicast],
            "multicast": [address.hex() for address in self.multicast],
            "vlans": None if self.vlans is None else self.vlans.hex(),
            "offloads": int(self.offloads),
            "pairs": self.pairs,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what save() gave. SnapshotError, and no change, for another state."""
        macs = saved.entries(saved.hexadecimal(6), most=TABLE_SIZE)
        saved.fields(
            {
                "modes": saved.number(0, saved.U8),
                "mac": saved.hexadecimal(6),
                "unicast": macs,
                "multicast": macs,
                "vlans": saved.optional(saved.hexadecimal(VLANS // 8)),
                "offloads": saved.number(0, saved.U64),
                "pairs": saved.number(1, self.device.max_pairs),
            }
        )(state)
        unicast = tuple(bytes.fromhex(text) for text in state["unicast"])
        multicast = tuple(bytes.fromhex(text) for text in state["multicast"])
        offloads = state["offloads"]
        if len(unicast) + len(multicast) > TABLE_SIZE:
            raise SnapshotError(
                "multicast", f"has {len(unicast) + len(multicast)} entries with unicast: limit {TABLE_SIZE}"
            )
        if excess := offloads & ~(self.device.negotiated & GUEST_OFFLOAD_FEATURES):
            raise SnapshotError("offloads", f"is {offloads:#x}: bits {excess:#x} are not negotiated")
        for name, needs in missing(offloads, 1):
            raise SnapshotError("offloads", f"is {offloads:#x}: {name} without {needs}")
        self.mac = bytes.fromhex(state["mac"])
        self.vlans = None if state["vlans"] is None else bytearray.fromhex(state["vlans"])
        self.unicast, self.multicast = unicast, multicast
        self.modes, self.offloads, self.pairs = state["modes"], offloads, state["pairs"]
