/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Sums of bytes: what is small enough to be inlined, and the portable kernels. inet_checksum.pxd says what a partial
 * sum is.
 */
#ifndef VIRTIO_CHECKSUM_H
#define VIRTIO_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t virtio_sum_load16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static inline uint32_t virtio_sum_load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint64_t virtio_sum_load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static inline void virtio_sum_store16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }

static inline uint16_t virtio_sum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)(sum + (sum >> 16));
}

static inline uint64_t virtio_sum_swap(uint64_t sum)
{
    return (uint64_t)__builtin_bswap16(virtio_sum_fold(sum));
}

/* a + b with the carry added back in: still congruent modulo 0xffff, and 0 only for 0 and 0 */
static inline uint64_t virtio_sum_add(uint64_t a, uint64_t b)
{
    a += b;
    return a + (a < b);
}

/* to less than 2^33, as a partial sum is */
static inline uint64_t virtio_sum_narrow(uint64_t sum) { return (sum & 0xffffffffu) + (sum >> 32); }

/* the last n & 7 bytes at p */
static inline uint64_t virtio_sum_rest(const uint8_t *p, size_t n)
{
    uint64_t sum = 0;
    if (n & 4) {
        sum = virtio_sum_load32(p);
        p += 4;
    }
    if (n & 2) {
        sum += virtio_sum_load16(p);
        p += 2;
    }
    /* an if: of `n & 1 ? sum + *p : sum` gcc 14 makes `(n & 1) * *p + sum`, and reads the byte behind the last. The
     * standard gives the operand that is not chosen no evaluation: a fault of the compiler, at -O1 and above */
    if (n & 1)
        sum += *p;
    return sum;
}

#define VIRTIO_SUM_SHORT 64 /* up to here inlining beats a call, whatever the CPU has */

/* any n, meant for short ones: two chains of carries, so that the additions overlap */
static inline uint64_t virtio_sum_short(const uint8_t *p, size_t n)
{
    uint64_t a = 0, b = 0;
    while (n >= 16) {
        a = virtio_sum_add(a, virtio_sum_load64(p));
        b = virtio_sum_add(b, virtio_sum_load64(p + 8));
        p += 16;
        n -= 16;
    }
    if (n & 8) {
        a = virtio_sum_add(a, virtio_sum_load64(p));
        p += 8;
    }
    if (n & 7)
        b = virtio_sum_add(b, virtio_sum_rest(p, n));
    return virtio_sum_narrow(virtio_sum_add(a, b));
}

/* the same, with a copy */
static inline uint64_t virtio_sum_copy_short(uint8_t *to, const uint8_t *p, size_t n)
{
    uint64_t sum = 0;
    for (; n >= 8; to += 8, p += 8, n -= 8) {
        uint64_t v = virtio_sum_load64(p);
        memcpy(to, &v, 8);
        sum = virtio_sum_add(sum, v);
    }
    if (n & 4) {
        uint32_t v = virtio_sum_load32(p);
        memcpy(to, &v, 4);
        sum = virtio_sum_add(sum, v);
        to += 4;
        p += 4;
    }
    if (n & 2) {
        uint16_t v = virtio_sum_load16(p);
        memcpy(to, &v, 2);
        sum = virtio_sum_add(sum, v);
        to += 2;
        p += 2;
    }
    if (n & 1)
        sum = virtio_sum_add(sum, *to = *p);
    return virtio_sum_narrow(sum);
}

/* Kernels for n above VIRTIO_SUM_SHORT; shorter is inlined. Up to 2^32 bytes no counter of theirs overflows. */
typedef struct virtio_sum_kernels {
    uint64_t (*sum)(const uint8_t *p, size_t n);
    uint64_t (*copy)(uint8_t *to, const uint8_t *p, size_t n);
} virtio_sum_kernels;

#endif
