/* How is a provider process started, and ended, without malloc, locks or Python?
 *
 * posix_spawn with everything prepared: glibc's clones with CLONE_VM | CLONE_VFORK onto a stack of its own, so that neither the memory of
 * the process is copied nor its locks are.  File actions can only be made with malloc; so they are made once, and name a number that this
 * file keeps reserved: whatever is to be the child's descriptor 3 is put there for the moment of the call.
 * Every function: 0 or a positive number / -errno; GIL any; in a signal handler too, but for lm_spawn_prepare and lm_spawn_release.
 */
#ifndef LAZYMEM_PROCESS_H
#define LAZYMEM_PROCESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

enum { LM_HIGH_FD = 48, LM_RING_FD = 3 };   /* ours are kept above what programs name by number */

typedef struct lm_spawn {
    char **argv, **envp;
    int cwd_fd, reserved_fd;     /* both open the directory */
    dev_t device;
    ino_t inode;
    uint32_t lock;
    posix_spawn_file_actions_t there, anywhere;   /* with fchdir; without, if the descriptor has been closed under us */
    posix_spawnattr_t attributes;
} lm_spawn;

static int lm_fd_is_ours(const lm_spawn *s, int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_dev == s->device && st.st_ino == s->inode;
}

/* Are both memory files? */
static int lm_on_one_device(int fd, int memory_fd)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && fstat(memory_fd, &b) == 0 && a.st_dev == b.st_dev;
}

static int lm_to_high_fd(int fd)
{
    int high = fcntl(fd, F_DUPFD_CLOEXEC, LM_HIGH_FD);
    if (high < 0)
        return fd;
    close(fd);
    return high;
}

static int lm_prepare_actions(posix_spawn_file_actions_t *actions, int cwd_fd, int ring_fd)
{
    int error = posix_spawn_file_actions_init(actions);
    if (!error && cwd_fd >= 0)
        error = posix_spawn_file_actions_addfchdir_np(actions, cwd_fd);
    if (!error)
        error = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
    if (!error)
        error = posix_spawn_file_actions_addopen(actions, 1, "/dev/null", O_WRONLY, 0);
    if (!error)
        error = posix_spawn_file_actions_addopen(actions, 2, "/dev/null", O_WRONLY, 0);
    if (!error)
        error = posix_spawn_file_actions_adddup2(actions, ring_fd, LM_RING_FD);
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)
    if (!error)
        error = posix_spawn_file_actions_addclosefrom_np(actions, LM_RING_FD + 1);
#endif
    return error;
}

