"""Does a thread of Python hear of a touch of a plain array that failed, when nothing that it ran could raise?"""

import concurrent.futures
import errno
import os
import threading
import time

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, end_of_child, in_child, pest
from support import EVERY_DELIVERY, each_user, needs_compiler, over_deliveries, run_child, stop_of, wait_until

import lazymem as lm

pytestmark = needs_compiler
delivery = over_deliveries(EVERY_DELIVERY)

WORDS = PAGE // 8
TOUCHES = {
    "item": lambda p: p[5],
    "sum": lambda p: p.sum(),
    "add": lambda p: p + 1,
    "tolist": lambda p: p.tolist(),
    "c": lambda p: pest().touch_one(address_of(p)),
}


def failing(delivery, npages=16, **options):
    return counted(npages * PAGE, delivery=delivery, block_nbytes=PAGE, error=-errno.EIO, **options)


def soon():
    for _ in range(1000):
        pass


def a_while():
    for _ in range(2000):
        time.sleep(0.001)


@each_user
def test_the_main_thread(delivery, user):
    in_child(the_main_thread, delivery, user=user)


def the_main_thread(delivery):
    a, kit = failing(delivery)
    plain = np.asarray(a)
    for name, touch in TOUCHES.items():
        with pytest.raises(lm.TouchError, match="before this point") as caught:
            touch(plain)
            soon()
        error = caught.value
        assert type(error).__name__ == "TouchError", name
        assert isinstance(error.error, lm.PageError)
        assert error.error.errno == errno.EIO
        assert error.error.block == 0
        assert error.__cause__ is error.error
        soon()  # not twice
    kit.error = 0
    assert np.array_equal(plain, np.arange(16 * WORDS)), "nothing of the failures is left"


@each_user
def test_other_threads(delivery, user):
    in_child(other_threads, delivery, user=user)


def other_threads(delivery):
    """The main thread waits for them meanwhile, and is told nothing."""
    a, _kit = failing(delivery)
    plain = np.asarray(a)
    told = []

    def run(touch):
        try:
            touch(plain)
            a_while()
        except lm.TouchError as error:
            told.append(error)

    for touch in TOUCHES.values():
        thread = threading.Thread(target=run, args=(touch,))
        thread.start()
        thread.join()
    assert len(told) == len(TOUCHES)

    def run_alone(touch):  # what stands in on one thread would be read by another without a fault
        own, _ = failing(delivery)
        run(lambda _, own=own: touch(np.asarray(own)))

    threads = [threading.Thread(target=run_alone, args=(touch,)) for touch in list(TOUCHES.values()) * 6]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(told) == 7 * len(TOUCHES), "each of many, once"
    soon()


def test_before_its_call_has_returned_where_it_gave_the_gil_up(delivery):
    in_child(before_its_call_has_returned, delivery)


def before_its_call_has_returned(delivery):
    """A pool's thread hands its result over at once: it must not be wrong."""
    a, _ = failing(delivery, npages=64)
    plain = np.asarray(a)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(50):
            with pytest.raises(lm.TouchError):
                pool.submit(lambda: pest().touch_one(address_of(plain))).result()


def test_what_an_ended_thread_was_to_be_told(delivery):
    in_child(what_an_ended_thread_was_to_be_told, delivery)


def what_an_ended_thread_was_to_be_told(delivery):
    """It hears of it itself, or the main thread does: somebody does, and no other thread."""
    a, _ = failing(delivery)
    plain = np.asarray(a)
    told = []
    threading.excepthook = lambda args: told.append("itself")
    for n in range(1, 31):
        try:
            thread = threading.Thread(target=lambda: plain[3])
            thread.start()
            thread.join()
            wait_until(lambda n=n: len(told) == n, 2)
        except lm.TouchError:
            told.append("main")
        assert len(told) == n, told


def test_no_except_exception_takes_it(delivery):
    in_child(no_except_exception_takes_it, delivery)


