"""What happens when a source, or a signal handler, touches lazy memory itself? Traps 15, 19, 20."""

import errno
import itertools
import signal
import threading
import time

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, end_of_child, in_child, pest
from support import DELIVERIES, each_user, needs_compiler, settled

import lazymem as lm

pytestmark = needs_compiler

WORDS = PAGE // 8
TOUCHES = {"populate": lm.populate, "item": lambda a: a[0], "sum": lambda a: a.sum()}
touches = pytest.mark.parametrize("touch", TOUCHES)


def iota_file(path, npages):
    np.arange(npages * WORDS).tofile(path)


# ---------------------------------------------------------------------------------------------------------------------------
# 15. Signal handlers


@each_user
@pytest.mark.parametrize("source", ["file", "function"])
def test_trap_15_a_c_signal_handler_touches_lazy_memory(delivery, source, user, folder):
    path = folder / "f"
    iota_file(path, 64)
    path.chmod(0o644)
    in_child(a_c_signal_handler_touches_lazy_memory, delivery, source, str(path), user=user)


def a_c_signal_handler_touches_lazy_memory(delivery, source, path):
    n = 64
    a = lm.memmap(path, "i8", delivery=delivery, block_nbytes=4 * PAGE)
    # A C function might touch lazy memory itself: a handler on top of it may touch any array but its own.
    b = counted(n * PAGE, delivery=delivery, block_nbytes=4 * PAGE)[0] if source == "function" else a
    pest().handle_by_touching(signal.SIGALRM, address_of(a), n, PAGE)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    end = time.monotonic() + 20
    while pest().handled(0) < 500 and time.monotonic() < end:
        assert pest().touch_rounds(address_of(b), n, PAGE, 20) == 0
        lm.populate(b)
        assert pest().touch_rounds(address_of(a), n, PAGE, 1) == 0
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert pest().handled(0) >= 500
    assert pest().handled(1) == 0, "a handler read something wrong"
    assert np.array_equal(a, np.arange(n * WORDS))
    s = settled(a)
    assert s.failed == 0


def test_trap_15_a_handler_that_interrupts_its_arrays_own_c_source(delivery):
    """It cannot be told from a source that touches its own array: that fetch fails, nothing hangs."""
    in_child(a_handler_inside_the_source, delivery, timeout=20)


def a_handler_inside_the_source(delivery):
    a, kit = counted(4 * PAGE, delivery=delivery, block_nbytes=PAGE, delay_ns=500_000_000)
    pest().handle_by_touching(signal.SIGALRM, address_of(a) + 2 * PAGE, 1, PAGE)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(lm.PageError) as caught:
        lm.populate(a[:1])  # its source runs on this thread, with the handler on top of it
    assert caught.value.errno == errno.EDEADLK
    assert pest().handled(0) == 1
    kit.delay_ns = 0
    assert np.array_equal(a, np.arange(4 * WORDS))


def test_trap_15_a_python_signal_handler_touches_lazy_memory(delivery):
    in_child(a_python_signal_handler_touches_lazy_memory, delivery)


