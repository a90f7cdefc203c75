"""What does the kernel say when asked to do one thing to a userfaultfd?

One function per ioctl, each returning 0 or -errno; the only file that names UFFDIO_*.  Nothing here allocates, locks or
knows of Python, so all of it may run in a signal handler.  Source: ioctl_userfaultfd(2); the return protocol of COPY as
verified on 6.18 (partial copies, EEXIST without a wake, VMAs split by somebody's madvise).
"""
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, O_RDWR, open
from posix.ioctl cimport ioctl
from libc.stdlib cimport getenv
from libc.string cimport memset
from posix.unistd cimport _SC_PAGESIZE, close, read, sysconf

from lazymem.core.abi cimport *
from lazymem.core.native cimport *


cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *, unsigned long, int)
    short POLLIN

cdef extern from "guardian.h" nogil:
    bint lm_file_is(int fd, uint64_t device, uint64_t inode)
    int lm_start_guardian(lm_guardian *g, int fd)
    int lm_ask_guardian(lm_guardian *g)
    void lm_guardian_enter(lm_guardian *g, sigset_t *before)
    void lm_guardian_exit(lm_guardian *g, const sigset_t *before)
    enum: LM_HOLDS

cdef extern from *:
    """
    #include <sys/stat.h>
    static inline int lm_know_file(int fd, uint64_t *device, uint64_t *inode)
    {
        struct stat s;
        if (fstat(fd, &s))
            return -errno;
        *device = (uint64_t)s.st_dev;
        *inode = (uint64_t)s.st_ino;
        return 0;
    }
    """
    int lm_know_file(int fd, uint64_t *device, uint64_t *inode) noexcept nogil

cdef extern from "native.h" nogil:
    long syscall(long number, ...)
    int mincore(void *addr, size_t length, unsigned char *vec)
    int fcntl(int fd, int command, ...)
    ssize_t pread(int fd, void *dst, size_t nbytes, int64_t offset)
    enum:
        F_DUPFD_CLOEXEC "1030"

# One ioctl moves at most this much: it holds the lock of the mapping, and a longer one would stall every mmap() of the process.
cdef uint64_t COPY_STEP_NBYTES = 2 << 20
# Out of the way of programs that close or reuse the low numbers, and still in a process's first table of 64: growing that
# takes 10 ms once there are threads (an RCU grace period).
cdef int HIGH_FD = 48

cdef enum:
    GUARDED_MAX = 2      # one for each delivery that has one

cdef Uffd *_guarded[GUARDED_MAX]
_guarded[0] = _guarded[1] = NULL
cdef uint32_t _unguarded = 0

# MOVE is young: a way to do without.
cdef bint _no_move = getenv(b"LAZYMEM_NO_MOVE") != NULL
cdef uint64_t _page_nbytes = <uint64_t>sysconf(_SC_PAGESIZE)


cdef uint64_t page_nbytes() noexcept nogil:
    """Units: bytes. GIL: never. Blocks: no. Thread: any."""
    return _page_nbytes


cdef int _open_rung(int rung) noexcept nogil:
    """One rung of the ladder: the device, the system call, the system call for user faults only.

    Return: descriptor or -errno. GIL: never. Blocks: no.
    """
    cdef int device, fd, err
    if rung == 0:
        device = open(b"/dev/userfaultfd", O_RDWR | O_CLOEXEC)
        if device < 0:
            return -errno
        fd = ioctl(device, USERFAULTFD_IOC_NEW, <unsigned long>O_CLOEXEC)
        err = errno
        close(device)
        return fd if fd >= 0 else -err
    fd = <int>syscall(SYS_userfaultfd, O_CLOEXEC | (UFFD_USER_MODE_ONLY if rung == 2 else 0))
    return fd if fd >= 0 else -errno


cdef int _handshake(int fd, uint64_t wanted, uint64_t *features) noexcept nogil:
    """UFFDIO_API: once per descriptor, so features are asked on one and used on another."""
    cdef uffdio_api api
    api.api = UFFD_API
    api.features = wanted
    api.ioctls = 0
    if ioctl(fd, UFFDIO_API, &api):
        return -errno
    features[0] = api.features
    return 0


