"""What happens when two threads meet at each step of a fill, a failure, a close and a fork?

Every meeting is arranged, none is hoped for. Only in a debug build: tests/lanes.sh makes one and runs this file with it.
"""

import errno
import os
import threading
import time

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, drop, in_child, pest
from parking_kit import Async, Handled, Spot, Touch, needs_debug_build, passed, ready
from support import needs_compiler, settled, wait_until

import lazymem as lm

pytestmark = [needs_compiler, needs_debug_build]

WORDS = PAGE // 8
N = 16 * WORDS
FILLING = ("claimed", "fetched", "copied")     # points of a fill where its block is FILLING
POINTS = (*FILLING, "published")
CLOSING = ("close 1", "close 2", "close 3")
STANDIN = ("standin 1", "standin 2", "standin 3", "standin 4", "standin 5")


def array(delivery, **options):
    return counted(16 * PAGE, delivery=delivery, block_nbytes=PAGE, timeout=5, threads=3, **options)


def run(function, *args):
    ready()
    in_child(function, *args, timeout=60)


def all_right(a, kit=None, calls=None):
    assert np.array_equal(np.asarray(a), np.arange(N))
    assert np.array_equal(a, np.arange(N))
    if calls is not None:
        assert kit.calls == calls
    settled(a)


@pytest.mark.parametrize("point", POINTS)
def test_two_touch_one_block(delivery, point):
    run(two_touch_one_block, delivery, point)


def two_touch_one_block(delivery, point):
    a, kit = array(delivery)
    spot = Spot(point)
    first = Touch(address_of(a) + 8)
    spot.wait_parked()
    waits = Spot("waits", seconds=0)
    second = Touch(address_of(a) + 16)
    if point in ("claimed", "fetched"):
        if delivery == "inline":
            assert wait_until(lambda: waits.came), "the second waits for the first's fill"
        time.sleep(0.05)
        assert not second.done, "there is nothing to read yet"
        assert kit.calls == (point == "fetched"), "nobody else fetches it"
    else:
        assert second.value() == 2, "the page is there, so nobody waits"
    spot.release()
    assert (first.value(), second.value()) == (1, 2)
    assert kit.calls == 1
    all_right(a, kit, 16)


@pytest.mark.parametrize("point", POINTS)
def test_close_while_a_block_is_filled(delivery, point):
    run(close_while_a_block_is_filled, delivery, point)


def close_while_a_block_is_filled(delivery, point):
    a, _ = array(delivery)
    spot = Spot(point, seconds=0.5)  # the GIL may be held by who closes
    filling = Async(lambda: lm.populate(a))
    assert wait_until(lambda: spot.came)
    began = time.monotonic()
    region = lm.region(a)
    lm.close(a)
    assert time.monotonic() - began < 4
    filling.end()
    assert filling.error is None or "closed" in str(filling.error), filling.error
    assert region.closed
    b, kit = array(delivery)
    all_right(b, kit, 16)


@pytest.mark.parametrize("point", CLOSING)
def test_a_fill_begins_while_its_array_is_closed(delivery, point):
    run(a_fill_begins_while_its_array_is_closed, delivery, point)


def a_fill_begins_while_its_array_is_closed(delivery, point):
    a, kit = array(delivery)
    lm.populate(a[:WORDS])
    calls = kit.calls
    spot = Spot(point, seconds=0.3)
    closing = Async(lambda: lm.close(a))
    assert wait_until(lambda: spot.came)
    with pytest.raises((ValueError, lm.PageError), match="closed"):
        lm.populate(a)
    closing.end()
    assert closing.error is None, closing.error
    assert kit.calls == calls, "nothing is fetched for a closed array"
    b, kit = array(delivery)
    all_right(b, kit, 16)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("mode", ["r", "c"])
def test_fork_while_a_block_is_filled(delivery, mode, point):
    run(fork_while_a_block_is_filled, delivery, mode, point)


def fork_while_a_block_is_filled(delivery, mode, point):
    a, kit = array(delivery, mode=mode)
    expected = np.arange(N)
    if mode == "c":
        a[9 * WORDS] = expected[9 * WORDS] = -9
    spot = Spot(point)
    first = Touch(address_of(a) + 8)
    spot.wait_parked()
    calls = kit.calls
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert np.array_equal(np.asarray(a), expected)
            assert np.array_equal(a, expected)
            code = 0
        finally:
            os._exit(code)
    assert wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)), "the child hangs"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert kit.calls == calls
    spot.release()
    assert first.value() == 1
    assert np.array_equal(a, expected)
    settled(a)


def test_a_fork_waits_for_one_that_is_under_way(delivery):
    run(a_fork_waits_for_one_that_is_under_way, delivery)


def a_fork_waits_for_one_that_is_under_way(delivery):
    """A region is made while a fork holds the registry: it is seen whole, or not at all."""
    a, kit = array(delivery)
    spot = Spot("fork held", seconds=0.3)
    forking = Async(lambda: pest().fork_and_touch(address_of(a)))
    assert wait_until(lambda: spot.came)
    b, other = array(delivery)
    all_right(b, other, 16)
    forking.end()
    assert forking.error is None
    all_right(a, kit, 16)


@pytest.mark.parametrize("point", ["claimed", "fetched", "failing"])
def test_populate_fails_beside_a_touch(delivery, point):
    run(populate_fails_beside_a_touch, delivery, point)


