"""Frames for the guard-page tests: the corpus' kinds, cut off at each byte, and sound with a payload of each length."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from virtio.constants import NetFeature
from virtio.offload import GsoType, L3Kind, NetHeader, Stop, TransmitOutcome, fill_checksums, parse, prepare_transmit

CORPUS = Path(__file__).parents[1] / "corpus"
HEADER = 24
EVERY = sum(NetFeature) & ~(NetFeature.OUT_NET_HEADER | NetFeature.IPSEC) | 1 << 32
HEADS = 180  # bytes in which the headers of each kind are
UDP = 17


@cache
def corpus() -> dict[str, bytes]:
    """The seeds' frames, by name, without the header before them."""
    found = {}
    for path in sorted(CORPUS.glob("*.hex")):
        found[path.stem] = bytes.fromhex("".join(path.read_text().split()))[HEADER:]
    return found


@cache
def kinds() -> dict[str, bytes]:
    """Those of them that have a whole transport header, and lengths that can be another's."""
    return {name: frame for name, frame in corpus().items() if sized(frame, 8)}


def sized(frame: bytes, payload: int) -> bytes:
    """Return the frame with so many bytes of payload, lengths and checksums right; b"" if it has none to replace."""
    parsed = parse(frame)
    layers = [layer for layer in (parsed.outer, parsed.inner) if layer]
    if any(layer.stop != Stop.OK or layer.l3_kind not in (L3Kind.IPV4, L3Kind.IPV6) for layer in layers):
        return b""
    data = bytearray(frame[: layers[-1].payload] + bytes(range(1, 256)) * (payload // 255 + 1))
    del data[layers[-1].payload + payload :]
    for layer in layers:
        length = len(data) - layer.l3 - (40 if layer.l3_kind == L3Kind.IPV6 else 0)
        at = layer.l3 + (4 if layer.l3_kind == L3Kind.IPV6 else 2)
        data[at : at + 2] = length.to_bytes(2, "big")
        if layer.protocol == UDP:
            data[layer.l4 + 4 : layer.l4 + 6] = (len(data) - layer.l4).to_bytes(2, "big")
    fill_checksums(data)
    return bytes(data)


def cut_off() -> Iterator[tuple[str, bytes]]:
    """Each frame of the corpus, cut off behind each byte of its headers and at its end."""
    for name, frame in corpus().items():
        for n in [*range(min(len(frame), HEADS)), len(frame)]:
            yield name, frame[:n]


def sound(most: int = 40) -> Iterator[tuple[str, bytes]]:
    """Sound frames of each kind, with 0 to `most` bytes of payload."""
    for name, frame in kinds().items():
        for n in range(most + 1):
            yield f"{name}, {n} bytes", sized(frame, n)


@cache
def undone(payload: int, mss: int = 0, features: int = EVERY) -> dict[str, tuple[NetHeader, bytes]]:
    """By kind, a frame of so many bytes of payload with its checksum undone and, with an mss, uncut.

    ``features``: without those of tunnels there are none of tunnels. UDP over IPv4 is there for USO and for UFO.
    """
    found = {}
    for name, frame in kinds().items():
        data = bytearray(sized(frame, payload))
        made = prepare_transmit(data, features, mss)
        if made.outcome != TransmitOutcome.SENT_AS:
            continue
        found[name] = made.header, bytes(data)
        if made.header.gso_type == GsoType.UDP_L4 and name.startswith("v4"):
            header = NetHeader.from_bytes(made.header.to_bytes(HEADER), HEADER)
            header.gso_type, header.gso_size = GsoType.UDP, max(mss & ~7, 8)
            found[f"{name}, fragments"] = header, bytes(data)
    return found
