"""Do the native ways back write just what they are given, just there, and say so when they cannot?"""

import ctypes
import errno
import mmap
import os
import random
import resource
import subprocess
import tempfile

import numpy as np
import pytest
from native_kit import PAGE, in_child, library, probe
from support import compile_library, each_user, needs_compiler, needs_root

import lazymem as lm
from lazymem.core.source import FileSource, MemorySource

pytestmark = needs_compiler
START, NBYTES = 100, 5 * PAGE + 7


def made(path, nbytes=START + NBYTES + 50):
    """A file of bytes that are not zero, and the bytes."""
    content = bytearray(random.Random(1).randbytes(nbytes))
    path.write_bytes(content)
    return content


def source_of(path, nbytes=NBYTES):
    return FileSource(os.open(path, os.O_RDWR | os.O_CLOEXEC), START, nbytes, True)


# ---------------------------------------------------------------------------------------------------------------------------
# Files


def test_a_file_gets_what_is_stored_and_nothing_else_changes(folder):
    content = made(folder / "raw")
    source = source_of(folder / "raw")
    dice = random.Random(2)
    assert source.writable
    for offset, nbytes in [(0, 1), (NBYTES - 1, 1), (0, NBYTES), (NBYTES, 0), *((k * PAGE, PAGE) for k in range(5))]:
        new = dice.randbytes(nbytes)
        assert probe().store(source, new, offset) == 0
        content[START + offset : START + offset + nbytes] = new
        assert (folder / "raw").read_bytes() == content
        back = bytearray(max(1, nbytes))
        assert nbytes == 0 or probe().fetch(source, offset, back) == 0
        assert nbytes == 0 or back == new
    assert probe().sync(source) == 0


@pytest.mark.parametrize(("offset", "nbytes"), [(NBYTES, 1), (NBYTES - 1, 2), (NBYTES + 1, 0), (1 << 63, 1), (2**64 - 1, 2)])
def test_nothing_is_written_past_the_part(folder, offset, nbytes):
    content = made(folder / "raw")
    memory = bytearray(NBYTES)
    for source in (source_of(folder / "raw"), MemorySource(memory, True)):
        assert probe().store(source, b"x" * nbytes, offset) == -errno.EINVAL
    assert (folder / "raw").read_bytes() == content
    assert memory == bytes(NBYTES)


def test_others_may_write_to_a_file_that_is_written_but_not_cut_it(folder):
    content = made(folder / "raw")
    source = source_of(folder / "raw")
    with open(folder / "raw", "r+b") as file:
        file.seek(START)
        file.write(b"theirs")
    back = bytearray(6)
    assert probe().fetch(source, 0, back) == 0
    assert back == b"theirs"
    os.truncate(folder / "raw", len(content) + 1000)
    assert probe().store(source, b"ours", 0) == 0
    os.truncate(folder / "raw", len(content) - 1)
    assert probe().store(source, b"lost", 0) == -errno.ESTALE
    assert probe().fetch(source, 0, back) == -errno.ESTALE
    assert (folder / "raw").read_bytes()[START : START + 6] == b"oursrs"


def test_a_file_whose_number_was_closed_is_opened_again(folder):
    content = made(folder / "raw")
    fd = os.open(folder / "raw", os.O_RDWR)
    source = FileSource(fd, START, NBYTES, True)
    os.close(fd)
    assert probe().store(source, b"first", 0) == 0
    # The number is now a stranger's, then one that only reads the same file.
    for path, flags in ((folder / "other", os.O_RDWR | os.O_CREAT), (folder / "raw", os.O_RDONLY)):
        source = source_of(folder / "raw")
        fd = max(int(n) for n in os.listdir("/proc/self/fd") if _leads_to(n, folder / "raw"))
        other = os.open(path, flags)
        os.dup2(other, fd)
        os.close(other)
        assert probe().store(source, b"again", 0) == 0
        assert probe().sync(source) == 0
        os.close(fd)
    assert (folder / "other").read_bytes() == b""
    content[START : START + 5] = b"again"
    assert (folder / "raw").read_bytes() == content
    # Another file of that name is not written to.
    source = source_of(folder / "raw")
    os.close(max(int(n) for n in os.listdir("/proc/self/fd") if _leads_to(n, folder / "raw")))
    os.rename(folder / "raw", folder / "moved")
    assert probe().store(source, b"never", 0) == -errno.EBADF
    (folder / "raw").write_bytes(content)
    assert probe().store(source, b"never", 0) == -errno.ESTALE
    assert probe().sync(source) == -errno.ESTALE
    assert (folder / "raw").read_bytes() == content


def _leads_to(number, path):
    try:
        return os.readlink(f"/proc/self/fd/{number}") == str(path)
    except OSError:
        return False


