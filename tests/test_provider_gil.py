"""Does a touch ever need the GIL, when a Python provider has the bytes?

What experiments showed to hang or to corrupt memory, and what a provider may do while who waits for it holds the GIL.

In children: what hangs, or is killed, must not take the tests with it.
"""

import ctypes
import errno
import io
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from native_kit import PAGE, address_of, in_child, pest
from support import check_child, each_user, settled, wait_until

import lazymem as lm

WORDS = PAGE // 8


def with_gil(library):
    """The same functions, called without giving the GIL up."""
    return ctypes.PyDLL(library._name, use_errno=True)


# ---------------------------------------------------------------------------------------------------------------------------
# Provider and toucher in the same library: it has locks, and threads, and each process has its own

BLAS_ON_BOTH_SIDES = """
import sys, numpy as np, lazymem as lm
from support import settled
TOUCHES = {
    "gemm": lambda a, b: a @ b,
    "gemv": lambda a, b: a @ b[0],
    "sum": lambda a, b: a.sum(),
}

class Products:
    def __init__(self, n, how):
        self.nbytes, self.how = n * n * 8, how
    def read_into(self, buffer, offset):
        g = np.ones((400, 400))
        assert ((g @ g if self.how == "BLAS" else g + g) == (400 if self.how == "BLAS" else 2)).all()
        out = np.frombuffer(buffer, "f8")
        out[:] = np.arange(offset // 8, offset // 8 + out.size) % 7

n = 256
b = np.arange(n * n, dtype="f8").reshape(n, n) % 5
plain = np.arange(n * n, dtype="f8").reshape(n, n) % 7
for how in ("BLAS", "numpy"):
    for name, touch in TOUCHES.items():
        print("at", how, name, flush=True)
        for block_nbytes in (n * n * 8, n * n):  # the first: only the thread that calls BLAS ever faults
            a = lm.from_provider(Products(n, how), (n, n), "f8", block_nbytes=block_nbytes, delivery=sys.argv[-1])
            np.testing.assert_allclose(touch(np.asarray(a), b), touch(plain, b), rtol=1e-12)
            assert settled(a).blocks == a.nbytes // block_nbytes
print("right")
"""


@each_user
def test_the_provider_uses_blas_while_the_toucher_is_in_it(delivery, user):
    code = f"import sys; sys.argv.append({delivery!r})\n{BLAS_ON_BOTH_SIDES}"
    assert "right" in check_child(code, timeout=30, user=user, env={"OPENBLAS_NUM_THREADS": "4"}, fresh=True)


# ---------------------------------------------------------------------------------------------------------------------------
# C that relies on the GIL while it copies

COPIES = {
    "bytearray += memoryview": lambda into, a: into.__iadd__(memoryview(a)),
    "BytesIO.write(a)": lambda into, a: into.write(a),
    "BytesIO.write(memoryview)": lambda into, a: into.write(memoryview(a)),
    "mmap.write(a)": lambda into, a: into.write(a),
    "mmap.write(memoryview)": lambda into, a: into.write(memoryview(a)),
}


@each_user
def test_c_code_that_relies_on_the_gil_is_not_interrupted(delivery, user, folder):
    in_child(c_code_that_relies_on_the_gil, delivery, str(folder), user=user, timeout=30)


def c_code_that_relies_on_the_gil(delivery, folder):
    nbytes = 64 * PAGE

    class Halting:
        """Bytes "A"; half-way it says so, waits to be told to go on, and notes whether anybody did."""

        def __init__(self, folder, patience):
            self.nbytes, self.folder, self.patience = nbytes, folder, patience

        def read_into(self, buffer, offset):
            if offset == self.nbytes // 2:
                open(f"{self.folder}/inside", "x").close()
                end = time.monotonic() + self.patience
                while not os.path.exists(f"{self.folder}/go") and time.monotonic() < end:
                    time.sleep(0.005)
                with open(f"{self.folder}/waited", "w") as f:
                    f.write("until told" if os.path.exists(f"{self.folder}/go") else "in vain")
            buffer[:] = b"A" * len(buffer)

    waits_for_pages = lm.region(lm.from_provider(bytes(9), delivery=delivery)).kernel_faults
    for name, copy in COPIES.items():
        print("at", name, flush=True)
        place = Path(folder, name)
        place.mkdir()
        # What a system call may be given is fetched before the copy, with the GIL given up, where those cannot wait for pages.
        first = name == "mmap.write(a)" and not waits_for_pages
        a = lm.from_provider(Halting(str(place), 10 if first else 0.3), delivery=delivery, block_nbytes=PAGE)
        into, meddle, left, want = somebody_meddling(name, nbytes, first)

        def meddle_then(place=place, meddle=meddle):
            wait_until(Path(place, "inside").exists)
            meddle()
            Path(place, "go").touch()

        other = threading.Thread(target=meddle_then)
        other.start()
        copy(into, a)
        other.join()
        assert Path(place, "waited").read_text() == ("until told" if first else "in vain")
        assert left() == want
        assert settled(a).blocks == 64
        assert np.asarray(a).tobytes() == b"A" * nbytes