def populate_fails_beside_a_touch(delivery, point):
    a, kit = array(delivery)
    kit.error = -errno.EIO
    spot = Spot(point)
    filling = Async(lambda: lm.populate(a[:WORDS]))
    spot.wait_parked()

    def touch():
        with lm.guard():
            return pest().touch_one(address_of(a) + 8)

    touching = Async(touch)
    time.sleep(0.05)
    spot.release()
    assert isinstance(filling.end().error, lm.PageError)
    assert isinstance(touching.end().error, lm.PageError), touching.value
    kit.error = 0
    all_right(a)


@pytest.mark.parametrize("ends", ["before", "after"])
@pytest.mark.parametrize("point", STANDIN)
def test_a_guard_is_entered_at_each_step_of_a_stand_in(delivery, point, ends):
    run(a_guard_is_entered_at_each_step_of_a_stand_in, delivery, point, ends)


def a_guard_is_entered_at_each_step_of_a_stand_in(delivery, point, ends):
    """Whoever leaves a guard without an exception has read no stand-in, wherever the other thread was when it was entered."""
    a, kit = array(delivery)
    kit.error = -errno.EIO
    spot = Spot(point, seconds=0.6)

    def fails():
        with lm.guard():
            pest().touch_one(address_of(a) + 8)

    failing = Async(fails)
    assert wait_until(lambda: spot.came)
    kit.error = 0

    def reads():
        with lm.guard():
            if ends == "after":
                assert wait_until(lambda: not spot.parked)
            return pest().touch_one(address_of(a) + 8), pest().touch_one(address_of(a) + 16)

    reading = Async(reads).end()
    assert isinstance(failing.end().error, lm.PageError)
    assert reading.value == (1, 2) or isinstance(reading.error, lm.PageError), (reading.value, reading.error)
    spot.release()
    all_right(a)
    with lm.guard():
        all_right(a)


def test_a_guard_is_left_before_its_failure_is_noted(delivery):
    run(a_guard_is_left_before, delivery)


def a_guard_is_left_before(delivery):
    """The zeros let the toucher go on before whoever mapped them has said that further misses of this guard fail at once."""
    a, kit = array(delivery, error=-errno.EIO)
    with pytest.raises(lm.PageError):  # then the thread is known, and a handler gives it its zeros
        a[0]
    spot = Spot("standin loose", seconds=20 if delivery == "threads" else 0)
    with pytest.raises(lm.PageError), lm.guard():
        np.asarray(a)[9 * WORDS]
    spot.wait_parked() if delivery == "threads" else None
    kit.error = 0
    spot.release()
    settled(a)
    all_right(a)


@pytest.mark.parametrize("point", STANDIN[:3])
def test_a_guard_was_entered_before_a_stand_in_is_made(delivery, point):
    run(a_guard_was_entered_before_a_stand_in_is_made, delivery, point)


def a_guard_was_entered_before_a_stand_in_is_made(delivery, point):
    """The guard is left while the other thread's stand-in is half made, and before its own read of it, or after."""
    a, kit = array(delivery)
    kit.error = -errno.EIO
    entered, spot = threading.Event(), Spot(point, seconds=0.6)

    def reads():
        with lm.guard():
            entered.set()
            assert wait_until(lambda: spot.came)
            kit.error = 0
            return pest().touch_one(address_of(a) + 8)

    reading = Async(reads)
    assert entered.wait(10)

    def fails():
        with lm.guard():
            pest().touch_one(address_of(a) + 8)

    failing = Async(fails)
    reading.end()
    assert isinstance(failing.end().error, lm.PageError)
    assert reading.value == 1 or isinstance(reading.error, lm.PageError), (reading.value, reading.error)
    all_right(a)


@pytest.mark.parametrize("point", ["copied", "published"])
def test_pages_are_dropped_before_they_are_read(delivery, point):
    run(pages_are_dropped_before_they_are_read, delivery, point)


def pages_are_dropped_before_they_are_read(delivery, point):
    """madvise(MADV_DONTNEED) by somebody, between the COPY and the toucher's instruction (inline), or beside it."""
    a, kit = array(delivery)
    spot = Spot(point)
    first = Touch(address_of(a) + 8)
    spot.wait_parked()
    drop(address_of(a), PAGE)
    second = Touch(address_of(a) + 16)
    if point == "published":
        assert second.value() == 2, "the block is filled again"
    spot.release()
    assert (first.value(), second.value()) == (1, 2)
    all_right(a)
    assert kit.calls <= 19


@pytest.mark.parametrize("point", FILLING)
def test_a_signal_handler_touches_the_block_that_its_thread_fills(point):
    run(a_signal_handler_touches_the_block_that_its_thread_fills, point)


def a_signal_handler_touches_the_block_that_its_thread_fills(point):
    a, _ = array("inline")
    spot = Spot(point)
    first = Touch(address_of(a) + 8)
    spot.wait_parked()
    assert Handled(spot.tid, address_of(a) + 16).value() == 2
    spot.release()
    assert first.value() == 1
    all_right(a)


def test_every_point_is_passed(delivery):
    run(every_point_is_passed, delivery)


def every_point_is_passed(delivery):
    """Else a test that waits at one would be about another build than it thinks."""
    a, kit = array(delivery)
    kit.error = -errno.EIO
    Spot("never", seconds=0)
    with pytest.raises(lm.PageError):
        a[0]
    kit.error = 0
    all_right(a)
    os.waitpid(os.fork() or os._exit(0), 0)
    lm.close(a)
    for point in ("claimed", "fetched", "copied", "published", "failing", *STANDIN, *CLOSING, "fork held"):
        assert passed(point), point
