/* SPDX-License-Identifier: BSD-2-Clause
 *
 * Bells whose descriptor is shared with a process that is not trusted: an eventfd, a socket, a pipe. That process may
 * set it blocking behind our back, and fill it; a write would then hold the ringing thread.
 *
 * So each ring looks first whether a write is taken. One who does it just between the two, once in some ten thousand
 * attempts, holds us; and there is no write to an eventfd that never waits. For those a watchdog looks, every 10 ms while
 * there is such a bell, whether a thread is in the same write as before; it gets a signal that ends the write, and the
 * bell is rung no more. A thread that was merely kept off its CPU finishes its write: nothing is lost.
 *
 * A ring costs the two stores of a turn for that. The signal is SIGURG, which nobody else loses: the handler is there
 * only from the first attack on, and only if there was none.
 *
 * To be included by notifier.pyx only: there is one watchdog in a process.
 */
#ifndef VIRTIO_FOREIGN_BELL_H
#define VIRTIO_FOREIGN_BELL_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "virtio/bell.h"

#define VIRTIO_WATCH_NS 10000000

typedef struct virtio_writer { /* a thread that rings foreign bells */
    uint64_t turn;             /* odd: it is in a write */
    uint64_t watched;          /* the turn when the watchdog looked last */
    uint64_t ended;            /* the turn whose write is to end */
    int32_t id;                /* of the thread */
    uint32_t taken;            /* by a thread that lives */
    struct virtio_writer *next;
} virtio_writer;

static virtio_writer *virtio_writers; /* all that ever were: never freed, but given to other threads */
static __thread virtio_writer *virtio_this_writer;
static pthread_key_t virtio_writer_key; /* gives a thread's writer back when it ends */
static pthread_mutex_t virtio_watch_lock = PTHREAD_MUTEX_INITIALIZER; /* of the next three */
static uint32_t virtio_watched_bells;
static int virtio_watching, virtio_watch_prepared;

static void virtio_writer_leave(void *writer)
{
    __atomic_store_n(&((virtio_writer *)writer)->taken, 0, __ATOMIC_RELEASE);
}

/* The watchdog is no thread of a child, and what the forking thread had is its parent's. */
static void virtio_watch_fork(void)
{
    virtio_this_writer = NULL;
    virtio_watching = 0;
    pthread_mutex_init(&virtio_watch_lock, NULL);
}

