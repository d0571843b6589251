/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Copies of frames and stores of their headers, for the data path.
 */
#ifndef VIRTIO_NET_COPY_H
#define VIRTIO_NET_COPY_H

#include <stdint.h>
#include <string.h>

#include "virtio/net_hdr.h"

/* A frame of n bytes. Short ones in vectors of 16 that overlap: a call of memcpy takes as long as the copy. */
static inline void virtio_copy_frame(uint8_t *to, const uint8_t *p, size_t n)
{
    uint8_t a[32], b[32], c[32], d[32];
    if (n > 128 || n < 32) {
        memcpy(to, p, n);
        return;
    }
    memcpy(a, p, 32);
    memcpy(d, p + n - 32, 32);
    if (n > 64) {
        memcpy(b, p + 32, 32);
        memcpy(c, p + n - 64, 32);
        memcpy(to + 32, b, 32);
        memcpy(to + n - 64, c, 32);
    }
    memcpy(to, a, 32);
    memcpy(to + n - 32, d, 32);
}

/* The first size bytes of a header (10, 12, 20 or 24), whatever is in *hdr beyond its offsets being 0: flags, type and
 * what goes with them are one word. */
static inline void virtio_put_net_hdr(uint8_t *to, const virtio_net_hdr *hdr, uint16_t num_buffers, uint32_t size)
{
    uint32_t tail = hdr->csum_offset | (uint32_t)num_buffers << 16;
    memcpy(to, hdr, 8);
    if (size == 12) {
        memcpy(to + 8, &tail, 4);
        return;
    }
    memcpy(to + 8, &tail, size == 10 ? 2 : 4);
    if (size >= 20)
        memset(to + 12, 0, 8);
    if (size == 24)
        memcpy(to + 20, &hdr->outer_th_offset, 4);
}

/* A header that says nothing, of a frame in one buffer. */
static inline void virtio_put_no_hdr(uint8_t *to, uint32_t size)
{
    static const uint32_t one = 1u << 16; /* num_buffers */
    memset(to, 0, 8);
    if (size == 12) {
        memcpy(to + 8, &one, 4);
        return;
    }
    memcpy(to + 8, &one, size == 10 ? 2 : 4);
    if (size >= 20)
        memset(to + 12, 0, size - 12);
}

/* flags and gso_type, as one number: 0 if the header says nothing */
static inline uint16_t virtio_net_hdr_says(const virtio_net_hdr *hdr)
{
    uint16_t both;
    memcpy(&both, hdr, 2);
    return both;
}

/* the 6 bytes of a MAC address as a number, from memory of 8 bytes or more */
static inline uint64_t virtio_load_mac(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return v & 0xffffffffffffu;
#else
    return v >> 16;
#endif
}

#endif