/* Not on the path of a fault. argv, envp: malloc'd, this structure's from now on. */
static int lm_spawn_prepare(lm_spawn *s, char **argv, char **envp)
{
    sigset_t all, none;
    struct stat st;
    int error;
    memset(s, 0, sizeof *s);
    s->argv = argv;
    s->envp = envp;
    s->cwd_fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (s->cwd_fd < 0 && errno == EACCES)   /* nobody can be started in it, or name anything there */
        s->cwd_fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (s->cwd_fd < 0)
        return -errno;
    s->cwd_fd = lm_to_high_fd(s->cwd_fd);
    s->reserved_fd = fcntl(s->cwd_fd, F_DUPFD_CLOEXEC, LM_HIGH_FD);
    if (s->reserved_fd < 0 || fstat(s->cwd_fd, &st))
        return -errno;
    s->device = st.st_dev;
    s->inode = st.st_ino;
    error = lm_prepare_actions(&s->there, s->cwd_fd, s->reserved_fd);
    if (!error)
        error = lm_prepare_actions(&s->anywhere, -1, s->reserved_fd);
    if (!error)
        error = posix_spawnattr_init(&s->attributes);
    sigfillset(&all);
    sigemptyset(&none);
    if (!error)
        error = posix_spawnattr_setsigdefault(&s->attributes, &all);
    if (!error)
        error = posix_spawnattr_setsigmask(&s->attributes, &none);
    if (!error)
        error = posix_spawnattr_setflags(&s->attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    return -error;
}

static void lm_spawn_release(lm_spawn *s)
{
    char **p;
    if (s->reserved_fd > 0 && lm_fd_is_ours(s, s->reserved_fd))
        close(s->reserved_fd);
    if (s->cwd_fd > 0 && lm_fd_is_ours(s, s->cwd_fd))
        close(s->cwd_fd);
    posix_spawn_file_actions_destroy(&s->there);
    posix_spawn_file_actions_destroy(&s->anywhere);
    posix_spawnattr_destroy(&s->attributes);
    for (p = s->argv; p && *p; p++)
        free(*p);
    for (p = s->envp; p && *p; p++)
        free(*p);
    free(s->argv);
    free(s->envp);
}

/* The number of a process whose descriptor 3 is `fd`. Signals are held off meanwhile: a handler that comes here too would wait for the lock
 * of its own thread. */
static int lm_spawn_process(lm_spawn *s, int fd)
{
    sigset_t all, before;
    pid_t pid = 0;
    int error, there, put;
    uint32_t us = (uint32_t)getpid(), holder = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* Held by another process: by a thread of our parent, when we were forked. Then its ring may stand at the reserved number. */
    while (holder == us || !__atomic_compare_exchange_n(&s->lock, &holder, us, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        if (holder == us) {
            sched_yield();
            holder = __atomic_load_n(&s->lock, __ATOMIC_RELAXED);
        }
    there = lm_fd_is_ours(s, s->cwd_fd);
    if (lm_fd_is_ours(s, s->reserved_fd) || (holder && lm_on_one_device(s->reserved_fd, fd)))
        put = dup3(fd, s->reserved_fd, O_CLOEXEC);
    else
        put = fcntl(fd, F_DUPFD_CLOEXEC, s->reserved_fd);   /* closed under us; is the number still free? */
    if (put < 0)
        error = errno;
    else if (put != s->reserved_fd) {
        close(put);
        error = EBADF;
    } else {
        error = posix_spawn(&pid, s->argv[0], there ? &s->there : &s->anywhere, &s->attributes, s->argv, s->envp);
        if (!there || dup3(s->cwd_fd, s->reserved_fd, O_CLOEXEC) < 0)
            close(s->reserved_fd);
    }
    __atomic_store_n(&s->lock, 0, __ATOMIC_RELEASE);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error ? -error : pid;
}

/* Shared memory that can neither grow nor shrink under whoever maps it; its descriptor, or -errno. */
static int lm_sealed_memory(uint64_t nbytes)
{
    int fd = memfd_create("lazymem-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    int error;
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("lazymem-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)nbytes) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
        error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

static int lm_open_pidfd(int pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    return fd < 0 ? -errno : lm_to_high_fd(fd);
}

/* Is this descriptor still the one of that process? Somebody may have closed it, and the number be another's: a wrong guess kills
 * a stranger. */
static int lm_pidfd_is_of(int pidfd, int pid)   /* pid -1: of one that has been reaped */
{
    char path[40] = "/proc/self/fdinfo/", digits[12], text[512], *at;
    int i = 0, fd, n;
    ssize_t got;
    if (pidfd < 0)
        return 0;
    for (n = pidfd; n || !i; n /= 10)
        digits[i++] = (char)('0' + n % 10);
    at = path + strlen(path);
    while (i)
        *at++ = digits[--i];
    *at = 0;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0)
        return 0;
    text[got] = 0;
    at = strstr(text, "\nPid:");
    if (!at)
        return 0;
    for (at += 5; *at == ' ' || *at == '\t'; at++)
        ;
    if (*at == '-')              /* of one that has been reaped */
        return pid == -1;
    for (n = 0; *at >= '0' && *at <= '9'; at++)
        n = n * 10 + (*at - '0');
    return n == pid;
}

static int lm_is_our_child(int pid)
{
    siginfo_t info;
    info.si_pid = 0;
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
}

static void lm_kill_process(int pidfd, int pid)
{
    if (lm_pidfd_is_of(pidfd, pid))
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    else if (!lm_pidfd_is_of(pidfd, -1) && lm_is_our_child(pid))   /* unreaped, so the number is still its own */
        kill(pid, SIGKILL);
}

static void lm_close_pidfd(int pidfd, int pid)
{
    if (lm_pidfd_is_of(pidfd, pid) || lm_pidfd_is_of(pidfd, -1))
        close(pidfd);
}

/* 1: it is no zombie any more; 0: it has not ended. Only ever this one: other children are not ours to reap, not even one that has got the
 * number since somebody else (waitpid(-1)) reaped ours. */
static int lm_reap(int pidfd, int pid)
{
    int status;
    pid_t got;
    if (lm_pidfd_is_of(pidfd, -1))
        return 1;
    do
        got = waitpid(pid, &status, WNOHANG);
    while (got < 0 && errno == EINTR);
    return got != 0;
}

#endif
