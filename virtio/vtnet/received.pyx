"""What is known of frames that were received."""

from collections import namedtuple

from libc.stdint cimport uint32_t

from virtio.offload.net_hdr cimport NetHeader

from virtio.offload.counters import ReceiveReason, ReceiveVerdict

ReceivedFrame = namedtuple("ReceivedFrame", ["verdict", "reason", "segments", "header"])
_VERDICTS = tuple(ReceiveVerdict)
_REASONS = {int(reason): reason for reason in ReceiveReason}


cdef Received new_received(uint32_t limit):
    cdef Received received = Received()
    received.reserve(limit, sizeof(vtnet_received), b"=BBxxI" b"BBHHHHHIHHHH")
    received.shape[0] = 0
    return received


cdef class Received(Records):
    """What the headers of received frames said, as a sequence of :class:`ReceivedFrame`, in the frames' order.

    Also a buffer of records of 32 bytes: verdict, reason (a byte each), 16 bits unused, segments (32 bits), and the
    virtio_net_hdr.
    """

    cdef object record(self, Py_ssize_t i):
        cdef const vtnet_received *record = <const vtnet_received *>self.items + i
        cdef NetHeader header = NetHeader()
        header.load(&record.hdr)
        return ReceivedFrame(_VERDICTS[record.verdict], _REASONS[record.reason], record.segments, header)
