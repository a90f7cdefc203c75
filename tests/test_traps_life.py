"""Can a fault outlive its array or its file, and what if there is no userfaultfd to be had? Traps 39, 40, 49, 57."""

import ctypes
import errno
import os
import random
import signal
import struct
import threading
import time

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, end_of_child, in_child, libc, must, ours, pest, probe
from support import each_user, needs_compiler, wait_until

import lazymem as lm
from lazymem.core import uffd

pytestmark = needs_compiler

WORDS = PAGE // 8


# ---------------------------------------------------------------------------------------------------------------------------
# 39. Closing under a fault


@each_user
def test_trap_39_close_stops_who_sleeps_in_a_fault(delivery, user):
    status, out, err = end_of_child(close_while_a_thread_sleeps, delivery, user=user, timeout=30)
    assert status in (-signal.SIGSEGV, -signal.SIGBUS), (status, out, err)
    assert "read" not in err, "neither zeros nor anything else was read"
    assert "'fetch'" in err
    assert "closed" in err


def close_while_a_thread_sleeps(delivery):
    a, kit = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE, gate=1)
    at = address_of(a)
    pest().start_toucher(at + 3 * PAGE)
    assert wait_until(lambda: kit.calls == 1)
    threading.Timer(0.5, lambda: setattr(kit, "gate", 0)).start()  # its source ends while close waits for it
    lm.close(a)
    time.sleep(10)  # the sleeper ends the process


@pytest.mark.slow
def test_trap_39_close_does_not_wait_for_ever_for_a_source_that_hangs(delivery):
    in_child(close_while_a_source_hangs, delivery, timeout=30)


def close_while_a_source_hangs(delivery):
    a, kit = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE, gate=1)
    assert lm.prefetch(a[: 2 * WORDS])
    assert wait_until(lambda: kit.calls >= 1)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        lm.close(a)
    assert time.monotonic() - began < 10
    with pytest.raises(ValueError, match="closed"):
        a[0]
    address = address_of(np.asarray(lm.from_provider(bytes(PAGE))))  # others go on
    assert address
    kit.gate = 0
    assert wait_until(lambda: kit.at_once == 0)
    del a
    b, _ = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE)
    assert np.array_equal(b, np.arange(8 * WORDS)), "operations are not held up by what the closed one left"


def test_trap_39_deallocation_never_waits(delivery):
    in_child(deallocation_never_waits, delivery)


def deallocation_never_waits(delivery):
    a, kit = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE, gate=1)
    lm.prefetch(a)
    assert wait_until(lambda: kit.calls >= 1)
    began = time.monotonic()
    del a
    assert time.monotonic() - began < 1
    kit.gate = 0
    assert wait_until(lambda: kit.at_once == 0)


def test_trap_39_arrays_come_and_go_under_prefetch(delivery):
    in_child(arrays_come_and_go, delivery)


def arrays_come_and_go(delivery):
    for i in range(400):
        a, kit = counted(16 * PAGE, delivery=delivery, block_nbytes=PAGE, delay_ns=20_000)
        lm.prefetch(a)
        if i % 3 == 0:
            assert int(a[WORDS * (i % 16)]) == WORDS * (i % 16)
        if i % 2:
            lm.close(a)
            assert kit.at_once == 0, "after close nobody is in the source"
        del a


# ---------------------------------------------------------------------------------------------------------------------------
# 40. The same address again


@each_user
def test_trap_40_a_new_array_at_an_old_address_reads_its_own(delivery, user):
    in_child(a_new_array_at_an_old_address, delivery, user=user)


def a_new_array_at_an_old_address(delivery):
    rng = random.Random(40)
    seen, again, alive = set(), 0, []
    for i in range(1500):
        npages = rng.choice([1, 2, 5])
        value = i % 250 + 1
        a = lm.from_provider(bytes([value]) * (npages * PAGE), delivery=delivery, block_nbytes=PAGE)
        again += address_of(a) in seen
        seen.add(address_of(a))
        if rng.random() < 0.5:
            lm.prefetch(a)
        assert int(a[rng.randrange(a.size)]) == value
        alive.append((a, value))
        if len(alive) > 8:
            old, was = alive.pop(rng.randrange(8))
            assert int(old.min()) == was == int(old.max())
            if rng.random() < 0.5:
                lm.close(old)
    assert again > 100, "addresses are used again, or this proves nothing"


