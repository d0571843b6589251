/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The peer of bench/test_ring.py: the ring cycle as one writes it in C for one format, one process and friendly ends,
 * with nothing in it that this cycle does not need: no event index, no snapshots, no broken state, no locks. What it
 * shares with the library, because the comparison would mean nothing otherwise: buffers to add come from an array and
 * completions go to one, popped chains are gather lists of checked host addresses, the driver checks used ids.
 *
 * usage: ringcycle MODE BATCH COUNT REPS   prints one JSON line: nanoseconds of thread CPU time per chain, for each rep
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define N 256u /* ring size */
#define TABLE 4u /* entries of an indirect table */
#define MAX_BATCH 256
#define REGIONS 4
#define F_NEXT 1u
#define F_WRITE 2u
#define F_INDIRECT 4u
#define F_AVAIL (1u << 7)
#define F_USED (1u << 15)

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct pdesc { uint64_t addr; uint32_t len; uint16_t id, flags; };
struct avail { uint16_t flags, idx, ring[N]; };
struct used_elem { uint32_t id, len; };
struct used { uint16_t flags, idx; struct used_elem ring[N]; };

struct buffer { uint64_t gpa; uint32_t len; int write; };
struct completion { uint64_t cookie; uint32_t len; };
struct chain { uint16_t head, slots; uint32_t first, count; uint32_t written; };
struct region { uint64_t gpa, size; uint8_t *host; };

/* shared */
static struct desc *table;
static struct pdesc *ring;
static struct avail *avail;
static struct used *used;
static struct desc *tables; /* indirect, TABLE entries for each descriptor */
static uint64_t tables_gpa;
/* driver */
static uint16_t free_head, nfree, drv_avail, drv_used, drv_wrap, drv_used_wrap;
static uint16_t next[N], ndesc[N];
static uint64_t cookies[N];
/* device */
static uint16_t dev_avail, dev_used, dev_wrap, dev_used_wrap;
static struct region regions[REGIONS];
static int nregions = 1, last_region;

static void fail(const char *what)
{
    fprintf(stderr, "ringcycle: %s\n", what);
    exit(1);
}

static inline uint8_t *translate(uint64_t gpa, uint64_t len)
{
    const struct region *r = &regions[last_region];
    if (gpa - r->gpa < r->size && len <= r->size - (gpa - r->gpa))
        return r->host + (gpa - r->gpa);
    for (int i = 0; i < nregions; i++) {
        r = &regions[i];
        if (gpa - r->gpa < r->size && len <= r->size - (gpa - r->gpa)) {
            last_region = i;
            return r->host + (gpa - r->gpa);
        }
    }
    return NULL;
}

static inline uint32_t put_segment(struct iovec *iov, uint64_t addr, uint32_t len)
{
    uint8_t *host = translate(addr, len);
    if (!host || !len)
        fail("bad descriptor");
    iov->iov_base = host;
    iov->iov_len = len;
    return 1;
}

/* ---- split ---- */

static void split_add(const struct buffer *b, const uint64_t *cookie, int n, int pieces, int indirect, int in_order)
{
    uint16_t idx = drv_avail;
    for (int i = 0; i < n; i++, b += pieces) {
        uint16_t head = free_head, d = head;
        if (nfree < (indirect ? 1 : pieces))
            fail("ring full");
        if (indirect) {
            struct desc *t = tables + TABLE * head;
            for (int k = 0; k < pieces; k++)
                t[k] = (struct desc){b[k].gpa, b[k].len, (b[k].write ? F_WRITE : 0) | (k + 1 < pieces ? F_NEXT : 0), k + 1};
            table[head] = (struct desc){tables_gpa + 16 * TABLE * head, 16 * pieces, F_INDIRECT, 0};
            d = in_order ? (head + 1) & (N - 1) : next[head];
            ndesc[head] = 1;
        } else {
            for (int k = 0; k < pieces; k++) {
                uint16_t after = in_order ? (d + 1) & (N - 1) : next[d];
                table[d].addr = b[k].gpa;
                table[d].len = b[k].len;
                table[d].flags = (b[k].write ? F_WRITE : 0) | (k + 1 < pieces ? F_NEXT : 0);
                table[d].next = after;
                d = after;
            }
            ndesc[head] = pieces;
        }
        free_head = d;
        nfree -= ndesc[head];
        cookies[head] = cookie[i];
        avail->ring[idx++ & (N - 1)] = head;
    }
    drv_avail = idx;
    __atomic_store_n(&avail->idx, idx, __ATOMIC_RELEASE);
}

