/* SPDX-License-Identifier: BSD-2-Clause
 *
 * CRC32c (Castagnoli; RFC 9260 appendix A), bit-reflected: bit 0 of a register is the highest power of x. These work on
 * the bare register, without the inversions before and after.
 */
#ifndef VIRTIO_CRC32C_H
#define VIRTIO_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VIRTIO_CRC32C_POLYNOMIAL 0x82f63b78u
#define VIRTIO_CRC32C_WORDS 128 /* in each of three lanes, at most */

typedef struct virtio_crc32c_tables {
    uint32_t byte[8][256];                          /* [k][b]: b followed by k zero bytes */
    uint32_t shift[2 * VIRTIO_CRC32C_WORDS + 1];    /* [k]: x^(64 k - 33), the factor for k zero words behind */
} virtio_crc32c_tables;

static inline uint64_t virtio_crc32c_load(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* slicing by eight; little-endian hosts */
static inline uint32_t virtio_crc32c_portable(const virtio_crc32c_tables *t, uint32_t crc, const uint8_t *p, size_t n)
{
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t v = virtio_crc32c_load(p) ^ crc;
        crc = t->byte[7][v & 255] ^ t->byte[6][v >> 8 & 255] ^ t->byte[5][v >> 16 & 255] ^ t->byte[4][v >> 24 & 255] ^
              t->byte[3][v >> 32 & 255] ^ t->byte[2][v >> 40 & 255] ^ t->byte[1][v >> 48 & 255] ^ t->byte[0][v >> 56];
    }
    for (; n; n--)
        crc = crc >> 8 ^ t->byte[0][(crc ^ *p++) & 255];
    return crc;
}

static inline void virtio_crc32c_fill(virtio_crc32c_tables *t)
{
    static const uint8_t zeros[8];
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? VIRTIO_CRC32C_POLYNOMIAL : 0);
        t->byte[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++)
            t->byte[k][b] = t->byte[k - 1][b] >> 8 ^ t->byte[0][t->byte[k - 1][b] & 255];
    t->shift[0] = 0; /* not a power of x: no caller shifts by nothing */
    t->shift[1] = 1; /* x^31 */
    for (int k = 2; k <= 2 * VIRTIO_CRC32C_WORDS; k++)
        t->shift[k] = virtio_crc32c_portable(t, t->shift[k - 1], zeros, 8);
}

#ifdef __x86_64__

#include <immintrin.h>

#define VIRTIO_SSE42 __attribute__((target("sse4.2,pclmul")))

/* crc with k zero words behind it: the product of two reflected 32-bit registers lacks x^33 */
VIRTIO_SSE42 static inline uint32_t virtio_crc32c_shift(const virtio_crc32c_tables *t, uint32_t crc, size_t k)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)crc), _mm_cvtsi32_si128((int)t->shift[k]), 0);
    return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

/* The instruction takes a word a cycle, but gives its result after three: so three lanes at a time. */
VIRTIO_SSE42 static inline uint32_t virtio_crc32c_sse42(const virtio_crc32c_tables *t, uint32_t crc, const uint8_t *p, size_t n)
{
    uint64_t a = crc;
    while (n >= 3 * 8 * 8) {
        size_t words = n / 24 < VIRTIO_CRC32C_WORDS ? n / 24 : VIRTIO_CRC32C_WORDS, lane = 8 * words;
        uint64_t b = 0, c = 0;
        for (const uint8_t *end = p + lane; p < end; p += 8) {
            a = _mm_crc32_u64(a, virtio_crc32c_load(p));
            b = _mm_crc32_u64(b, virtio_crc32c_load(p + lane));
            c = _mm_crc32_u64(c, virtio_crc32c_load(p + 2 * lane));
        }
        a = virtio_crc32c_shift(t, (uint32_t)a, 2 * words) ^ virtio_crc32c_shift(t, (uint32_t)b, words) ^ c;
        p += 2 * lane;
        n -= 3 * lane;
    }
    for (; n >= 8; p += 8, n -= 8)
        a = _mm_crc32_u64(a, virtio_crc32c_load(p));
    crc = (uint32_t)a;
    if (n & 4) {
        uint32_t v;
        memcpy(&v, p, 4);
        crc = _mm_crc32_u32(crc, v);
        p += 4;
    }
    if (n & 2) {
        uint16_t v;
        memcpy(&v, p, 2);
        crc = _mm_crc32_u16(crc, v);
        p += 2;
    }
    if (n & 1) /* no conditional expression with a load: see virtio_sum_rest */
        crc = _mm_crc32_u8(crc, *p);
    return crc;
}

#endif
#endif
