"""A provider that does more, or less, than fill its buffer: who notices, and does everybody else read what is right?"""

import ctypes
import errno
import os
import re
import signal
import time

import numpy as np
import pytest
from native_kit import address_of, end_of_child, in_child, probe
from odd_providers import PAGE, WORDS, Counting, Logging, Nothing, Odd, Scribbling, Surroundings
from somebody import as_somebody
from support import PATIENCE, wait_until

import lazymem as lm
from lazymem.core.provider import process_ids

REMOTE, DIED, LATE = errno.EREMOTEIO, errno.EPIPE, errno.ETIMEDOUT
KEPT = "kept its buffer.*copy what is needed"


def array_of(provider, delivery, **options):
    return lm.from_provider(provider, dtype="i8", **{"block_nbytes": PAGE, "delivery": delivery, **options})


def innocent(delivery, **options):
    """An array of a provider that does what it should, and has been asked once: its process is there."""
    a = array_of(Counting(), delivery, **options)
    assert a[WORDS] == WORDS
    return a


def attempts(a):
    return lm.region(a).source.attempts


def is_right(a, provider=None):
    return np.array_equal(a, (provider or Counting()).right())


# ---------------------------------------------------------------------------------------------------------------------------
# It fails

# act: (errno, what the cause says, how often it is asked with retries=1)
FAILURES = {
    "raises": (REMOTE, r"Traceback.*odd_providers\.py.*in act_raises\n.*ValueError: told so", 1),
    "raises_chained": (REMOTE, r"KeyError: 'the first'.*During handling.*ValueError: \('the second', 512\)", 1),
    "raises_oserror": (REMOTE, r"OSError: \[Errno 5\] the disk", 2),
    "raises_file_not_found": (REMOTE, r"FileNotFoundError: \[Errno 2\] gone", 1),
    "exits_by_sys_exit": (REMOTE, r"SystemExit: 3", 1),
    "raises_keyboard_interrupt": (REMOTE, r"KeyboardInterrupt", 1),
    "recurses": (REMOTE, r"Previous line repeated.*RecursionError", 1),
    "raises_memory_error": (REMOTE, r"MemoryError", 1),
    "raises_huge_text": (REMOTE, r"xxxthe end$", 1),
    "raises_strange_text": (REMOTE, r"a lone \\ud800, a \\x00, an \N{SNOWMAN}", 1),
    "raises_unspeakable": (REMOTE, r"Unspeakable: <exception str\(\) failed>", 1),
    "returns_short": (REMOTE, rf"returned {PAGE - 1}: it must fill all {PAGE} bytes", 1),
    "returns_long": (REMOTE, rf"returned {PAGE + 1}: it must fill all {PAGE} bytes", 1),
    "returns_zero": (REMOTE, r"returned 0: it must fill", 1),
    "returns_negative": (REMOTE, r"returned -1: it must fill", 1),
    "returns_text": (REMOTE, r"returned 'all of it': it must fill", 1),
    "returns_array": (REMOTE, r"returned array\(\[0, 1, 2\]\): it must fill", 1),
    "keeps_slice": (REMOTE, KEPT, 1),
    "keeps_array": (REMOTE, KEPT, 1),
    "keeps_cast": (REMOTE, KEPT, 1),
    "keeps_in_thread": (REMOTE, KEPT, 1),
    "exits": (DIED, r"ended while it was fetching", 2),
    "segfaults": (DIED, r"ended while it was fetching", 2),
    "aborts": (DIED, r"ended while it was fetching", 2),
    "execs": (DIED, r"ended while it was fetching", 2),
    "forks_and_dies": (DIED, r"ended while it was fetching", 2),
}
HARMS_ITS_PROCESS = {*(act for act in FAILURES if FAILURES[act][0] == DIED or act.startswith("keeps"))}


@as_somebody
@pytest.mark.parametrize("harmful", [False, True])
def test_a_failure_is_told_and_is_nobody_elses(harmful, user, delivery):
    in_child(fail_in_all_ways, harmful, delivery, user=user)


def fail_in_all_ways(harmful, delivery):
    acts = [act for act in FAILURES if (act in HARMS_ITS_PROCESS) == harmful]
    assert len(acts) >= 9
    for act in acts:
        print(act, flush=True)
        fail(act, delivery, *FAILURES[act])


