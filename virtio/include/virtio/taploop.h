/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Two TAPs joined by a bare read/write loop: what it costs to move a frame from one kernel interface to another with no
 * device between them. The yardstick of `virtio iperf`.
 */
#ifndef VIRTIO_TAPLOOP_H
#define VIRTIO_TAPLOOP_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <unistd.h>

#define VIRTIO_TAPLOOP_FRAME (1u << 17) /* more than any frame with its header */

typedef struct virtio_taploop {
    int fd[2];           /* non-blocking; the headers of both are of one size, and passed on as they are */
    int stop_fd;         /* readable when the loop is to end: wakes it */
    uint32_t stop;       /* the same, for a loop that is awake */
    uint32_t burst;      /* frames read from one before it is the other's turn */
    uint64_t packets[2]; /* from fd[i] to the other */
    uint64_t bytes[2];   /* headers included */
    uint64_t dropped[2]; /* refused by the other's kernel, */
    uint32_t error[2];   /* for this errno the last time */
    uint64_t polls;      /* times it slept */
    uint8_t frame[VIRTIO_TAPLOOP_FRAME];
} virtio_taploop;

/* Count: another thread may read the number at any moment. */
static inline void virtio_taploop_count(uint64_t *count, uint64_t n)
{
    __atomic_store_n(count, *count + n, __ATOMIC_RELAXED);
}

/* Write the frame, and wait while there is no room for it; return 0 when the loop is to end. */
static inline int virtio_taploop_write(virtio_taploop *loop, int from, size_t n)
{
    struct pollfd fds[2] = {{loop->fd[!from], POLLOUT, 0}, {loop->stop_fd, POLLIN, 0}};

    while (write(loop->fd[!from], loop->frame, n) < 0) {
        if (errno == EAGAIN) {
            virtio_taploop_count(&loop->polls, 1);
            poll(fds, 2, -1);
            if (fds[1].revents)
                return 0;
        } else if (errno != EINTR) {
            virtio_taploop_count(&loop->dropped[from], 1);
            __atomic_store_n(&loop->error[from], errno, __ATOMIC_RELAXED);
            return 1;
        }
    }
    virtio_taploop_count(&loop->packets[from], 1);
    virtio_taploop_count(&loop->bytes[from], n);
    return 1;
}

/* Move a burst from fd[from] to the other; return how many frames. */
static inline uint32_t virtio_taploop_move(virtio_taploop *loop, int from)
{
    uint32_t moved;

    for (moved = 0; moved < loop->burst; moved++) {
        ssize_t n = read(loop->fd[from], loop->frame, sizeof(loop->frame));
        if (n <= 0 || !virtio_taploop_write(loop, from, (size_t)n))
            break;
    }
    return moved;
}

/* Run until it is told to stop, or an interface is gone. */
static inline void virtio_taploop_run(virtio_taploop *loop)
{
    struct pollfd fds[3] = {{loop->fd[0], POLLIN, 0}, {loop->fd[1], POLLIN, 0}, {loop->stop_fd, POLLIN, 0}};

    while (!__atomic_load_n(&loop->stop, __ATOMIC_ACQUIRE)) {
        if (virtio_taploop_move(loop, 0) + virtio_taploop_move(loop, 1))
            continue;
        virtio_taploop_count(&loop->polls, 1);
        poll(fds, 3, -1);
        if ((fds[0].revents | fds[1].revents) & (POLLERR | POLLNVAL))
            return;
    }
}

#endif