/* Return the writer of this thread; NULL when there is no memory. */
static virtio_writer *virtio_writer_of_thread(void)
{
    virtio_writer *writer = virtio_this_writer;
    if (writer)
        return writer;
    for (writer = __atomic_load_n(&virtio_writers, __ATOMIC_ACQUIRE); writer; writer = writer->next)
        if (!__atomic_exchange_n(&writer->taken, 1, __ATOMIC_ACQ_REL))
            break;
    if (writer == NULL) {
        writer = calloc(1, sizeof(*writer));
        if (writer == NULL)
            return NULL;
        writer->taken = 1;
        writer->next = __atomic_load_n(&virtio_writers, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n(&virtio_writers, &writer->next, writer, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
            ;
    }
    __atomic_store_n(&writer->id, (int32_t)syscall(SYS_gettid), __ATOMIC_RELAXED);
    pthread_setspecific(virtio_writer_key, writer);
    virtio_this_writer = writer;
    return writer;
}

static void virtio_no_effect(int number)
{
    (void)number; /* it is enough that the write ends */
}

static void virtio_end_write(virtio_writer *writer, uint64_t turn)
{
    struct sigaction now, ours = {.sa_handler = virtio_no_effect};
    if (sigaction(SIGURG, NULL, &now) == 0) {
        if (!(now.sa_flags & SA_SIGINFO) && (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN)) {
            sigaction(SIGURG, &ours, NULL);
        } else if (now.sa_flags & SA_RESTART) { /* the write would begin again */
            now.sa_flags &= ~SA_RESTART;
            sigaction(SIGURG, &now, NULL);
        }
    }
    __atomic_store_n(&writer->ended, turn, __ATOMIC_RELEASE);
    syscall(SYS_tgkill, getpid(), __atomic_load_n(&writer->id, __ATOMIC_RELAXED), SIGURG);
}

static void *virtio_watch(void *unused)
{
    const struct timespec tick = {0, VIRTIO_WATCH_NS};
    (void)unused;
    for (;;) {
        nanosleep(&tick, NULL);
        pthread_mutex_lock(&virtio_watch_lock);
        if (virtio_watched_bells == 0) {
            virtio_watching = 0;
            pthread_mutex_unlock(&virtio_watch_lock);
            return NULL;
        }
        pthread_mutex_unlock(&virtio_watch_lock);
        for (virtio_writer *writer = __atomic_load_n(&virtio_writers, __ATOMIC_ACQUIRE); writer; writer = writer->next) {
            const uint64_t turn = __atomic_load_n(&writer->turn, __ATOMIC_ACQUIRE);
            if (turn & 1 && turn == writer->watched)
                virtio_end_write(writer, turn);
            writer->watched = turn;
        }
    }
}

/* Another foreign bell is there; the first brings the watchdog. 0, or an errno: there can be no thread. */
static int virtio_watch_begin(void)
{
    pthread_attr_t detached;
    pthread_t thread;
    sigset_t all, before;
    int error = 0;
    pthread_mutex_lock(&virtio_watch_lock);
    if (!virtio_watch_prepared) {
        error = pthread_key_create(&virtio_writer_key, virtio_writer_leave);
        if (error == 0)
            error = pthread_atfork(NULL, NULL, virtio_watch_fork);
        virtio_watch_prepared = error == 0;
    }
    if (error == 0 && !virtio_watching) {
        sigfillset(&all);
        pthread_attr_init(&detached);
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        pthread_sigmask(SIG_SETMASK, &all, &before); /* the program's signals are not for this thread */
        error = pthread_create(&thread, &detached, virtio_watch, NULL);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&detached);
        virtio_watching = error == 0;
    }
    if (error == 0)
        virtio_watched_bells++;
    pthread_mutex_unlock(&virtio_watch_lock);
    return error;
}

/* A foreign bell has gone. */
static void virtio_watch_end(void)
{
    pthread_mutex_lock(&virtio_watch_lock);
    virtio_watched_bells--;
    pthread_mutex_unlock(&virtio_watch_lock);
}

/* Write to a bell's descriptor; no more, once it held somebody. */
static void virtio_foreign_write(virtio_bell *bell)
{
    static const uint64_t one = 1;
    virtio_writer *writer = virtio_writer_of_thread();
    struct pollfd ready = {bell->fd, POLLOUT, 0};
    ssize_t done;
    uint64_t turn;
    int error;
    for (;;) {
        /* not taken: the count is at its maximum, so the reader is woken anyway */
        if (__atomic_load_n(&bell->dead, __ATOMIC_RELAXED) || poll(&ready, 1, 0) != 1 || !(ready.revents & POLLOUT))
            return;
        if (writer == NULL) /* no memory: rather no ring than one that may hold us */
            return;
        __atomic_fetch_add(&bell->writes, 1, __ATOMIC_RELAXED);
        turn = writer->turn + 1;
        __atomic_store_n(&writer->turn, turn, __ATOMIC_RELEASE);
        done = write(bell->fd, &one, sizeof(one));
        error = errno;
        __atomic_store_n(&writer->turn, turn + 1, __ATOMIC_RELEASE);
        if (done >= 0 || error != EINTR)
            return;
        if (__atomic_load_n(&writer->ended, __ATOMIC_ACQUIRE) == turn)
            __atomic_store_n(&bell->dead, 1, __ATOMIC_RELAXED);
    }
}

#endif
