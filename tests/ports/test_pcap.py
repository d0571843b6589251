"""Capture files: read in every form they come in, written so that others read them, and no file does harm."""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels.portbench import MemorySink, arm, receive, send
from virtio.errors import ConfigError
from virtio.net.ports import PcapReader, PcapWriter
from virtio.offload import NetHeader

MAGIC = {False: 0xA1B2C3D4, True: 0xA1B23C4D}


def header(order: str = "<", nanoseconds: bool = False, version: int = 2, link: int = 1) -> bytes:
    return struct.pack(f"{order}IHHiIII", MAGIC[nanoseconds], version, 4, 0, 0, 65535, link)


def record(frame: bytes, seconds: int = 0, fraction: int = 0, order: str = "<", length: int | None = None) -> bytes:
    size = len(frame) if length is None else length
    return struct.pack(f"{order}IIII", seconds, fraction, len(frame), size) + frame


def numbered(count: int, size: int = 60) -> list[bytes]:
    return [bytes(14) + i.to_bytes(4, "big") + bytes([i % 251]) * (size - 18) for i in range(count)]


def played(port: PcapReader, size: int = 64, limit: int = 64) -> list[bytes]:
    """All that a port gives."""
    sink = MemorySink(size=size)
    frames: list[bytes] = []
    while not port.done:
        receive(port, sink, limit)
        got = sink.take()
        assert all((hdr.flags, hdr.gso_type) == (0, 0) for hdr, _ in got)
        frames += [frame for _, frame in got]
    assert sink.unlocked == 0
    return frames


@pytest.mark.parametrize("nanoseconds", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_form_is_read(tmp_path: Path, order: str, nanoseconds: bool) -> None:
    frames = [bytes(range(14)), *numbered(100), bytes(65589)]
    data = header(order, nanoseconds) + b"".join(record(frame, order=order) for frame in frames)
    path = tmp_path / "x.pcap"
    path.write_bytes(data)
    port = PcapReader(path)
    assert not port.done
    assert played(port) == frames
    assert port.fault is None
    assert port.statistics() == {
        "receive_packets": 102, "receive_bytes": sum(map(len, frames)), "receive_dropped": 0, "receive_full": 0,
        "receive_snapped": 0,
    }  # fmt: skip
    assert arm(port, "receive") == (False, [], -1, 0)
    assert port.offloads == 0
    assert send(port, [(None, [bytes(60)])]) == 1


def test_a_file_larger_than_the_buffer(tmp_path: Path) -> None:
    frames = [os.urandom(14 + i * 37 % 9000) for i in range(700)]
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + b"".join(map(record, frames)))
    assert path.stat().st_size > 2 << 20
    assert played(PcapReader(str(path)), limit=1000) == frames


def test_what_was_not_taken_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + b"".join(map(record, numbered(100))))
    port = PcapReader(path)
    assert played(port, size=7, limit=10) == numbered(100)
    assert port.statistics()["receive_full"] > 0


def test_loops(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + b"".join(map(record, numbered(5))))
    assert played(PcapReader(path, loops=3)) == numbered(5) * 3
    port, sink = PcapReader(path, loops=None), MemorySink(size=64, keep=False)
    while sink.packets < 1000:
        assert receive(port, sink)
    assert not port.done
    path.write_bytes(header())
    assert played(PcapReader(path, loops=None)) == []  # nothing to play for ever


def test_times_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    times = [0, 20_000, 20_000, 60_000, 10_000]  # the last goes back: it comes at once
    records = (record(f, 7, us, length=None) for f, us in zip(numbered(5), times, strict=True))
    path.write_bytes(header() + b"".join(records))
    port, sink = PcapReader(path, speed=0.5), MemorySink(size=64, keep=False)
    start = time.monotonic()
    seen: list[float] = []
    while not port.done:
        for _ in range(receive(port, sink)):
            seen.append(time.monotonic() - start)
        if not port.done and len(seen) < 5:
            ready, fds, us, _ = arm(port, "receive")
            assert fds == []
            assert ready or 0 < us <= 80_001
    for at, us in zip(seen, times, strict=True):
        assert at >= us / 1e6 / 0.5 - 0.001
    assert seen[4] >= 0.119  # it waits behind the one before
    assert len(seen) == 5


