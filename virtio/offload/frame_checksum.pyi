"""The checksums of a frame."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from typing_extensions import Buffer

from virtio.offload.results import Records

class Verdict(IntEnum):
    NONE = 0  # nothing to check
    GOOD = 1
    BAD = 2
    UNKNOWN = 3  # not to be told

class Checks(NamedTuple):
    l3: Verdict  # the IPv4 header's
    l4: Verdict  # the transport protocol's
    inner_l3: Verdict  # the same within a tunnel
    inner_l4: Verdict

class Verdicts(Records[Checks]): ...

def verify(data: Buffer) -> Checks: ...
def verify_burst(frames: Iterable[Buffer] | Buffer, offsets: Iterable[int] | None = None) -> Verdicts: ...
def fill_checksums(data: Buffer) -> Checks: ...
def fill_checksums_burst(frames: Iterable[Buffer] | Buffer, offsets: Iterable[int] | None = None) -> Verdicts: ...
def fill_partial_checksum(data: Buffer, *, inner: bool = False) -> tuple[int, int]: ...  # csum_start, csum_offset
