/* SPDX-License-Identifier: BSD-2-Clause
 *
 * What lies in guest memory: the two ring formats of VIRTIO 1.4 (split: section 2.7, packed: section 2.8).
 * Little-endian fields; modern devices, and legacy ones with little-endian guests.
 */
#ifndef VIRTIO_RING_H
#define VIRTIO_RING_H

#include <stdint.h>

#define VIRTIO_RING_MAX 32768u /* largest queue size, both formats */

#define VIRTIO_DESC_F_NEXT 1u
#define VIRTIO_DESC_F_WRITE 2u
#define VIRTIO_DESC_F_INDIRECT 4u
#define VIRTIO_DESC_F_AVAIL (1u << 7) /* packed only */
#define VIRTIO_DESC_F_USED (1u << 15) /* packed only */

#define VIRTIO_AVAIL_F_NO_INTERRUPT 1u
#define VIRTIO_USED_F_NO_NOTIFY 1u

/* packed event suppression, flags field (2.8.10) */
#define VIRTIO_EVENT_ENABLE 0u
#define VIRTIO_EVENT_DISABLE 1u
#define VIRTIO_EVENT_DESC 2u

typedef struct virtio_desc { /* split (2.7.5) */
    uint64_t addr;           /* guest-physical */
    uint32_t len;            /* bytes */
    uint16_t flags;
    uint16_t next;
} virtio_desc;

typedef struct virtio_used_elem { /* 2.7.8 */
    uint32_t id;                  /* head of the chain */
    uint32_t len;                 /* bytes written into it */
} virtio_used_elem;

typedef struct virtio_avail { /* 2.7.6; ring[size] is used_event */
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[];
} virtio_avail;

typedef struct virtio_used { /* 2.7.8; the 16 bits after ring[size - 1] are avail_event */
    uint16_t flags;
    uint16_t idx;
    virtio_used_elem ring[];
} virtio_used;

typedef struct virtio_packed_desc { /* 2.8.13 */
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
} virtio_packed_desc;

/* What the peer last said about events, and what we say: read and written as one 32-bit word, so that offset and
 * flags belong together. Bits 0-14 offset, 15 wrap counter, 16-17 flags. */
typedef uint32_t virtio_packed_event;

#endif