@pytest.mark.parametrize(("nanoseconds", "fraction"), [(False, 900_000), (True, 900_000_000)])
def test_times_have_their_unit(tmp_path: Path, nanoseconds: bool, fraction: int) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header(nanoseconds=nanoseconds) + record(bytes(60), 3) + record(bytes(60), 3, fraction))
    port, sink = PcapReader(path, speed=0.1), MemorySink()
    assert receive(port, sink) == 1
    assert receive(port, sink) == 0
    ready, _, us, _ = arm(port, "receive")
    assert not ready
    assert 1_000_000 < us <= 9_000_001


def test_each_pass_takes_its_time(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + record(bytes(60), 3) + record(bytes(60), 3, 20_000))
    start = time.monotonic()
    assert len(played(PcapReader(path, speed=1.0, loops=3))) == 6
    assert time.monotonic() - start >= 0.06


def test_frames_that_no_one_can_take_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    good = numbered(4)
    odd = [good[0], bytes(13), good[1], b"", bytes(65590), bytes(262144), good[2], good[3], bytes(1)]
    path.write_bytes(header() + b"".join(map(record, odd)))
    port = PcapReader(path)
    assert played(port) == good
    assert port.fault is None
    counts = port.statistics()
    assert (counts["receive_dropped"], counts["receive_EMSGSIZE"]) == (5, 5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_lengths_that_disagree(tmp_path: Path, order: str, nanoseconds: bool) -> None:
    """A record longer than its frame is padded; one without an original length is a frame of what is stored."""
    frame = numbered(1, 85)[0]
    records = (
        record(frame + b"padding of 16 B.", order=order, length=85),  # the incl_len 101, orig_len 85 of some writers
        record(frame, order=order, length=0),
        record(frame[:60], order=order, length=0xFFFFFFFF),
        record(b"", order=order, length=0),
        record(b"", order=order, length=85),
        record(bytes(70000), order=order, length=85),  # beyond the header's snapshot length of 65535
    )
    path = tmp_path / "x.pcap"
    path.write_bytes(header(order, nanoseconds) + b"".join(records))
    port = PcapReader(path)
    assert played(port) == [frame, frame, frame[:60], bytes(85)]
    counts = port.statistics()
    assert (counts["receive_snapped"], counts["receive_EMSGSIZE"], port.fault) == (1, 2, None)


def test_the_fcs_of_a_frame_that_is_not_whole(tmp_path: Path) -> None:
    """The FCS is the last of the original bytes: of a frame that was cut or padded it is not where the record ends."""
    frame = numbered(1, 60)[0]
    records = record(frame[:40], length=64) + record(frame + b"fcs!" + bytes(9), length=64) + record(frame, length=64)
    path = tmp_path / "x.pcap"
    path.write_bytes(header(link=1 | 0x04000000 | 2 << 28) + records)
    port = PcapReader(path)
    assert played(port) == [frame[:40], frame, frame]
    assert port.statistics()["receive_snapped"] == 1


def test_snapped_frames_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + record(bytes(60)) + record(bytes(60), length=1500) + record(bytes(60)))
    port = PcapReader(path)
    assert len(played(port)) == 3
    assert port.statistics()["receive_snapped"] == 1


@pytest.mark.parametrize("cut", range(1, 76))
def test_a_file_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes((header() + b"".join(map(record, numbered(3))))[:-cut])
    port = PcapReader(path, loops=2)
    assert played(port) == numbered(2)
    assert port.fault == f"{76 - cut} bytes at the end are no whole record"


def test_a_record_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + b"".join(map(record, numbered(3))) + struct.pack("<IIII", 0, 0, 262145, 60) + bytes(99))
    for size in (64, 1):  # what comes before it is given first
        port = PcapReader(path)
        assert played(port, size=size) == numbered(3)
        assert port.fault == "a record of 262145 bytes: limit 262144"