cdef int uffd_open(Uffd *uffd, uint64_t wanted, bint for_system_calls) noexcept nogil:
    """Open a userfaultfd by the first rung that this process may climb.

    `wanted` features must be there; others that help are taken where the kernel has them. Where system calls wait for pages
    (`for_system_calls`, and a rung for it), they also wait for leave to write; elsewhere they would get EFAULT from pages that are there,
    so the kernel is to note writes by itself.
    Return: 0, and `uffd` filled in; the -errno of the last rung (-EINVAL: a wanted feature is missing).
    GIL: never. Blocks: no. Thread: any.
    Source: userfaultfd(2); the fall-through on ENOENT, EACCES, EPERM and ENOSYS alike is what userfaultfd-rs 84 mends.
    """
    cdef int rung, fd, err = -ENOSYS
    cdef uint64_t known = 0, optional
    for rung in range(GUARDED_MAX):  # a number that was closed must not become ours twice
        if _guarded[rung] != NULL:
            uffd_make_sure(_guarded[rung])
    memset(uffd, 0, sizeof(Uffd))
    uffd.fd = -1
    uffd.privilege = PRIVILEGE_NONE
    for rung in range(3):
        fd = _open_rung(rung)
        if fd < 0:
            err = fd
            if err in (-ENOENT, -EACCES, -EPERM, -ENOSYS):
                continue
            # An old device node or kernel answers EINVAL or ENOTTY: the next rung may still do.
            if rung < 2:
                continue
            return err
        err = _handshake(fd, 0, &known)
        close(fd)
        if err:
            return err
        if wanted & ~known:
            return -EINVAL
        fd = _open_rung(rung)
        if fd < 0:
            return fd
        optional = (UFFD_FEATURE_POISON | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MOVE | UFFD_FEATURE_MISSING_SHMEM |
                    UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
        if (rung == 2 or not for_system_calls) and known & UFFD_FEATURE_MOVE and not _no_move:
            optional |= UFFD_FEATURE_WP_ASYNC  # (what is written while a block is copied out would be lost: eviction must move)
        err = _handshake(fd, wanted | (optional & known), &uffd.features)
        if err:
            close(fd)
            return err
        uffd.features = wanted | (optional & known)
        uffd.privilege = PRIVILEGE_USER if rung == 2 else PRIVILEGE_KERNEL
        return uffd_know(uffd, _to_high(fd))
    return err


cdef int _to_high(int fd) noexcept nogil:
    cdef int high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD)
    if high < 0:  # EINVAL where RLIMIT_NOFILE is lower: stay where we are
        return fd
    close(fd)
    return high


cdef int uffd_know(Uffd *uffd, int fd) noexcept nogil:
    """Take `fd` for this userfaultfd's number, and note what file that is; where it cannot be known, close it.

    Return: 0 / -errno. GIL: never. Blocks: no.
    """
    cdef int error = lm_know_file(fd, &uffd.device, &uffd.inode)
    uffd.fd = fd
    if error:
        close(fd)
        uffd.fd = -1
    return error


# ---------------------------------------------------------------------------------------------------------------------------
# A number that somebody closes
#
# When the last descriptor of a userfaultfd is closed the kernel lets go of every range, tells nobody, and missing pages are zeros
# from then on. Programs close what they do not know: daemonisers, closerange, a double close of somebody's. So a guardian
# (guardian.h) holds the file where no close of the process reaches it, and gives it back to whoever finds the number closed, or
# another file's:
#   - an ioctl on what is no userfaultfd fails (EBADF, ENOTTY), and harms nobody: any unexpected answer makes us look, and ask;
#   - a read would take a stranger's bytes: who reads makes sure first (threads.pyx);
#   - closing a number that is not ours any more would do unto others the same: looked at too.
# Without a guardian (no thread to be had, a seccomp filter without close_range) such a close cannot be survived, only noticed
# (region.pyx).

