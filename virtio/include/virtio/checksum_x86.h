/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Sum kernels for AVX2 and AVX-512, adding as the portable ones do (checksum_portable.h). A load or store that
 * crosses a cache line costs twice, and after an Ethernet header (offset 14) every one of them would: so the body is
 * aligned, and the head and tail are masked. Words are then paired as even addresses have them; for an odd start the
 * sum is swapped at the end. n is above VIRTIO_SUM_SHORT, so that a head always fits.
 */
#ifndef VIRTIO_CHECKSUM_X86_H
#define VIRTIO_CHECKSUM_X86_H

#ifdef __x86_64__

#include <immintrin.h>

#include "virtio/checksum.h"

#define VIRTIO_AVX2 __attribute__((target("avx2")))
#define VIRTIO_AVX2_INLINE static inline __attribute__((always_inline, target("avx2")))
#define VIRTIO_AVX512 __attribute__((target("avx512f,avx512bw")))
#define VIRTIO_AVX512_INLINE static inline __attribute__((always_inline, target("avx512f,avx512bw")))

/* ---- AVX2 ---- */

typedef struct virtio_sum256 {
    __m256i s, h;
} virtio_sum256;

VIRTIO_AVX2_INLINE void virtio_sum256_add(virtio_sum256 *sum, __m256i x)
{
    sum->s = _mm256_add_epi64(sum->s, x);
    sum->h = _mm256_add_epi64(sum->h, _mm256_srli_epi64(x, 32));
}

VIRTIO_AVX2_INLINE uint64_t virtio_sum256_reduce(virtio_sum256 a, virtio_sum256 b)
{
    __m256i s = _mm256_add_epi64(a.s, b.s), h = _mm256_add_epi64(a.h, b.h);
    __m256i v = _mm256_add_epi64(_mm256_sub_epi64(s, _mm256_slli_epi64(h, 32)), h);
    __m128i half = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return virtio_sum_narrow(virtio_sum_add((uint64_t)_mm_cvtsi128_si64(half), (uint64_t)_mm_extract_epi64(half, 1)));
}

