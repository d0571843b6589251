/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Guest memory as the C level sees it. A virtio_memory is owned by a virtio.GuestMemory object; its address is stable
 * for that object's life, its contents change only while every queue bound to it is locked.
 */
#ifndef VIRTIO_MEMORY_H
#define VIRTIO_MEMORY_H

#include <stdint.h>

#define VIRTIO_REGIONS_MAX 509u /* what libvhost-user takes */
#define VIRTIO_REGIONS_FLAT 8u  /* up to here a lookup takes the same time for every region */
#define VIRTIO_PAGE_SHIFT 12u   /* of the dirty log, fixed by vhost */

typedef struct virtio_region {
    uint64_t gpa;   /* first guest-physical address */
    uint64_t size;  /* bytes */
    uint8_t *host;  /* where gpa is in this process */
    uint64_t uaddr; /* where gpa is in the frontend's process (vhost-user); equals gpa when there is none */
} virtio_region;

typedef struct virtio_memory {
    uint64_t first[VIRTIO_REGIONS_FLAT]; /* regions[i].gpa, padded with UINT64_MAX: compared without branches */
    virtio_region *regions;              /* sorted by gpa, not overlapping; padded to VIRTIO_REGIONS_FLAT entries with
                                          * the last one, which address UINT64_MAX finds there (all 0 if none) */
    uint32_t count;
    uint32_t generation; /* grows with each replacement of the map */
    uint8_t *log;        /* dirty log, one bit per 4 KiB page; NULL when off */
    uint64_t log_size;   /* bytes */
} virtio_memory;

#endif
