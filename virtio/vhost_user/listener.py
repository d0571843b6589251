"""A UNIX socket that listens at a path, and whose the socket file there is."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virtio.vhost_user.descriptors import close_socket

BACKLOG = 8
PATIENCE = 1.0  # seconds that another process may hold the lock of a folder
PAUSE = 0.01  # seconds between two attempts to take it

# linux/sock_diag.h, linux/unix_diag.h: sockets of this network namespace, with their names and files
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLMSG_ERROR, NLMSG_DONE, DUMP = 2, 3, 0x301  # NLM_F_REQUEST | NLM_F_DUMP
NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
REQUEST = struct.Struct("=BBHIIIQ")  # family, protocol, padding, states, inode, what to show, cookie
ANSWER = 16  # bytes of a unix_diag_msg
ATTRIBUTE = struct.Struct("=HH")  # length, type
NAME, VFS = 0, 1
FILE = struct.Struct("=II")  # inode, device
MINOR_BITS = 20  # of a device, as the kernel has it there
BOUND = 1 << 7 | 1 << 10  # states TCP_CLOSE and TCP_LISTEN: those of accepted connections have the name, too
INODE_MASK = 0xFFFFFFFF  # as the kernel tells it there


class PathListener:
    """Listens at ``path``. Raises OSError if a process has a socket there, listening or about to listen.

    A socket file of a process that was killed is replaced. :meth:`close` removes the file only if it is the one that
    was made here.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with folder_lock(path):
                if is_stale(path):
                    os.unlink(path)
                self.socket.bind(path)
                self._file = file_at(path)
                self.socket.listen(BACKLOG)
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """End. Connections that wait are cut off."""
        # as long as the socket is open no other file can have its inode's number
        with folder_lock(self.path), suppress(OSError):
            if file_at(self.path) == self._file:
                os.unlink(self.path)
        close_socket(self.socket)


def file_at(path: str) -> tuple[int, int]:
    """Return which file lies at a path. Raises OSError if there is none."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def remove_stale(path: str) -> None:
    """Remove a socket file that no process has bound. Raises OSError when that may not be."""
    with folder_lock(path):
        if is_stale(path):
            os.unlink(path)


def is_stale(path: str) -> bool:
    """Say whether a socket file lies at a path that no process has bound. Those of other namespaces must listen."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISSOCK(found.st_mode) or somebody_listens(path):
        return False
    try:
        bound = bound_files()
    except OSError:  # this kernel does not tell
        return True
    inode, name, device = found.st_ino & INODE_MASK, os.path.basename(path), device_at(path, found.st_dev)
    return all(number != inode or (where != device and named != name) for number, where, named in bound)


def device_at(path: str, told: int) -> int:
    """Return the device of the file system on which a file lies, as the kernel has it; what stat() told if that fails.

    On some (btrfs, overlayfs) stat() tells another one.
    """
    with suppress(OSError, ValueError, KeyError):
        file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            lines = Path(f"/proc/thread-self/fdinfo/{file}").read_bytes().splitlines()
        finally:
            os.close(file)
        mount = dict(line.split(b":", 1) for line in lines)[b"mnt_id"].strip()
        for line in Path("/proc/thread-self/mountinfo").read_bytes().splitlines():
            number, _, device, *_ = line.split()
            if number == mount:
                major, minor = device.split(b":")
                return os.makedev(int(major), int(minor))
    return told


def somebody_listens(path: str) -> bool:
    """Say whether a connection to the socket at path is taken."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener may leave its queue full: EAGAIN, it lives
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def bound_files() -> list[tuple[int, int, str]]:
    """Return inode, device and last word of the name of each UNIX socket that is bound to a file. Raises OSError.

    The name is that at which it was bound: relative to a folder that may not be ours, and of before the file was
    renamed. Inode and device are one of a kind (of btrfs, within a subvolume), but the device may not be known here;
    then inode and name have to do.
    """
    found: list[tuple[int, int, str]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
        request = REQUEST.pack(socket.AF_UNIX, 0, 0, BOUND, 0, 1 << NAME | 1 << VFS, (1 << 64) - 1)
        diag.send(NLMSGHDR.pack(NLMSGHDR.size + len(request), SOCK_DIAG_BY_FAMILY, DUMP, 1, 0) + request)
        while True:
            data = diag.recv(1 << 16)
            at = 0
            while at < len(data):
                size, kind, *_ = NLMSGHDR.unpack_from(data, at)
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, at + NLMSGHDR.size)[0]
                    raise OSError(code, os.strerror(code))
                parts = dict(attributes(data[at + NLMSGHDR.size + ANSWER : at + size]))
                if VFS in parts:
                    name = os.fsdecode(parts.get(NAME, b"").rstrip(b"\0"))
                    inode, device = FILE.unpack_from(parts[VFS])
                    device = os.makedev(device >> MINOR_BITS, device & (1 << MINOR_BITS) - 1)
                    found.append((inode, device, os.path.basename(name)))
                at += size + -size % 4


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each netlink attribute."""
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        size, kind = ATTRIBUTE.unpack_from(data, at)
        yield kind, data[at + ATTRIBUTE.size : at + size]
        at += max(size + -size % 4, ATTRIBUTE.size)


@contextmanager
def folder_lock(path: str) -> Iterator[None]:
    """Keep other processes that use this function from what they do with socket files of the same folder.

    Each user of the folder may hold the lock: it is not waited for without end.
    """
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # not ours to read, or there is none
        yield
        return
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < end:
                    time.sleep(PAUSE)
                    continue
            except OSError:  # a file system without locks
                pass
            break
        yield
    finally:
        os.close(folder)
