"""Do ordinary actions that turn missing pages into zeros end in right bytes, an error or a stop? 8, 9, 28, 33, 37, 38."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import threading
import time

import numpy as np
import pytest
from native_kit import PAGE, PROT_NONE, address_of, counted, end_of_child, in_child, libc, must, ours, pages_here, pest
from support import each_user, needs_compiler, needs_root, wait_until
from test_fork import child_of
from test_traps_life import forbid

import lazymem as lm

pytestmark = needs_compiler

WORDS = PAGE // 8
N = 64 * WORDS
ANONYMOUS = 0x22
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
UFFDIO_UNREGISTER = 0x8010AA01


def array(delivery, mode="r", **options):
    return counted(64 * PAGE, mode=mode, delivery=delivery, block_nbytes=PAGE, **options)


def all_right(a, missing):
    """C code touches block `missing`, which is; a plain view and operations read the rest."""
    assert pages_here(address_of(a) + missing * PAGE, 1) == [False], "this would prove nothing"
    assert pest().touch_one(address_of(a) + missing * PAGE) == missing * WORDS
    assert int(a[(missing + 1) * WORDS]) == (missing + 1) * WORDS
    lm.populate(a[(missing + 2) * WORDS : (missing + 4) * WORDS])
    with lm.guard():
        assert np.array_equal(np.asarray(a), np.arange(a.size))
    lm.check(a)


# ---------------------------------------------------------------------------------------------------------------------------
# 8. The number is another file's


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("what", ["close", "file", "pipe", "socket", "reused", "other delivery"])
def test_trap_08_the_number_of_our_descriptor_is_taken(delivery, what, user):
    in_child(the_number_is_taken, delivery, what, user=user)


def the_number_is_taken(delivery, what):
    a, _ = array(delivery)
    assert int(a[0]) == 0
    (number,) = ours()
    stranger = Stranger(what, number, delivery)
    all_right(a, 5)
    stranger.is_untouched()
    b, _ = array(delivery)
    all_right(b, 7)
    assert child_of(lambda: np.testing.assert_array_equal(b, np.arange(N))) == 0
    stranger.is_untouched()
    lm.close(a)
    lm.close(b)
    stranger.is_untouched()


class Stranger:
    """Another file where our descriptor was; it must lose nothing."""

    said = b"0123456789abcdef" * 16

    def __init__(self, what, number, delivery):
        self.what, self.number, self.held = what, number, []
        if what in ("close", "other delivery"):
            os.close(number)
        if what == "other delivery":
            other, _ = array("inline" if delivery == "threads" else "threads")
            all_right(other, 3)
            self.held.append(other)
        if what == "reused":
            os.close(number)
            while number not in self.held:
                self.held.append(os.memfd_create("stranger"))
            os.write(number, self.said)
            os.lseek(number, 0, 0)
        if what == "file":
            mine = os.memfd_create("stranger")
            os.write(mine, self.said)
            os.lseek(mine, 0, 0)
            os.dup2(mine, number)
        if what == "pipe":
            reading, writing = os.pipe()
            os.write(writing, self.said)
            os.dup2(reading, number)
            self.held += [reading, writing]
        if what == "socket":
            left, right = socket.socketpair()
            right.send(self.said)
            os.dup2(left.fileno(), number)
            self.held += [left, right]
        if what not in ("close", "other delivery"):
            self.inode = os.fstat(number).st_ino

    def is_untouched(self):
        if self.what in ("close", "other delivery"):
            return
        assert os.fstat(self.number).st_ino == self.inode
        if self.what in ("file", "reused"):
            assert os.lseek(self.number, 0, 1) == 0
        else:
            pending = fcntl.ioctl(self.number, 0x541B, b"\0" * 4)  # FIONREAD
            assert struct.unpack("i", pending)[0] == len(self.said), "a stranger's bytes were read"


@each_user
def test_trap_08_a_handler_thread_never_reads_from_a_stranger(user):
    """The one that reads sits in the kernel with our file; the next to read must look first."""
    in_child(never_reads_from_a_stranger, user=user)


def never_reads_from_a_stranger():
    a, kit = array("threads", gate=1)
    first = threading.Thread(target=lambda: pest().touch_one(address_of(a)), daemon=True)
    first.start()
    assert wait_until(lambda: kit.calls == 1), "its reader has handed the reading on to a second"
    time.sleep(0.05)  # which is in the kernel soon; the test holds without, too
    (number,) = ours()
    stranger = Stranger("pipe", number, "threads")
    touching = [
        threading.Thread(target=lambda i=i: pest().touch_one(address_of(a) + i * PAGE), daemon=True) for i in range(1, 6)
    ]
    for thread in touching:
        thread.start()
    assert wait_until(lambda: kit.calls == 6), "each was read by another thread, that found the number taken"
    stranger.is_untouched()
    kit.gate = 0
    for thread in (first, *touching):
        thread.join(20)
        assert not thread.is_alive()
    all_right(a, 10)
    stranger.is_untouched()


def test_trap_08_no_number_is_left_to_take_it_back(delivery):
    """Then it is an error, or a stop, and works again when there is one."""
    in_child(no_number_is_left, delivery)
    status, _, err = end_of_child(no_number_is_left, delivery, 5)
    assert status in (-signal.SIGBUS, -signal.SIGABRT), err
    assert "Too many open files" in err or "closed by somebody else" in err


def no_number_is_left(delivery, touch=0):
    a, _ = array(delivery)
    assert int(a[0]) == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(3, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    with pytest.raises(lm.PageError, match="Too many open files"):
        lm.populate(a)
    with pytest.raises(lm.PageError, match="Too many open files"):
        lm.check(a)
    if touch:
        a[touch * WORDS]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    all_right(a, 12)


# ---------------------------------------------------------------------------------------------------------------------------
# 9. All numbers are closed


def sources(delivery, path):
    """Arrays over every kind of source; what each holds is its own index."""
    options = {"delivery": delivery, "block_nbytes": PAGE}
    np.arange(N).tofile(path)
    with open(path, "rb") as file:
        from_file = lm.open(file, dtype="i8", **options)
    return {
        "memory": lm.from_provider(np.arange(N), dtype="i8", **options),
        "function": array(delivery)[0],
        "file": lm.memmap(path, "i8", **options),
        "open file": from_file,
        "private": lm.memmap(path, "i8", mode="c", **options),
        "provider": lm.from_fill(fill, N, "i8", **options),
    }


def fill(out, start):
    out[:] = np.arange(start, start + len(out))


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("how", ["here", "in a forked child", "in a daemon"])
def test_trap_09_everything_is_closed(delivery, how, user, folder):
    in_child(everything_is_closed, delivery, how, str(folder / "raw"), user=user)


def everything_is_closed(delivery, how, path):
    arrays = sources(delivery, path)
    for a in arrays.values():
        assert int(a[0]) == 0
    arrays["private"][3] = -3

    def close_and_read(first):
        os.closerange(3, 65536)
        expected = np.arange(N)
        expected[3] = -3
        for i, (what, a) in enumerate(arrays.items()):
            missing = first + i
            assert pages_here(address_of(a) + missing * PAGE, 1) == [False]
            assert pest().touch_one(address_of(a) + missing * PAGE) == missing * WORDS, what
            assert int(np.asarray(a)[(missing + 20) * WORDS]) == (missing + 20) * WORDS, what
            assert np.array_equal(a, expected if what == "private" else np.arange(N)), what
            lm.check(a)
        with lm.guard():
            assert np.array_equal(array(delivery)[0], np.arange(N)), "new arrays are made as before"

    if how == "here":
        close_and_read(5)
        again = array(delivery)[0]
        os.closerange(3, 65536)
        all_right(again, 5)
    elif how == "in a forked child":
        assert child_of(lambda: close_and_read(5)) == 0
        close_and_read(30)
    else:

        def daemon():
            os.setsid()
            if (pid := os.fork()) == 0:
                status = 1
                with contextlib.suppress(BaseException):
                    close_and_read(5)
                    status = 0
                os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

        assert child_of(daemon) == 0


def test_trap_09_a_file_that_was_closed_and_replaced_is_an_error(delivery, folder):
    in_child(closed_and_replaced, delivery, str(folder / "raw"))


def closed_and_replaced(delivery, path):
    np.arange(N).tofile(path)
    a, gone = (lm.memmap(path, "i8", delivery=delivery, block_nbytes=PAGE) for _ in range(2))
    assert int(a[0]) == int(gone[0]) == 0
    os.closerange(3, 65536)
    np.zeros(N, "i8").tofile(path + ".new")
    os.replace(path + ".new", path)
    with pytest.raises(lm.PageError, match="replaced"):
        a[WORDS]
    os.unlink(path)
    with pytest.raises(lm.PageError, match="somebody closed"):
        gone[WORDS]
    with pytest.raises(lm.PageError), lm.guard():
        np.asarray(gone)[2 * WORDS]


def test_trap_09_strangers_are_not_closed_in_our_place(delivery, folder):
    in_child(strangers_are_not_closed, delivery, str(folder / "raw"))


def strangers_are_not_closed(delivery, path):
    np.arange(N).tofile(path)
    a = lm.memmap(path, "i8", delivery=delivery, block_nbytes=PAGE)
    assert int(a[0]) == 0
    os.closerange(3, 65536)
    strangers = [os.memfd_create("stranger") for _ in range(80)]
    assert child_of(lambda: [os.fstat(fd) for fd in strangers]) == 0
    lm.close(a)
    for fd in strangers:
        os.fstat(fd)


def test_trap_09_the_guardian_holds_nothing_else(delivery):
    in_child(the_guardian_holds_nothing_else, delivery)


def the_guardian_holds_nothing_else(delivery):
    """The other end of a pipe must hear that ours is closed; and it sleeps."""
    reading, writing = os.pipe()
    a, _ = array(delivery)
    os.close(writing)
    assert os.read(reading, 1) == b""
    all_right(a, 4)
    (guardian,) = (t for t in os.listdir("/proc/self/task") if comm(t) == "lazymem-guard")
    # (the table of a thread that shares no descriptors shows only under its own number)
    assert len(os.listdir(f"/proc/self/task/{guardian}/fd")) == 1
    spent = cpu_ns(guardian)
    time.sleep(0.2)
    assert cpu_ns(guardian) - spent < 1_000_000


def comm(task):
    with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:
        return file.read().strip()


def comms():
    return [comm(task) for task in os.listdir("/proc/self/task")]


def cpu_ns(task):
    with open(f"/proc/self/task/{task}/schedstat") as file:
        return int(file.read().split()[0])


CLOSE_RANGE = 436


@each_user
@pytest.mark.parametrize("how", ["operation", "guard", "populate", "made", "touch"])
def test_trap_09_without_a_guardian_it_is_noticed(delivery, how, user):
    """A seccomp filter without close_range: nobody holds our file. Never zeros that go unnoticed.

    A handler thread that finds its file gone takes the array's memory away and then ends the process; a toucher that wakes
    between the two is told the same by SIGSEGV. Which of them comes first is nobody's to say.
    """
    status, out, err = end_of_child(without_a_guardian, delivery, how, user=user)
    if delivery == "inline":
        assert (status, out) == (-signal.SIGSEGV if how == "touch" else 0, "raised\n"), err
    else:
        assert status in (-signal.SIGABRT, -signal.SIGSEGV) or (status == 0 and out), (status, err)
        assert "raised\n".startswith(out), (status, err)
    if status:
        assert "closed by somebody else" in err or "somebody closed lazymem's userfaultfd" in err, (status, err)


def without_a_guardian(delivery, how):
    forbid({CLOSE_RANGE: 38})
    a, _ = array(delivery)
    assert int(a[0]) == 0
    assert wait_until(lambda: "lazymem-guard" not in comms()), "the test forbids nothing"
    os.closerange(3, 256)
    view = np.asarray(a)
    match = "closed lazymem's userfaultfd"

    def guarded():
        with lm.guard():
            view[5 * WORDS]

    ways = {"operation": lambda: a[5 * WORDS], "guard": guarded, "made": lambda: array(delivery)}
    first = ways.get(how, lambda: lm.populate(a))
    with pytest.raises(OSError if how == "made" else RuntimeError, match="doctor" if how == "made" else match):
        first()
    for touch in (lambda: a[0], lambda: a.sum(), lambda: lm.populate(a)):
        with pytest.raises(RuntimeError, match=match):
            touch()
    print("raised", flush=True)
    if how == "touch":
        print(view[7 * WORDS])


# ---------------------------------------------------------------------------------------------------------------------------
# 33. Forks


@each_user
@pytest.mark.parametrize("mode", ["r", "c"])
def test_trap_33_a_child_that_may_have_no_userfaultfd(delivery, mode, user):
    in_child(no_userfaultfd_in_the_child, delivery, mode, user=user)


def no_userfaultfd_in_the_child(delivery, mode):
    a, _ = array(delivery, mode)
    lm.populate(a[: 3 * WORDS])

    def operations():
        for touch in (lambda: a[0], lambda: a[40 * WORDS], a.sum, lambda: a + 1, lambda: lm.populate(a)):
            with pytest.raises(ValueError, match="forked"):
                touch()

    number = 323 if os.uname().machine == "x86_64" else 282
    if os.path.exists("/dev/userfaultfd") and os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # the device is another door: no number is left
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    else:
        forbid({number: 1})
    statuses = [child_of(operations), child_of(lambda: np.asarray(a)[0]), child_of(lambda: np.asarray(a)[40 * WORDS])]
    assert statuses == [0, -signal.SIGSEGV, -signal.SIGSEGV]
    assert np.array_equal(a, np.arange(N))


@each_user
def test_trap_33_a_vfork_child_touches(delivery, user):
    in_child(a_vfork_child_touches, delivery, user=user)


def a_vfork_child_touches(delivery):
    a, _ = counted(64 * PAGE, delivery=delivery, block_nbytes=PAGE, pattern=1)
    for block in (3, 5):
        assert os.waitstatus_to_exitcode(pest().vfork_and_touch(ctypes.c_void_p(address_of(a) + block * PAGE))) == block + 1


def test_trap_33_threads_that_fork_under_load(delivery):
    in_child(threads_that_fork_under_load, delivery, timeout=100)


def threads_that_fork_under_load(delivery):
    a, _ = array(delivery, "c")
    a[7] = -7
    expected = np.arange(N)
    expected[7] = -7
    statuses = []

    def child():
        os.closerange(3, 65536)
        assert np.array_equal(a, expected)

    def fork():
        for _ in range(8):
            b, _ = array(delivery)
            statuses.append(child_of(child))
            assert pest().touch_together(address_of(b), 2, 64, PAGE) == 0

    threads = [threading.Thread(target=fork) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert statuses == [0] * 24
    assert np.array_equal(a, expected)


# ---------------------------------------------------------------------------------------------------------------------------
# 28. Locked memory, and what a fork makes of it


@pytest.mark.thin
@needs_root
@pytest.mark.parametrize("flags", [MCL_FUTURE, MCL_CURRENT | MCL_FUTURE, MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT])
@pytest.mark.parametrize("mode", ["r", "c"])
def test_trap_28_locked_before_after_and_in_children(delivery, mode, flags):
    in_child(locked_before_after_and_in_children, delivery, mode, flags)


def locked_before_after_and_in_children(delivery, mode, flags):
    old, _ = array(delivery, mode)
    assert int(old[0]) == 0
    must(libc().mlockall(flags))
    new, _ = array(delivery, mode)
    assert not any(pages_here(address_of(new), 64))

    def child():
        for a in (old, new):
            assert pest().touch_one(address_of(a) + 9 * PAGE) == 9 * WORDS
        must(libc().mlockall(flags))
        for a in (old, new, array("inline", mode)[0]):
            assert np.array_equal(np.asarray(a), np.arange(N))
        assert child_of(lambda: [np.testing.assert_array_equal(a, np.arange(N)) for a in (old, new)]) == 0

    assert child_of(child) == 0
    for a in (old, new):
        assert np.array_equal(np.asarray(a), np.arange(N))


# ---------------------------------------------------------------------------------------------------------------------------
# 37. mremap


@pytest.mark.parametrize("mode", ["r", "c"])
def test_trap_37_memory_that_moved_away_and_left_its_place(delivery, mode):
    """MREMAP_DONTUNMAP: pages go, place and registration stay; the array fetches them again."""
    in_child(moved_away_and_left_its_place, delivery, mode)


def moved_away_and_left_its_place(delivery, mode):
    a, _ = array(delivery, mode)
    lm.populate(a[: 8 * WORDS])
    at = address_of(a)
    elsewhere = must(libc().mmap(None, 64 * PAGE, PROT_NONE, ANONYMOUS, -1, 0))
    must(libc().mremap(at, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, elsewhere))
    assert pest().touch_one(elsewhere + PAGE) == WORDS, "what was there has moved"
    assert not lm.is_lazy((ctypes.c_ubyte * PAGE).from_address(elsewhere))
    assert pest().touch_one(at + PAGE) == WORDS
    all_right(a, 20)


# ---------------------------------------------------------------------------------------------------------------------------
# Memory that somebody unregisters. The kernel tells nobody


def unregister(a, first, blocks):
    (number,) = ours()
    fcntl.ioctl(number, UFFDIO_UNREGISTER, struct.pack("QQ", address_of(a) + first * PAGE, blocks * PAGE))


def move_and_move_back(a):
    """Block 40, which comes back without its registration."""
    at = address_of(a) + 40 * PAGE
    elsewhere = must(libc().mmap(None, PAGE, PROT_NONE, ANONYMOUS, -1, 0))
    must(libc().mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere))
    must(libc().mremap(elsewhere, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at))


def split(a):
    """What others may do to parts of an array's memory."""
    at = address_of(a)
    for block in range(0, 64, 2):
        must(libc().madvise(at + block * PAGE, PAGE, mmap.MADV_SEQUENTIAL))
    for block in (0, 17, 63):
        must(libc().mprotect(at + block * PAGE, PAGE, PROT_NONE))