cdef int uffd_guard(Uffd *uffd) noexcept nogil:
    """Have it survive a close of its number. Return: 0 / -errno: it will not. GIL: better not held. Blocks: some 50 us."""
    cdef int i, error = lm_start_guardian(&uffd.guardian, uffd.fd)
    if error:
        lm_store32(&_unguarded, 1)
        return error
    for i in range(GUARDED_MAX):
        if _guarded[i] == NULL:
            _guarded[i] = uffd
            break
    return 0


cdef bint uffds_unguarded() noexcept nogil:
    """Has there been one in this process that has no guardian? GIL: never. Blocks: no."""
    return lm_load32(&_unguarded) != 0


cdef bint uffd_is_guarded(Uffd *uffd) noexcept nogil:
    """Does it survive a close of its number? GIL: never. Blocks: no."""
    return lm_load32(&uffd.guardian.state) == LM_HOLDS


cdef int uffd_make_sure(Uffd *uffd) noexcept nogil:
    """Is its number still its own? Else ask the guardian, and give it another.

    Return: 0; -EBADF it is lost, and with it what was registered; -EMFILE and the like: there is no room for a descriptor now.
    GIL: any. Blocks: where it has to ask, some 20 us. Thread: any, in a signal handler too.
    """
    cdef sigset_t before
    cdef int fd, error = 0
    if lm_file_is(uffd.fd, uffd.device, uffd.inode):
        return 0
    lm_guardian_enter(&uffd.guardian, &before)
    if not lm_file_is(uffd.fd, uffd.device, uffd.inode):  # nobody else has asked meanwhile
        fd = lm_ask_guardian(&uffd.guardian)
        if fd >= 0:
            lm_store32(<uint32_t *>&uffd.fd, <uint32_t>_to_high(fd))
        else:
            error = fd
    lm_guardian_exit(&uffd.guardian, &before)
    return error


cdef void uffd_forget(Uffd *uffd) noexcept nogil:
    """In a forked child: it is the parent's, and so is its guardian. GIL: any. Blocks: no."""
    cdef int i
    if lm_file_is(uffd.fd, uffd.device, uffd.inode):
        close(uffd.fd)
    for i in range(GUARDED_MAX):
        if _guarded[i] == uffd:
            _guarded[i] = NULL
    memset(uffd, 0, sizeof(Uffd))
    uffd.fd = -1


cdef int _ask(Uffd *uffd, unsigned long request, void *argument) noexcept nogil:
    """ioctl(2) on the userfaultfd, whatever has become of its number. Return: 0 / -errno."""
    cdef int error
    if ioctl(uffd.fd, request, argument) == 0:
        return 0
    error = errno
    if error == EEXIST or error == EAGAIN:  # what only a userfaultfd says to this
        return -error
    if lm_file_is(uffd.fd, uffd.device, uffd.inode):
        return -error
    error = uffd_make_sure(uffd)
    if error:
        return error
    return -errno if ioctl(uffd.fd, request, argument) else 0


cdef int uffd_register(Uffd *uffd, uint64_t addr, uint64_t nbytes, uint64_t mode) noexcept nogil:
    """Ask for faults of a range.

    Units: addr and nbytes page aligned; `mode` of Faults. Return: 0 / -errno. GIL: never. Blocks: no.
    """
    cdef uffdio_register request
    request.range.start = addr
    request.range.len = nbytes
    request.mode = mode
    request.ioctls = 0
    return _ask(uffd, UFFDIO_REGISTER, &request)


cdef bint uffd_shares(Uffd *uffd) noexcept nogil:
    """Can it serve files of memory? GIL: never. Blocks: no. Since Linux 5.14."""
    cdef uint64_t needed = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM
    return uffd.features & needed == needed