def test_trap_40_looking_up_while_regions_come_and_go(delivery):
    in_child(looking_up_while_regions_come_and_go, delivery)


def looking_up_while_regions_come_and_go(delivery):
    steady = [counted(PAGE, delivery=delivery, block_nbytes=PAGE)[0] for _ in range(10)]
    some = [counted(PAGE, delivery=delivery, block_nbytes=PAGE)[0] for _ in range(100)]
    addresses = [address_of(x) for x in (*steady, *some)] + [1, 1 << 46]
    answers = []
    rounds = 20_000
    looking = [threading.Thread(target=lambda: answers.append(probe().look_up(addresses, rounds))) for _ in range(2)]
    for t in looking:
        t.start()
    rng = random.Random(3)
    while any(t.is_alive() for t in looking):
        some[rng.randrange(len(some))] = counted(rng.choice([PAGE, 3 << 20]), delivery=delivery, block_nbytes=PAGE)[0]
    for wrong, found in answers:
        assert wrong == 0
        assert found >= len(steady) * rounds, "what stays is found every time"
    assert [probe().users_at(address_of(x)) for x in steady] == [0] * len(steady), "who enters leaves"


# ---------------------------------------------------------------------------------------------------------------------------
# 49. Files that change


def file_array(path, delivery, nblocks=64):
    data = np.random.default_rng(49).integers(1, 255, nblocks * PAGE, "u1")
    data.tofile(path)
    return lm.memmap(path, "u1", delivery=delivery, block_nbytes=PAGE), data


@pytest.mark.parametrize("what", ["truncate", "rewrite", "append", "punch", "replace"])
def test_trap_49_a_file_that_changes_during_the_load(delivery, what, folder):
    """Every block is the file's bytes as they were when it was opened, or a PageError."""
    path = str(folder / "f")
    a, data = file_array(path, delivery)
    lm.populate(a[: 8 * PAGE])
    go = threading.Event()

    def change():
        go.wait()
        if what == "truncate":
            os.truncate(path, 20 * PAGE)
        elif what == "rewrite":
            with open(path, "r+b") as f:
                f.write(bytes(64 * PAGE))
        elif what == "append":
            with open(path, "ab") as f:
                f.write(b"more")
        elif what == "punch":
            fd = os.open(path, os.O_RDWR)
            libc().fallocate(fd, 3, ctypes.c_long(16 * PAGE), ctypes.c_long(16 * PAGE))
            os.close(fd)
        else:
            with open(path + ".new", "wb") as f:
                f.write(bytes(64 * PAGE))
            os.replace(path + ".new", path)

    changing = threading.Thread(target=change)
    changing.start()
    errors, codes = 0, set()
    for block in range(8, 64):
        if block == 12:
            go.set()
        if block == 30:
            changing.join()
        at = slice(block * PAGE, (block + 1) * PAGE)
        try:
            assert np.array_equal(a[at], data[at]), f"block {block} is neither right nor an error"
        except lm.PageError as error:
            errors += 1
            codes.add(error.errno)
    assert codes <= {errno.ENODATA, errno.ESTALE}
    assert np.array_equal(a[: 8 * PAGE], data[: 8 * PAGE])
    assert (errors == 0) == (what == "replace"), "a replaced file lives on in our descriptor; a changed one does not"


