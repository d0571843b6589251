/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Sum kernels for any CPU. They add 64-bit words without a mask or a carry: with S the sum of the words modulo 2^64 and
 * H the sum of their upper halves, the sum of the lower halves is S - (H << 32), exact while a lane takes fewer than
 * 2^32 words. The vectors are the compiler's: SSE2 on x86-64, NEON on aarch64.
 */
#ifndef VIRTIO_CHECKSUM_PORTABLE_H
#define VIRTIO_CHECKSUM_PORTABLE_H

#include "virtio/checksum.h"

typedef uint64_t virtio_sum_pair __attribute__((vector_size(16)));

static inline virtio_sum_pair virtio_sum_load_pair(const uint8_t *p)
{
    virtio_sum_pair v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t virtio_sum_reduce_pair(virtio_sum_pair s, virtio_sum_pair h)
{
    virtio_sum_pair v = s - (h << 32) + h;
    return virtio_sum_narrow(virtio_sum_add(v[0], v[1]));
}

static inline uint64_t virtio_sum_portable(const uint8_t *p, size_t n)
{
    virtio_sum_pair s0 = {0}, s1 = {0}, h0 = {0}, h1 = {0};
    for (; n >= 32; p += 32, n -= 32) {
        virtio_sum_pair x = virtio_sum_load_pair(p), y = virtio_sum_load_pair(p + 16);
        s0 += x;
        h0 += x >> 32;
        s1 += y;
        h1 += y >> 32;
    }
    return virtio_sum_narrow(virtio_sum_reduce_pair(s0 + s1, h0 + h1) + virtio_sum_short(p, n));
}

static inline uint64_t virtio_sum_copy_portable(uint8_t *to, const uint8_t *p, size_t n)
{
    virtio_sum_pair s0 = {0}, s1 = {0}, h0 = {0}, h1 = {0};
    for (; n >= 32; to += 32, p += 32, n -= 32) {
        virtio_sum_pair x = virtio_sum_load_pair(p), y = virtio_sum_load_pair(p + 16);
        memcpy(to, &x, sizeof x);
        memcpy(to + 16, &y, sizeof y);
        s0 += x;
        h0 += x >> 32;
        s1 += y;
        h1 += y >> 32;
    }
    memcpy(to, p, n);
    return virtio_sum_narrow(virtio_sum_reduce_pair(s0 + s1, h0 + h1) + virtio_sum_short(p, n));
}

#endif