cdef int _ask_of_file(Uffd *uffd, uint64_t addr, uint64_t nbytes, uint64_t unreadable) noexcept nogil:
    """A COPY that cannot copy: what there is, and what is missing, stays so. Return: -ENOENT it is not one registered mapping."""
    cdef uffdio_copy request
    request.dst = addr
    request.src = unreadable
    request.len = nbytes
    request.mode = 0
    request.copy = 0
    return _ask(uffd, UFFDIO_COPY, &request)


cdef bint uffd_unregistered(Uffd *uffd, uint64_t addr, uint64_t nbytes, uint32_t *asks, uint64_t unreadable) noexcept nogil:
    """Has somebody taken any page of a range, which was registered, out of the kernel's hands: is it zeros, or nothing, if missing?

    `unreadable`: for a file's memory, the address of a page that cannot be read; else 0.
    By asking for what anonymous memory never gets, a CONTINUE, which changes nothing: EINVAL says that all of it is one registered mapping;
    ENOENT that it is none, or several (somebody's mprotect, mlock or madvise of a part splits it), so its parts are asked for, down to a
    page. Any other answer, such as that of a kernel before 5.13, which is EINVAL too, tells nothing: False.
    Units: page aligned; `asks` how many system calls of some 2 us it may take, counted down. At 0: False, nothing is known.
    GIL: any. Blocks: for so long. Thread: any.
    """
    cdef uffdio_continue request
    cdef uint64_t done = 0, step = nbytes
    cdef int answer
    while done < nbytes and asks[0] != 0:
        asks[0] -= 1
        if step > nbytes - done:
            step = nbytes - done
        request.range.start = addr + done
        request.range.len = step
        request.mode = 0
        request.mapped = 0
        answer = _ask_of_file(uffd, addr + done, step, unreadable) if unreadable else _ask(uffd, UFFDIO_CONTINUE, &request)
        if answer != -ENOENT:
            done += step
            step *= 2
        elif step == _page_nbytes:
            return True
        else:
            step = (step // 2 + _page_nbytes - 1) & ~(_page_nbytes - 1)
    return False


cdef int uffd_wake(Uffd *uffd, uint64_t addr, uint64_t nbytes) noexcept nogil:
    """Let every thread that waits for a page of the range look again.

    Units: addr and nbytes page aligned. Return: 0 / -errno; 0 too where nothing is mapped. GIL: never. Blocks: no.
    """
    cdef uffdio_range request
    request.start = addr
    request.len = nbytes
    if _ask(uffd, UFFDIO_WAKE, &request) == 0:
        return 0
    # Who is not woken sleeps for ever: once more, whatever it was.
    return _ask(uffd, UFFDIO_WAKE, &request)


cdef bint page_is_absent(uint64_t addr) noexcept nogil:
    """Is no page there now? Source: mincore(2). GIL: never. Blocks: no."""
    cdef unsigned char resident = 0
    return mincore(<void *>addr, _page_nbytes, &resident) == 0 and not (resident & 1)


cdef bint page_is_swapped(uint64_t addr) noexcept nogil:
    """Is the page in swap, where mincore(2) calls it absent? Source: proc(5) pagemap, bit 62. GIL: never. Blocks: no."""
    cdef uint64_t entry = 0
    cdef ssize_t n
    cdef int fd = open(b"/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return False
    n = pread(fd, &entry, sizeof(entry), <int64_t>(addr // _page_nbytes * sizeof(entry)))
    close(fd)
    return n == sizeof(entry) and (entry >> 62) & 1


cdef int uffd_copy(Uffd *uffd, uint64_t dst, uint64_t src, uint64_t nbytes, uint64_t mode, CopyCounts *counts) noexcept nogil:
    """Place `nbytes` at `dst`, page by page atomically, and wake whoever waits for them.

    Pages that are already there keep what they hold. A copy that stops half way is completed, never undone.
    Units: dst page aligned, nbytes a multiple of the page; src any address; `mode` of Placing.
    Return: 0 all pages are there; -ENOENT the mapping is gone; -EFAULT src cannot be read; -ENOMEM; other -errno.
    GIL: never. Blocks: while the mapping changes under us, at most about a second. Thread: any.
    Source: ioctl_userfaultfd(2) UFFDIO_COPY; behaviour verified case by case in tests/test_uffd.py.
    """
    cdef uffdio_copy request
    cdef uint64_t done = 0, step, limit = COPY_STEP_NBYTES
    cdef int err, vanished = 0
    cdef uint64_t backoff_ns = 1000, backed_off_ns = 0
    while done < nbytes:
        step = nbytes - done
        if step > limit:
            step = limit
        request.dst = dst + done
        request.src = src + done
        request.len = step
        request.mode = mode
        request.copy = 0  # untouched by the kernel on EINVAL and ESRCH: never read a stale value
        err = -_ask(uffd, UFFDIO_COPY, &request)
        if err == 0:
            done += step
            continue
        if err == EAGAIN or err == EINTR:
            lm_count(&counts.eagain, 1)
            if request.copy > 0:  # 1. so many are in place and awake; the reason shows itself on the next try
                done += <uint64_t>request.copy
                continue
            if backed_off_ns > 1000000000:  # 2. the mapping is changing
                return -EAGAIN
            lm_sleep_ns(backoff_ns)
            backed_off_ns += backoff_ns
            if backoff_ns < 1000000:
                backoff_ns *= 2
        elif err == EEXIST:  # 3. the first page is there; nothing was copied, nobody was woken
            lm_count(&counts.eexist, 1)
            uffd_wake(uffd, dst + done, _page_nbytes)
            if page_is_absent(dst + done) and not page_is_swapped(dst + done):
                if vanished == 8:
                    return -ENOMEM  # "there" and absent for ever is how some kernels say so
                vanished += 1  # dropped again behind our back: once more
                continue
            vanished = 0
            done += _page_nbytes
        elif err == ENOENT and limit > _page_nbytes:
            limit = _page_nbytes  # 4. somebody split the mapping: its pieces take single pages
        else:
            return -err
    return 0


cdef int uffd_zero(Uffd *uffd, uint64_t dst, uint64_t nbytes) noexcept nogil:
    """Map the zero page over what is absent in a range, and wake its waiters.

    Units: page aligned. Return: 0 / -errno; -EEXIST when a page is there or poisoned. GIL: never. Blocks: no.
    """
    cdef uffdio_zeropage request
    cdef uint64_t done = 0
    cdef int error, tries = 0
    while done < nbytes:
        request.range.start = dst + done
        request.range.len = nbytes - done
        request.mode = 0
        request.zeropage = 0
        error = _ask(uffd, UFFDIO_ZEROPAGE, &request)
        if error != -EAGAIN:
            return error
        if request.zeropage > 0:
            done += <uint64_t>request.zeropage
            continue
        tries += 1
        if tries > 1000:
            return -EAGAIN
        lm_sleep_ns(10000)
    return 0


cdef int uffd_poison(Uffd *uffd, uint64_t addr, uint64_t nbytes) noexcept nogil:
    """Make every access to the absent pages of a range a SIGBUS (EFAULT in a system call), and wake its waiters.

    A later COPY heals it. Units: page aligned. Return: 0 / -errno. GIL: never. Blocks: no. Since Linux 6.6.
    """
    cdef uffdio_poison request
    request.range.start = addr
    request.range.len = nbytes
    request.mode = 0
    request.updated = 0
    return _ask(uffd, UFFDIO_POISON, &request)


cdef uint64_t _moved_all_the_same(uint64_t dst, uint64_t src, uint64_t nbytes) noexcept nogil:
    """Linux 6.18 moves pages and then says EEXIST, if it first found one of them just changing (its first answer, EAGAIN, stays
    noted, so that it tries again what it has done; seen: whose protection a write lifts meanwhile). Who believes it loses them.

    Return: how many bytes are at `dst` and not at `src` any more. GIL: never. Blocks: no.
    """
    cdef uint64_t done = 0
    while done < nbytes and page_is_absent(src + done) and not page_is_swapped(src + done) and not page_is_absent(dst + done):
        done += _page_nbytes
    return done


cdef int uffd_move(Uffd *uffd, uint64_t dst, uint64_t src, uint64_t nbytes, uint64_t mode, uint64_t *moved) noexcept nogil:
    """Take pages away from `src` and put them at `dst`: whole huge pages in one step, where nothing hinders it.

    Not atomic: one that is refused has moved `moved` bytes, and leaves the rest where it was.
    Units: page aligned; private anonymous memory, both writable and locked alike, `dst` registered; `mode` of Placing, never PROTECTED.
    Return: 0; -EEXIST something is at `dst`; -ENOENT nothing at `src`, or no such mapping; -EBUSY a page is pinned, or shared with a
    child process; -EINVAL the mappings differ, or no kernel for it; -EAGAIN the mapping is changing. GIL: never. Blocks: while a
    mapping changes under us, at most about 10 ms. Thread: any. Source: ioctl_userfaultfd(2) UFFDIO_MOVE, Linux 6.8.
    """
    cdef uffdio_move request
    cdef uint64_t backoff_ns = 1000, done
    cdef int err
    moved[0] = 0
    while moved[0] < nbytes:
        request.dst = dst + moved[0]
        request.src = src + moved[0]
        request.len = nbytes - moved[0]
        request.mode = mode
        request.move = 0
        err = -_ask(uffd, UFFDIO_MOVE, &request)
        if err == 0:
            moved[0] = nbytes
        elif err == EEXIST:
            done = _moved_all_the_same(request.dst, request.src, request.len)
            if done == 0:
                return -EEXIST
            if mode != ASLEEP:
                uffd_wake(uffd, request.dst, done)
            moved[0] += done
        elif err != EAGAIN and err != EINTR:
            return -err
        elif request.move > 0:  # the reason shows itself on the next try
            moved[0] += <uint64_t>request.move
        elif backoff_ns > 4000000:
            return -EAGAIN
        else:
            lm_sleep_ns(backoff_ns)
            backoff_ns *= 2
    return 0


cdef bint uffd_moves(Uffd *uffd) noexcept nogil:
    """Can pages be moved? GIL: never. Blocks: no."""
    return uffd.features & UFFD_FEATURE_MOVE != 0 and not _no_move


cdef bint uffd_tracks(Uffd *uffd) noexcept nogil:
    """Can writes be noticed? GIL: never. Blocks: no."""
    return uffd.features & UFFD_FEATURE_PAGEFAULT_FLAG_WP != 0


cdef bint uffd_tracks_async(Uffd *uffd) noexcept nogil:
    """Does the kernel note writes by itself, without a fault? GIL: never. Blocks: no."""
    return uffd.features & UFFD_FEATURE_WP_ASYNC != 0


cdef int uffd_protect(Uffd *uffd, uint64_t addr, uint64_t nbytes, bint protect) noexcept nogil:
    """Make writes to the pages that are there now faults; or let them through, and wake whoever waits to write.

    Units: page aligned; registered for it. Return: 0 / -errno. GIL: never. Blocks: no. Since Linux 5.7.
    """
    cdef uffdio_writeprotect request
    cdef int error = -EAGAIN, tries
    for tries in range(1000):
        request.range.start = addr
        request.range.len = nbytes
        request.mode = UFFDIO_WRITEPROTECT_MODE_WP if protect else 0
        error = _ask(uffd, UFFDIO_WRITEPROTECT, &request)
        if error != -EAGAIN:
            break
        lm_sleep_ns(10000)
    return error


cdef int uffd_continue(Uffd *uffd, uint64_t addr, uint64_t nbytes, uint64_t mode) noexcept nogil:
    """Map what already lies in the memory file behind a range, and wake whoever waits for it.

    Units: page aligned; registered for minor faults; `mode` of Placing. Return: 0, pages that were mapped already
    included; -EFAULT nothing lies there; -errno. GIL: never. Blocks: no. Since Linux 5.14.
    """
    cdef uffdio_continue request
    cdef uint64_t done = 0, limit = nbytes
    cdef int error, tries = 0
    while done < nbytes:
        request.range.start = addr + done
        request.range.len = nbytes - done if nbytes - done < limit else limit
        request.mode = mode
        request.mapped = 0
        error = _ask(uffd, UFFDIO_CONTINUE, &request)
        if error == 0:
            done += request.range.len
        elif request.mapped > 0:
            done += <uint64_t>request.mapped
        elif error == -EEXIST:
            uffd_wake(uffd, addr + done, _page_nbytes)
            done += _page_nbytes
        elif error == -EAGAIN and tries < 1000:
            tries += 1
            lm_sleep_ns(10000)
        elif error == -ENOENT and limit > _page_nbytes:
            limit = _page_nbytes  # somebody split the mapping
        else:
            return error
    return 0


cdef int pages_written(int pagemap, uint64_t addr, uint64_t nbytes, bint protect, uint64_t *found, uint64_t *end) noexcept nogil:
    """Where, from `addr` on, are pages that were written since they were last write-protected?

    Units: page aligned; `pagemap` a descriptor of /proc/self/pagemap; `found`, `end`: the first such run, or both `addr + nbytes`.
    `protect`: protect that run again, in the same step. Return: 0 / -errno. GIL: never. Blocks: no.
    Source: PAGEMAP_SCAN (admin-guide/mm/pagemap), Linux 6.7. Holes are said to be written: only pages that are there count.
    """
    cdef pm_scan_arg request
    cdef page_region run
    cdef int n
    memset(&request, 0, sizeof(request))
    request.size = sizeof(request)
    request.flags = PM_SCAN_WP_MATCHING if protect else 0
    request.start = addr
    request.end = addr + nbytes
    request.vec = <uint64_t>&run
    request.vec_len = 1
    request.category_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT
    request.return_mask = PAGE_IS_WRITTEN
    found[0] = end[0] = addr + nbytes
    while request.start < addr + nbytes:
        n = ioctl(pagemap, PAGEMAP_SCAN, &request)
        if n < 0:
            return -errno
        if n:
            found[0] = run.start
            end[0] = run.end
            return 0
        if request.walk_end <= request.start:
            return 0
        request.start = request.walk_end
    return 0


cdef int uffd_read(Uffd *uffd, uffd_msg *message) noexcept nogil:
    """Wait for one message. One, not a batch: a batch would tie strangers' faults to one thread's slow source.

    Only where the number is known to be its own: a stranger's file would lose the bytes.
    Return: 1; 0 nothing (interrupted); -errno the number is no longer ours. GIL: never. Blocks: until a fault.
    """
    cdef ssize_t n = read(uffd.fd, message, sizeof(uffd_msg))
    if n == sizeof(uffd_msg):
        return 1
    if n < 0 and errno not in (EAGAIN, EINTR):
        return -errno
    return 0 if n < 0 else -EBADF


cdef bint uffd_asks(Uffd *uffd) noexcept nogil:
    """Is there a message to be read? GIL: never. Blocks: no."""
    cdef pollfd asked
    asked.fd = uffd.fd
    asked.events = POLLIN
    asked.revents = 0
    return poll(&asked, 1, 0) == 1 and asked.revents & POLLIN != 0


def probe():
    """Which rungs of the ladder can be climbed, and what the kernel offers on them.

    Returns
    -------
    list of (str, int, int)
        Rung, 0 or the errno it answers, features (a bit mask).

    Notes
    -----
    Blocks: no. GIL: kept.
    """
    cdef int rung, fd, err
    cdef uint64_t features
    rungs = []
    for rung, name in enumerate(("/dev/userfaultfd", "userfaultfd(2)", "userfaultfd(2), user faults only")):
        features = 0
        fd = _open_rung(rung)
        err = 0
        if fd < 0:
            err = -fd
        else:
            err = -_handshake(fd, 0, &features)
            close(fd)
        rungs.append((name, err, features))
    return rungs
