"""Does Ctrl-C end whatever waits for a lazy array, and only where it is Python's to end it?"""

import asyncio
import ctypes
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, in_child, pest
from support import each_user, needs_compiler, wait_until

import lazymem as lm

WORDS = PAGE // 8
SLEEPS = 4.0  # s, of the provider: far longer than anything here may take
SOON = 0.5  # s; on an idle machine some milliseconds
WAYS = {
    "item": lambda a: np.asarray(a)[0],
    "sum": lambda a: np.asarray(a).sum(),
    "list": lambda a: list(np.asarray(a)[:3]),
    "c": lambda a: pest().touch_one(address_of(a)),
    "operation": lambda a: a + 1,
    "subscript": lambda a: a[0],
    "iteration": lambda a: next(iter(a)),
    "reduction": lambda a: a.sum(),
    "populate": lm.populate,
}


class Sleepy(lm.providers.Provider):
    """Blocks that take long, but the last, which says who made it."""

    nbytes = 8 * PAGE
    block_nbytes = PAGE

    def __init__(self, sleeps):
        self.sleeps = sleeps

    def read_into(self, buffer, offset):
        if offset < 7 * PAGE:
            time.sleep(self.sleeps)
        np.frombuffer(buffer, "i8")[:] = os.getpid()


def sleepy(delivery, sleeps=SLEEPS):
    return lm.from_provider(Sleepy(sleeps), dtype="i8", delivery=delivery, block_nbytes=PAGE, timeout=10)


class after:
    """Another process, since this one's threads may not run while a touch waits, sends SIGINT."""

    def __init__(self, seconds):
        command = f"sleep {seconds}; kill -INT {os.getpid()}"
        self.process = subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True)

    def join(self):
        self.process.wait()


def linger():
    """Python looks for signals between instructions, but not before a C function: one sleep would not be woken."""
    for _ in range(3000):
        time.sleep(0.001)


def handler_in_the_kernel():
    """sigaction(2)'s: the address."""
    action = (ctypes.c_ulong * 32)()
    assert ctypes.CDLL(None).sigaction(signal.SIGINT, None, ctypes.byref(action)) == 0
    return action[0]


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("way", WAYS)
@needs_compiler
def test_it_ends_every_wait(delivery, way, user):
    in_child(it_ends_a_wait, delivery, way, user=user)


def it_ends_a_wait(delivery, way):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    a = sleepy(delivery)
    made_by = int(a[7 * WORDS])
    before = signal.getsignal(signal.SIGINT), handler_in_the_kernel()
    for guarded in (False, True):
        began = time.monotonic()
        sender = after(0.2)
        with pytest.raises(KeyboardInterrupt):
            if guarded:
                with lm.guard():
                    WAYS[way](a)
                    linger()
            else:
                WAYS[way](a)
                linger()
        assert 0.1 < time.monotonic() - began < 0.2 + SOON
        sender.join()
        assert (signal.getsignal(signal.SIGINT), handler_in_the_kernel()) == before
    os.kill(made_by, 0)  # the provider's process lives
    for _ in range(3):
        time.sleep(0.01)  # nothing else comes of it
    with lm.guard():
        pass


def test_twice(delivery):
    in_child(twice, delivery)


def twice(delivery):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plain = np.asarray(sleepy(delivery))
    for _ in range(2):
        began = time.monotonic()
        sender = after(0.2)
        with pytest.raises(KeyboardInterrupt):
            plain[0]
            linger()
        assert time.monotonic() - began < 0.2 + SOON
        sender.join()


@pytest.mark.parametrize("owner", ["function", "early", "ignored", "asyncio"])
def test_other_owners_are_left_alone(delivery, owner):
    in_child(other_owners, delivery, owner)


def other_owners(delivery, owner):
    """The touch waits for its bytes, and they are right."""
    from signal import signal as early  # before any array was made

    signal.signal(signal.SIGINT, signal.default_int_handler)
    a = sleepy(delivery, 0.6)
    plain = np.asarray(a)
    heard = []
    if owner == "function":
        signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    elif owner == "early":
        early(signal.SIGINT, lambda *_: heard.append(1))
    elif owner == "ignored":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGINT), handler_in_the_kernel()
    value = []
    if owner == "asyncio":

        async def main():
            value.append(int(plain[0]))
            await asyncio.sleep(1)

        sender = after(0.2)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    else:
        sender = after(0.2)
        value.append(int(plain[0]))
    sender.join()
    assert value == [int(a[7 * WORDS])], "the provider's process, so its bytes"
    assert heard == ([1] if owner in ("function", "early") else [])
    assert (signal.getsignal(signal.SIGINT), handler_in_the_kernel()) == before


def test_other_threads_wait_on(delivery):
    in_child(other_threads_wait_on, delivery)


def other_threads_wait_on(delivery):
    """Ctrl-C is the main thread's; the others get their bytes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    a = sleepy(delivery, 1.2)
    made_by = int(a[7 * WORDS])
    plain = np.asarray(a)
    before = handler_in_the_kernel()
    values = []
    threads = [threading.Thread(target=lambda: values.append(int(plain[0]))) for _ in range(3)]
    for t in threads:
        t.start()
    sender = after(0.3)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pest().touch_one(address_of(a))
        linger()
    took = time.monotonic() - began
    for t in threads:
        t.join()
    sender.join()
    assert values == [made_by] * 3, values
    assert took < 0.3 + SOON
    assert handler_in_the_kernel() == before


@needs_compiler
def test_c_code_that_sleeps_on_the_touching_thread_is_not_ended(delivery):
    in_child(c_code_that_sleeps, delivery)


def c_code_that_sleeps(delivery):
    """A C function cannot be stopped half way: Ctrl-C is heard as it returns, and its bytes are right."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    a, kit = counted(8 * PAGE, delivery=delivery, block_nbytes=PAGE, delay_ns=700_000_000)
    plain = np.asarray(a)
    sender = after(0.2)
    began = time.monotonic()
    values = []
    with pytest.raises(KeyboardInterrupt):
        values.append(int(plain[5]))
        linger()
    assert 0.5 < time.monotonic() - began < 0.7 + SOON
    sender.join()
    assert values in ([], [5])
    kit.delay_ns = 0
    assert np.array_equal(plain, np.arange(8 * WORDS))
    assert wait_until(lambda: lm.stats(a).resident_blocks == 8)
