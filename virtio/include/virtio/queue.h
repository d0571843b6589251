/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The two ends of a virtqueue, as C structs. Both formats share them: the ring-facing fields say which meaning they
 * have in which format. Fields are grouped by who writes them and how often (a group is a cache line or more).
 *
 * Ownership: whoever runs a burst on a queue holds its `lock`. The driver end and the device end are separate structs
 * and never share a lock; they meet in guest memory only.
 */
#ifndef VIRTIO_QUEUE_H
#define VIRTIO_QUEUE_H

#include <stdint.h>
#include <sys/uio.h>

#include "virtio/atomic.h"
#include "virtio/inflight.h"
#include "virtio/memory.h"
#include "virtio/ring.h"

#define VIRTIO_CHAIN_END 32768u /* FreeBSD's VQ_RING_DESC_CHAIN_END: never a valid descriptor index */

/* features that change how a ring is worked, as flags of a queue (the bit numbers are the queue's own) */
#define VIRTIO_Q_EVENT_IDX 1u
#define VIRTIO_Q_INDIRECT 2u
#define VIRTIO_Q_IN_ORDER 4u
#define VIRTIO_Q_NOTIFY_ON_EMPTY 8u
#define VIRTIO_Q_READ_TABLES 32u    /* quirk: all that a packed ring's indirect tables name is to be read */
#define VIRTIO_Q_FAR 64u            /* the driver is on another core: what it wrote last is in that one's cache */
#define VIRTIO_Q_CLAMP_USED_LEN 16u /* quirk: a used length over the buffer's is cut and counted, not fatal */

/* what a peer did wrong; 0 is "nothing" */
typedef enum virtio_fault_code {
    VIRTIO_FAULT_NONE = 0,
    VIRTIO_FAULT_AVAIL_JUMP,        /* value: entries claimed; limit: queue size */
    VIRTIO_FAULT_HEAD_RANGE,        /* value: head index; limit: queue size */
    VIRTIO_FAULT_NEXT_RANGE,        /* value: next index; limit: table size */
    VIRTIO_FAULT_LOOP,              /* value: descriptors walked; limit: table size */
    VIRTIO_FAULT_CHAIN_LONG,        /* value: descriptors; limit: max_chain */
    VIRTIO_FAULT_CHAIN_BYTES,       /* value: bytes; limit: 2^32 */
    VIRTIO_FAULT_SEGMENTS,          /* value: pieces of host memory; limit: what the caller's array takes */
    VIRTIO_FAULT_NESTED_INDIRECT,   /* value: entry in the indirect table */
    VIRTIO_FAULT_INDIRECT_NEXT,     /* value: descriptor index */
    VIRTIO_FAULT_INDIRECT_LEN,      /* value: bytes; limit: 16 * max_chain */
    VIRTIO_FAULT_INDIRECT_FEATURE,  /* value: descriptor index; INDIRECT_DESC was not negotiated */
    VIRTIO_FAULT_READ_AFTER_WRITE,  /* value: descriptor index */
    VIRTIO_FAULT_ZERO_LENGTH,       /* value: descriptor index */
    VIRTIO_FAULT_MEMORY,            /* value: guest address; limit: length */
    VIRTIO_FAULT_RING_MEMORY,       /* value: guest address of a ring area; limit: its length */
    VIRTIO_FAULT_RING_OVERRUN,      /* packed: value: descriptors outstanding; limit: queue size */
    VIRTIO_FAULT_USED_JUMP,         /* value: entries claimed; limit: chains outstanding */
    VIRTIO_FAULT_USED_RANGE,        /* value: used id; limit: queue size */
    VIRTIO_FAULT_USED_UNKNOWN,      /* value: used id: not outstanding (never given out, or used before) */
    VIRTIO_FAULT_USED_LEN,          /* value: used length; limit: writable bytes of the chain */
    VIRTIO_FAULT_FORKED,            /* value: process that had the burst lock at fork(), of which this one is a child */
    VIRTIO_FAULT_DRAINED,           /* value: chains forgotten; our own doing, until reset */
    VIRTIO_FAULT_CODES
} virtio_fault_code;

typedef struct virtio_fault {
    uint64_t value;
    uint64_t limit;
    uint32_t code; /* virtio_fault_code; set once, first fault wins */
    uint32_t head; /* chain it was found in, or UINT32_MAX */
} virtio_fault;

