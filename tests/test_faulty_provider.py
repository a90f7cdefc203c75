"""Do SlowProvider and FaultyProvider do as ordered, the same in every run, and in whichever process?"""

import errno
import re
import threading
import time

import cloudpickle
import numpy as np
import pytest
from native_kit import in_child
from support import DELIVERIES, PAGE, PATIENCE, USERS
from wrong_providers import RIGHT

import lazymem as lm
from lazymem.providers import Provider
from lazymem.testing import Failure, FaultyProvider, SlowProvider
from lazymem.testing.chance import chance
from lazymem.testing.failure import KINDS

BLOCKS = 6  # of RIGHT, the last one short
# Each user, and each delivery; not each with each.
as_somebody = pytest.mark.parametrize(("user", "delivery"), list(zip(USERS, DELIVERIES, strict=False)))


def array_of(provider, delivery, **options):
    """An array of small blocks."""
    return lm.from_provider(provider, **{"block_nbytes": PAGE, "delivery": delivery, **options})


# ---------------------------------------------------------------------------------------------------------------------------
# Slow


def test_a_slow_provider_takes_its_time_and_the_same_each_time():
    slow = SlowProvider(RIGHT, latency_s=0.01, per_byte_s=1e-6, jitter=0.5, seed=3)
    copy, other = cloudpickle.loads(cloudpickle.dumps(slow)), SlowProvider(RIGHT, latency_s=0.01, jitter=0.5, seed=4)
    waits = [slow.wait_s(offset, PAGE) for offset in range(0, 1000 * PAGE, PAGE)]
    assert waits == [copy.wait_s(offset, PAGE) for offset in range(0, 1000 * PAGE, PAGE)]
    assert waits[:9] != [other.wait_s(offset, PAGE) for offset in range(0, 9 * PAGE, PAGE)]
    usual = 0.01 + 1e-6 * PAGE
    assert usual * 0.5 <= min(waits) < 0.6 * usual < 1.4 * usual < max(waits) <= 1.5 * usual
    assert SlowProvider(RIGHT, latency_s=2).wait_s(0, 100) == 2
    began = time.monotonic()
    buffer = bytearray(PAGE)
    slow.read_into(memoryview(buffer), PAGE)
    assert time.monotonic() - began >= slow.wait_s(PAGE, PAGE)
    assert buffer == RIGHT[PAGE : 2 * PAGE]


