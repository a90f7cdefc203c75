"""Ctrl-C while a provider computes: is it heard at once, by whoever can raise, and does nobody wait for the GIL meanwhile?"""

import os
import signal
import threading
import time

import numpy as np
import pytest
from native_kit import in_child
from odd_providers import PAGE, WORDS, SlowBehind
from somebody import as_somebody
from support import PATIENCE, wait_until

import lazymem as lm
from lazymem.core.provider import process_ids

WAITS = {
    "populate": lambda a: lm.populate(a),
    "a[i]": lambda a: a[2 * WORDS],
    "sum": lambda a: a.sum(),
    "a + 1": lambda a: a + 1,
    "np.concatenate": lambda a: np.concatenate([a, a]),
}


def slow_array(delivery, seconds, **options):
    """Block 0 is there; each of the others takes so long."""
    a = lm.from_provider(SlowBehind(3, seconds=seconds), dtype="i8", block_nbytes=PAGE, delivery=delivery, **options)
    assert a[0] == 0
    return a


def send(number, after):
    threading.Timer(after, lambda: os.kill(os.getpid(), number)).start()
    return time.monotonic() + after


@pytest.mark.thin
@as_somebody
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_is_heard_and_the_process_survives(wait, user, delivery):
    in_child(press, wait, delivery, user=user)


def press(wait, delivery):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    a = slow_array(delivery, 1)
    pids = process_ids()
    for _ in range(2):
        sent = send(signal.SIGINT, 0.2)
        with pytest.raises(KeyboardInterrupt):
            WAITS[wait](a)
        assert time.monotonic() - sent < 0.5 * PATIENCE
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert np.array_equal(a, SlowBehind(3).right())
    assert process_ids() == pids
    with pytest.raises(KeyboardInterrupt):  # the owner has it back
        os.kill(os.getpid(), signal.SIGINT)


@as_somebody
def test_other_signals_and_handlers_that_do_not_raise(user, delivery):
    in_child(handle, delivery, user=user)


def handle(delivery):
    heard = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda n, _: heard.append((n, time.monotonic())))
        a = slow_array(delivery, 0.6)
        sent = send(number, 0.2)
        assert a[WORDS] == WORDS, "who goes on after a signal gets what it asked for"
        assert wait_until(lambda number=number: heard and heard[-1][0] == number)
        if number != signal.SIGUSR1:  # one that many send, for other ends than to end something: heard afterwards
            assert heard[-1][1] - sent < 0.5 * PATIENCE
    assert [n for n, _ in heard] == [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]

    def leave(*_):
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, leave)
    a = slow_array(delivery, 30)
    send(signal.SIGTERM, 0.2)
    with pytest.raises(SystemExit):
        lm.populate(a)


@as_somebody
def test_a_touch_that_holds_the_gil_gets_the_block_that_an_operation_fetches(user, delivery):
    """The operation must not want the GIL before its block is there."""
    in_child(touch_meanwhile, delivery, user=user, timeout=20)


def touch_meanwhile(delivery):
    a = slow_array(delivery, 0.5, timeout=5)
    plain, values = np.asarray(a), []

    def touch():
        assert wait_until(lambda: lm.region(a).source.attempts == 2)
        time.sleep(0.1)
        values.append(plain[WORDS])

    thread = threading.Thread(target=touch)
    thread.start()
    began = time.monotonic()
    assert a[WORDS] == WORDS
    assert time.monotonic() - began < 2
    thread.join()
    assert values == [WORDS]