def no_except_exception_takes_it(delivery):
    a, kit = failing(delivery)
    plain = np.asarray(a)
    assert not issubclass(lm.TouchError, Exception)
    with pytest.raises(lm.TouchError):
        try:
            plain[0]
            soon()
        except Exception:
            pytest.fail("taken")
    # A loop that touches again after it: told again, each time, until the source is well
    told = 0
    for i in range(100):
        if i == 50:
            kit.error = 0
        try:
            x = plain[WORDS]
            soon()
            assert (x == WORDS) == (i >= 50), "a value that nobody spoke of"
        except lm.TouchError:
            told += 1
    assert told == 50


def test_c_threads_are_not_told(delivery):
    status, out, err = end_of_child(touch_on_c_threads, delivery)
    assert status == stop_of(delivery)
    assert "input/output" in err
    assert "after" not in out


def touch_on_c_threads(delivery):
    a, _ = failing(delivery)
    pest().touch_apart(address_of(a), 2, 1, PAGE, 0)
    print("after", flush=True)


def test_numba_code_without_the_gil(delivery):
    pytest.importorskip("numba")
    in_child(numba_code_without_the_gil, delivery)


def numba_code_without_the_gil(delivery):
    import numba

    @numba.njit(nogil=True)
    def total(x):
        t = 0
        for i in range(len(x)):
            t += x[i]
        return t

    a, kit = failing(delivery)
    plain = np.asarray(a)
    total(np.arange(3))
    total(plain[:0])
    told = []

    def run():
        try:
            own, _ = failing(delivery)
            total(np.asarray(own))
            a_while()
        except lm.TouchError:
            told.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with pytest.raises(lm.TouchError):
        total(plain)
        soon()
    assert told == [1] * 4
    kit.error = 0
    assert total(plain) == np.arange(16 * WORDS).sum()


def test_a_scan_asks_once(delivery):
    in_child(a_scan_asks_once, delivery)


def a_scan_asks_once(delivery):
    """On the main thread, and on one that is told while it scans."""
    a, kit = failing(delivery, npages=4096)
    plain = np.asarray(a)
    with pytest.raises(lm.TouchError):
        plain[::WORDS].sum()
        soon()
    assert kit.calls == 1
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(lm.TouchError):
        pool.submit(lambda: (plain[::WORDS].sum(), a_while())).result()
    assert kit.calls <= 4


def test_an_array_that_is_gone_when_it_is_told(delivery):
    in_child(an_array_that_is_gone, delivery)


def an_array_that_is_gone(delivery):
    told = []

    def touch_and_drop():
        np.asarray(failing(delivery)[0])[0]

    def run():
        try:
            touch_and_drop()
            a_while()
        except lm.TouchError as error:
            told.append(error.error.errno)

    for _ in range(20):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert told == [errno.EIO] * 20


def test_as_the_interpreter_ends(delivery):
    """Daemon threads that go on touching a dead source while Python ends: no hang, no crash but the loud stop."""
    code = f"""
    import threading, time, numpy as np, test_told as t
    a, _ = t.failing({delivery!r})
    plain = np.asarray(a)
    def run():
        while True:
            try:
                plain[0]; time.sleep(0.0001)
            except BaseException:
                pass
    for _ in range(3):
        threading.Thread(target=run, daemon=True).start()
    time.sleep(0.2)
    """
    from native_kit import _command

    _, env = _command(failing, ())
    for _ in range(5):
        status, _, err = run_child(code, 20, env=env)
        assert status in (0, stop_of(delivery)), (status, err[-2000:])
        assert "Fatal" not in err


def test_in_a_forked_child(delivery):
    in_child(in_a_forked_child, delivery)


def in_a_forked_child(delivery):
    a, _ = failing(delivery)
    plain = np.asarray(a)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            plain[5]
            soon()
        except lm.TouchError:
            told = []
            thread = threading.Thread(target=lambda: told.append(_is_told(plain)))
            thread.start()
            thread.join()
            code = 0 if told == [True] else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _is_told(plain):
    try:
        plain[5 * WORDS]
        a_while()
    except lm.TouchError:
        return True
    return False