VIRTIO_AVX2_INLINE __m256i virtio_load256(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

VIRTIO_AVX2_INLINE void virtio_store256(uint8_t *p, __m256i x) { _mm256_storeu_si256((__m256i *)p, x); }

VIRTIO_AVX2_INLINE __m256i virtio_swap256(__m256i x)
{
    return _mm256_or_si256(_mm256_slli_epi16(x, 8), _mm256_srli_epi16(x, 8));
}

/* 32 times 0xff, 32 times 0: the 32 bytes at 32 - k select the first k bytes of a vector */
static const uint8_t virtio_sum_masks[64] __attribute__((aligned(64))) = {
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
};

/* the first k of the bytes x, 1 to 32, paired as from the address behind them */
VIRTIO_AVX2_INLINE __m256i virtio_sum256_head(__m256i x, size_t k)
{
    x = _mm256_and_si256(x, virtio_load256(virtio_sum_masks + 32 - k));
    return k & 1 ? virtio_swap256(x) : x;
}

/* the last k of the bytes x, 0 to 31, paired as from the first of them */
VIRTIO_AVX2_INLINE __m256i virtio_sum256_tail(__m256i x, size_t k)
{
    x = _mm256_andnot_si256(virtio_load256(virtio_sum_masks + k), x);
    return k & 1 ? virtio_swap256(x) : x;
}

VIRTIO_AVX2 static inline uint64_t virtio_sum_avx2(const uint8_t *p, size_t n)
{
    const uint8_t *end = p + n;
    size_t head = 32 - ((uintptr_t)p & 31);
    virtio_sum256 a = {0}, b = {0};
    virtio_sum256_add(&a, virtio_sum256_head(virtio_load256(p), head));
    for (p += head; end - p >= 128; p += 128) {
        virtio_sum256_add(&a, virtio_load256(p));
        virtio_sum256_add(&b, virtio_load256(p + 32));
        virtio_sum256_add(&a, virtio_load256(p + 64));
        virtio_sum256_add(&b, virtio_load256(p + 96));
    }
    for (; end - p >= 32; p += 32)
        virtio_sum256_add(&a, virtio_load256(p));
    virtio_sum256_add(&b, virtio_sum256_tail(virtio_load256(end - 32), (size_t)(end - p)));
    uint64_t sum = virtio_sum256_reduce(a, b);
    return head & 1 ? virtio_sum_swap(sum) : sum;
}

/* stores are aligned here, loads are as they come; the last store overlaps the one before it */
VIRTIO_AVX2 static inline uint64_t virtio_sum_copy_avx2(uint8_t *to, const uint8_t *p, size_t n)
{
    const uint8_t *end = p + n;
    size_t head = 32 - ((uintptr_t)to & 31);
    __m256i first = virtio_load256(p), last = virtio_load256(end - 32);
    virtio_sum256 a = {0}, b = {0};
    virtio_store256(to, first);
    virtio_store256(to + n - 32, last);
    virtio_sum256_add(&a, virtio_sum256_head(first, head));
    for (p += head, to += head; end - p >= 64; p += 64, to += 64) {
        __m256i x = virtio_load256(p), y = virtio_load256(p + 32);
        virtio_store256(to, x);
        virtio_store256(to + 32, y);
        virtio_sum256_add(&a, x);
        virtio_sum256_add(&b, y);
    }
    if (end - p >= 32) {
        __m256i x = virtio_load256(p);
        virtio_store256(to, x);
        virtio_sum256_add(&a, x);
        p += 32;
    }
    virtio_sum256_add(&b, virtio_sum256_tail(last, (size_t)(end - p)));
    uint64_t sum = virtio_sum256_reduce(a, b);
    return head & 1 ? virtio_sum_swap(sum) : sum;
}

/* ---- AVX-512 ---- */

typedef struct virtio_sum512 {
    __m512i s, h;
} virtio_sum512;

VIRTIO_AVX512_INLINE void virtio_sum512_add(virtio_sum512 *sum, __m512i x)
{
    sum->s = _mm512_add_epi64(sum->s, x);
    sum->h = _mm512_add_epi64(sum->h, _mm512_srli_epi64(x, 32));
}

VIRTIO_AVX512_INLINE uint64_t virtio_sum512_reduce(virtio_sum512 a, virtio_sum512 b)
{
    __m512i s = _mm512_add_epi64(a.s, b.s), h = _mm512_add_epi64(a.h, b.h);
    __m512i v = _mm512_add_epi64(_mm512_sub_epi64(s, _mm512_slli_epi64(h, 32)), h);
    return virtio_sum_narrow((uint64_t)_mm512_reduce_add_epi64(v));
}

/* A masked load touches no byte that its mask leaves out; the head's goes back to the line's start, in the same page */
VIRTIO_AVX512 static inline uint64_t virtio_sum_avx512(const uint8_t *p, size_t n)
{
    const uint8_t *end = p + n;
    size_t skip = (uintptr_t)p & 63;
    virtio_sum512 a = {0}, b = {0};
    if (n <= 128) { /* two loads that cross a line each cost less than aligning */
        virtio_sum512_add(&a, _mm512_loadu_si512(p));
        virtio_sum512_add(&b, _mm512_maskz_loadu_epi8(~0ull >> (128 - n), p + 64));
        return virtio_sum512_reduce(a, b);
    }
    p -= skip;
    virtio_sum512_add(&a, _mm512_maskz_loadu_epi8(~0ull << skip, p));
    for (p += 64; end - p >= 128; p += 128) {
        virtio_sum512_add(&a, _mm512_load_si512(p));
        virtio_sum512_add(&b, _mm512_load_si512(p + 64));
    }
    if (end - p >= 64) {
        virtio_sum512_add(&a, _mm512_load_si512(p));
        p += 64;
    }
    if (p < end)
        virtio_sum512_add(&b, _mm512_maskz_loadu_epi8(~0ull >> (64 - (end - p)), p));
    uint64_t sum = virtio_sum512_reduce(a, b);
    return skip & 1 ? virtio_sum_swap(sum) : sum;
}

/* stores are aligned here, loads are as they come */
VIRTIO_AVX512 static inline uint64_t virtio_sum_copy_avx512(uint8_t *to, const uint8_t *p, size_t n)
{
    const uint8_t *end = p + n;
    size_t head = 64 - ((uintptr_t)to & 63);
    __mmask64 mask = ~0ull >> (64 - head);
    __m512i x = _mm512_maskz_loadu_epi8(mask, p);
    virtio_sum512 a = {0}, b = {0};
    _mm512_mask_storeu_epi8(to, mask, x);
    if (head & 1)
        x = _mm512_or_si512(_mm512_slli_epi16(x, 8), _mm512_srli_epi16(x, 8));
    virtio_sum512_add(&a, x);
    for (p += head, to += head; end - p >= 128; p += 128, to += 128) {
        __m512i y = _mm512_loadu_si512(p + 64);
        x = _mm512_loadu_si512(p);
        _mm512_store_si512(to, x);
        _mm512_store_si512(to + 64, y);
        virtio_sum512_add(&a, x);
        virtio_sum512_add(&b, y);
    }
    if (end - p >= 64) {
        x = _mm512_loadu_si512(p);
        _mm512_store_si512(to, x);
        virtio_sum512_add(&a, x);
        p += 64;
        to += 64;
    }
    if (p < end) {
        mask = ~0ull >> (64 - (end - p));
        x = _mm512_maskz_loadu_epi8(mask, p);
        _mm512_mask_storeu_epi8(to, mask, x);
        virtio_sum512_add(&b, x);
    }
    uint64_t sum = virtio_sum512_reduce(a, b);
    return head & 1 ? virtio_sum_swap(sum) : sum;
}

#endif
#endif
