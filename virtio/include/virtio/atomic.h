/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Loads, stores and fences on memory that a peer reads and writes at the same time. Everything that touches a shared
 * ring goes through these, so that the compiler neither tears, repeats nor invents an access (no double fetch), and
 * so that the thread sanitizer sees what is synchronised. Orders are those of VIRTIO 1.4, sections 2.7.13 and 2.8.21.
 */
#ifndef VIRTIO_ATOMIC_H
#define VIRTIO_ATOMIC_H

#include <stdint.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtio supports little-endian hosts only (x86-64, aarch64): rings are accessed in place"
#endif

static inline uint8_t virtio_load8(const uint8_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint16_t virtio_load16(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t virtio_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t virtio_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint16_t virtio_load16_acquire(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint32_t virtio_load32_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t virtio_load64_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void virtio_store16(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void virtio_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void virtio_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void virtio_store8_release(uint8_t *p, uint8_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void virtio_store16_release(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void virtio_store32_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void virtio_store64_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

/* 8 bytes at any alignment, in whatever struct they lie. virtio_fetch64 is for memory that a peer may change: volatile
 * forbids a second fetch (an indirect table may lie anywhere, VIRTIO 1.4, 2.7.5.3, and used elements at 4 mod 8). */
typedef struct virtio_unaligned64 {
    uint64_t value;
} __attribute__((packed, may_alias)) virtio_unaligned64;

static inline uint64_t virtio_fetch64(const void *p) { return ((const volatile virtio_unaligned64 *)p)->value; }
static inline uint64_t virtio_get64(const void *p) { return ((const virtio_unaligned64 *)p)->value; }
static inline void virtio_put64(void *p, uint64_t v) { ((virtio_unaligned64 *)p)->value = v; }

/* Store then load of another location: the one order that x86 does not give for nothing. A locked add below the stack
 * pointer is several times cheaper than mfence, and enough for ordinary write-back memory. */
static inline void virtio_fence(void)
{
#if defined(__SANITIZE_THREAD__)
    static uint32_t word; /* gcc's thread sanitizer does not model fences: give it a read-modify-write to see */
    __atomic_fetch_add(&word, 1, __ATOMIC_SEQ_CST);
#elif defined(__x86_64__)
    __asm__ __volatile__("lock; addl $0, -132(%%rsp)" ::: "memory", "cc");
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Sets the bits of mask in one byte, atomically: the dirty log is shared with the process that migrates the guest. */
static inline void virtio_or8(uint8_t *p, uint8_t mask) { __atomic_fetch_or(p, mask, __ATOMIC_SEQ_CST); }

/* Takes a byte of the dirty log and clears it: a bit set meanwhile is either in the answer or still in the log. */
static inline uint8_t virtio_exchange8(uint8_t *p, uint8_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }

/* The same value, of which the compiler knows nothing: keeps it from merging a predicted branch into arithmetic, which
 * would make the next iteration wait for a load. */
static inline uint32_t virtio_opaque(uint32_t x)
{
    __asm__("" : "+r"(x));
    return x;
}

static inline void virtio_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* A queue's burst lock: one owner at a time, in the order of their numbers. The high half is the number drawn next, the
 * low half the number served: equal halves mean a free lock. trylock fails while a thread waits, so a worker that takes
 * a lock again and again starves no other. Uncontended in the intended use (one thread per queue). */
typedef uint16_t __attribute__((may_alias)) virtio_lock_half;

static inline int virtio_is_locked(const uint32_t *lock)
{
    const uint32_t word = __atomic_load_n(lock, __ATOMIC_RELAXED);
    return word >> 16 != (word & 0xffff);
}

static inline int virtio_trylock(uint32_t *lock)
{
    uint32_t word = __atomic_load_n(lock, __ATOMIC_RELAXED);
    return word >> 16 == (word & 0xffff) &&
           __atomic_compare_exchange_n(lock, &word, word + 0x10000, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* Waiting: draw a number, then ask until it is served. */
static inline uint32_t virtio_lock_draw(uint32_t *lock)
{
    return __atomic_fetch_add(lock, 0x10000, __ATOMIC_RELAXED) >> 16;
}

static inline int virtio_lock_serves(const uint32_t *lock, uint32_t number)
{
    return __atomic_load_n((const virtio_lock_half *)lock, __ATOMIC_ACQUIRE) == number;
}

/* Only the owner writes the low half. */
static inline void virtio_unlock(uint32_t *lock)
{
    virtio_lock_half *served = (virtio_lock_half *)lock;
    __atomic_store_n(served, (uint16_t)(__atomic_load_n(served, __ATOMIC_RELAXED) + 1), __ATOMIC_RELEASE);
}

#define virtio_prefetch(p) __builtin_prefetch((p), 0, 3)
#if defined(__x86_64__)
#define virtio_prefetch_write(p) __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)(p)))
#else
#define virtio_prefetch_write(p) __builtin_prefetch((p), 1, 3)
#endif
#define virtio_likely(x) __builtin_expect(!!(x), 1)
#define virtio_unlikely(x) __builtin_expect(!!(x), 0)

#endif
