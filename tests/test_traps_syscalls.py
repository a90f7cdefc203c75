"""What does a system call, or another program, find that reads lazy memory by itself? Traps 21 and 43."""

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, in_child, libc, must
from support import each_user, needs_compiler

import lazymem as lm

pytestmark = needs_compiler

WORDS = PAGE // 8
N = 4
EXPECTED = np.arange(N * WORDS).tobytes()


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t)]


def answer(n):
    """What a system call returned, or -errno."""
    return n if n >= 0 else -ctypes.get_errno()


def write_to_file(at, folder):
    fd = os.open(folder + "/w", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    n = answer(libc().write(fd, at, N * PAGE))
    if n > 0:
        assert os.pread(fd, n, 0) == EXPECTED[:n]
    os.close(fd)
    return n


def write_to_pipe(at, folder):
    r, w = os.pipe()
    n = answer(libc().write(w, at, N * PAGE))
    os.close(w)
    assert os.read(r, 1 << 20) == EXPECTED[: max(n, 0)]
    os.close(r)
    return n


def read_into(at, folder, direct=0):
    path = folder + "/r"
    with open(path, "wb") as f:
        f.write(b"\x07" * N * PAGE)
    try:
        fd = os.open(path, os.O_RDONLY | direct)
    except OSError:
        return None  # this file system has no O_DIRECT
    n = answer(libc().pread(fd, at, N * PAGE, 0))
    os.close(fd)
    if n > 0:
        assert ctypes.string_at(at, n) == b"\x07" * n
    return None if direct and n == -errno.EINVAL else n


def vmsplice(at, folder):
    r, w = os.pipe()
    n = answer(libc().vmsplice(w, ctypes.byref(Vector(at, N * PAGE)), 1, 0))
    os.close(w)
    if n > 0:
        assert os.read(r, 1 << 20) == EXPECTED[:n]
    os.close(r)
    return n


def process_vm_readv(at, folder):
    got = ctypes.create_string_buffer(N * PAGE)
    n = answer(libc().process_vm_readv(os.getpid(), ctypes.byref(Vector(ctypes.addressof(got), N * PAGE)), 1,
                                       ctypes.byref(Vector(at, N * PAGE)), 1, 0))  # fmt: skip
    assert got.raw[: max(n, 0)] == EXPECTED[: max(n, 0)]
    return n


def getcwd_like(at, folder):
    """A path that the kernel reads from the array: the array's bytes begin with a zero, so it is empty."""
    return answer(libc().access(ctypes.c_void_p(at), 0))


def clock_gettime(at, folder):
    return answer(libc().syscall(228 if os.uname().machine == "x86_64" else 113, 0, ctypes.c_void_p(at)))


def mlock(at, folder):
    n = answer(libc().mlock(at, N * PAGE))
    libc().munlock(at, N * PAGE)
    return n


# What each answers where the kernel waits for the page, and where it does not; and whether it changes the memory.
CALLS = {
    "write to a file": (write_to_file, N * PAGE, -errno.EFAULT, False),
    "write to a pipe": (write_to_pipe, N * PAGE, -errno.EFAULT, False),
    "pread into": (read_into, N * PAGE, -errno.EFAULT, True),
    "O_DIRECT pread into": (lambda at, f: read_into(at, f, os.O_DIRECT), N * PAGE, -errno.EFAULT, True),
    "vmsplice": (vmsplice, N * PAGE, -errno.EFAULT, False),
    "process_vm_readv": (process_vm_readv, N * PAGE, -errno.EFAULT, False),
    "a path": (getcwd_like, -errno.ENOENT, -errno.EFAULT, False),
    "clock_gettime": (clock_gettime, 0, -errno.EFAULT, True),
    "MADV_POPULATE_READ": (lambda at, f: answer(libc().madvise(at, N * PAGE, 22)), 0, -errno.EFAULT, False),
    "MADV_POPULATE_WRITE": (lambda at, f: answer(libc().madvise(at, N * PAGE, 23)), 0, -errno.EFAULT, False),
    "mlock": (mlock, 0, -errno.ENOMEM, False),
}


@each_user
@pytest.mark.parametrize("call", CALLS)
def test_trap_21_a_system_call_on_absent_pages(delivery, user, call, folder):
    out = in_child(a_system_call_on_absent_pages, delivery, call, str(folder), user=user, timeout=30)
    if "skip" in out:
        pytest.skip(out)


def a_system_call_on_absent_pages(delivery, name, folder):
    call, waits, refuses, changes = CALLS[name]
    a, kit = counted(N * PAGE, mode="c", delivery=delivery, block_nbytes=PAGE)
    waits_here = lm.region(a).kernel_faults
    assert not (delivery == "inline" and waits_here)
    got = call(address_of(a), folder)
    if got is None:
        print("skip: this file system has no O_DIRECT")
        return
    assert got == (waits if waits_here else refuses), os.strerror(-got) if got < 0 else got
    if not waits_here:
        assert kit.calls == 0, "nothing was fetched"
    if not (changes and waits_here):
        assert bytes(a) == EXPECTED, "and afterwards the array is as right as before"
    lm.populate(a)
    assert call(address_of(a), folder) == waits, "with its pages there every call works"


@each_user
def test_trap_21_a_write_that_spans_present_and_absent_pages_is_short(delivery, user, folder):
    in_child(a_write_that_spans, delivery, str(folder), user=user)


def a_write_that_spans(delivery, folder):
    a, _ = counted(N * PAGE, mode="c", delivery=delivery, block_nbytes=PAGE)
    lm.populate(a[:WORDS])
    fd = os.open(folder + "/w", os.O_RDWR | os.O_CREAT)
    n = libc().write(fd, address_of(a) + PAGE - 96, 500)
    assert n == (500 if lm.region(a).kernel_faults else 96)
    assert os.pread(fd, 500, 0) == EXPECTED[PAGE - 96 : PAGE - 96 + n]


@each_user
def test_trap_21_what_looks_but_does_not_touch(delivery, user):
    in_child(what_looks_but_does_not_touch, delivery, user=user)


def what_looks_but_does_not_touch(delivery):
    a, kit = counted(64 * PAGE, delivery=delivery, block_nbytes=PAGE)
    there = (ctypes.c_ubyte * 64)()
    must(libc().mincore(address_of(a), 64 * PAGE, there))
    assert not any(there)
    for advice in (3, 20, 21):  # WILLNEED, COLD, PAGEOUT
        must(libc().madvise(address_of(a), 64 * PAGE, advice))
    with open("/proc/self/smaps") as f:
        assert f.read()
    assert kit.calls == 0 == lm.stats(a).faults
    assert np.array_equal(a, np.arange(64 * WORDS))
    must(libc().madvise(address_of(a), 64 * PAGE, 20))
    must(libc().madvise(address_of(a), 64 * PAGE, 21))
    assert np.array_equal(a, np.arange(64 * WORDS))


# ---------------------------------------------------------------------------------------------------------------------------
# 43. Debuggers and dumps


@each_user
def test_trap_43_proc_mem_answers_eio(delivery, user):
    in_child(proc_mem_answers_eio, delivery, user=user, timeout=30)


def proc_mem_answers_eio(delivery):
    a, kit = counted(N * PAGE, delivery=delivery, block_nbytes=PAGE)
    try:
        fd = os.open("/proc/self/mem", os.O_RDONLY)
    except PermissionError:
        return  # a process that changed its user may not look at itself
    with pytest.raises(OSError) as caught:
        os.pread(fd, 8, address_of(a))
    assert caught.value.errno == errno.EIO
    assert kit.calls == 0
    lm.populate(a)
    assert os.pread(fd, N * PAGE, address_of(a)) == EXPECTED
    os.close(fd)


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_trap_43_a_debugger_reads_and_dumps_without_a_hang(delivery, folder):
    out = in_child(a_debugger_reads_and_dumps, delivery, str(folder), timeout=60)
    if "skip" in out:
        pytest.skip(out)


def a_debugger_reads_and_dumps(delivery, folder):
    a, kit = counted(N * PAGE, delivery=delivery, block_nbytes=PAGE)
    assert int(a[0]) == 0
    at = address_of(a)
    with contextlib.suppress(OSError, AttributeError):
        must(libc().prctl(0x59616D61, ctypes.c_ulong(-1).value, 0, 0, 0))  # PR_SET_PTRACER_ANY
    command = ["gdb", "-nx", "-batch", "-p", str(os.getpid()), "-ex", f"x/1gx {at}", "-ex", f"x/1gx {at + PAGE}",
               "-ex", f"generate-core-file {folder}/core"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, stdin=subprocess.DEVNULL)
    if "ptrace" in done.stderr:
        print("skip: gdb may not trace here")
        return
    assert f"{at:#x}:\t0x0000000000000000" in done.stdout, done.stdout + done.stderr
    assert "Cannot access memory" in done.stderr, "an absent page is no zero"
    assert os.path.getsize(folder + "/core") > mmap.PAGESIZE
    assert kit.calls == 1, "it fetched nothing"
    assert np.array_equal(a, np.arange(N * WORDS)), "and the array goes on"
    sys.stdout.flush()