def fail(act, delivery, code, text, asked):
    other = innocent(delivery, retries=0)
    shared = process_ids()
    odd = Odd(act)
    a = array_of(odd, delivery, retries=1)
    with pytest.raises(lm.PageError) as caught:
        a[0]
    assert (caught.value.errno, caught.value.source, caught.value.block) == (code, "provider", 0), caught.value
    cause = str(caught.value.__cause__)
    assert re.search(text, cause, re.DOTALL), cause
    assert len(cause) <= PAGE + 1
    assert attempts(a) == asked
    assert lm.region(a).source.has_own == (act in HARMS_ITS_PROCESS)
    assert (process_ids()[:1] == shared) == (act not in HARMS_ITS_PROCESS)
    assert is_right(other)
    assert np.array_equal(a[WORDS:], odd.right()[WORDS:]), "its other blocks are none the worse"
    with pytest.raises(lm.PageError):
        a.sum()
    # A handler thread counts a block just after it has let its toucher go on.
    assert wait_until(lambda: lm.residency(a).tolist() == [False, True, True, True]), lm.residency(a)


@pytest.mark.thin
@as_somebody
@pytest.mark.parametrize("act", ["sleeps", "sleeps_in_c", "stops"])
def test_past_its_timeout_it_is_killed(act, user, delivery):
    in_child(hang, act, delivery, user=user, timeout=20)


def hang(act, delivery):
    timeout = 0.4
    other = innocent(delivery, retries=0)
    [shared] = process_ids()
    a = array_of(Odd(act), delivery, timeout=timeout, retries=9)
    began = time.monotonic()
    with pytest.raises(lm.PageError, match="timeout") as caught:
        a[0]
    took = time.monotonic() - began
    assert caught.value.errno == LATE
    assert timeout <= took <= 2 * timeout + 1 * PATIENCE, took
    assert lm.region(a).source.has_own
    assert shared not in process_ids()
    began = time.monotonic()
    assert is_right(other)
    assert time.monotonic() - began < 2 * PATIENCE
    assert np.array_equal(a[WORDS:], Odd(act).right()[WORDS:])


@as_somebody
def test_an_oserror_is_asked_again(user, delivery):
    in_child(fail_twice, delivery, user=user)


def fail_twice(delivery):
    odd = Odd("raises_oserror_twice")
    a = array_of(odd, delivery, retries=3)
    assert a[3] == 3
    assert attempts(a) == 3
    assert is_right(a, odd)


# ---------------------------------------------------------------------------------------------------------------------------
# It does odd things, and is right

RIGHT = [
    "returns_the_count", "keeps_buffer_itself", "keeps_in_cycle", "forks", "child_returns", "child_raises", "starts_threads",
    "changes_signals", "closes_descriptors", "closes_and_opens_descriptors",
]  # fmt: skip


@as_somebody
def test_odd_and_right(user, delivery):
    in_child(odd_and_right_in_all_ways, delivery, user=user)


def odd_and_right_in_all_ways(delivery):
    for act in RIGHT:
        print(act, flush=True)
        odd_and_right(act, delivery)
        [pid] = process_ids()  # it is not what it was
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}/exe"))


def odd_and_right(act, delivery):
    other = innocent(delivery, retries=0)
    shared = process_ids()
    odd = Odd(act)
    a = array_of(odd, delivery, retries=0)
    assert is_right(a, odd)
    assert is_right(other)
    assert process_ids() == shared
    assert is_right(array_of(Counting(shift=5), delivery, retries=0), Counting(shift=5))


@as_somebody
def test_the_next_request_finds_the_surroundings_as_they_were(user, delivery):
    in_child(surroundings, delivery, user=user)


def surroundings(delivery):
    os.chdir("/usr")
    a = array_of(Surroundings("/usr", np.geterr()), delivery)
    assert is_right(a)  # 16 blocks one after the other
    assert is_right(array_of(Surroundings("/usr", np.geterr()), delivery))


@as_somebody
@pytest.mark.parametrize("part", [0, 0.5])
def test_bytes_that_another_left_are_never_seen(part, user, delivery):
    in_child(stale_bytes, part, delivery, user=user)


def stale_bytes(part, delivery):
    block_nbytes, nbytes = 4 * PAGE, 40 * PAGE + 100
    want = np.zeros(nbytes, "u1")
    for start in range(0, nbytes, block_nbytes):
        stop = min(start + block_nbytes, nbytes)
        want[start : start + int((stop - start) * part)] = 0x11
    for _ in range(3):
        pattern = lm.from_function(lambda i: i * 0 + 0xA5, nbytes, "u1", block_nbytes=block_nbytes, delivery=delivery)
        assert (pattern == 0xA5).all()
        a = lm.from_provider(Nothing(nbytes, part), block_nbytes=block_nbytes, delivery=delivery)
        assert np.array_equal(a, want)
        assert not any(ctypes.string_at(address_of(a) + nbytes, PAGE - 100)), "behind the last byte neither"


# ---------------------------------------------------------------------------------------------------------------------------
# It writes over memory that is not its buffer

