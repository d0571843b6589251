/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Mappings of files that somebody else may cut shorter: an access behind the new end raises SIGBUS, which would end the
 * process. Here it finds zeroes instead, and an eventfd is written to, so that whoever trusted the file ends that trust.
 *
 * The handler maps zeroes over the whole mapping (a huge page cannot be replaced in part) and returns: the access is
 * done again. Any thread may fault, with the GIL or without, under any lock. What the handler reads is a table that it
 * can read at any moment: chunks are never freed, and an entry has a turn that is odd while it changes. An entry is
 * removed before its mapping is, so what faults while it is there is its mapping.
 *
 * A SIGBUS that is about no such mapping goes to whoever had the signal before. A process that takes the signal after
 * us without passing it on is not protected.
 *
 * To be included by sigbus.pyx only: there is one table in a process.
 */
#ifndef VIRTIO_TRUNCATION_H
#define VIRTIO_TRUNCATION_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VIRTIO_GUARDS 64 /* entries of a chunk */

enum { VIRTIO_GUARD_FREE = 0, VIRTIO_GUARD_LIVE = 2, VIRTIO_GUARD_STATE = 3 }; /* of a turn; odd: it is changing */

typedef struct virtio_guard {
    uint64_t turn;  /* grows with each change; modulo 4 it is the state */
    uintptr_t base; /* of the mapping */
    size_t length;
    size_t unit;   /* bytes of a page of it */
    int32_t fd;    /* eventfd */
    uint32_t lost; /* zeroes lie over it */
} virtio_guard;

typedef struct virtio_guards {
    virtio_guard guard[VIRTIO_GUARDS];
    struct virtio_guards *next;
} virtio_guards;

static virtio_guards virtio_first_guards;
static struct sigaction virtio_before_us; /* written once, before our handler is there */
static int virtio_pass_on;                /* virtio_before_us is to be called; else the signal does what it does by default */