def _injected():
    """In a child: what each failing call of writing a file and memory answers, and that no byte lies elsewhere."""
    from injection_kit import SHORT, Injector

    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "raw")
    content = bytearray(random.Random(3).randbytes(NBYTES + START))
    with open(path, "wb") as file:
        file.write(content)
    source = FileSource(os.open(path, os.O_RDWR), START, NBYTES, True)
    memory = bytearray(NBYTES)
    injector = Injector()
    injector.install()
    probe()
    new = random.Random(4).randbytes(NBYTES)
    fails = [
        (source, "pwrite", SHORT, True, 0), (source, "pwrite", SHORT, False, 0), (source, "pwrite", errno.EINTR, False, 0),
        *((source, "pwrite", error, False, -error) for error in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        (source, "fstat", errno.EIO, True, -errno.ESTALE),
        (MemorySource(memory, True), "process_vm_writev", errno.EPERM, True, 0),
        (MemorySource(memory, True), "process_vm_writev", errno.ENOMEM, False, -errno.EFAULT),
    ]  # fmt: skip
    for to, kind, error, on, expected in fails:
        new = random.Random(new).randbytes(NBYTES)
        injector.arm(kind, error, 1, on)
        answer = probe().store(to, new, 0)
        struck = injector.state.struck
        injector.disarm()
        assert (answer, struck > 0) == (expected, True), (kind, error, answer, struck)
        if expected == 0:
            with open(path, "rb") as file:
                back = file.read()
            assert (back[START:] if to is source else memory) == new, (kind, error)
            assert back[:START] == content[:START]
    for error, expected in ((errno.EIO, -errno.EIO), (errno.EINTR, 0)):
        injector.arm("fsync", error, 1, False)
        assert probe().sync(source) == expected
        assert injector.state.struck == 1
        injector.disarm()


def test_failing_calls_are_answered():
    library("inject.c")
    in_child(_injected)


@each_user
def test_a_file_may_not_become_too_large(user):
    in_child(_too_large, user=user)


def _too_large():
    """RLIMIT_FSIZE: what lies below is written, then EFBIG; Python ignores SIGXFSZ."""
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "raw")
    with open(path, "wb") as file:
        file.truncate(START + NBYTES)
    source = FileSource(os.open(path, os.O_RDWR), START, NBYTES, True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (START + PAGE, resource.RLIM_INFINITY))
    assert probe().store(source, b"a" * PAGE, 0) == 0
    assert probe().store(source, b"b" * PAGE, PAGE - 1) == -errno.EFBIG
    assert probe().store(source, b"c", 2 * PAGE) == -errno.EFBIG
    with open(path, "rb") as file:
        assert file.read() == bytes(START) + b"a" * (PAGE - 1) + b"b" + bytes(NBYTES - PAGE)


@needs_root
def test_a_full_disk_says_so_and_keeps_what_it_had(folder):
    """A sparse file of 64 pages on a file system of 16."""
    place = folder / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={16 * PAGE}", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"root may not mount here: {mounted.stderr.decode().strip()}")
    try:
        with open(place / "raw", "wb") as file:
            file.truncate(64 * PAGE)
        source = FileSource(os.open(place / "raw", os.O_RDWR | os.O_CLOEXEC), 0, 64 * PAGE, True)
        answers = [probe().store(source, bytes([k]) * PAGE, k * PAGE) for k in range(1, 40)]
        stored = answers.index(-errno.ENOSPC)
        assert 0 < stored <= 16
        assert answers[:stored] == [0] * stored
        back = (place / "raw").read_bytes()
        for k in range(1, stored + 1):
            assert back[k * PAGE : (k + 1) * PAGE] == bytes([k]) * PAGE
        os.truncate(place / "raw", 64 * PAGE)
        del source
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# ---------------------------------------------------------------------------------------------------------------------------
# Memory and C functions


def test_memory_gets_what_is_stored():
    memory = np.arange(3 * PAGE, dtype="u1")
    expected = memory.copy()
    source = MemorySource(memory, True)
    assert probe().store(source, b"new", PAGE - 1) == 0
    expected[PAGE - 1 : PAGE + 2] = list(b"new")
    assert np.array_equal(memory, expected)
    assert probe().sync(source) is None


@pytest.mark.parametrize("exporter", [b"bytes", np.broadcast_to(np.zeros((), "u1"), (1,)), memoryview(b"abc")])
def test_memory_that_is_read_only_takes_nothing_back(exporter):
    with pytest.raises((BufferError, ValueError)):
        MemorySource(exporter, True)
    assert not MemorySource(exporter).writable


def test_memory_that_is_gone_is_an_error(folder):
    (folder / "mapped").write_bytes(bytes(2 * PAGE))
    with open(folder / "mapped", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 2 * PAGE)
        source = MemorySource(mapped, True)
        file.truncate(PAGE)
    assert probe().store(source, b"x", 0) == 0
    assert probe().store(source, b"x", PAGE) == -errno.EFAULT
    del source


STORE = """
    #include <lazymem.h>
    #include <string.h>
    static char bytes[1 << 16];
    int fetch(void *ctx, void *dst, uint64_t offset, uint64_t nbytes) { memcpy(dst, bytes + offset, nbytes); return 0; }
    int store(void *ctx, const void *src, uint64_t offset, uint64_t nbytes)
    {
        if (ctx && *(int *)ctx)
            return -*(int *)ctx;
        memcpy(bytes + offset, src, nbytes);
        return 0;
    }
    lazymem_fetch fetch_is_one = fetch;
    lazymem_store store_is_one = store;
"""


def test_a_c_function_takes_bytes_back(folder):
    from lazymem.core.source import FunctionSource

    lib = ctypes.CDLL(str(compile_library(STORE, folder)))
    error = ctypes.c_int(0)
    made = lm.CFunction(lib.fetch, 1 << 16, error, store=lib.store)
    source = FunctionSource(made.address, made.nbytes, made.user_data, made, made.store)
    assert probe().store(source, b"new", 5) == 0
    back = bytearray(5)
    assert probe().fetch(source, 4, back) == 0
    assert back == b"\0new\0"
    error.value = errno.EIO
    assert probe().store(source, b"new", 5) == -errno.EIO
    assert not FunctionSource(made.address, made.nbytes, made.user_data, made).writable
    with pytest.raises(TypeError, match="a str"):
        lm.CFunction(lib.fetch, 1 << 16, store="store")
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
    with pytest.raises(TypeError, match="Python callback"):
        lm.CFunction(lib.fetch, 1 << 16, store=kind(lambda *_: 0))