def test_trap_49_a_file_that_changes_all_the_time(delivery, folder):
    path = str(folder / "f")
    a, data = file_array(path, delivery, 300)
    opened = os.stat(path).st_mtime_ns
    stop = threading.Event()

    def scribble():
        with open(path, "r+b") as f:
            while not stop.is_set():
                f.seek(0)
                f.write(bytes(300 * PAGE))
                f.seek(0)
                f.write(data.tobytes())

    writing = threading.Thread(target=scribble)
    right = errors = 0
    for block in range(300):
        if block == 10:
            writing.start()
        if block == 100:  # by now it may have been read whole before the first write showed
            assert wait_until(lambda: os.stat(path).st_mtime_ns != opened)
        at = slice(block * PAGE, (block + 1) * PAGE)
        try:
            assert np.array_equal(a[at], data[at])
            right += 1
        except lm.PageError:
            errors += 1
    stop.set()
    writing.join()
    assert right >= 10
    assert errors > 0


# ---------------------------------------------------------------------------------------------------------------------------
# 57. The ladder


def forbid(calls):
    """From now on these system calls answer an errno: {number: errno}, or {(number, first argument mask): errno}."""
    program = []
    for number, error in calls.items():
        program += [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error)]
    program.append((0x06, 0, 0, 0x7FFF0000))
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    held = ctypes.create_string_buffer(code)
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(held))
    must(libc().prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    head = ctypes.create_string_buffer(head)
    must(libc().prctl(22, 2, ctypes.addressof(head), 0, 0))  # PR_SET_SECCOMP, FILTER


USERFAULTFD = 323 if os.uname().machine == "x86_64" else 282
OPENAT = 257 if os.uname().machine == "x86_64" else 56


@each_user
@pytest.mark.parametrize("error", ["EPERM", "EACCES", "ENOSYS", "ENOENT"])
def test_trap_57_no_rung_is_left(delivery, user, error):
    in_child(no_rung_is_left, delivery, error, user=user)


def no_rung_is_left(delivery, error):
    number = getattr(errno, error)
    rungs = uffd.probe()
    forbid({USERFAULTFD: number})
    device = rungs[0][1] == 0
    after = uffd.probe()
    assert [e for _, e, _ in after[1:]] == [number, number]
    assert (after[0][1] == 0) == device
    if device:  # the device node is another door: nothing is lost
        assert int(lm.from_provider(b"\x07" * PAGE, delivery=delivery)[5]) == 7
        return
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="doctor") as caught:
        lm.from_provider(b"\x07" * PAGE, delivery=delivery)
    assert caught.value.errno == number
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not os.path.exists("/dev/userfaultfd"), reason="no /dev/userfaultfd here")
@each_user
@pytest.mark.parametrize("error", ["EPERM", "EACCES", "ENOSYS", "ENOENT"])
def test_trap_57_a_device_that_cannot_be_opened_is_no_end(delivery, user, error):
    in_child(a_device_that_cannot_be_opened, delivery, error, user=user)


def a_device_that_cannot_be_opened(delivery, error):
    number = getattr(errno, error)
    a = np.arange(2 * WORDS)
    probe().STATES  # loaded before opening is forbidden
    forbid({OPENAT: number, 2: number} if os.uname().machine == "x86_64" else {OPENAT: number})
    rungs = uffd.probe()
    assert rungs[0][1] == number
    fd, privilege, _ = probe().open_uffd(0)
    assert fd >= 0, os.strerror(-fd)
    assert privilege == (2 if rungs[1][1] == 0 else 1)
    assert np.array_equal(lm.from_provider(a, dtype="i8", delivery=delivery), a)


def test_trap_57_an_ordinary_user_gets_user_faults(delivery):
    in_child(an_ordinary_user_gets_user_faults, delivery, user="nobody")


def an_ordinary_user_gets_user_faults(delivery):
    rungs = uffd.probe()
    assert [name for name, _, _ in rungs] == ["/dev/userfaultfd", "userfaultfd(2)", "userfaultfd(2), user faults only"]
    a = lm.from_provider(bytes(PAGE), delivery=delivery)
    allowed = rungs[0][1] == 0 or rungs[1][1] == 0
    assert lm.region(a).kernel_faults == (allowed and delivery == "threads")
    assert lm.region(lm.from_provider(bytes(PAGE))).delivery == ("threads" if allowed else "inline")
    assert len(ours()) <= 2
