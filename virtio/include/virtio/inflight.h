/* SPDX-License-Identifier: BSD-2-Clause
 *
 * What a vhost-user backend has popped and not used, in memory that outlives it: the queue regions of "Inflight I/O
 * tracking" (QEMU's docs/interop/vhost-user.rst), and the private side of it. The frontend shares the region and is
 * hostile: it is read once, when a queue starts, and only written from then on.
 */
#ifndef VIRTIO_INFLIGHT_H
#define VIRTIO_INFLIGHT_H

#include <stdint.h>

#include "virtio/ring.h"

#define VIRTIO_INFLIGHT_VERSION 1u

/* split: one for each descriptor; only those of heads count */
typedef struct virtio_desc_state_split {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;    /* of the last batch of used chains: the one used before */
    uint64_t counter; /* order of popping */
} virtio_desc_state_split;

typedef struct virtio_queue_region_split {
    uint64_t features; /* 0 */
    uint16_t version;  /* 0: not initialised */
    uint16_t desc_num; /* entries of desc */
    uint16_t last_batch_head;
    uint16_t used_idx; /* used.idx when the last batch was noted as done */
    virtio_desc_state_split desc[];
} virtio_queue_region_split;

/* packed: one for each descriptor popped, a copy of it, as its ring slot is used again before the chain is */
typedef struct virtio_desc_state_packed {
    uint8_t inflight; /* of the chain's first entry, as are last, num and counter */
    uint8_t padding;
    uint16_t next; /* entry: of the chain, or of the free list, which ends with desc_num */
    uint16_t last;
    uint16_t num;
    uint64_t counter;
    uint16_t id;
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
} virtio_desc_state_packed;

typedef struct virtio_queue_region_packed {
    uint64_t features;
    /* one 64-bit word, stored whole */
    uint16_t version;
    uint16_t desc_num;
    uint16_t free_head;
    uint16_t old_free_head; /* the old ones are what counts until a batch is published */
    /* another */
    uint16_t used_idx;
    uint16_t old_used_idx;
    uint8_t used_wrap_counter;
    uint8_t old_used_wrap_counter;
    uint8_t padding[7];
    virtio_desc_state_packed desc[];
} virtio_queue_region_packed;

#ifndef __cplusplus
_Static_assert(sizeof(virtio_desc_state_split) == 16 && sizeof(virtio_queue_region_split) == 16, "layout");
_Static_assert(sizeof(virtio_desc_state_packed) == 32 && sizeof(virtio_queue_region_packed) == 32, "layout");
#endif

/* A device queue's side of it. Whoever runs a burst holds the queue's lock. */
typedef struct virtio_inflight {
    virtio_queue_region_split *split; /* one of the two */
    virtio_queue_region_packed *packed;
    uint64_t counter; /* of the next chain popped */
    uint64_t fresh;   /* chains popped from the ring, less those put back */
    uint16_t entries; /* desc_num */
    uint16_t last_batch_head; /* split */
    uint16_t free_head;       /* packed: as the region has it, which is not read again */
    uint16_t *next;  /* packed: [entries] of each entry, likewise; */
    uint16_t *last;  /* [entries] of a chain's first entry; */
    uint16_t *num;   /* [entries] likewise; */
    uint16_t *older; /* [entries] of a chain's first entry, that of the chain popped before with the same id, plus 1; */
    uint16_t *by_id; /* [65536] first entry of the chain popped last with an id, plus 1 */
    /* chains that a backend before us had popped: to be popped again, before any of the ring */
    uint32_t again; /* those that were, */
    uint32_t listed; /* of so many */
    uint16_t *heads; /* [listed] split: descriptor; packed: where in copies the chain begins */
    virtio_packed_desc *copies;
} virtio_inflight;

#endif
