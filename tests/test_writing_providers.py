"""Does a Python provider get what was written to its array, and does nobody lose anything when it does not take it?"""

import contextlib
import errno
import gc
import os
import random
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from native_kit import PAGE, in_child, probe
from somebody import as_somebody
from support import PATIENCE, needs_compiler, wait_until
from writing_providers import ReadOnly, Shelf

import lazymem as lm
from lazymem.core.provider import process_ids
from lazymem.core.reaper import store_left_behind
from lazymem.testing import WritableProviderContract

# Arrays that nobody could write back are dropped here: that is told on standard error, some time after.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def nothing_is_left_to_store():
    yield
    gc.collect()
    with contextlib.suppress(OSError):
        store_left_behind()


BLOCK = 4 * PAGE
NBYTES = 9 * BLOCK + 100
REMOTE, DIED, LATE = errno.EREMOTEIO, errno.EPIPE, errno.ETIMEDOUT


def shelf_of(folder, nbytes=NBYTES, **traits):
    path = Path(folder, "shelf")
    path.write_bytes(random.Random(nbytes).randbytes(nbytes))
    return Shelf(path, **traits)


def array_of(shelf, delivery="inline", **options):
    options = {"block_nbytes": BLOCK, "retries": 1, "timeout": 30 * PATIENCE, **options}
    return lm.from_provider(shelf, mode="r+", delivery=delivery, **options)


def act(shelf, what):
    """Have it do so; None: as it should."""
    if what is None:
        os.unlink(shelf.path + ".act")
    else:
        half = Path(shelf.path + ".half")
        half.write_text(what)
        half.rename(shelf.path + ".act")


def calls(shelf, what):
    """[(offset, nbytes, process)]"""
    path = Path(shelf.path + ".log")
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, rest)) for name, *rest in map(str.split, lines) if name == what]


def content(shelf):
    return np.fromfile(shelf.path, "u1")


def test_what_is_written_comes_back(folder, delivery):
    shelf = shelf_of(folder)
    expected = content(shelf)
    a = array_of(shelf, delivery)
    assert (a.mode, a.flags.writeable) == ("r+", True)
    for start, stop in ((0, 1), (BLOCK - 1, BLOCK + 1), (3 * BLOCK, 5 * BLOCK), (NBYTES - 1, NBYTES)):
        a[start:stop] += 1
        expected[start:stop] += 1
        lm.flush(a[start:stop])
        assert np.array_equal(content(shelf), expected)
    assert len(calls(shelf, "flush")) == 4
    assert all(offset % BLOCK == 0 and offset + nbytes <= NBYTES for offset, nbytes, _ in calls(shelf, "write"))
    a[2 * BLOCK] += 1
    expected[2 * BLOCK] += 1
    lm.close(a)
    assert np.array_equal(content(shelf), expected)
    assert np.array_equal(array_of(shelf, delivery), expected)


@needs_compiler
def test_a_store_may_be_longer_than_a_ring_has_room(folder):
    shelf = shelf_of(folder, 7 << 20)
    a = array_of(shelf)
    new = random.Random(1).randbytes((5 << 20) + 17)
    source = lm.region(a).source
    assert probe().store(source, new, PAGE) == 0
    assert content(shelf)[PAGE : PAGE + len(new)].tobytes() == new
    assert [call[1] for call in calls(shelf, "write")] == 5 * [1 << 20] + [17]
    for offset, nbytes in ((7 << 20, 1), ((7 << 20) - 1, 2), (2**63, 1)):
        assert probe().store(source, b"x" * nbytes, offset) == -errno.EINVAL
    assert probe().sync(source) == 0
    assert len(calls(shelf, "flush")) == 1


def test_several_processes_take_it_back_together(folder):
    shelf = shelf_of(folder, 40 * BLOCK)
    a = array_of(shelf, processes=2)
    a[:] = 7
    act(shelf, "meets")
    flushes = [threading.Thread(target=lm.flush, args=(a[k * 10 * BLOCK : (k + 1) * 10 * BLOCK],)) for k in range(4)]
    for thread in flushes:
        thread.start()
    for thread in flushes:
        thread.join()
    assert np.array_equal(content(shelf), np.full(40 * BLOCK, 7, "u1"))
    assert len({process for _, _, process in calls(shelf, "write")}) == 2


# What write_from does: (errno, what the cause says, how often it is asked with retries=1, does its process end?)
FAILURES = {
    "raises": (REMOTE, r"Traceback.*in act_raises\n.*ValueError: not at 0", 1, False),
    "oserror": (REMOTE, r"OSError: \[Errno 28\] the shelf is full", 2, False),
    "permission": (REMOTE, r"PermissionError", 1, False),
    "short": (REMOTE, rf"write_from\(buffer, 0\) returned {BLOCK - 1}: it must take all {BLOCK} bytes", 1, False),
    "long": (REMOTE, rf"returned {BLOCK + 1}: it must take", 1, False),
    "text": (REMOTE, r"returned 'all of it': it must take", 1, False),
    "changes": (REMOTE, r"TypeError: cannot modify read-only memory", 1, False),
    "changes_array": (REMOTE, r"ValueError: assignment destination is read-only", 1, False),
    "keeps": (REMOTE, r"write_from\(\) kept its buffer", 1, True),
    "keeps_array": (REMOTE, r"write_from\(\) kept its buffer", 1, True),
    "dies": (DIED, r"ended while it was writing", 2, True),
    "touches_itself": (errno.EDEADLK, r"own source|waits for it", 1, False),
}