def split_and_unregister(a):
    split(a)
    unregister(a, 40, 1)


TAKEN = {
    "whole": lambda a: unregister(a, 0, 64),
    "one": lambda a: unregister(a, 40, 1),
    "up to the end": lambda a: unregister(a, 40, 24),
    "up to the middle": lambda a: unregister(a, 0, 41),
    "moved": move_and_move_back,
    "split": split_and_unregister,
}


@each_user
@pytest.mark.parametrize("told", ["check", "guard", "other guard"])
def test_memory_that_somebody_unregistered_is_noticed(delivery, told, user):
    status, out, err = end_of_child(somebody_unregistered, delivery, told, user=user)
    assert out == "raised\n" * len(TAKEN), err
    assert status == -signal.SIGSEGV, err
    assert err.count("somebody took it from lazymem's userfaultfd") == len(TAKEN) + 1, "in each forked child, and here"


def somebody_unregistered(delivery, told):
    for i, take in enumerate(TAKEN.values()):
        view = taken(take, told, delivery, "rc"[i % 2])
        print("raised", flush=True)
    print(view[5 * WORDS])


def taken(take, told, delivery, mode):
    a, _ = array(delivery, mode)
    fine, _ = array(delivery)
    lm.populate(a[5 * WORDS : 10 * WORDS])
    view = np.asarray(a)

    def read():
        take(a)
        assert view[40 * WORDS] == 0, "the test is of zeros that nobody knows of"

    def guarded():
        with lm.guard():
            read()

    def check():
        lm.check(view)

    said = "no longer registered"
    if told == "check":
        read()
        with pytest.raises(RuntimeError, match=said):
            check()
    elif told == "guard":
        with pytest.raises(RuntimeError, match=said):
            guarded()
    else:  # who read zeros under it must hear of it, whoever finds it first
        guard = lm.guard()
        guard.__enter__()
        read()
        with pytest.raises(RuntimeError, match=said):
            check()
        with pytest.raises(RuntimeError, match=said):
            guard.__exit__(None, None, None)
    for touch in (lambda: a[5 * WORDS], lambda: a[40 * WORDS], a.sum, lambda: lm.populate(a), check):
        with pytest.raises(RuntimeError, match=said):
            touch()
    assert child_of(lambda: view[5 * WORDS]) == -signal.SIGSEGV
    all_right(fine, 9)
    return view