@pytest.mark.parametrize("wrong", [{"latency_s": -1}, {"per_byte_s": -1}, {"jitter": 1.1}, {"jitter": -0.1}])
def test_a_slow_provider_says_what_it_wants(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SlowProvider(RIGHT, **wrong)


# ---------------------------------------------------------------------------------------------------------------------------
# Faulty


# kind: (errno, what its cause says, how often it is asked with retries=2; 0: as time allows)
FAILS = {
    "error": (errno.EREMOTEIO, f"OSError: as ordered: attempt 2 at byte {PAGE}", 3),
    "short": (errno.EREMOTEIO, f"returned {PAGE - 1}: it must fill", 1),
    "long": (errno.EREMOTEIO, f"returned {PAGE + 1}: it must fill", 1),
    "hang": (errno.ETIMEDOUT, "timeout", 0),
    "die": (errno.EPIPE, "ended while it was fetching", 3),
    "keep": (errno.EREMOTEIO, "kept its buffer", 1),
}


@as_somebody
def test_each_failure_fails_its_block_only(user, delivery):
    in_child(fail_in_each_way, delivery, user=user)


def fail_in_each_way(delivery):
    assert set(FAILS) | {"wrong"} == set(KINDS)
    for kind, (code, text, asked) in FAILS.items():
        print(kind, flush=True)
        faulty = FaultyProvider(RIGHT, [Failure(kind, at=PAGE + 5)])
        a = array_of(faulty, delivery, retries=2, timeout=2 * PATIENCE if kind == "hang" else 30)
        with pytest.raises(lm.PageError) as caught:
            a[PAGE]
        assert (caught.value.errno, caught.value.block) == (code, 1), caught.value
        assert re.search(text, f"{caught.value}\n{caught.value.__cause__}"), caught.value.__cause__
        counts = faulty.counts()
        assert counts["reads"] == counts[kind] == sum(counts.values()) / 2
        if not asked:  # the last attempt may have ended before it came to the provider
            assert 1 <= counts[kind] <= lm.region(a).source.attempts
        else:
            assert counts[kind] == lm.region(a).source.attempts == asked
        assert a[:PAGE].tobytes() + a[2 * PAGE :].tobytes() == RIGHT[:PAGE] + RIGHT[2 * PAGE :]


@as_somebody
def test_counts_outlive_the_process(user, delivery):
    in_child(die_and_be_right, delivery, user=user)


def die_and_be_right(delivery):
    """Each failure for another attempt at the same block; after all but one of them in a new process."""
    faulty = FaultyProvider(RIGHT, [Failure("die", at=0, times=2), Failure("error", at=0, after=2, times=1)])
    a = array_of(faulty, delivery, retries=9)
    assert a[0] == RIGHT[0]  # alone: what is under way in a process that dies is asked for again, and counts twice
    assert a.tobytes() == RIGHT
    assert {kind: n for kind, n in faulty.counts().items() if n} == {"reads": 3 + BLOCKS, "die": 2, "error": 1}
    assert lm.region(a).source.attempts == 3 + BLOCKS


@as_somebody
def test_who_hangs_once_is_right_then(user, delivery):
    in_child(hang_and_be_right, delivery, user=user)


def hang_and_be_right(delivery):
    faulty = FaultyProvider(RIGHT, [Failure("hang", at=0, times=1)])
    a = array_of(faulty, delivery, timeout=3 * PATIENCE)
    began = time.monotonic()
    assert a.tobytes() == RIGHT
    assert time.monotonic() - began >= 3 * PATIENCE
    assert faulty.counts()["hang"] == 1


@as_somebody
def test_calls_are_numbered(user, delivery):
    in_child(fail_the_third_and_fourth, delivery, user=user)


def fail_the_third_and_fourth(delivery):
    last = FaultyProvider(RIGHT, [Failure("error", KeyError("the 3rd and 4th"), after=2, times=2)])
    b = array_of(last, delivery, retries=0)
    for block in range(BLOCKS):
        if block in (2, 3):
            with pytest.raises(lm.PageError) as caught:
                b[block * PAGE]
            assert "KeyError: 'the 3rd and 4th'" in str(caught.value.__cause__)
        else:
            assert b[block * PAGE] == RIGHT[block * PAGE]


@as_somebody
def test_by_chance_is_the_same_in_every_run(user, delivery):
    in_child(compare_runs, delivery, user=user)


class Indices(Provider):
    nbytes = 800 * PAGE

    def read_into(self, buffer, offset):
        out = np.frombuffer(buffer, "i8")
        out[:] = np.arange(offset // 8, offset // 8 + out.size)


def compare_runs(delivery):
    """In two processes, fetched by several threads, and here, one block after the other."""
    seeded = {"rate": 0.2, "kinds": ("error", "die"), "seed": 7}
    faulty = FaultyProvider(Indices(), rate=0.2, seed=7)
    a = array_of(faulty, delivery, dtype="i8", retries=30, processes=2)
    lm.populate(a[::-1])
    assert np.array_equal(a, np.arange(a.size))
    here = FaultyProvider(Indices(), rate=0.2, seed=7)
    attempts = read_with_patience(here)
    assert faulty.counts() == here.counts()
    assert faulty.counts()["reads"] == lm.region(a).source.attempts == sum(attempts.values())
    expected = 800 * 0.2 / 0.8
    assert abs(faulty.counts()["error"] - expected) < 6 * expected**0.5
    assert read_with_patience(FaultyProvider(Indices(), rate=0.2, seed=8)) != attempts

    deadly = FaultyProvider(Indices(), **seeded)
    b = array_of(deadly, delivery, dtype="i8", retries=30)
    wanted = {"error": 0, "die": 0}
    for block in range(20):
        assert b[block * PAGE // 8] == block * PAGE // 8
        attempt = 0
        while chance(7, block * PAGE, attempt, 0) < 0.2:
            wanted[("error", "die")[chance(7, block * PAGE, attempt, 1) >= 0.5]] += 1
            attempt += 1
    assert min(wanted.values()) > 0
    counts = deadly.counts()
    assert {kind: counts[kind] for kind in wanted} == wanted


def read_with_patience(faulty):
    """How many attempts each block takes, in this process."""
    attempts = {}
    buffer = bytearray(PAGE)
    faulty.open()
    for offset in range(0, faulty.nbytes, PAGE):
        attempts[offset] = 1
        while True:
            try:
                faulty.read_into(memoryview(buffer), offset)
            except OSError:
                attempts[offset] += 1
            else:
                break
    faulty.close()
    return attempts


def test_wrong_is_one_bit_and_the_rest_is_right():
    faulty = FaultyProvider(RIGHT, [Failure("wrong")], seed=5)
    faulty.open()
    places = set()
    for offset in range(0, len(RIGHT), PAGE):
        buffer = bytearray(min(PAGE, len(RIGHT) - offset))
        faulty.read_into(memoryview(buffer), offset)
        [place] = [i for i in range(len(buffer)) if buffer[i] != RIGHT[offset + i]]
        assert (buffer[place] ^ RIGHT[offset + place]).bit_count() == 1
        places.add(place)
    assert len(places) > 1
    faulty.read_into(memoryview(bytearray()), 0)
    faulty.close()


def test_reads_of_several_threads_are_all_counted():
    faulty = FaultyProvider(RIGHT, [Failure("error", ValueError, after=100, times=50)])
    faulty.open()
    raised = []

    def read():
        for _ in range(100):
            try:
                faulty.read_into(memoryview(bytearray(8)), 0)
            except ValueError as error:
                raised.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    faulty.close()
    assert (faulty.counts()["reads"], faulty.counts()["error"], len(raised)) == (400, 50, 50)


def test_the_process_that_made_it_does_not_die_of_it():
    faulty = FaultyProvider(RIGHT, [Failure("die")])
    faulty.open()
    with pytest.raises(RuntimeError, match="not the one that made it"):
        faulty.read_into(memoryview(bytearray(8)), 0)
    faulty.close()


def test_counts_that_nobody_keeps_any_more_are_missed():
    faulty = FaultyProvider(RIGHT, [Failure("error", times=1)])
    pickled = cloudpickle.dumps(faulty)
    del faulty
    with pytest.raises(FileNotFoundError, match="what was counted"):
        cloudpickle.loads(pickled).open()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Failure("explode"), "'explode': give one of 'error', 'short'"),
        (lambda: Failure("die", after=-1), "0 and more"),
        (lambda: FaultyProvider(RIGHT, rate=1.5), "rate=1.5"),
        (lambda: FaultyProvider(RIGHT, kinds=["explode"]), "explode"),
        (lambda: FaultyProvider(RIGHT, kinds=[]), "one at least"),
    ],
)
def test_a_faulty_provider_says_what_it_wants(make, text):
    with pytest.raises(ValueError, match=text):
        make()