@as_somebody
def test_a_failure_is_told_and_nothing_is_lost(user, delivery, folder):
    in_child(fail_in_all_ways, delivery, str(folder), user=user)


def fail_in_all_ways(delivery, folder):
    for what in FAILURES:
        print(what, flush=True)
        fail(what, delivery, folder)


def fail(what, delivery, folder):
    code, text, asked, ends = FAILURES[what]
    shelf = shelf_of(folder)
    Path(shelf.path + ".log").unlink(missing_ok=True)
    before = content(shelf)
    expected = before.copy()
    a = array_of(shelf, delivery)
    a[5] = expected[5] = 200
    shared = process_ids()
    act(shelf, what)
    for _ in range(2):
        with pytest.raises(lm.PageError, match=r"block 0 .* could not be written back") as caught:
            lm.flush(a)
        error = caught.value
        assert (error.errno, error.source, error.block, error.start, error.stop) == (code, "provider", 0, 0, BLOCK), error
        assert re.search(text, str(error.__cause__), re.DOTALL), error.__cause__
        assert len(calls(shelf, "write")) == asked
        Path(shelf.path + ".log").unlink()
    assert (shared == process_ids()) == (not ends)
    assert a[5] == 200
    with pytest.raises(lm.PageError, match="discard=True"):
        lm.close(a)
    assert a[5] == 200
    act(shelf, None)
    lm.flush(a)
    assert np.array_equal(content(shelf), expected)
    lm.close(a)


def test_a_failure_that_passes_is_tried_again(folder):
    shelf = shelf_of(folder)
    for what in ("oserror", "dies", "count"):
        a = array_of(shelf)
        a[0] += 1
        act(shelf, what + " once")
        lm.flush(a)
        assert content(shelf)[0] == a[0]
        lm.close(a)


def test_what_flush_raises_is_told(folder):
    shelf = shelf_of(folder)
    a = array_of(shelf)
    a[0] += 1
    act(shelf, "flush_raises")
    with pytest.raises(lm.PageError, match="written back") as caught:
        lm.flush(a)
    assert "ValueError: no flush today" in str(caught.value.__cause__)
    act(shelf, None)
    lm.close(a)


def ended(pid):
    """Has a process ended, reaped or not?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_one_that_hangs_is_killed_before_anybody_goes_on(folder):
    """What it was writing must not arrive over something newer."""
    shelf = shelf_of(folder)
    a = array_of(shelf, timeout=2 * PATIENCE, retries=0)
    a[0] = 1
    act(shelf, "waits")
    with pytest.raises(lm.PageError) as caught:
        lm.flush(a)
    assert caught.value.errno == LATE
    processes = {process for _, _, process in calls(shelf, "write")}
    assert len(processes) == 1
    assert [p for p in processes if not ended(p)] == []
    a[0] = 2
    act(shelf, None)
    lm.flush(a)
    assert content(shelf)[0] == 2
    lm.close(a)


@needs_compiler
def test_a_store_that_is_interrupted_does_not_go_on(folder):
    in_child(interrupted, str(folder))


def interrupted(folder):
    """Its wait is ended by a signal, as an operation's is: the process is not left alone with it."""
    shelf = shelf_of(folder)
    a = array_of(shelf)
    a[0] = 1
    act(shelf, "waits")
    answers = []

    def interrupt():
        main = Path(f"/proc/self/task/{os.getpid()}/stat")
        wait_until(lambda: calls(shelf, "write") and main.read_text().rpartition(")")[2].split()[0] == "S")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        lm.flush(a)
    except (KeyboardInterrupt, lm.PageError) as error:
        answers.append(error)
    writes = calls(shelf, "write")
    assert [type(answer) for answer in answers] == [KeyboardInterrupt]
    assert writes
    assert all(ended(process) for _, _, process in writes), writes
    act(shelf, None)
    lm.close(a)
    assert content(shelf)[0] == 1


def test_a_provider_of_one_thread_reads_and_writes_in_turn(folder):
    shelf = shelf_of(folder, concurrent=False)
    a = array_of(shelf)
    a[0] = 1
    act(shelf, "waits")
    flush = threading.Thread(target=lm.flush, args=(a,))
    flush.start()
    assert wait_until(lambda: calls(shelf, "write"))
    reads = len(calls(shelf, "read"))
    reader = threading.Thread(target=lambda: a[5 * BLOCK])
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    assert len(calls(shelf, "read")) == reads
    act(shelf, None)
    flush.join()
    reader.join()
    assert content(shelf)[0] == 1