def test_an_operation_that_is_on_its_way_hears_of_it(delivery):
    in_child(an_operation_hears_of_it, delivery)


def an_operation_hears_of_it(delivery):
    a, kit = array(delivery, gate=1)
    raised = []

    def operate():
        try:
            lm.populate(a)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=operate)
    thread.start()
    assert wait_until(lambda: kit.calls >= 1)
    unregister(a, 40, 1)
    with pytest.raises(RuntimeError, match="no longer registered"):
        lm.check(a)
    kit.gate = 0
    thread.join(20)
    assert "no longer registered" in raised[0]


def test_who_sleeps_for_a_page_of_it_is_stopped():
    status, out, err = end_of_child(who_sleeps_is_stopped)
    assert (status, out) == (-signal.SIGSEGV, ""), err
    assert "somebody took it from lazymem's userfaultfd" in err


def who_sleeps_is_stopped():
    a, kit = array("threads", gate=1)
    pest().start_toucher(ctypes.c_void_p(address_of(a) + 3 * PAGE))
    assert wait_until(lambda: kit.calls == 1)
    unregister(a, 40, 1)
    with contextlib.suppress(RuntimeError):
        lm.check(a)
    time.sleep(5)
    print("sleeps on")


@each_user
def test_memory_that_is_only_split_is_none_of_it(delivery, user):
    in_child(only_split, delivery, user=user)


