"""Does an array that is larger than its memory hold what np.memmap holds, whatever is done to it in whatever order?"""

import contextlib
import os
import shutil
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from memory_kit import EVERYBODY, LEAST, each_way, nothing_is_left, run, together
from native_kit import PAGE
from support import needs_compiler

import lazymem as lm

pytestmark = needs_compiler

SIZE = 150 * PAGE + 123
PINNED_MOST = 20 * PAGE
ORIGINAL = np.random.default_rng(3).integers(0, 256, SIZE, "u1")

starts = st.one_of(st.integers(0, SIZE - 1), st.integers(0, SIZE // PAGE).map(lambda page: page * PAGE))
lengths = st.one_of(st.integers(1, 2 * PAGE), st.integers(1, SIZE), st.sampled_from([PAGE, 16 * PAGE]))
steps = st.sampled_from([1, 1, 1, 7, PAGE, -1, -PAGE - 1])


class Against(RuleBasedStateMachine):
    """One array, its twin by numpy, and the files of both."""

    mode = "r+"
    delivery = "inline"

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="lazymem-property-")
        self.ours, self.theirs = (os.path.join(self.folder, name) for name in ("ours", "theirs"))
        for path in (self.ours, self.theirs):
            ORIGINAL.tofile(path)
        self.pins = []
        self.open(PAGE, LEAST, "auto")

    def open(self, block_nbytes, budget_nbytes, fill):
        budget_nbytes = max(budget_nbytes, 16 * block_nbytes)
        self.a = lm.memmap(self.ours, mode=self.mode, delivery=self.delivery, block_nbytes=block_nbytes,
                           budget_nbytes=budget_nbytes, fill=fill, timeout=10)  # fmt: skip
        self.b = np.memmap(self.theirs, mode=self.mode)

    def teardown(self):
        for pin, _ in self.pins:
            pin.release()
        with contextlib.suppress(AttributeError):
            lm.close(self.a, discard=True)
        nothing_is_left()
        lm.set_budget(None)
        shutil.rmtree(self.folder)

    def part(self, start, length, step=1):
        stop = min(start + length, SIZE)
        return slice(start, stop, step) if step > 0 else slice(stop - 1, start - 1 if start else None, step)

    @rule(start=starts, length=lengths, step=steps)
    def read(self, start, length, step):
        part = self.part(start, length, step)
        assert np.array_equal(self.a[part], self.b[part])

    @rule(seed=st.integers(0, 1 << 30))
    def read_here_and_there(self, seed):
        at = np.random.default_rng(seed).integers(0, SIZE, 300)
        assert np.array_equal(np.take(self.a, at), np.take(self.b, at))

    @rule(start=starts, length=lengths, step=steps, value=st.integers(0, 255))
    def write(self, start, length, step, value):
        part = self.part(start, length, step)
        self.a[part] = value
        self.b[part] = value

    @rule(start=starts, length=lengths, step=steps)
    def change(self, start, length, step):
        part = self.part(start, length, step)
        self.a[part] += 1
        self.b[part] += 1

    @rule(start=starts, length=lengths)
    def evict(self, start, length):
        part = self.part(start, length)
        left = lm.evict(self.a[part])
        assert left >= 0
        if not self.pins:
            assert left == 0

    @rule(start=starts, length=lengths)
    def flush(self, start, length):
        self.a[self.part(start, length)].flush()
        assert np.array_equal(self.a[self.part(start, length)], self.b[self.part(start, length)])

    @rule()
    def flush_all(self):
        self.a.flush()
        self.b.flush()
        assert np.array_equal(np.fromfile(self.ours, "u1"), np.fromfile(self.theirs, "u1"))

    @rule(start=starts, length=st.integers(1, 30 * PAGE))
    def populate(self, start, length):
        with contextlib.suppress(ValueError):      # there is less room in the budget
            lm.populate(self.a[self.part(start, length)])

    @rule(start=starts, length=st.integers(1, 4 * PAGE), write=st.booleans())
    @precondition(lambda self: sum(nbytes for _, nbytes in self.pins) < PINNED_MOST)
    def pin(self, start, length, write):
        self.pins.append((lm.pin(self.a[self.part(start, length)], write=write), length))

    @rule()
    @precondition(lambda self: self.pins)
    def unpin(self):
        self.pins.pop(0)[0].release()

    @rule(nbytes=st.sampled_from([4 << 20, 6 << 20, None]))
    def budget(self, nbytes):
        lm.set_budget(nbytes)

    @rule(start=starts, seed=st.integers(0, 1 << 30))
    def threads(self, start, seed):
        """Each writes to its own bytes of the same pages, while all is evicted."""
        dice = np.random.default_rng(seed)
        stop = min(start + 40 * PAGE, SIZE)
        values = dice.integers(0, 256, 3)

        def write(i):
            self.a[start + i : stop : 3] = values[i]

        together(*(lambda i=i: write(i) for i in range(3)), lambda: [lm.evict(self.a) for _ in range(5)])
        for i in range(3):
            self.b[start + i : stop : 3] = values[i]

    @rule(start=starts, length=lengths, value=st.integers(0, 255))
    def fork(self, start, length, value):
        """The child has all as of now, and goes on by itself."""
        part = self.part(start, length)
        child = os.fork()
        if child == 0:
            ends = 1
            try:
                expected = np.array(self.b)
                right = np.array_equal(self.a, expected)
                self.a[part] = value
                expected[part] = value
                right = right and np.array_equal(self.a, expected)
                ends = 0 if right else 3
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(ends)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert np.array_equal(self.a[part], self.b[part])

    @rule(
        block_nbytes=st.sampled_from([PAGE, 2 * PAGE, 4 * PAGE]),
        budget=st.sampled_from([LEAST, LEAST + PAGE, 90 * PAGE, 200 * PAGE]),
        fill=st.sampled_from(["auto", "copy", "move", "zero"]),
    )
    def close_and_reopen(self, block_nbytes, budget, fill):
        for pin, _ in self.pins:
            pin.release()
        self.pins.clear()
        lm.close(self.a)
        del self.b
        nothing_is_left()
        assert np.array_equal(np.fromfile(self.ours, "u1"), np.fromfile(self.theirs, "u1"))
        self.open(block_nbytes, budget, fill)

    @invariant()
    def within_its_budget(self):
        stats = lm.stats(self.a)
        assert stats.held_nbytes <= stats.budget_nbytes, stats
        assert stats.waiting_nbytes <= stats.held_nbytes, stats


class AgainstPrivately(Against):
    mode = "c"


# Whose system calls wait, as they come with handler threads, and whose do not.
USUAL = [each for each in EVERYBODY if each in (("root", "threads"), ("nobody", "inline"))]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize(("user", "delivery"), USUAL)
@each_way
def test_any_order(user, delivery, mode, way):
    run(any_order, delivery, mode, 6, way=way, user=user)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", ["r+", "c"])
@pytest.mark.parametrize(("user", "delivery"), EVERYBODY)
@each_way
def test_any_order_often(user, delivery, mode, way):
    run(any_order, delivery, mode, 150, way=way, user=user, timeout=900)


def any_order(delivery, mode, examples):
    machine = type("Machine", (AgainstPrivately if mode == "c" else Against,), {"delivery": delivery})
    run_state_machine_as_test(machine, settings=settings(
        max_examples=examples, stateful_step_count=30, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    ))  # fmt: skip
