"""Which frames a network driver wants its device to let through (VIRTIO 1.4, 5.1.9.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from virtio.constants import NetFeature
from virtio.errors import ConfigError
from virtio.net.ctrl_driver import Ack

RX, MAC, VLAN = 0, 1, 2  # classes
PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST = range(6)
TABLE_SET, ADDR_SET = 0, 1
VLAN_ADD, VLAN_DEL = 0, 1
TABLE_MAX = 128  # addresses of each kind; FreeBSD's VTNET_MAX_MAC_ENTRIES
VLANS = 4096

Send = Callable[[int, int, "bytes | list[bytes]"], Ack]


def check_mac(mac: bytes, kind: str = "MAC address") -> bytes:
    """Return a MAC address as bytes; ConfigError unless it has 6 of them."""
    made = bytes(mac)
    if len(made) != 6:
        raise ConfigError(f"{kind} {made.hex(':')!r} has {len(made)} bytes (must be 6)")
    return made


class ReceiveFilter:
    """What a driver has told its device of the frames that it wants. What was not told is as the device has it.

    Each change is sent at once, and all of them again by :meth:`restore` after the device was reset. ``send`` gives a
    command to the device. Raises ConfigError for what was not negotiated (CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN) or is out
    of range, and when the device refuses; DeviceBroken when it does not answer.
    """

    def __init__(self, send: Send, features: int) -> None:
        self._send = send
        self.features = features
        self._modes: dict[int, bool] = {}
        self._unicast: tuple[bytes, ...] | None = None
        self._multicast: tuple[bytes, ...] = ()
        self._vlans: set[int] = set()
        self._overflows: set[int] = set()  # modes that are on for a table that was too small

    def _need(self, feature: NetFeature) -> None:
        if not self.features & feature:
            raise ConfigError(f"the device has no receive filter of this kind: {feature.name} was not negotiated")

    def _command(self, what: str, kind: int, command: int, data: bytes | list[bytes]) -> None:
        if self._send(kind, command, data) != Ack.OK:
            raise ConfigError(f"the device refused {what}")

    # ---- modes ----

    def _set_mode(self, mode: int, on: bool) -> None:
        self._need(NetFeature.CTRL_RX if mode <= ALLMULTI else NetFeature.CTRL_RX_EXTRA)
        self._command(f"receive mode {mode} {'on' if on else 'off'}", RX, mode, bytes([on or mode in self._overflows]))
        self._modes[mode] = on

    @property
    def promiscuous(self) -> bool | None:
        """All frames pass; None: not told."""
        return True if PROMISC in self._overflows else self._modes.get(PROMISC)

    @promiscuous.setter
    def promiscuous(self, on: bool) -> None:
        self._set_mode(PROMISC, on)

    @property
    def all_multicast(self) -> bool | None:
        """All multicast frames pass."""
        return True if ALLMULTI in self._overflows else self._modes.get(ALLMULTI)

    @all_multicast.setter
    def all_multicast(self, on: bool) -> None:
        self._set_mode(ALLMULTI, on)

    @property
    def all_unicast(self) -> bool | None:
        """All unicast frames pass (CTRL_RX_EXTRA, as the following)."""
        return self._modes.get(ALLUNI)

    @all_unicast.setter
    def all_unicast(self, on: bool) -> None:
        self._set_mode(ALLUNI, on)

    @property
    def no_multicast(self) -> bool | None:
        """No multicast frame passes."""
        return self._modes.get(NOMULTI)

    @no_multicast.setter
    def no_multicast(self, on: bool) -> None:
        self._set_mode(NOMULTI, on)

    @property
    def no_unicast(self) -> bool | None:
        """No unicast frame passes."""
        return self._modes.get(NOUNI)

    @no_unicast.setter
    def no_unicast(self, on: bool) -> None:
        self._set_mode(NOUNI, on)

    @property
    def no_broadcast(self) -> bool | None:
        """No broadcast frame passes."""
        return self._modes.get(NOBCAST)

    @no_broadcast.setter
    def no_broadcast(self, on: bool) -> None:
        self._set_mode(NOBCAST, on)

    # ---- addresses ----

    @property
    def unicast(self) -> tuple[bytes, ...]:
        """Addresses that pass besides the interface's own."""
        return self._unicast or ()

    @property
    def multicast(self) -> tuple[bytes, ...]:
        """Groups that pass."""
        return self._multicast

    def set_addresses(self, unicast: Iterable[bytes] = (), multicast: Iterable[bytes] = ()) -> None:
        """Let these pass, in place of those before.

        A list of more than 128, or one that the device refuses, becomes a mode, as in FreeBSD: promiscuous, or all
        multicast.
        """
        self._need(NetFeature.CTRL_RX)
        ones = tuple(check_mac(mac) for mac in unicast)
        groups = tuple(check_mac(mac, "multicast address") for mac in multicast)
        for mac in ones:
            if mac[0] & 1:
                raise ConfigError(f"address {mac.hex(':')} is a multicast address")
        for mac in groups:
            if not mac[0] & 1:
                raise ConfigError(f"address {mac.hex(':')} is no multicast address")
        self._unicast, self._multicast = ones, groups
        self._send_addresses()

    def _send_addresses(self) -> None:
        assert self._unicast is not None
        ones = self._unicast if len(self._unicast) <= TABLE_MAX else ()
        groups = self._multicast if len(self._multicast) <= TABLE_MAX else ()
        tables = [struct.pack("<I", len(table)) + b"".join(table) for table in (ones, groups)]
        taken = self._send(MAC, TABLE_SET, tables) == Ack.OK
        self._overflow(PROMISC, bool(self._unicast) and not (taken and bool(ones)))
        self._overflow(ALLMULTI, bool(self._multicast) and not (taken and bool(groups)))

    def _overflow(self, mode: int, on: bool) -> None:
        """Turn a mode on while the table does not hold all addresses; afterwards it is as it was asked for."""
        if on or mode in self._overflows:
            asked = self._modes.get(mode, False)
            self._command(f"receive mode {mode}", RX, mode, bytes([on or asked]))
        if on:
            self._overflows.add(mode)
        else:
            self._overflows.discard(mode)

    # ---- VLANs ----

    @property
    def vlans(self) -> frozenset[int]:
        """Identifiers of the VLANs whose frames pass (CTRL_VLAN; without it all do)."""
        return frozenset(self._vlans)

    def _vlan(self, command: int, vid: int) -> None:
        self._need(NetFeature.CTRL_VLAN)
        if not 0 <= vid < VLANS:
            raise ConfigError(f"VLAN {vid} out of range (0 to {VLANS - 1})")
        self._command(f"VLAN {vid}", VLAN, command, struct.pack("<H", vid))

    def add_vlan(self, vid: int) -> None:
        """Let the frames of a VLAN pass."""
        self._vlan(VLAN_ADD, vid)
        self._vlans.add(vid)

    def remove_vlan(self, vid: int) -> None:
        """Let them pass no more."""
        self._vlan(VLAN_DEL, vid)
        self._vlans.discard(vid)

    # ---- reset ----

    def restore(self) -> None:
        """Tell the device everything again."""
        for mode, on in self._modes.items():
            self._set_mode(mode, on)
        if self._unicast is not None:
            self._send_addresses()
        for vid in sorted(self._vlans):
            self._vlan(VLAN_ADD, vid)