# place: from which slot on, and which byte of it; to which slot, and which byte. Slot -1 is the head.
PLACES = {
    "the head": (-1, 0, 0, 0),
    "what the head counts": (-1, 64, 0, 0),
    "its slots": (0, 0, 64, 0),
    "all": (-1, 0, 64, 0),
    "the first slot": (0, 0, 1, 0),
    "the other slots": (1, 0, 64, 0),
    "what is asked": (0, 4, 0, 128),
    "what is answered": (0, 12, 0, 32),
}


@pytest.mark.thin
@as_somebody
@pytest.mark.parametrize("place", PLACES)
def test_a_scribble_is_never_a_wrong_value(place, user, delivery):
    in_child(scribble, place, delivery, user=user, timeout=100)


def scribble(place, delivery):
    head_nbytes, slots, slot_nbytes = probe().ring_layout()
    assert slots == 64
    first, start, last, stop = PLACES[place]
    start += 0 if first < 0 else head_nbytes + first * slot_nbytes
    stop += head_nbytes + last * slot_nbytes
    right = failed = 0
    quick = {"timeout": 0.3, "retries": 3}
    for byte, after in ((0, False), (0, True), (0x33, True), (0xFF, False)):
        slow = array_of(Counting(seconds=0.02), delivery, **quick)
        lm.prefetch(slow)  # under way meanwhile, in the same process
        a = array_of(Scribbling(start, stop, byte, after), delivery, **quick)
        for array in (a[:WORDS], slow, array_of(Counting(), delivery, **quick)):
            try:
                assert np.array_equal(array, np.arange(array.size)), (byte, after)
                right += 1
            except lm.PageError as error:
                failed += error.errno in (LATE, DIED)
    assert right >= 4, "who shares a process with it gets on"
    assert right + failed == 12


# ---------------------------------------------------------------------------------------------------------------------------
# What it prints


@as_somebody
def test_what_it_prints_comes_out_in_order(user, delivery):
    status, out, err = end_of_child(print_something, delivery, user=user)
    assert status == 0, err
    want = [*(f"out {i} \N{SNOWMAN}" for i in range(100)), "below Python \ufffd", "the end"]
    assert out.splitlines() == want
    assert err.splitlines() == [f"err {i}" for i in range(100)]


def print_something(delivery):
    a = array_of(Odd("prints"), delivery)
    assert is_right(a, Odd("prints"))
    assert wait_until(lambda: os.fstat(1).st_size > 1000 and os.fstat(2).st_size > 600), "handed on before the end"
    time.sleep(0.1)
    print("the end", flush=True)


TOUCHES = {
    "an item": lambda a: a[0] == 0,
    "an item, the GIL held": lambda a: np.asarray(a)[0] == 0,
    "a list, the GIL held": lambda a: np.asarray(a).tolist() == Odd("").right().tolist(),
}


@as_somebody
@pytest.mark.parametrize("touch", TOUCHES)
def test_a_mebibyte_while_the_gil_is_held(touch, user, delivery):
    status, out, err = end_of_child(print_a_mebibyte, touch, delivery, user=user, timeout=30)
    assert status == 0, err
    lines = out.splitlines()
    assert all(len(line) == 63 for line in lines[:100])
    assert [int(line) for line in lines[:100]] == list(range(100))
    assert "the end" in err
    dropped = sum(int(n) for n in re.findall(r"lazymem: (\d+) bytes that a provider wrote to stdout were dropped", err))
    assert len(out) + dropped == 1 << 20
    if touch != "an item":
        assert len(out) <= 1 << 16, "nobody could hand them on: the ring holds so much, and who waits for the GIL to do it"
        assert dropped


def print_a_mebibyte(touch, delivery):
    a = array_of(Odd("prints_a_mebibyte"), delivery)
    assert TOUCHES[touch](a)


# ---------------------------------------------------------------------------------------------------------------------------
# open and close


@as_somebody
def test_it_is_opened_once_in_a_process_and_closed_when_nobody_needs_it(user, delivery, folder):
    in_child(open_and_close, str(folder / "log"), delivery, user=user)


def open_and_close(path, delivery):
    other = innocent(delivery)
    a = array_of(Logging(path, 8, seconds_to_open=0.2), delivery)
    lm.populate(a)  # several threads ask at once, and the first have to load it
    assert is_right(a, Counting(8))
    [pid] = process_ids()
    with open(path) as f:
        assert sorted(f.read().split("\n")) == sorted(["", f"open {pid}", *[f"read {pid}"] * 8])
    del a
    assert wait_until(lambda: _last_word(path) == f"close {pid}")
    assert is_right(other)
    with open(path) as f:
        assert len(f.readlines()) == 10


def _last_word(path):
    with open(path) as f:
        return f.read().splitlines()[-1]