/* why the last notification decision was what it was */
typedef enum virtio_notify_reason {
    VIRTIO_NOTIFY_UNDECIDED = 0, /* nothing was decided yet */
    VIRTIO_NOTIFY_NOTHING_NEW,   /* no: nothing was published since the last decision */
    VIRTIO_NOTIFY_FORCED,        /* yes: the first decision after a restore */
    VIRTIO_NOTIFY_EVENT_CROSSED, /* yes: the peer's event index lies in (old, new] */
    VIRTIO_NOTIFY_EVENT_AHEAD,   /* no: it does not */
    VIRTIO_NOTIFY_FLAG_ON,       /* yes: the peer's flags ask for it */
    VIRTIO_NOTIFY_FLAG_OFF,      /* no: the peer's flags suppress it */
    VIRTIO_NOTIFY_EMPTY,         /* yes: NOTIFY_ON_EMPTY and all that was available is used */
    VIRTIO_NOTIFY_RESERVED,      /* yes: packed flags 3, or DESC without EVENT_IDX: reserved, so be safe */
    VIRTIO_NOTIFY_BROKEN,        /* no: the queue is broken */
    VIRTIO_NOTIFY_REASONS
} virtio_notify_reason;

typedef struct virtio_notify {
    uint64_t sent;       /* decisions that said yes */
    uint64_t suppressed; /* decisions that said no although something was new */
    uint16_t old_index;  /* ring position at the decision before */
    uint16_t new_index;  /* ring position at the last decision */
    uint16_t event;      /* what the peer's event index or offset was, where it counted */
    uint16_t flags;      /* what the peer's flags were, where they counted */
    uint8_t reason;      /* virtio_notify_reason of the last decision */
    uint8_t force;       /* 1: the next decision is yes */
} virtio_notify;

/* A piece of a buffer, as a driver names it. */
typedef struct virtio_sg {
    uint64_t gpa;
    uint32_t len; /* bytes, at least 1 */
    uint32_t reserved;
} virtio_sg;

/* One chain to enqueue: its pieces follow in the sg array, readable ones first. */
typedef struct virtio_request {
    uint64_t cookie;
    uint16_t readable; /* pieces the device reads */
    uint16_t writable; /* pieces the device writes */
    uint32_t head;     /* out: descriptor index (split) or buffer id (packed) it got */
} virtio_request;

/* One chain that came back. The second word is laid out as a used element. */
typedef struct virtio_completion {
    uint64_t cookie;
    uint32_t head; /* as in the request */
    uint32_t len;  /* bytes the device wrote; never more than were writable */
} virtio_completion;

/* What enqueue may answer besides the number of chains taken; FreeBSD's errno values name them. */
#define VIRTIO_ENQ_OK 0
#define VIRTIO_ENQ_FULL 1    /* ENOSPC: no descriptor is free now; some will be */
#define VIRTIO_ENQ_TOO_BIG 2 /* EMSGSIZE: more descriptors than are free, and no indirect table takes it */
#define VIRTIO_ENQ_EMPTY 3   /* EINVAL: a chain of no pieces, or a piece of no bytes */
#define VIRTIO_ENQ_BYTES 4   /* EINVAL: more than 2^32 - 1 bytes */
#define VIRTIO_ENQ_BROKEN 5  /* the queue is broken */

/* The driver's private shadow of one chain, by descriptor index (split) or buffer id (packed): what it trusts. `word` is
 * loaded and stored whole: bits 0-31 bytes the device may write, 32-47 ring slots it holds (0: not a head, or free). */
typedef struct virtio_desc_state {
    uint64_t cookie;
    uint64_t word;
} virtio_desc_state;

