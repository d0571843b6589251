/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Ports and sinks: how frames get out of a queue and into one.
 *
 * A *port* is what lies behind a queue: a TAP, a cable, a file. A *sink* is a queue that takes frames: the device's
 * receive queue, the driver's transmit queue. A frame is never in a buffer between them: it is sent from where it lies
 * in guest memory, and received into where it shall lie.
 */
#ifndef VIRTIO_PORT_H
#define VIRTIO_PORT_H

#include <stdint.h>
#include <sys/uio.h>

#include "virtio/net_hdr.h"
#include "virtio/task.h"

#define VIRTIO_BURST 64        /* packets that a burst has at most */
#define VIRTIO_WORK_SEGMENT 60 /* units of work (task.h) of a segment's headers */
#define VIRTIO_FRAME_MAX 65589 /* bytes of the largest frame: Ethernet, IPv6 header, 65535 bytes (VIRTIO 1.4, 5.1.9.3) */
#define VIRTIO_FRAME_MIN 14
/* pieces that reserve() may give: a frame of the largest size in buffers of 64 bytes would take more, and is refused */
#define VIRTIO_PACKET_PIECES 1024

/* A frame in pieces of memory. The bytes may be a hostile guest's, and change at any moment. */
typedef struct virtio_packet {
    virtio_net_hdr hdr; /* a private copy; hdr.num_buffers says nothing */
    uint32_t first;     /* its pieces are segs[first .. first + nsegs) of the array that comes with it */
    uint32_t nsegs;
    uint32_t len;       /* bytes of frame: the sum of its pieces; no virtio_net_hdr is among them */
    uint32_t done;      /* segments that were taken of it before: of the first packet of a call only, 0 of all others */
} virtio_packet;

typedef struct virtio_sink virtio_sink;
struct virtio_sink {
    uint32_t *lock; /* the queue's burst lock: held by whoever calls one of these */
    /* Copy frames in; return how many were taken, in order: fewer than n when there is no room now, or the turn is over.
     * Before it is, one frame is taken at least, or a segment of one. A frame that this queue can never take is counted
     * as dropped, and taken. Of the first that was not taken turn->resume segments are in, unless that is 0, as the
     * caller set it: it comes next, with that number as its `done`. Headers are such as net_hdr_check passes for any
     * offloads; what they leave undone beyond `offloads` is done here. */
    uint32_t (*deliver)(virtio_sink *sink, const virtio_packet *packets, uint32_t n, const struct iovec *segs,
                        virtio_turn *turn);
    /* Room for one frame of up to frame_max bytes that is yet to be read: its pieces go to `to`. Returns their number;
     * 0: no room now. Without a commit it is as if it was never asked for. */
    uint32_t (*reserve)(virtio_sink *sink, struct iovec *to, uint32_t limit, virtio_turn *turn);
    /* len bytes were written into the room reserved last, of the same turn. */
    void (*commit)(virtio_sink *sink, const virtio_net_hdr *hdr, uint32_t len);
    /* Show the peer what was delivered and committed; due after each of these calls or group of them, whatever they
     * returned (of a frame that was not taken, segments may be in). Returns the bell to ring when the lock is free, or NULL. */
    virtio_bell *(*flush)(virtio_sink *sink);
    /* Wait for room; as in virtio_task. Called with the lock held. */
    int (*arm)(virtio_sink *sink, virtio_wait *wait);
    void (*disarm)(virtio_sink *sink);
    uint32_t offloads;  /* VIRTIO_OFFLOAD_*: what a frame may leave undone */
    uint32_t frame_max; /* bytes */
};

typedef struct virtio_port virtio_port;
struct virtio_port {
    /* Send frames; return how many were taken, in order: fewer than n when it is full for now, or the turn is over; of
     * the first that was not taken, turn->resume is as deliver leaves it. A frame that can never be sent is counted as
     * dropped, and taken. Headers were checked, and leave nothing undone beyond `offloads`. Called by one thread at a
     * time for each queue, which holds the lock of the queue that the frames come from, and calls flush before it lets
     * go of that. */
    uint32_t (*send)(virtio_port *port, uint32_t queue, const virtio_packet *packets, uint32_t n,
                     const struct iovec *segs, virtio_turn *turn);
    /* Put up to limit frames that wait into the sink, whose lock the caller holds and which it flushes afterwards, until
     * the turn is over; return how many. One thread at a time for each queue. A port that delivers of itself (a cable,
     * where the other end's thread does it) returns 0. */
    uint32_t (*receive)(virtio_port *port, uint32_t queue, virtio_sink *sink, uint32_t limit, virtio_turn *turn);
    /* Before sleep: what tells that send has room again, or that receive has frames. 1: it is so now. */
    int (*arm_send)(virtio_port *port, uint32_t queue, virtio_wait *wait);
    int (*arm_receive)(virtio_port *port, uint32_t queue, virtio_wait *wait);
    /* When the worker is awake again, after either; NULL if there is nothing to do. */
    void (*disarm)(virtio_port *port, uint32_t queue);
    /* Show the receiver what was sent, and let go of what the sends hold: due after each send or group of them, whatever
     * they returned, with the queue's lock still held. Returns the bell to ring when that is free, or NULL; `rang` says
     * that this is done. Both are NULL for ports whose send does it all, and wakes nobody. */
    virtio_bell *(*flush)(virtio_port *port, uint32_t queue);
    void (*rang)(virtio_port *port, uint32_t queue);
    uint32_t offloads; /* VIRTIO_OFFLOAD_*: what a frame that is sent may leave undone */
    uint32_t queues;   /* queue pairs it has */
    uint32_t work;     /* units that each frame takes which is sent, beside its bytes: of a TAP, a system call's */
    void *owner;       /* the Python object, for ports in Python */
};

#endif