class Odd(Shelf):
    def __init__(self, folder, **traits):
        super().__init__(shelf_of(folder).path, **traits)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"write_from": None}, ValueError, r"mode='r\+': Odd has no write_from\(buffer, offset\)"),
        ({"write_from": 3}, TypeError, r"Odd\.write_from is of type int"),
        ({"write_from": lambda buffer: None}, TypeError, r"cannot be called as Odd\.write_from\(buffer, offset\)"),
        ({"flush": 3}, TypeError, r"Odd\.flush is of type int"),
    ],
    ids=["none", "int", "one argument", "flush"],
)  # fmt: skip
def test_what_is_no_way_back(folder, change, error, message):
    with pytest.raises(error, match=message):
        array_of(Odd(folder, **change))


def test_without_a_way_back_nothing_can_be_written():
    for make in (
        lambda: lm.from_provider(ReadOnly(), mode="r+"),
        lambda: lm.from_function(lambda i: i, 10, mode="r+"),
        lambda: lm.from_fill(lambda out, start: None, 10, mode="readwrite"),
        lambda: lm.from_generator(lambda: iter(()), 10, mode="r+"),
    ):
        with pytest.raises(ValueError, match=r"mode='r\+'.*no write_from\(buffer, offset\).*'c' keeps"):
            make()
    with pytest.raises(ValueError, match=r"mode='w\+' makes a file"):
        lm.from_provider(ReadOnly(), mode="w+")
    a = lm.from_provider(ReadOnly(), mode="c")
    a[0] = 1
    lm.flush(a)
    assert a[0] == 1


def test_in_modes_that_write_nothing_it_is_asked_for_nothing(folder):
    shelf = shelf_of(folder)
    for mode in "rc":
        with lm.from_provider(shelf, mode=mode) as a:
            if mode == "c":
                a[0] += 1
            lm.flush(a)
            a.flush()
    assert calls(shelf, "write") == calls(shelf, "flush") == []


# ---------------------------------------------------------------------------------------------------------------------------
# The contract


class TestShelf(WritableProviderContract):
    kind = Shelf

    @pytest.fixture(autouse=True)
    def place(self, folder):
        self.set_place(folder)
        yield
        assert self.path.read_bytes() == self.content

    def set_place(self, folder):
        self.content = random.Random(5).randbytes(9 * PAGE + 100)
        self.path = Path(folder, "shelf")
        self.path.write_bytes(self.content)

    def make_provider(self):
        return self.kind(self.path)

    def expected_bytes(self):
        return self.content



class KeepsToItself(Shelf):
    """What it takes is in this copy."""

    def __init__(self, path):
        super().__init__(path)
        self.taken = {}

    def read_into(self, buffer, offset):
        super().read_into(buffer, offset)
        for at, content in self.taken.items():
            if offset <= at < offset + len(buffer):
                buffer[at - offset : at - offset + len(content)] = content[: len(buffer) - at + offset]

    def _write(self, buffer, offset):
        self.taken[offset] = bytes(buffer)


class TakesOnePage(Shelf):
    def _write(self, buffer, offset):
        super()._write(buffer[:PAGE], offset)


class WritesBeside(Shelf):
    def _write(self, buffer, offset):
        super()._write(buffer, offset)
        super()._write(b"!", (offset + len(buffer) + 1) % self.nbytes)


class SaysLess(Shelf):
    def _write(self, buffer, offset):
        super()._write(buffer, offset)
        return len(buffer) - 1


class Keeps(Shelf):
    def _write(self, buffer, offset):
        super()._write(buffer, offset)
        self.kept.append(buffer[1:])


class LosesByFlush(Shelf):
    def flush(self):
        super()._write(bytes(self.nbytes), 0)


@pytest.mark.parametrize(
    ("kind", "test", "message"),
    [
        (KeepsToItself, "it_gives_what_it_took", "written to by another copy"),
        (KeepsToItself, "its_array_can_be_written_to", "are not what was flushed"),
        (TakesOnePage, "it_takes_several_pages", "several pages"),
        (WritesBeside, "it_gives_what_it_took", "written to: "),
        (SaysLess, "write_from_returns_none_or_the_count", f"returned {PAGE - 1}"),
        (Keeps, "write_from_keeps_no_memory", "kept its buffer"),
        (LosesByFlush, "it_can_be_flushed", "flushed: "),
        (ReadOnly, "it_has_a_way_back", "ProviderContract"),
    ],
)  # fmt: skip
def test_the_contract_tells(folder, kind, test, message):
    contract = TestShelf()
    contract.set_place(folder)
    contract.kind = (lambda path: kind()) if kind is ReadOnly else kind
    arguments = ("inline",) if test.startswith("its_array") else ()
    with pytest.raises(AssertionError, match=message):
        getattr(contract, "test_" + test)(*arguments)