def a_python_signal_handler_touches_lazy_memory(delivery):
    n = 512
    a = counted(n * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    b = counted(n * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    seen = []

    def handler(*_):
        i = len(seen) % n
        seen.append(int(b[i * WORDS]) == i * WORDS and int(a[i * WORDS]) == i * WORDS)

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    end = time.monotonic() + 20
    while len(seen) < 200 and time.monotonic() < end:
        assert int(a[: 8 * WORDS].sum()) == sum(range(8 * WORDS))
        assert [int(a[i * WORDS]) for i in range(n)] == [i * WORDS for i in range(n)]
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(seen) >= 200
    assert all(seen)


# ---------------------------------------------------------------------------------------------------------------------------
# 19. Sources that touch


@touches
@pytest.mark.parametrize("where", ["same block", "other block"])
def test_trap_19_a_source_that_touches_its_own_array(delivery, touch, where):
    in_child(a_source_that_touches_its_own_array, delivery, touch, where, timeout=20)


def a_source_that_touches_its_own_array(delivery, touch, where):
    a, kit = counted(8 * PAGE, delivery=delivery, block_nbytes=2 * PAGE)
    kit.touch = address_of(a) + (0 if where == "same block" else 5 * PAGE)
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(lm.PageError) as caught:
            TOUCHES[touch](a)
        assert caught.value.errno == errno.EDEADLK, caught.value
        assert "own source" in str(caught.value)
        assert time.monotonic() - began < 5, "at once"
    kit.touch = None
    assert np.array_equal(a, np.arange(8 * WORDS)), "as good as ever once the source behaves"


@pytest.mark.parametrize("where", [0, 5])
def test_trap_19_a_plain_touch_of_such_an_array_stops_loudly(delivery, where):
    status, _, err = end_of_child(touch_plainly_what_touches_itself, delivery, where, timeout=20)
    assert status == -signal.SIGBUS, err
    assert "own source" in err


def touch_plainly_what_touches_itself(delivery, where):
    a, kit = counted(8 * PAGE, delivery=delivery, block_nbytes=2 * PAGE)
    kit.touch = address_of(a) + where * PAGE
    pest().start_toucher(address_of(a))
    time.sleep(20)


@touches
@pytest.mark.parametrize("inner", DELIVERIES)
def test_trap_19_a_source_that_touches_another_array(delivery, inner, touch):
    in_child(a_source_that_touches_another_array, delivery, inner, touch, timeout=20)


def a_source_that_touches_another_array(delivery, inner, touch):
    b, _ = counted(64 * PAGE, delivery=inner, block_nbytes=PAGE)
    a, kit = counted(64 * PAGE, delivery=delivery, block_nbytes=PAGE)
    kit.touch = address_of(b)
    kit.touch_step = 1
    TOUCHES[touch](a)
    assert np.array_equal(a, np.arange(64 * WORDS))
    assert np.array_equal(b, np.arange(64 * WORDS))
    assert kit.touched == 64
    assert lm.stats(a).failed == lm.stats(b).failed == 0


@touches
@pytest.mark.parametrize(("length", "fine"), [(2, True), (4, True), (5, False), (9, False)])
def test_trap_19_a_chain_of_sources(delivery, length, fine, touch):
    in_child(a_chain_of_sources, delivery, length, fine, touch, timeout=20)


def a_chain_of_sources(delivery, length, fine, touch):
    arrays = [counted(4 * PAGE, delivery=delivery, block_nbytes=PAGE) for _ in range(length)]
    for (_, kit), (following, _) in itertools.pairwise(arrays):
        kit.touch = address_of(following)
    a = arrays[0][0]
    if fine:
        TOUCHES[touch](a)
        assert np.array_equal(a, np.arange(4 * WORDS))
    else:
        for _ in range(3):
            with pytest.raises(lm.PageError) as caught:
                TOUCHES[touch](a)
            assert caught.value.errno == errno.ELOOP
    assert np.array_equal(arrays[-1][0], np.arange(4 * WORDS))


@touches
def test_trap_19_a_cycle_of_sources(delivery, touch):
    in_child(a_cycle_of_sources, delivery, touch, timeout=20)


def a_cycle_of_sources(delivery, touch):
    a, of_a = counted(4 * PAGE, delivery=delivery, block_nbytes=PAGE)
    b, of_b = counted(4 * PAGE, delivery=delivery, block_nbytes=PAGE)
    of_a.touch, of_b.touch = address_of(b) + PAGE, address_of(a) + 2 * PAGE
    for x in (a, b, a):
        with pytest.raises(lm.PageError) as caught:
            TOUCHES[touch](x)
        assert caught.value.errno == errno.EDEADLK
    of_b.touch = None
    assert np.array_equal(a, np.arange(4 * WORDS))


def test_trap_19_two_threads_around_a_cycle_end(delivery):
    """A waits for B's block while B waits for A's, on two threads: no chain shows it, so a deadline must."""
    status, out, err = end_of_child(two_threads_around_a_cycle, delivery, timeout=8)
    assert status in (0, -signal.SIGBUS), err + out


def two_threads_around_a_cycle(delivery):
    a, of_a = counted(PAGE, delivery=delivery, block_nbytes=PAGE, delay_ns=300_000_000, timeout=1.0)
    b, of_b = counted(PAGE, delivery=delivery, block_nbytes=PAGE, delay_ns=300_000_000, timeout=1.0)
    of_a.touch, of_b.touch = address_of(b), address_of(a)
    answers = []

    def populate(x):
        try:
            lm.populate(x)
            answers.append("no error")
        except lm.PageError as error:
            answers.append(errno.errorcode[error.errno])

    threads = [threading.Thread(target=populate, args=(x,)) for x in (a, b)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(6)
    assert len(answers) == 2, "somebody hangs"
    assert "no error" not in answers


@pytest.mark.parametrize("nthreads", [80, 200])
def test_trap_19_more_nested_sources_than_handler_threads(delivery, nthreads):
    in_child(more_nested_sources_than_handler_threads, delivery, nthreads, timeout=60)


def more_nested_sources_than_handler_threads(delivery, nthreads):
    b, _ = counted(nthreads * PAGE, delivery=delivery, block_nbytes=PAGE, delay_ns=1_000_000)
    a, kit = counted(nthreads * PAGE, delivery=delivery, block_nbytes=PAGE, delay_ns=20_000_000)
    kit.touch, kit.touch_step = address_of(b), 1
    assert pest().touch_apart(address_of(a), nthreads, 1, PAGE, 0) == 0
    assert kit.calls == nthreads


# ---------------------------------------------------------------------------------------------------------------------------
# 20. Lazy memory as the source of other lazy memory


@pytest.mark.parametrize("form", ["array", "plain", "memoryview", "slice", "end"])
def test_trap_20_lazy_memory_is_refused_as_a_source(delivery, form):
    a = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    given = {
        "array": lambda: a,
        "plain": lambda: np.asarray(a),
        "memoryview": lambda: memoryview(a),
        "slice": lambda: a[3 * WORDS : 4 * WORDS],
        "end": lambda: np.asarray(a)[-1:],
    }[form]()
    with pytest.raises(ValueError, match="lazy array 'fetch' as the source of another"):
        lm.from_provider(given, delivery=delivery)
    copy = np.array(given)
    assert np.array_equal(np.frombuffer(lm.from_provider(copy, delivery=delivery), copy.dtype), copy), "a copy is fine"