static int split_pop(struct chain *c, struct iovec *iov, int n)
{
    uint16_t seen = __atomic_load_n(&avail->idx, __ATOMIC_ACQUIRE), idx = dev_avail;
    uint32_t s = 0;
    int ready = (uint16_t)(seen - idx);
    if (ready > (int)N)
        fail("avail.idx");
    if (ready > n)
        ready = n;
    for (int i = 0; i < ready; i++, idx++) {
        uint16_t head = avail->ring[idx & (N - 1)], d = head;
        c[i].head = head;
        c[i].first = s;
        for (uint32_t walked = 0;; walked++) {
            if (d >= N || walked == N)
                fail("bad chain");
            const struct desc *e = &table[d]; /* field by field: a 16-byte load would wait for the stores just made */
            if (e->flags & F_INDIRECT) {
                const struct desc *t = (const struct desc *)translate(e->addr, e->len);
                uint32_t k = 0, entries = e->len / 16;
                if (!t || entries == 0 || entries > N)
                    fail("bad table");
                for (uint32_t m = 0;; m++) {
                    const struct desc *x = &t[k];
                    if (x->flags & F_INDIRECT || m == entries)
                        fail("bad table");
                    s += put_segment(&iov[s], x->addr, x->len);
                    if (!(x->flags & F_NEXT))
                        break;
                    k = x->next;
                    if (k >= entries)
                        fail("bad table");
                }
                break;
            }
            s += put_segment(&iov[s], e->addr, e->len);
            if (!(e->flags & F_NEXT))
                break;
            d = e->next;
        }
        c[i].count = s - c[i].first;
        c[i].written = 0;
    }
    dev_avail = idx;
    return ready;
}

static void split_use(const struct chain *c, int n, int in_order)
{
    uint16_t idx = dev_used;
    if (in_order) {
        used->ring[idx & (N - 1)] = (struct used_elem){c[n - 1].head, c[n - 1].written};
        idx += n;
    } else {
        for (int i = 0; i < n; i++, idx++)
            used->ring[idx & (N - 1)] = (struct used_elem){c[i].head, c[i].written};
    }
    dev_used = idx;
    __atomic_store_n(&used->idx, idx, __ATOMIC_RELEASE);
}

static int split_get(struct completion *out, int n, int in_order)
{
    uint16_t seen = __atomic_load_n(&used->idx, __ATOMIC_ACQUIRE), idx = drv_used;
    static uint16_t oldest;
    int ready = (uint16_t)(seen - idx), i;
    if (ready > n)
        ready = n;
    for (i = 0; i < ready; i++, idx++) {
        struct used_elem e = used->ring[idx & (N - 1)];
        uint16_t head = in_order ? oldest : e.id, last = head;
        if ((!in_order && e.id >= N) || ndesc[head] == 0)
            fail("used id");
        out[i].cookie = cookies[head];
        out[i].len = in_order ? 0 : e.len;
        nfree += ndesc[head];
        if (in_order) {
            oldest = (head + ndesc[head]) & (N - 1);
        } else {
            for (int k = 1; k < ndesc[head]; k++)
                last = next[last];
            next[last] = free_head;
            free_head = head;
        }
        ndesc[head] = 0;
    }
    drv_used = idx;
    return ready;
}

/* ---- packed ---- */

static inline uint16_t avail_bits(int wrap) { return wrap ? F_AVAIL : F_USED; }

static void packed_add(const struct buffer *b, const uint64_t *cookie, int n, int in_order)
{
    uint16_t slot = drv_avail, first = slot, first_flags = 0;
    for (int i = 0; i < n; i++) {
        uint16_t id = in_order ? slot : free_head, flags = avail_bits(drv_wrap) | (b[i].write ? F_WRITE : 0);
        if (nfree == 0)
            fail("ring full");
        free_head = next[id];
        ring[slot].addr = b[i].gpa;
        ring[slot].len = b[i].len;
        ring[slot].id = id;
        if (i == 0)
            first_flags = flags;
        else
            ring[slot].flags = flags;
        cookies[id] = cookie[i];
        ndesc[id] = 1;
        nfree--;
        if (++slot == N) {
            slot = 0;
            drv_wrap ^= 1;
        }
    }
    drv_avail = slot;
    __atomic_store_n(&ring[first].flags, first_flags, __ATOMIC_RELEASE);
}

static int packed_pop(struct chain *c, struct iovec *iov, int n)
{
    int i;
    uint16_t slot = dev_avail;
    for (i = 0; i < n; i++) {
        uint16_t flags = __atomic_load_n(&ring[slot].flags, __ATOMIC_ACQUIRE);
        if (!!(flags & F_AVAIL) != dev_wrap || !!(flags & F_USED) == dev_wrap)
            break;
        if (flags & (F_NEXT | F_INDIRECT))
            fail("this mode has chains of one descriptor");
        put_segment(&iov[i], ring[slot].addr, ring[slot].len);
        c[i] = (struct chain){ring[slot].id, 1, i, 1, 0};
        if (++slot == N) {
            slot = 0;
            dev_wrap ^= 1;
        }
    }
    dev_avail = slot;
    return i;
}

static void packed_use(const struct chain *c, int n, int in_order)
{
    uint16_t slot = dev_used, first = slot, wrap = dev_used_wrap, first_flags = wrap ? F_AVAIL | F_USED : 0;
    if (in_order) {
        ring[slot].id = c[n - 1].head;
        ring[slot].len = c[n - 1].written;
        slot += n;
        if (slot >= N) {
            slot -= N;
            dev_used_wrap ^= 1;
        }
    } else {
        for (int i = 0; i < n; i++) {
            ring[slot].id = c[i].head;
            ring[slot].len = c[i].written;
            if (i)
                ring[slot].flags = dev_used_wrap ? F_AVAIL | F_USED : 0;
            slot += c[i].slots;
            if (slot >= N) {
                slot -= N;
                dev_used_wrap ^= 1;
            }
        }
    }
    dev_used = slot;
    __atomic_store_n(&ring[first].flags, first_flags, __ATOMIC_RELEASE);
}

