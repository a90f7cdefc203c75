"""Does the block table let exactly one thread at a block, and does no waiter sleep through the end?"""

import errno
import threading
import time

import pytest
from native_kit import probe
from support import needs_compiler

pytestmark = needs_compiler


@pytest.fixture
def states():
    return probe().STATES


def test_one_claim_wins(states):
    table = probe().Words(1)
    assert table.get(0) == states["MISSING"]
    assert table.claim(0, states["MISSING"], 77)
    assert not table.claim(0, states["MISSING"], 78)
    assert table.get(0) == states["FILLING"] | 77 << states["SHIFT"]
    table.publish(0, states["RESIDENT"])
    assert table.get(0) == states["RESIDENT"]


def test_a_waiter_is_woken_by_publish(states):
    table = probe().Words(1)
    table.claim(0, states["MISSING"], 77)
    seen = table.get(0)
    woken = []

    def wait():
        while table.get(0) & 7 == states["FILLING"]:
            assert table.wait(0, table.get(0), 20) == 0
        woken.append(time.monotonic())

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for t in threads:
        t.start()
    end = time.monotonic() + 10
    while not table.get(0) & states["WAITERS"]:  # somebody sleeps by now
        assert time.monotonic() < end
    assert table.get(0) == seen | states["WAITERS"]
    table.publish(0, states["RESIDENT"])
    for t in threads:
        t.join(10)
    assert len(woken) == 8
    assert table.get(0) == states["RESIDENT"], "publish takes the mark of sleepers away"


def test_waiting_ends_at_the_deadline(states):
    table = probe().Words(1)
    table.claim(0, states["MISSING"], 77)
    began = time.monotonic()
    error = 0
    while error == 0:
        error = table.wait(0, table.get(0), 0.2 - (time.monotonic() - began))
    assert error == -errno.ETIMEDOUT
    assert 0.15 < time.monotonic() - began < 5


def test_a_word_that_has_changed_is_not_waited_for(states):
    table = probe().Words(1)
    began = time.monotonic()
    assert table.wait(0, states["RESIDENT"], 20) == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("nthreads", [2, 8])
def test_what_a_claim_protects_is_never_changed_by_two(nthreads):
    rounds = 20_000
    table = probe().Words(1024)
    won = []
    threads = [threading.Thread(target=lambda i=i: won.append(table.contend(0, 1000 + i, rounds))) for i in range(nthreads)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(won) == nthreads, "a waiter slept through the end"
    assert sum(won) == rounds
    assert table.get(1023) == rounds, "two were inside at once"


def test_a_table_for_64_tib_costs_nothing():
    began = time.monotonic()
    table = probe().Words((64 << 40) // (64 << 10))
    assert time.monotonic() - began < 1
    assert table.get(table.n - 1) == 0


def test_staging_blocks_taken_together_are_apart():
    addresses = probe().staging_apart(1 << 16, 64)
    assert len(set(addresses)) == 64
    again = probe().staging_apart(1 << 16, 100)  # more than are kept
    assert len(set(again)) == 100
    assert min(b - a for a, b in zip(sorted(again), sorted(again)[1:], strict=False)) >= 1 << 16