def only_split(delivery):
    a, _ = array(delivery)
    lm.populate(a[5 * WORDS : 10 * WORDS])
    must(libc().mlock(address_of(a) + 7 * PAGE, PAGE))
    split(a)
    lm.check(a)
    with lm.guard():
        assert int(np.asarray(a)[8 * WORDS]) == 8 * WORDS
    for block in (0, 17, 63):
        must(libc().mprotect(address_of(a) + block * PAGE, PAGE, mmap.PROT_READ))
    lm.check(a)
    all_right(a, 20)


def test_more_arrays_than_a_guard_looks_at_are_looked_at_in_turns():
    in_child(looked_at_in_turns)


def guards(times):
    for _ in range(times):
        with lm.guard():
            pass


def looked_at_in_turns():
    arrays = sorted((lm.from_provider(bytes(PAGE), delivery="inline") for _ in range(1500)), key=address_of)
    for which in (0, 1400, 700, 1499):
        (number,) = ours()
        fcntl.ioctl(number, UFFDIO_UNREGISTER, struct.pack("QQ", address_of(arrays[which]), PAGE))
        with pytest.raises(RuntimeError, match="no longer registered"):
            guards(2)
        with pytest.raises(RuntimeError, match="no longer registered"):
            lm.check(arrays[which])
        guards(3)


# ---------------------------------------------------------------------------------------------------------------------------
# 38. Dropped pages, by a closed number too


@each_user
def test_trap_38_dropped_pages_after_the_numbers_were_closed(delivery, user):
    in_child(dropped_after_the_numbers_were_closed, delivery, user=user)


def dropped_after_the_numbers_were_closed(delivery):
    a, _ = array(delivery)
    lm.populate(a)
    os.closerange(3, 65536)
    must(libc().madvise(address_of(a), 32 * PAGE, mmap.MADV_DONTNEED))
    assert pages_here(address_of(a), 32) == [False] * 32
    assert pest().touch_one(address_of(a) + 9 * PAGE) == 9 * WORDS
    assert np.array_equal(np.asarray(a), np.arange(N))
