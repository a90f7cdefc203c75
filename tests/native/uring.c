/* How does a device write into memory that it holds for long? By io_uring: one buffer that the kernel has pinned, and reads into it.
 *
 * One ring at a time.  All calls return 0 or more, or -errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int ring = -1;
static struct io_uring_params its;
static char *queue, *done;
static struct io_uring_sqe *entries;

static unsigned *in(char *of, unsigned at) { return (unsigned *)(of + at); }

int uring_open(void *buffer, size_t nbytes)
{
    struct iovec vector = {buffer, nbytes};
    memset(&its, 0, sizeof its);
    ring = (int)syscall(__NR_io_uring_setup, 4, &its);
    if (ring < 0)
        return -errno;
    queue = mmap(NULL, its.sq_off.array + its.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    done = mmap(NULL, its.cq_off.cqes + its.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    entries = mmap(NULL, its.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (queue == MAP_FAILED || done == MAP_FAILED || entries == MAP_FAILED)
        return -errno;
    return syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, &vector, 1) ? -errno : 0;
}

/* Read into the buffer, or a part of it.  Return: how many bytes. */
int uring_read(int file, void *to, unsigned nbytes, int64_t at)
{
    unsigned tail = *in(queue, its.sq_off.tail), i = tail & *in(queue, its.sq_off.ring_mask), head;
    struct io_uring_sqe *e = &entries[i];
    int got;
    memset(e, 0, sizeof *e);
    e->opcode = IORING_OP_READ_FIXED;
    e->fd = file;
    e->addr = (uint64_t)(uintptr_t)to;
    e->len = nbytes;
    e->off = (uint64_t)at;
    in(queue, its.sq_off.array)[i] = i;
    __atomic_store_n(in(queue, its.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        return -errno;
    head = *in(done, its.cq_off.head);
    if (head == __atomic_load_n(in(done, its.cq_off.tail), __ATOMIC_ACQUIRE))
        return -EAGAIN;
    got = ((struct io_uring_cqe *)(done + its.cq_off.cqes))[head & *in(done, its.cq_off.ring_mask)].res;
    __atomic_store_n(in(done, its.cq_off.head), head + 1, __ATOMIC_RELEASE);
    return got;
}

int uring_close(void) { return close(ring); }
