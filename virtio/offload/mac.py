"""MAC addresses, from text to bytes."""

from __future__ import annotations

import secrets

from virtio.errors import ConfigError


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of "02:00:00:00:00:01"; ValueError if it is none. The colons may be missing, or hyphens."""
    try:
        made = bytes.fromhex(mac.replace(":", "").replace("-", ""))
    except ValueError:
        made = b""
    if len(made) != 6:
        raise ValueError(f"MAC {mac!r} is not six bytes in hexadecimal, with colons between them")
    return made


def interface_mac(mac: str | bytes | None) -> bytes:
    """Return the address of an interface: of text, of bytes, or a random one (locally administered) of None."""
    if mac is None:
        return bytes([0x02]) + secrets.token_bytes(5)
    try:
        made = mac_bytes(mac) if isinstance(mac, str) else bytes(mac)
    except ValueError:
        made = b""
    if len(made) != 6 or made[0] & 1:
        raise ConfigError(f"MAC address {mac!r} is not one of an interface (6 bytes, unicast)")
    return made