def somebody_meddling(name, nbytes, first):
    """What to copy into; what another thread does to it meanwhile; what is left in the end, and what should be."""
    if name.startswith("bytearray"):
        text = bytearray()
        junk = []  # memory that was just freed
        return (
            text,
            lambda: (text.clear(), junk.extend(bytes(nbytes) for _ in range(8))),
            lambda: (bytes(text), any(map(any, junk))),
            (b"", False),
        )
    if name.startswith("BytesIO"):
        file = io.BytesIO()
        return file, lambda: (file.seek(0), file.truncate(), file.write(b"x")), file.getvalue, b"x"
    memory = mmap.mmap(-1, 2 * nbytes)
    if not first:
        return memory, memory.close, lambda: memory.closed, True
    # Not closed here: before 3.11.4 Python does not look again when it has asked its argument for a buffer (gh-103987).
    return memory, lambda: memory.seek(nbytes), lambda: memory[:], bytes(nbytes) + b"A" * nbytes


# ---------------------------------------------------------------------------------------------------------------------------
# System calls


@each_user
def test_system_calls_on_the_array(delivery, user, folder):
    """With the GIL held and without. Where the kernel may not wait for pages it says so at once."""
    in_child(system_calls_on_the_array, delivery, str(folder / "f"), user=user, timeout=20)


def system_calls_on_the_array(delivery, path):
    n = 16
    libc = ctypes.CDLL(None, use_errno=True)
    want = np.arange(n * WORDS).tobytes()
    for library in (with_gil(libc), libc):
        for call in ("write", "read"):
            a = lm.from_function(lambda i: i, n * WORDS, "i8", mode="c", delivery=delivery, block_nbytes=PAGE)
            function = getattr(library, call)
            function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_ssize_t
            with open(path, "w+b", buffering=0) as file:
                if call == "read":
                    file.write(b"\1" * 5000)
                    file.seek(0)
                got = function(file.fileno(), address_of(a) + 100, 2 * PAGE if call == "write" else 5000)
                if not lm.region(a).kernel_faults:
                    assert got == -1
                    assert ctypes.get_errno() == errno.EFAULT
                elif call == "write":
                    assert got == 2 * PAGE
                    assert Path(path).read_bytes() == want[100 : 100 + 2 * PAGE]
                    assert settled(a).blocks == 3
                else:
                    assert got == 5000
                    assert np.asarray(a).tobytes() == want[:100] + b"\1" * 5000 + want[5100:]


# ---------------------------------------------------------------------------------------------------------------------------
# What a provider does, while who waits for it holds the GIL

PRINTED_NBYTES = 1 << 20


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("how", ["print", "os.write", "a child's output"])
def test_it_prints_while_the_toucher_holds_the_gil(delivery, how, user):
    in_child(it_prints_while_the_toucher_holds_the_gil, delivery, how, user=user, timeout=20)


def it_prints_while_the_toucher_holds_the_gil(delivery, how):
    class Talking:
        nbytes = 3 * PAGE

        def read_into(self, buffer, offset):
            if offset == PAGE:
                for stream in (sys.stdout, sys.stderr):
                    if how == "print":
                        print("x" * PRINTED_NBYTES, file=stream)
                    elif how == "os.write":
                        os.write(stream.fileno(), b"x" * PRINTED_NBYTES)
                    else:
                        text = f"print('x' * {PRINTED_NBYTES})"
                        subprocess.run([sys.executable, "-c", text], stdout=stream.fileno(), check=True)
            elif offset:
                print("the end", flush=True)
            buffer[:] = b"A" * len(buffer)

    said, sys.stdout = sys.stdout, io.StringIO()
    loud, sys.stderr = sys.stderr, io.StringIO()
    a = lm.from_provider(Talking(), delivery=delivery, block_nbytes=PAGE)
    touch = with_gil(pest()).touch_one
    touch.argtypes, touch.restype = [ctypes.c_void_p], ctypes.c_int64
    began = time.monotonic()
    assert touch(address_of(a) + PAGE) == 0x4141414141414141
    assert time.monotonic() - began < 10  # a deadline would be longer
    printed = 1 if how == "a child's output" else 2
    assert wait_until(lambda: sys.stdout.getvalue().count("x") and (printed == 1 or sys.stderr.getvalue().count("x")))
    assert touch(address_of(a) + 2 * PAGE) == 0x4141414141414141
    assert wait_until(lambda: "the end" in sys.stdout.getvalue())
    texts = (sys.stdout.getvalue(), sys.stderr.getvalue())
    sys.stdout, sys.stderr = said, loud
    for text in texts[:printed]:
        assert 4096 < text.count("x") <= PRINTED_NBYTES  # what fits is kept, the rest dropped
    assert lm.stats(a).failed == 0


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("how", ["exit", "fork and crash"])
def test_it_dies_in_the_middle_of_a_product(delivery, how, user, folder):
    """Once in each of some blocks, seen by a process that has loaded it anew."""
    in_child(it_dies_in_the_middle_of_a_product, delivery, how, str(folder), user=user, timeout=30)


