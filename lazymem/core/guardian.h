/* Who still holds a file when somebody closes its number here, or puts another file there (os.closerange, a daemoniser, dup2)?
 *
 * A thread of ours with a table of descriptors of its own, in which there is nothing else: no close in the process reaches it. It
 * sleeps until it is asked for the file, and sends it by an AF_UNIX socket that is opened for the purpose: a descriptor kept ready
 * would be closed with the others. By CLOSE_RANGE_UNSHARE (Linux 5.9), which needs no privilege and which containers allow, where
 * unshare(CLONE_FILES) is refused.
 *
 * Asking may happen in a signal handler: system calls and atomics only. A forked child does not get the thread.
 */
#ifndef LAZYMEM_GUARDIAN_H
#define LAZYMEM_GUARDIAN_H

#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "native.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

enum { LM_NOBODY, LM_COMING, LM_HOLDS };

typedef struct lm_guardian {
    uint32_t state;
    uint32_t lock;               /* one asks at a time */
    uint32_t asked, answered;
    int fd;                      /* its number in the guardian's table */
    socklen_t to_nbytes;
    struct sockaddr_un to;       /* who asks */
    uint64_t device, inode;      /* what the file is: descriptors that are something else are not touched */
} lm_guardian;

/* Is it that file's descriptor? Only EBADF says that it is nobody's; where fstat fails otherwise nothing is known against it. */
static int lm_file_is(int fd, uint64_t device, uint64_t inode)
{
    struct stat s;
    if (fd < 0 || fstat(fd, &s))
        return fd >= 0 && errno != EBADF;
    return (uint64_t)s.st_dev == device && (uint64_t)s.st_ino == inode;
}

/* Answer one question. That it may fail is for the asker to find. */
static void lm_send_file(const lm_guardian *g)
{
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec one = {&byte, 1};
    struct msghdr message = {0};
    struct cmsghdr *head;
    int from = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (from < 0)
        return;
    message.msg_name = (void *)&g->to;
    message.msg_namelen = g->to_nbytes;
    message.msg_iov = &one;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &g->fd, sizeof(int));
    (void)!sendmsg(from, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    close(from);
}

static void *lm_guard(void *argument)
{
    lm_guardian *g = argument;
    uint32_t seen = 0, now;
    int held;
    lm_name_thread("lazymem-guard");
    /* A table of its own, and of it all but the one: whoever waits for the other end of a pipe must not wait for us. */
    held = syscall(SYS_close_range, g->fd + 1, ~0u, 2 /* CLOSE_RANGE_UNSHARE */) == 0
        && (g->fd == 0 || syscall(SYS_close_range, 0, g->fd - 1, 0) == 0) && lm_file_is(g->fd, g->device, g->inode);
    lm_store32(&g->state, held ? LM_HOLDS : LM_NOBODY);
    lm_futex_wake(&g->state, INT_MAX);
    while (held) {
        now = lm_load32(&g->asked);
        if (now == seen) {
            lm_futex_wait(&g->asked, seen, 3600000000000u);
            continue;
        }
        lm_send_file(g);
        seen = now;
        lm_store32(&g->answered, now);
        lm_futex_wake(&g->answered, INT_MAX);
    }
    return NULL;
}

/* Give the file with this number a guardian. Returns once it holds the file: 0, or it cannot be: -errno. Blocks: some 50 us, at
 * most 1 s. Thread: one. */
static int lm_start_guardian(lm_guardian *g, int fd)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t before;
    struct stat s;
    int error;
    uint64_t deadline_ns;
    if (fstat(fd, &s))
        return -errno;
    memset(g, 0, sizeof *g);
    g->device = (uint64_t)s.st_dev;
    g->inode = (uint64_t)s.st_ino;
    g->fd = fd;
    g->state = LM_COMING;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 18);
    lm_no_signals(&before);
    error = pthread_create(&thread, &attributes, lm_guard, g);
    lm_signals_again(&before);
    pthread_attr_destroy(&attributes);
    if (error) {
        g->state = LM_NOBODY;
        return -error;
    }
    deadline_ns = lm_now_ns() + 1000000000u;
    while (lm_load32(&g->state) == LM_COMING && lm_now_ns() < deadline_ns)
        lm_futex_wait(&g->state, LM_COMING, 100000000u);
    return lm_load32(&g->state) == LM_HOLDS ? 0 : -EPERM;
}

/* Get the file back from its guardian: a new descriptor of it, or -errno. Thread: the one that has the lock. Blocks: some 20 us, at
 * most 5 s. */
static int lm_ask_guardian(lm_guardian *g)
{
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec one = {&byte, 1};
    struct msghdr message = {0};
    struct cmsghdr *head;
    struct sockaddr_un nameless = {.sun_family = AF_UNIX};
    uint64_t deadline_ns = lm_now_ns() + 5000000000u;
    uint32_t now;
    int to, fd = -EBADF;
    if (lm_load32(&g->state) != LM_HOLDS)
        return -EBADF;
    to = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (to < 0)
        return -errno;
    g->to_nbytes = sizeof g->to;
    /* A name without a file, which the kernel chooses. Others may write there: what comes is looked at. */
    if (bind(to, (struct sockaddr *)&nameless, sizeof nameless.sun_family) ||
        getsockname(to, (struct sockaddr *)&g->to, &g->to_nbytes)) {
        fd = -errno;
        close(to);
        return fd;
    }
    now = lm_add32(&g->asked, 1) + 1;
    lm_futex_wake(&g->asked, INT_MAX);
    while (lm_load32(&g->answered) != now && lm_now_ns() < deadline_ns)
        lm_futex_wait(&g->answered, now - 1, 100000000u);
    if (lm_load32(&g->answered) != now)
        fd = -ETIMEDOUT;
    for (;;) {
        message.msg_iov = &one;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        if (recvmsg(to, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
            break;
        head = CMSG_FIRSTHDR(&message);
        if (head == NULL || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) {
            if (message.msg_flags & MSG_CTRUNC) {   /* no number is left for it */
                fd = -EMFILE;
                break;
            }
            continue;
        }
        memcpy(&fd, CMSG_DATA(head), sizeof fd);
        if (lm_file_is(fd, g->device, g->inode))
            break;
        close(fd);
        fd = -EBADF;
    }
    close(to);
    return fd;
}

/* One asks at a time, and with signals blocked: a handler that touches an array must not wait for the thread that it interrupts. */
static void lm_guardian_enter(lm_guardian *g, sigset_t *before)
{
    lm_no_signals(before);
    while (!lm_cas32(&g->lock, 0, 1))
        lm_futex_wait(&g->lock, 1, 1000000u);
}

static void lm_guardian_exit(lm_guardian *g, const sigset_t *before)
{
    lm_store32(&g->lock, 0);
    lm_futex_wake(&g->lock, 1);
    lm_signals_again(before);
}
#endif