static int packed_get(struct completion *out, int n, int in_order)
{
    static uint16_t last = N; /* in order: id up to which a batch is used */
    int i;
    uint16_t slot = drv_used;
    for (i = 0; i < n; i++) {
        uint16_t id;
        if (!in_order || last == N) {
            uint16_t flags = __atomic_load_n(&ring[slot].flags, __ATOMIC_ACQUIRE);
            if (!!(flags & F_AVAIL) != drv_used_wrap || !!(flags & F_USED) != drv_used_wrap)
                break;
            last = ring[slot].id;
        }
        id = in_order ? slot : last;
        if (id >= N || ndesc[id] == 0)
            fail("used id");
        out[i].cookie = cookies[id];
        out[i].len = ring[slot].len;
        ndesc[id] = 0;
        nfree++;
        if (in_order) {
            if (id == last)
                last = N;
        } else {
            next[id] = free_head;
            free_head = id;
        }
        if (++slot == N) {
            slot = 0;
            drv_used_wrap ^= 1;
        }
    }
    drv_used = slot;
    return i;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static struct buffer buffers[MAX_BATCH * TABLE];
static uint64_t names[MAX_BATCH];
static struct chain chains[MAX_BATCH + 12];
static struct iovec iovs[MAX_BATCH * TABLE + 20];
static struct completion out[MAX_BATCH + 28];

static double run(const char *mode, int batch, long count)
{
    int packed = !strncmp(mode, "packed", 6), in_order = strstr(mode, "in-order") != NULL;
    int indirect = !strncmp(mode, "indirect", 8), device = !strncmp(mode, "device", 6);
    int pieces = indirect ? atoi(mode + 8) : 1, got = batch;
    long done = 0;
    uint16_t idx = avail->idx;
    double start = now();
    while (done < count && got == batch) {
        if (device) {
            idx += batch;
            __atomic_store_n(&avail->idx, idx, __ATOMIC_RELEASE);
            got = split_pop(chains, iovs, batch);
            split_use(chains, got, 0);
        } else if (packed) {
            packed_add(buffers, names, batch, in_order);
            got = packed_pop(chains, iovs, batch);
            packed_use(chains, got, in_order);
            got = packed_get(out, batch, in_order);
        } else {
            split_add(buffers, names, batch, pieces, indirect, in_order);
            got = split_pop(chains, iovs, batch);
            split_use(chains, got, in_order);
            got = split_get(out, batch, in_order);
        }
        done += got;
    }
    if (got != batch)
        fail("chains were lost");
    return (now() - start) / done;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        fail("usage: ringcycle split|split-in-order|packed|packed-in-order|indirectN|device1|device4 BATCH COUNT REPS");
    const char *mode = argv[1];
    int batch = atoi(argv[2]), reps = atoi(argv[4]);
    long count = atol(argv[3]);
    if (batch < 1 || batch > MAX_BATCH)
        fail("batch out of range");
    if (!strncmp(mode, "device", 6))
        nregions = atoi(mode + 6);
    if (nregions < 1 || nregions > REGIONS)
        fail("regions out of range");
    for (int i = 0; i < nregions; i++) {
        regions[i] = (struct region){0x10000 + i * 0x10000000ull, 2 << 20, aligned_alloc(4096, 2 << 20)};
        memset(regions[i].host, 0, regions[i].size);
    }
    uint8_t *base = regions[0].host; /* the legacy layout: descriptors, available ring, used ring at the next page */
    table = (struct desc *)base;
    ring = (struct pdesc *)base;
    avail = (struct avail *)(base + 16 * N);
    used = (struct used *)(base + 8192);
    tables = (struct desc *)(base + 0x10000);
    tables_gpa = regions[0].gpa + 0x10000;
    nfree = N;
    drv_wrap = drv_used_wrap = dev_wrap = dev_used_wrap = 1;
    for (unsigned i = 0; i < N; i++) {
        next[i] = i + 1;
        if (!strncmp(mode, "device", 6)) {
            const struct region *r = &regions[i % nregions];
            table[i] = (struct desc){r->gpa + (65536 + 2048 * i) % (r->size - 2048), 1500, 0, 0};
            avail->ring[i] = i;
        }
    }
    for (int i = 0; i < MAX_BATCH * (int)TABLE; i++)
        buffers[i] = (struct buffer){regions[0].gpa + 0x40000 + 1024 * i, 1000, 0};
    for (int i = 0; i < MAX_BATCH; i++)
        names[i] = i;
    run(mode, batch, count / 10 + batch);
    printf("{\"mode\": \"%s\", \"batch\": %d, \"ns\": [", mode, batch);
    for (int r = 0; r < reps; r++)
        printf("%s%.4f", r ? ", " : "", run(mode, batch, count));
    printf("]}\n");
    return 0;
}
