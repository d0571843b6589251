/* SPDX-License-Identifier: BSD-2-Clause
 *
 * A task: what a worker thread, or an emulator by hand, does again and again: one burst of one direction of one queue.
 */
#ifndef VIRTIO_TASK_H
#define VIRTIO_TASK_H

#include <poll.h>
#include <stdint.h>

#include "virtio/bell.h"

#define VIRTIO_WAIT_MAX 256

/* What a worker that is about to sleep waits for. */
typedef struct virtio_wait {
    uint32_t nfds;
    uint32_t nbells;
    int64_t timeout_us; /* at most this long; -1: for ever */
    uint32_t full;      /* something found no room: then the worker does not sleep for long */
    struct pollfd fds[VIRTIO_WAIT_MAX];
    virtio_bell *bells[VIRTIO_WAIT_MAX];
    uint32_t bell_fd[VIRTIO_WAIT_MAX]; /* where in fds each bell's is */
} virtio_wait;

/* Work is counted, in units of about a nanosecond, and not timed: a turn is then bounded by what the guest asks for, the
 * same on each machine. Added per burst from counts that are there anyway; per piece only on the slow paths. */
#define VIRTIO_WORK_TURN 20000   /* what a task may do before it is the next one's turn: 64 chains of 1500 bytes, copied */
#define VIRTIO_WORK_CHAIN 50     /* a chain popped and given back */
#define VIRTIO_WORK_PIECE 8      /* a descriptor of a chain that is walked */
#define VIRTIO_WORK_SYSCALL 1000

#define VIRTIO_WORK_BYTES 8      /* so many bytes that are copied, or summed, are one unit */

static inline int64_t virtio_work_bytes(uint64_t bytes) { return (int64_t)(bytes / VIRTIO_WORK_BYTES); }

/* A task's turn. Who does a part of it takes that off `left`, and stops soon after nothing is left. */
typedef struct virtio_turn {
    int64_t left;    /* units; below 0: the last step was larger than what was left */
    uint32_t resume; /* out: where it stopped amid a chain: so many steps of that are done */
    uint32_t empty;  /* out, of a poll: it took all that waited; a hint */
} virtio_turn;

typedef struct virtio_task virtio_task;
struct virtio_task {
    /* Do one burst, within what is left of the turn (above 0); return how much was done: chains, or 1 for a part of
     * one; 0 for nothing. It takes the queue's lock itself, and does nothing if another thread has it or waits for it,
     * or the task is not active. Bells are rung when the lock is free again. */
    uint32_t (*poll)(virtio_task *task, virtio_turn *turn);
    /* Ask to be woken, and say by what; return 1 if there is work already. Notifications of the ring are on from here
     * until disarm. */
    int (*arm)(virtio_task *task, virtio_wait *wait);
    void (*disarm)(virtio_task *task);
    uint32_t active; /* written under the queue's lock */
    uint32_t reserved;
};

static inline void virtio_wait_fd(virtio_wait *wait, int fd, short events)
{
    if (wait->nfds == VIRTIO_WAIT_MAX) {
        wait->full = 1;
        return;
    }
    wait->fds[wait->nfds].fd = fd;
    wait->fds[wait->nfds].events = events;
    wait->fds[wait->nfds].revents = 0;
    wait->nfds++;
}

/* Wait for a bell; return 1 if it was rung already. The worker says when nobody sleeps any more. */
static inline int virtio_wait_bell(virtio_wait *wait, virtio_bell *bell)
{
    if (bell->fd < 0 || wait->nfds == VIRTIO_WAIT_MAX) {
        wait->full = 1;
        return 0;
    }
    wait->bell_fd[wait->nbells] = wait->nfds;
    wait->bells[wait->nbells++] = bell;
    virtio_wait_fd(wait, bell->fd, POLLIN);
    __atomic_store_n(&bell->asleep, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&bell->rung, __ATOMIC_SEQ_CST) != 0;
}

static inline void virtio_wait_us(virtio_wait *wait, int64_t us)
{
    if (wait->timeout_us < 0 || us < wait->timeout_us)
        wait->timeout_us = us;
}

#endif