typedef struct virtio_driver_queue {
    /* set when bound to memory and layout */
    virtio_desc *desc;              /* split: descriptor table */
    virtio_packed_desc *ring;       /* packed: descriptor ring */
    virtio_avail *avail;            /* split */
    virtio_used *used;              /* split */
    virtio_packed_event *my_event;  /* packed: driver area */
    virtio_packed_event *peer_event; /* packed: device area */
    virtio_desc_state *state;       /* [size] */
    uint16_t *links;                /* [size] split: next descriptor of the chain or free list; packed: next free id.
                                     * Apart from state: the walk along it bounds how fast descriptors are taken */
    uint8_t *indirect;              /* host address of the indirect tables, or NULL */
    uint64_t indirect_gpa;
    uint32_t flags;                 /* VIRTIO_Q_* */
    uint16_t size;
    uint16_t max_indirect;          /* entries of each indirect table; there is one for each descriptor */
    uint8_t packed;

    /* what enqueue and dequeue write */
    uint16_t nfree __attribute__((aligned(64))); /* ring slots free */
    uint16_t free_head;   /* split: first free descriptor (in order: the next one); packed: first free id */
    uint16_t next_avail;  /* split: avail.idx as published; packed: slot of the next descriptor */
    uint16_t next_used;   /* split: used.idx up to which we took; packed: slot of the next used descriptor */
    uint16_t oldest;      /* in order: head of the oldest chain outstanding */
    uint8_t avail_wrap;   /* packed: wrap counters (2.8.1) */
    uint8_t used_wrap;
    uint8_t batch;        /* in order: chains up to batch_id are used, and being handed out */
    uint16_t batch_id;
    uint32_t batch_len;
    uint16_t used_seen;   /* split: used.idx as last read and checked */
    uint16_t used_event;  /* split: what we last wrote as used_event, or NO_INTERRUPT in avail_flags */
    uint16_t avail_flags; /* split: what we last wrote to avail.flags */
    uint32_t event_word;  /* packed: what we last wrote to my_event */
    uint8_t intr_enabled;
    uint64_t pending;     /* ring slots (packed) or chains (split) published since the last notify */

    virtio_notify notify __attribute__((aligned(64)));
    virtio_fault fault;
    uint64_t chains;      /* counters since start: chains enqueued, */
    uint64_t completions; /* chains dequeued: the difference is outstanding */
    uint64_t clamped;     /* used lengths cut (CLAMP_USED_LEN) */
    uint32_t lock;        /* burst lock */
} __attribute__((aligned(64))) virtio_driver_queue;

/* One chain, popped. Its pieces are segs[first .. first + nreadable + nwritable), readable ones first. Three words, so
 * that the usual chain of one piece is made with three stores. Byte counts stop at 2^32 - 1. */
typedef struct virtio_chain {
    uint32_t written;   /* bytes written into the writable part: set by the caller before add_used */
    uint16_t head;      /* descriptor index (split) or buffer id (packed) */
    uint16_t slots;     /* packed: ring slots it holds; split: 1 */
    uint32_t first;     /* piece */
    uint16_t nreadable; /* pieces */
    uint16_t nwritable;
    uint32_t readable;  /* bytes */
    uint32_t writable;
} virtio_chain;

typedef struct virtio_device_queue {
    /* set when bound to memory and layout */
    virtio_desc *desc;
    virtio_packed_desc *ring;
    virtio_avail *avail;
    virtio_used *used;
    virtio_packed_event *my_event;   /* packed: device area */
    virtio_packed_event *peer_event; /* packed: driver area */
    virtio_memory *memory;
    uint64_t used_gpa;               /* for the dirty log: used ring (split) or descriptor ring (packed), */
    uint64_t event_gpa;              /* and the device area's event word (packed) */
    uint32_t flags;                  /* VIRTIO_Q_* */
    uint32_t max_chain;              /* descriptors a chain may have, indirect ones included, */
    uint32_t max_walk;               /* and of which so many are walked */
    uint16_t size;
    uint8_t packed;
    virtio_region hit;               /* the region that the last lookup found */
    virtio_inflight *inflight;       /* where what is popped is noted for a backend after us, or NULL */

    /* what pop and add_used write */
    uint16_t next_avail __attribute__((aligned(64))); /* split: avail.idx up to which we popped; packed: slot */
    uint16_t avail_seen;  /* split: avail.idx as last read and checked */
    uint16_t next_used;   /* split: used.idx as published; packed: slot of the next used descriptor */
    uint16_t inuse;       /* packed: ring slots popped and not yet used; split: next_avail - next_used */
    uint8_t avail_wrap;   /* packed */
    uint8_t used_wrap;
    uint8_t notify_enabled;
    uint16_t used_flags;  /* split: what we last wrote to used.flags */
    uint16_t avail_event; /* split: what we last wrote as avail_event */
    uint32_t event_word;  /* packed: what we last wrote to my_event */
    uint64_t pending;     /* split: chains, packed: ring slots, published since the last decision */

    virtio_notify notify __attribute__((aligned(64)));
    virtio_fault fault;
    uint64_t chains;      /* counters since start: chains popped, */
    uint64_t completions; /* chains used */
    uint32_t lock;
    uint32_t put_back;    /* chains that were put back after the fault: they were good, and are popped again */
} __attribute__((aligned(64))) virtio_device_queue;

#endif
