"""When may an array be closed, what is left of it then, and in which order may its parts die?"""

import gc
import itertools

import numpy as np
import pytest
from support import PAGE, check_child, each_user, run_child

import lazymem as lm

N = 8 * PAGE // 8


@pytest.fixture
def path(folder):
    path = folder / "to-be-closed.raw"
    np.arange(N, dtype="f8").tofile(path)
    return path


@pytest.fixture(autouse=True)
def only_what_a_test_makes_is_collected():
    """Each collection looks at this test's objects, not at every module's: these tests collect thousands of times."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def lazy(path, delivery):
    return lambda mode="r": lm.memmap(path, "f8", mode, block_nbytes=PAGE, delivery=delivery)


@pytest.mark.parametrize(
    ("hold", "said"),
    [
        (lambda a: [a[1:]], "1 view of it is alive"),
        (lambda a: [a[1:], a[2:], a[::-1]], "3 views of it are alive"),
        (lambda a: [np.asarray(a)], "1 view of it is alive"),
        (lambda a: [np.asarray(a), np.asarray(a)[3:], a[5:][2:]], "3 views of it are alive"),
        (lambda a: [np.asarray(a[3:])[2:]], "1 view of it is alive"),
        (lambda a: [memoryview(a)], "1 exported buffer of it is alive"),
        (lambda a: [memoryview(a), memoryview(a)], "2 exported buffers of it are alive"),
        (lambda a: [memoryview(np.asarray(a))], "1 view of it is alive"),
        (lambda a: [a[1:], memoryview(a)], "1 view and 1 exported buffer of it are alive"),
        (lambda a: [memoryview(a[1:])], "1 view and 1 exported buffer of it are alive"),
        (lambda a: [iter(a)], ""),
        (lambda a: [a.reshape(2, -1), a.T, a.view("i8")], "3 views of it are alive"),
        (lambda a: [np.split(a, 4)], "4 views of it are alive"),
    ],
)
def test_it_says_how_many_hold_it(lazy, hold, said):
    a = lazy()
    a.sum(), a[3], a + 1, repr(a)  # none of which leaves anything behind
    held = hold(a)
    if said:
        with pytest.raises(BufferError) as caught:
            lm.close(a)
        assert said in str(caught.value)
        assert "to-be-closed.raw" in str(caught.value)
        assert a.sum() == np.arange(N).sum()  # nothing has happened to it
    del held
    lm.close(a)
    assert "closed" in repr(a)


def test_a_refused_exit_leaves_it_open(lazy):
    with pytest.raises(BufferError), lazy() as a:
        view = a[1:]
    assert view[0] == 1
    assert a[0] == 0


USES = """
a[0]; a[1:]; a.sum(); a + 1; 1 + a; np.sum(a); np.add(a, 1); a == 1; list(a); a.tolist(); a.copy(); np.concatenate([a, a])
memoryview(a); bytes(a); a.tofile("/dev/null"); 1.0 in a; bool(a); a[[1]]; -a; a.reshape(2, -1); lm.populate(a)
np.sort(a); a.max(); a.real; a.ravel(); np.where(a > 1); lm.prefetch(a)
"""


@pytest.mark.parametrize("how", ["lm.close", "a.close", "with", "region", "close region"])
def test_closed(lazy, how):
    a = lazy()
    a[3]
    r = lm.region(a)
    if how == "lm.close":
        lm.close(a)
    elif how == "a.close":
        a.close()
    elif how == "with":
        with a as b:
            assert b is a
        del b
    elif how == "region":
        r.close()
    else:
        lm.close(r)
    assert r.closed
    assert "closed" in repr(r)
    for use in USES.strip().replace("\n", "; ").split("; "):
        with pytest.raises(ValueError, match=r"array 'to-be-closed\.raw' is closed"):
            eval(use)
    assert "closed" in repr(a)
    assert "closed" in str(a)
    assert a.shape == (N,)
    lm.close(a)  # twice is fine
    a.close()
    r.close()
    del a
    gc.collect()


def test_a_closed_scalar(lazy):
    a = lazy()
    one = a[3:4].reshape(())
    del a
    one.close()
    for convert in (float, int, bool, complex, str):
        if convert is str:
            assert "closed" in convert(one)
        else:
            with pytest.raises(ValueError, match="closed"):
                convert(one)


def test_stores_into_a_closed_array(lazy):
    a = lazy("c")
    a[0] = 5
    lm.close(a)
    for store in (
        lambda: a.__setitem__(0, 1),
        lambda: a.fill(1),
        lambda: a.__iadd__(1),
        lambda: np.copyto(a, 1),
        lambda: a.sort(),
    ):
        with pytest.raises(ValueError, match="closed"):
            store()


def test_only_arrays_can_be_closed(lazy):
    for x in (np.zeros(3), np.asarray(lazy()), 3, None):
        with pytest.raises(TypeError, match="close"):
            lm.close(x)


@each_user
@pytest.mark.parametrize("touched", ["False", "True"])
def test_a_touch_after_close_stops_loudly(path, delivery, touched, user):
    status, out, err = run_child(
        f"""
        import ctypes, lazymem as lm, numpy as np
        a = lm.memmap({str(path)!r}, "f8", delivery={delivery!r})
        address = a.ctypes.data
        if {touched}:
            assert a.sum() > 0
        lm.close(a)
        print("closed", flush=True)
        ctypes.string_at(address + 64, 8)
        print("survived", flush=True)
        """,
        user=user,
    )
    assert (status, out) == (-11, "closed\n"), (status, out, err)  # SIGSEGV
    assert "to-be-closed.raw" in err
    assert "closed" in err


def test_memory_and_descriptors_go_at_once(delivery):
    check_child(f"""
    import os, numpy as np, lazymem as lm, mmap, tempfile
    from support import wait_until
    def resident(): return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE
    def descriptors(): return len(os.listdir("/proc/self/fd"))
    with tempfile.NamedTemporaryFile() as f:
        np.ones(64 << 20, "u1").tofile(f)
        lm.memmap(f.name, delivery={delivery!r}).close()  # what the first one opens for good
        fds = descriptors()
        a = lm.memmap(f.name, delivery={delivery!r})
        assert descriptors() == fds + 1
        before = resident()
        lm.populate(a)
        r = lm.region(a)
        full = resident()
        assert full - before > 60 << 20, (before, full)
        a.close()
        assert full - resident() > 60 << 20, (before, full, resident())
        assert descriptors() == fds
        b = lm.memmap(f.name, delivery={delivery!r})
        assert b.sum() == 64 << 20
        full = resident()
        del b  # without close, the same
        assert full - resident() > 60 << 20
        assert wait_until(lambda: descriptors() == fds)  # a handler that has just woken the reader may be in it still
    """)


def _parts(array):
    return {
        "array": array,
        "view": array[PAGE // 8 + 1 :],
        "plain": np.asarray(array)[2 * PAGE // 8 + 2 :],
        "buffer": memoryview(array)[3 * PAGE // 8 + 3 :],
        "region": lm.region(array),
    }


@pytest.mark.parametrize("order", list(itertools.permutations(["array", "view", "plain", "buffer", "region"])), ids="-".join)
def test_parts_may_die_in_any_order(lazy, order):
    """Each that is left reads a page that nobody has read before, and reads it right."""
    array = lazy()
    parts = _parts(array)
    del array
    for i, name in enumerate(order):
        for k, left in enumerate(parts):
            at = (i + 3) * PAGE // 8 + k * 8
            if left == "region":
                assert parts[left].nbytes == N * 8
            else:
                start = {"array": 0, "view": PAGE // 8 + 1, "plain": 2 * PAGE // 8 + 2, "buffer": 3 * PAGE // 8 + 3}[left]
                assert parts[left][at - start] == at
        del parts[name]
        if i % 2:
            gc.collect()


def test_a_plain_view_outlives_the_array(lazy):
    a = lazy()
    b, r = np.asarray(a), lm.region(a)
    del a
    gc.collect()
    assert b.sum() == np.arange(N).sum()
    with pytest.raises(BufferError, match="1 view"):
        r.close()
    del b
    r.close()


def test_in_a_cycle(lazy):
    class Node:
        pass

    node = Node()
    node.self, node.array = node, lazy()
    node.array[0]
    r = lm.region(node.array)
    del node
    gc.collect()
    r.close()  # nobody holds it any more


def test_10000_cycles_of_8_threads(delivery):
    out = check_child(
        f"""
        import gc, os, threading, numpy as np, lazymem as lm, mmap
        from support import wait_until
        PAGE = mmap.PAGESIZE
        memory = np.arange(4 * PAGE, dtype="u4")
        def facts():
            gc.collect()
            maps = len(open("/proc/self/maps").readlines())
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps
        wrong, done = [], [0] * 8
        def cycles(which, n):
            try:
                for i in range(n):
                    a = lm.from_provider(memory, dtype="u4", block_nbytes=PAGE, delivery={delivery!r})
                    k = (which * 977 + i * 131) % memory.size
                    if a[k] != k or int(np.asarray(a)[-1 - k]) != memory.size - 1 - k:
                        wrong.append((which, i))
                    if i % 3:
                        a.close()
                    done[which] += 1
            except BaseException as error:
                wrong.append(repr(error))
        def run(n):
            threads = [threading.Thread(target=cycles, args=(w, n)) for w in range(8)]
            [t.start() for t in threads]
            [t.join() for t in threads]
        run(50)
        before = facts()
        run(1250)
        wait_until(lambda: facts()[1] <= before[1])  # a joined thread is not quite gone yet
        after = facts()
        print(sum(done), before, after, wrong[:3])
        assert not wrong and sum(done) == 10400
        assert after[0] <= before[0] and after[1] <= before[1] and after[2] <= before[2] + 40, (before, after)
        """,
        timeout=100,
    )
    assert out.startswith("10400")


def test_closing_while_another_thread_reads(delivery):
    """It is closed, or refuses; the reader reads right, or gets ValueError: never anything else."""
    check_child(f"""
    import collections, sys, threading, numpy as np, lazymem as lm, mmap
    sys.setswitchinterval(1e-5)  # at 5 ms the two would hardly ever meet, and each would wait for the other's turn
    memory = np.ones(16 * mmap.PAGESIZE, "u1")
    outcomes = collections.Counter()
    for i in range(300):
        a = lm.from_provider(memory, block_nbytes=mmap.PAGESIZE, delivery={delivery!r})
        started = threading.Event()
        def read():
            started.set()
            try:
                for k in range(0, a.size, 1000):
                    assert a[k] == 1
                    if i % 2:  # while a view lives it is refused
                        assert a[k:].max() == 1
                outcomes["read"] += 1
            except ValueError as error:
                assert "closed" in str(error), error
                outcomes["closed"] += 1
            except BaseException as error:
                outcomes[repr(error)] += 1
        t = threading.Thread(target=read)
        t.start(); started.wait()
        for k in range(i % 50 * 20):
            pass
        while True:
            try:
                lm.close(a)
                break
            except BufferError:
                outcomes["refused"] += 1
        t.join()
    print(outcomes)
    assert set(outcomes) <= {{"read", "closed", "refused"}}, outcomes
    assert outcomes["read"] + outcomes["closed"] == 300
    print(outcomes)
    assert outcomes["closed"] >= 10 and outcomes["refused"] >= 10, outcomes
    """)