/* Return an entry for [base, base + length), NULL when there is no memory. */
static virtio_guard *virtio_guard_add(void *base, size_t length, size_t unit, int fd)
{
    virtio_guards *chunk = &virtio_first_guards;
    for (;;) {
        for (int i = 0; i < VIRTIO_GUARDS; i++) {
            virtio_guard *guard = &chunk->guard[i];
            uint64_t turn = __atomic_load_n(&guard->turn, __ATOMIC_RELAXED);
            if ((turn & VIRTIO_GUARD_STATE) != VIRTIO_GUARD_FREE)
                continue;
            if (!__atomic_compare_exchange_n(&guard->turn, &turn, turn + 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
                continue;
            __atomic_thread_fence(__ATOMIC_RELEASE); /* the odd turn is seen before what follows */
            __atomic_store_n(&guard->base, (uintptr_t)base, __ATOMIC_RELAXED);
            __atomic_store_n(&guard->length, length, __ATOMIC_RELAXED);
            __atomic_store_n(&guard->unit, unit, __ATOMIC_RELAXED);
            __atomic_store_n(&guard->fd, fd, __ATOMIC_RELAXED);
            __atomic_store_n(&guard->lost, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&guard->turn, turn + 2, __ATOMIC_RELEASE);
            return guard;
        }
        virtio_guards *next = __atomic_load_n(&chunk->next, __ATOMIC_ACQUIRE);
        if (next == NULL) {
            virtio_guards *made = calloc(1, sizeof(*made));
            if (made == NULL)
                return NULL;
            if (__atomic_compare_exchange_n(&chunk->next, &next, made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                next = made;
            else
                free(made); /* another thread was first */
        }
        chunk = next;
    }
}

/* Give an entry back; before the mapping goes, for its addresses may be another's next. */
static void virtio_guard_remove(virtio_guard *guard)
{
    __atomic_store_n(&guard->turn, guard->turn + 2, __ATOMIC_RELEASE);
}

static int virtio_guard_is_lost(const virtio_guard *guard)
{
    return (int)__atomic_load_n(&guard->lost, __ATOMIC_ACQUIRE);
}

/* Find the entry whose mapping has the address; a copy of it goes to found. */
static virtio_guard *virtio_guard_find(uintptr_t address, virtio_guard *found)
{
    for (virtio_guards *chunk = &virtio_first_guards; chunk; chunk = __atomic_load_n(&chunk->next, __ATOMIC_ACQUIRE)) {
        for (int i = 0; i < VIRTIO_GUARDS; i++) {
            virtio_guard *guard = &chunk->guard[i];
            const uint64_t turn = __atomic_load_n(&guard->turn, __ATOMIC_ACQUIRE);
            if ((turn & VIRTIO_GUARD_STATE) != VIRTIO_GUARD_LIVE)
                continue;
            found->base = __atomic_load_n(&guard->base, __ATOMIC_RELAXED);
            found->length = __atomic_load_n(&guard->length, __ATOMIC_RELAXED);
            found->unit = __atomic_load_n(&guard->unit, __ATOMIC_RELAXED);
            found->fd = __atomic_load_n(&guard->fd, __ATOMIC_RELAXED);
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            if (__atomic_load_n(&guard->turn, __ATOMIC_RELAXED) != turn)
                continue; /* it changed meanwhile: nobody uses that mapping */
            if (address - found->base < found->length)
                return guard;
        }
    }
    return NULL;
}

static int virtio_zeroes_over(uintptr_t base, size_t length)
{
    /* the system call itself: a C library or a sanitizer may have locks around its mmap */
    return syscall(SYS_mmap, base, length, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0) == (long)base;
}

static int virtio_guard_saves(uintptr_t address)
{
    static const uint64_t one = 1;
    virtio_guard found;
    virtio_guard *guard = virtio_guard_find(address, &found);
    if (guard == NULL)
        return 0;
    /* where memory is not overcommitted there may be no room for all of it, but for a page */
    if (!virtio_zeroes_over(found.base, found.length)
        && !virtio_zeroes_over(address - (address - found.base) % found.unit, found.unit))
        return 0;
    if (!__atomic_exchange_n(&guard->lost, 1, __ATOMIC_ACQ_REL) && write(found.fd, &one, sizeof(one)) < 0)
        return 1; /* the count is at its maximum: whoever reads it is woken anyway */
    return 1;
}

static void virtio_sigbus_default(int number, const siginfo_t *info)
{
    struct sigaction none = {.sa_handler = SIG_DFL};
    sigaction(number, &none, NULL);
    if (info->si_code <= 0)
        raise(number); /* somebody sent it: it comes when the handler returns. A fault happens again by itself */
}

static void virtio_sigbus(int number, siginfo_t *info, void *context)
{
    const int saved = errno;
    if (info->si_code != BUS_ADRERR || !virtio_guard_saves((uintptr_t)info->si_addr)) {
        if (!__atomic_load_n(&virtio_pass_on, __ATOMIC_ACQUIRE))
            virtio_sigbus_default(number, info);
        else if (virtio_before_us.sa_flags & SA_SIGINFO)
            virtio_before_us.sa_sigaction(number, info, context);
        else
            virtio_before_us.sa_handler(number);
    }
    errno = saved;
}

/* Take SIGBUS, unless somebody else took it after us. -1 with errno when it cannot be. */
static int virtio_sigbus_take(void)
{
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    static int taken;
    struct sigaction now, ours = {.sa_sigaction = virtio_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int result = 0;
    pthread_mutex_lock(&one_at_a_time);
    result = sigaction(SIGBUS, NULL, &now);
    if (result == 0 && (!taken || (!(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL))) {
        /* the second time: who had it before us has put back what was before him */
        if (!taken)
            virtio_before_us = now;
        __atomic_store_n(&virtio_pass_on,
                         !taken && ((now.sa_flags & SA_SIGINFO) || (now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN)),
                         __ATOMIC_RELEASE);
        sigemptyset(&ours.sa_mask);
        result = sigaction(SIGBUS, &ours, NULL);
        taken = result == 0;
    }
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

/* A system call that had these bytes ended in EFAULT, where an access would have raised SIGBUS: access them, if guarded. */
static void virtio_guard_touch(const void *start, size_t length)
{
    static const volatile uint8_t nothing = 0; /* volatile: a constant would let the compiler leave the write out */
    const uintptr_t step = 4096; /* no page is smaller */
    const uintptr_t end = (uintptr_t)start + length;
    virtio_guard found;
    if (length == 0 || !virtio_guard_find((uintptr_t)start, &found))
        return;
    for (uintptr_t at = (uintptr_t)start; at < end && at - found.base < found.length; at = at - at % step + step)
        __atomic_fetch_or((uint8_t *)at, nothing, __ATOMIC_RELAXED);
}

#endif
