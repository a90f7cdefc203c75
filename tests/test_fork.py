"""What does a forked child find, and does its parent notice?"""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, end_of_child, in_child, pest
from support import each_user, needs_compiler

import lazymem as lm

pytestmark = needs_compiler

WORDS = PAGE // 8
N = 64 * WORDS


def array(delivery, mode="r", **options):
    return counted(64 * PAGE, mode=mode, delivery=delivery, block_nbytes=PAGE, **options)


def child_of(function):
    """Fork; the child runs it and exits 0, or 1 with a traceback. Its exit status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


@each_user
def test_operations_in_a_child_raise_and_its_own_arrays_work(delivery, user):
    in_child(operations_in_a_child, delivery, user=user)


def operations_in_a_child(delivery):
    a, _ = array(delivery, "c")
    assert int(a[0]) == 0
    a[5] = -5

    def child():
        for touch in (lambda: a[0], lambda: a[40 * WORDS], a.sum, lambda: a + 1, lambda: lm.populate(a), lambda: bytes(a)):
            with pytest.raises(ValueError, match="forked"):
                touch()
        for own in ("inline", "threads"):
            b, _ = array(own)
            assert np.array_equal(b, np.arange(N))
            lm.close(b)

        def grandchild():
            with pytest.raises(ValueError, match="forked"):
                a[0]
            for own in ("inline", "threads"):
                assert np.array_equal(array(own)[0], np.arange(N))

        b, _ = array(delivery)
        assert int(b[WORDS]) == WORDS
        assert child_of(grandchild) == 0
        assert np.array_equal(b, np.arange(N)), "a parent itself now, and unharmed"
        lm.prefetch(b)

    assert child_of(child) == 0
    expected = np.arange(N)
    expected[5] = -5
    assert np.array_equal(a, expected), "the parent's is as it was, its private write too"
    assert child_of(lambda: None) == 0
    lm.close(a)


@each_user
@pytest.mark.parametrize("resident", [False, True])
def test_a_bare_touch_in_a_child_is_stopped_with_a_message(delivery, user, resident):
    status, out, err = end_of_child(bare_touch_in_a_child, delivery, resident, user=user)
    assert status == 0, err
    assert out.strip() == str(-signal.SIGSEGV), "neither zeros nor the parent's bytes"
    assert "lazymem: an access to lazy array 'fetch'" in err
    assert "parent process" in err


def bare_touch_in_a_child(delivery, resident):
    a, _ = array(delivery)
    if resident:
        lm.populate(a)
    plain = np.asarray(a)
    print(child_of(lambda: print("read", plain[7])))
    assert np.array_equal(a, np.arange(N))


def test_a_fork_by_c_code(delivery):
    in_child(a_fork_by_c_code, delivery)


def a_fork_by_c_code(delivery):
    a, _ = array(delivery)
    assert os.waitstatus_to_exitcode(pest().fork_and_touch(address_of_pointer(a))) == -signal.SIGSEGV
    assert np.array_equal(a, np.arange(N))


def address_of_pointer(a):
    import ctypes

    return ctypes.c_void_p(address_of(a) + 3 * PAGE)


def test_fork_while_faults_are_in_flight(delivery):
    in_child(fork_while_faults_are_in_flight, delivery)


def fork_while_faults_are_in_flight(delivery):
    stop = threading.Event()
    wrong = []

    def load(i):
        while not stop.is_set():
            a, _ = array(delivery)
            wrong.append(pest().touch_together(address_of(a), 2, 64, PAGE))
            lm.prefetch(a[::WORDS])
            del a

    threads = [threading.Thread(target=load, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()

    def child():
        assert np.array_equal(array("inline")[0], np.arange(N))
        b, _ = array("threads")
        lm.populate(b)
        assert np.array_equal(b, np.arange(N))

    statuses = [child_of(child) for _ in range(40)]
    stop.set()
    for t in threads:
        t.join()
    assert statuses == [0] * 40
    assert set(wrong) == {0}


@each_user
def test_subprocesses_under_load(delivery, user):
    in_child(subprocesses_under_load, delivery, user=user)


def subprocesses_under_load(delivery):
    a, _ = array(delivery)
    before = set(os.listdir("/proc/self/fd"))
    stop = threading.Event()
    wrong = []

    def load():
        while not stop.is_set():
            wrong.append(pest().touch_rounds(address_of(a), 64, PAGE, 5))

    loading = threading.Thread(target=load)
    loading.start()
    for i in range(60):
        # preexec_fn makes it fork; without, it is vfork
        done = subprocess.run(["/bin/echo", str(i)], capture_output=True, text=True, check=True,
                              preexec_fn=(lambda: None) if i % 2 else None)  # fmt: skip
        assert done.stdout == f"{i}\n"
    listing = subprocess.run([sys.executable, "-S", "-c", "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in "
                              "os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')])"],
                             capture_output=True, text=True, check=True, close_fds=False).stdout  # fmt: skip
    assert "userfaultfd" not in listing, "closed by exec"
    stop.set()
    loading.join()
    assert set(wrong) == {0}
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_child_that_only_exits_leaves_the_parent_alone(delivery):
    in_child(a_child_that_only_exits, delivery)


def a_child_that_only_exits(delivery):
    a, kit = array(delivery, delay_ns=200_000_000)
    touching = threading.Thread(target=lambda: pest().touch_one(address_of(a)))
    touching.start()
    while kit.calls == 0:
        time.sleep(0.001)
    pid = os.fork()  # while a thread sleeps in a fault
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    touching.join(10)
    assert not touching.is_alive()
    kit.delay_ns = 0
    assert np.array_equal(a, np.arange(N))