def test_frame_check_sequences_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header(link=1 | 0x04000000 | 2 << 28) + record(bytes(60) + b"fcs!") + record(b"abc"))
    port = PcapReader(path)
    assert played(port) == [bytes(60)]
    assert port.statistics()["receive_dropped"] == 1


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_file_does_harm(data: st.DataObject) -> None:
    """Whatever the bytes, what is given are frames of the file, and it ends."""
    lengths = st.sampled_from([0, 1, 13, 14, 60, 1500, 65589, 65590, 262144, 262145, 2**31, 2**32 - 1])
    body = b""
    for _ in range(data.draw(st.integers(0, 5))):
        body += struct.pack("<IIII", *[data.draw(st.integers(0, 2**32 - 1)) for _ in range(2)], data.draw(lengths), 0)
        body += bytes(data.draw(st.integers(0, 1600)))
    path = Path(f"/tmp/virtio-test-{os.getpid()}.pcap")
    path.write_bytes(header() + body)
    try:
        port = PcapReader(path)
        for frame in played(port):
            assert 14 <= len(frame) <= 65589
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no capture file: it begins with nothing"),
        (b"\0" * 24, "is no capture file: it begins with 00000000"),
        (header()[:23], "is no capture file: it begins with d4c3b2a1"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), r"is a pcapng file: convert it \(editcap -F nsecpcap\)"),
        (header(version=1), "is of version 1 of the format: limit 2"),
        (header(link=101), "is of link type 101: only Ethernet, 1, will do"),
    ],
)
def test_files_that_are_no_captures(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(data)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=message):
        PcapReader(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_arguments(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    with pytest.raises(FileNotFoundError):
        PcapReader(path)
    with pytest.raises(ValueError, match="speed 0 is not within"):
        PcapReader(path, speed=0)
    with pytest.raises(ValueError, match="loops 0: limit 1 at least"):
        PcapReader(path, loops=0)
    for snaplen in (0, 262145):
        with pytest.raises(ValueError, match=f"snaplen {snaplen} is not within 1 to 262144"):
            PcapWriter(path, snaplen=snaplen)
    with pytest.raises(ValueError, match="queues 0"):
        PcapWriter(path, queues=0)
    with pytest.raises(ValueError, match="offloads 0x200"):
        PcapWriter(path, offloads=0x200)
    assert not path.exists()


@pytest.mark.threads
def test_a_named_pipe_may_be_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    opened, go = threading.Event(), threading.Event()

    def writer() -> None:
        with open(path, "wb", buffering=0) as pipe:
            pipe.write(header() + record(numbered(1)[0]) + b"part")
            opened.set()
            go.wait()
            pipe.write(bytes(12) + bytes(14))

    thread = threading.Thread(target=writer)
    thread.start()
    port, sink = PcapReader(path), MemorySink(size=8)
    opened.wait()
    assert receive(port, sink) == 1
    assert receive(port, sink) == 0
    ready, fds, us, _ = arm(port, "receive")
    assert (ready, len(fds), us) == (False, 1, -1)
    go.set()
    thread.join()
    assert played(port) == []
    assert port.fault == "14 bytes at the end are no whole record"
    port.close()
    with pytest.raises(ValueError, match="is no regular file: loops 2, limit 1"):
        threading.Thread(target=lambda: path.open("wb").write(header())).start()
        PcapReader(path, loops=2)


def test_close_of_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + b"".join(map(record, numbered(3))))
    port = PcapReader(path)
    port.close()
    port.close()
    assert receive(port, MemorySink()) == 0
    assert port.done


@pytest.mark.threads
def test_close_of_a_reader_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(header() + b"".join(map(record, numbered(100))))
    for _ in range(20):
        port, sink = PcapReader(path, loops=None), MemorySink(size=64, keep=False)

        def work(port: PcapReader = port, sink: MemorySink = sink) -> None:
            while not port.done:
                receive(port, sink, 64)
                arm(port, "receive")
                sink.take()

        thread = threading.Thread(target=work)
        thread.start()
        while not sink.packets:
            time.sleep(0)
        port.close()
        thread.join(10)
        assert not thread.is_alive()
        assert port.fault is None
        port.close()


# ---- writing ----


def test_others_read_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    frames = [bytes(range(14)), *numbered(40), os.urandom(65589)]
    before = time.time()
    with PcapWriter(path) as port:
        for i in range(0, len(frames), 10):
            burst = [(None, [f[:5], f[5:9], f[9:]]) for f in frames[i : i + 10]]
            assert send(port, burst) == len(burst)
            # whole records are there after each burst
            assert path.stat().st_size == 24 + sum(16 + len(f) for f in frames[: i + 10])
    with path.open("rb") as file:
        reader = dpkt.pcap.Reader(file)
        assert reader.datalink() == dpkt.pcap.DLT_EN10MB
        records = list(reader)
    assert [data for _, data in records] == frames
    times = [when for when, _ in records]
    assert times == sorted(times)
    assert before - 1 <= times[0] <= times[-1] <= time.time() + 1
    assert path.read_bytes()[:4] == struct.pack("=I", 0xA1B23C4D)
    assert port.statistics() == {
        "send_packets": 42, "send_bytes": sum(map(len, frames)), "send_dropped": 0, "send_full": 0,
    }  # fmt: skip
    assert played(PcapReader(path)) == frames


def test_nanoseconds_are_those_of_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    with PcapWriter(path) as port:
        before = time.time_ns()
        send(port, [(None, [bytes(60)])])
        after = time.time_ns()
    seconds, nanoseconds = struct.unpack_from("=II", path.read_bytes(), 24)
    assert before <= seconds * 10**9 + nanoseconds <= after


def test_snaplen(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    frames = numbered(3, 1000)
    with PcapWriter(path, snaplen=100) as port:
        send(port, [(None, [f[:60], f[60:110], f[110:]]) for f in frames])
    port = PcapReader(path)
    assert played(port) == [frame[:100] for frame in frames]
    assert port.statistics()["receive_snapped"] == 3
    assert struct.unpack_from("=I", path.read_bytes(), 16) == (100,)


def test_large_frames_are_written_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    with PcapWriter(path, offloads=0x1FF) as port:
        assert port.offloads == 0x1FF
        hdr = NetHeader(flags=1, gso_type=1, gso_size=1448, csum_start=34, csum_offset=16)
        send(port, [(hdr, [bytes(60000)])])
    assert played(PcapReader(path)) == [bytes(60000)]
    assert PcapWriter(path).offloads == 0


def test_a_burst_larger_than_the_buffer(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    frames = [os.urandom(65000) for _ in range(40)]
    with PcapWriter(path) as port:
        send(port, [(None, [frame]) for frame in frames])
    assert played(PcapReader(path)) == frames


def test_queues_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    port = PcapWriter(path, queues=4)
    assert port.queues == 4

    def work(queue: int) -> None:
        for _ in range(200):
            send(port, [(None, [bytes([queue]) * 100])] * 3, queue)

    threads = [threading.Thread(target=work, args=(queue,)) for queue in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    port.close()
    frames = played(PcapReader(path))
    assert sorted(frames) == sorted(bytes([queue]) * 100 for queue in range(4) for _ in range(600))


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file become larger: the kernel says EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    frames = numbered(6, 100)
    with PcapWriter(path) as port:
        send(port, [(None, [frame]) for frame in frames[:2]])
        with file_limit(24 + 4 * 116 + 50):  # part of a burst fits
            assert send(port, [(None, [frame]) for frame in frames[2:5]]) == 3
        assert path.stat().st_size == 24 + 2 * 116
        send(port, [(None, [frames[5]])])
    assert port.statistics()["send_dropped"] == 3
    assert port.statistics()["send_EFBIG"] == 3
    assert port.statistics()["send_packets"] == 3
    assert played(PcapReader(path)) == [*frames[:2], frames[5]]


def test_after_close_frames_are_dropped(tmp_path: Path) -> None:
    port = PcapWriter(tmp_path / "x.pcap")
    port.close()
    port.close()
    assert send(port, [(None, [bytes(60)])] * 3) == 3
    assert port.statistics()["send_dropped"] == 3


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as error:
        PcapWriter(tmp_path / "none" / "x.pcap")
    assert error.value.errno == errno.ENOENT