def it_dies_in_the_middle_of_a_product(delivery, how, folder):
    class Dying:
        nbytes = 64 * PAGE

        def read_into(self, buffer, offset):
            if offset in (0, 17 * PAGE) and not os.path.exists(f"{folder}/{offset}"):
                open(f"{folder}/{offset}", "x").close()
                if how.startswith("fork"):
                    child = os.fork()
                    if child == 0:  # it lives on, and holds all that the process held
                        time.sleep(100)
                        os._exit(0)
                    with open(f"{folder}/children", "a") as f:
                        f.write(f"{child}\n")
                if how.endswith("exit"):
                    os._exit(0)
                os.kill(os.getpid(), signal.SIGSEGV)
            out = np.frombuffer(buffer, "f8")
            out[:] = np.arange(offset // 8, offset // 8 + out.size)

    plain = np.arange(64 * WORDS, dtype="f8")
    a = lm.from_provider(Dying(), dtype="f8", delivery=delivery, block_nbytes=PAGE)
    began = time.monotonic()
    try:
        assert a @ a == plain @ plain
        m = lm.from_provider(Dying(), dtype="f8", delivery=delivery, block_nbytes=PAGE).reshape(128, -1)
        np.testing.assert_allclose(m @ m.T, plain.reshape(128, -1) @ plain.reshape(128, -1).T)
    finally:
        if how.startswith("fork"):
            for child in Path(folder, "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
    assert time.monotonic() - began < 10
    assert sorted(os.listdir(folder)) == sorted(["0", str(17 * PAGE), *(["children"] if how.startswith("fork") else [])])
    s = settled(a)
    assert (s.failed, s.blocks) == (0, 64)


@each_user
def test_a_child_that_it_forked_comes_back_from_it(delivery, user, folder):
    """Only the process itself answers. The child has none of the memory that is shared with us, and ends as it comes back."""
    in_child(a_child_that_it_forked_comes_back, delivery, str(folder), user=user, timeout=20)


def a_child_that_it_forked_comes_back(delivery, folder):
    class Twice:
        nbytes = 4 * PAGE

        def read_into(self, buffer, offset):
            child = os.fork()
            if child == 0:
                if offset == PAGE:
                    raise RuntimeError("in the child")
                if offset == 2 * PAGE:
                    buffer[:] = b"B" * len(buffer)
                return
            _, status = os.waitpid(child, 0)
            Path(folder, str(offset // PAGE)).write_text(str(os.waitstatus_to_exitcode(status)))
            buffer[:] = b"A" * len(buffer)

    a = lm.from_provider(Twice(), delivery=delivery, block_nbytes=PAGE)
    assert a.tobytes() == b"A" * 4 * PAGE
    assert [int(Path(folder, str(block)).read_text()) for block in range(4)] == [70, 70, -signal.SIGSEGV, 70]


# ---------------------------------------------------------------------------------------------------------------------------
# Who touches


@each_user
def test_touches_of_any_thread_with_the_gil_and_without(delivery, user):
    in_child(touches_of_any_thread, delivery, user=user, timeout=40)


def touches_of_any_thread(delivery):
    n, threads = 96, 4
    plain = np.arange(n * WORDS)

    def fresh(**options):
        return lm.from_function(lambda i: i, n * WORDS, "i8", delivery=delivery, block_nbytes=PAGE, **options)

    def check(a):
        s = settled(a)
        assert (s.blocks, s.failed, s.nbytes_asked) == (n, 0, a.nbytes)  # nobody fetched twice
        assert np.array_equal(a, plain)

    for processes in (1, 2):
        for library in (with_gil(pest()), pest()):  # the first: held all the while, by whoever waits for the threads
            library.touch_apart.argtypes, library.touch_apart.restype = pest().touch_apart.argtypes, ctypes.c_int64
            library.touch_together.argtypes, library.touch_together.restype = pest().touch_together.argtypes, ctypes.c_int64
            a = fresh(processes=processes)
            assert library.touch_apart(address_of(a), threads, n // threads, PAGE, 0) == 0
            check(a)
            a = fresh(processes=processes)
            assert library.touch_together(address_of(a), threads, n, PAGE) == 0
            check(a)
            a = fresh(processes=processes)  # Python threads, each of them a caller
            wrong = []

            def one(i, a=a, library=library, wrong=wrong):
                first = i * n // threads
                wrong.append(library.touch_apart(address_of(a), 1, n // threads, PAGE, first))

            at_once = [threading.Thread(target=one, args=(i,)) for i in range(threads)]
            for t in at_once:
                t.start()
            for t in at_once:
                t.join()
            assert wrong == [0] * threads
            check(a)
        a = fresh(processes=processes)  # Python threads: bare touches with the GIL held, operations, system-call-like copies
        touches = [
            lambda a: [np.asarray(a)[i] for i in range(0, a.size, WORDS // 2)],
            lambda a: [a[i] for i in range(a.size - 1, 0, -WORDS // 2)],
            lambda a: (np.sort(a), a.tolist(), a.max()),
            lambda a: lm.populate(a),
        ]
        at_once = [threading.Thread(target=touch, args=(a,)) for touch in touches]
        for t in at_once:
            t.start()
        for t in at_once:
            t.join()
        check(a)
