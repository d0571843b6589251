/* SPDX-License-Identifier: BSD-2-Clause
 *
 * A bell: how one side of a queue wakes the other, kick or interrupt, within a process or by an eventfd.
 *
 * Whoever answers a bell polls, and costs the ringer one atomic exchange; or sleeps on the bell's eventfd, and costs it a
 * write. No ring is lost: the answerer sets `asleep`, fences, and looks at `rung` before it sleeps; the ringer sets
 * `rung`, fences, and looks at `asleep`.
 */
#ifndef VIRTIO_BELL_H
#define VIRTIO_BELL_H

#include <stdint.h>
#include <sys/uio.h>
#include <unistd.h>

typedef struct virtio_bell {
    uint32_t rung;   /* 1 from a ring until it is answered */
    uint32_t asleep; /* the answerer sleeps on fd, or is about to */
    int32_t fd;      /* eventfd, or -1 */
    uint32_t always; /* fd is read by somebody who knows no `asleep`: each ring is a write */
    uint32_t foreign; /* others write to fd, and count no ring: whoever reads it does. Rung by a call: see foreign_bell.h */
    uint32_t dead;    /* foreign, and a write to it did not end by itself: there are no more */
    uint64_t rings;  /* times it was rung */
    uint64_t writes; /* writes to fd that this took */
    void (*call)(struct virtio_bell *bell); /* in place of all this, unless NULL; may take the GIL; may change */
    void *owner;                            /* for call */
} virtio_bell;

/* A ring, counted already, of a bell of which `call` is not the whole. */
static inline void virtio_bell_wake(virtio_bell *bell)
{
    static const uint64_t one = 1;
    uint32_t rung, always;
    /* rung already: the ringer before us has woken the answerer, or the answerer will look before it sleeps */
    rung = __atomic_exchange_n(&bell->rung, 1, __ATOMIC_SEQ_CST);
    always = __atomic_load_n(&bell->always, __ATOMIC_SEQ_CST); /* after rung; virtio_bell_open: rung after always */
    if (rung && !always)
        return;
    if (bell->fd >= 0 && (always || __atomic_load_n(&bell->asleep, __ATOMIC_SEQ_CST))) {
        __atomic_fetch_add(&bell->writes, 1, __ATOMIC_RELAXED);
        /* not taken: the count is at its maximum, so the reader is woken anyway */
        if (write(bell->fd, &one, sizeof(one)) < 0)
            return;
    }
}

/* Any thread may ring; never under a queue's lock, for `call` may take its time. */
static inline void virtio_bell_ring(virtio_bell *bell)
{
    void (*call)(virtio_bell *);
    if (!bell->foreign)
        __atomic_fetch_add(&bell->rings, 1, __ATOMIC_RELAXED);
    call = __atomic_load_n(&bell->call, __ATOMIC_ACQUIRE); /* before owner */
    if (call)
        call(bell);
    else
        virtio_bell_wake(bell);
}

/* Change `call` of a bell that others may ring just now: what they call may be the one before. */
static inline void virtio_bell_set_call(virtio_bell *bell, void (*call)(virtio_bell *))
{
    __atomic_store_n(&bell->call, call, __ATOMIC_RELEASE);
}

/* From now on each ring is a write to fd; one that was not answered yet is written now. */
static inline void virtio_bell_open(virtio_bell *bell)
{
    static const uint64_t one = 1;
    if (__atomic_exchange_n(&bell->always, 1, __ATOMIC_SEQ_CST) || !__atomic_load_n(&bell->rung, __ATOMIC_SEQ_CST))
        return;
    __atomic_fetch_add(&bell->writes, 1, __ATOMIC_RELAXED);
    if (write(bell->fd, &one, sizeof(one)) < 0)
        return;
}

/* Whoever slept on fd: take what is in it, without waiting; return how much that was. Counts a foreign bell's rings. */
static inline uint64_t virtio_bell_drain(virtio_bell *bell)
{
    uint64_t count = 0;
#ifdef RWF_NOWAIT /* whoever shares a foreign bell's fd may have set it blocking */
    struct iovec to = {&count, sizeof(count)};
    if (preadv2(bell->fd, &to, 1, -1, RWF_NOWAIT) != sizeof(count))
        return 0;
#else
    if (read(bell->fd, &count, sizeof(count)) != sizeof(count))
        return 0;
#endif
    if (bell->foreign)
        __atomic_fetch_add(&bell->rings, count, __ATOMIC_RELAXED);
    return count;
}

/* The answerer: say whether it was rung since the last answer, and that this is answered. */
static inline int virtio_bell_answer(virtio_bell *bell)
{
    return __atomic_load_n(&bell->rung, __ATOMIC_RELAXED) && __atomic_exchange_n(&bell->rung, 0, __ATOMIC_SEQ_CST);
}

#endif
