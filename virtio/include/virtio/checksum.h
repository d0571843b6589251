/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef VIRTIO_CHECKSUM_H
#define VIRTIO_CHECKSUM_H

#include <stdint.h>
#include <string.h>

static inline uint16_t virtio_sum_load16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
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

#endif
