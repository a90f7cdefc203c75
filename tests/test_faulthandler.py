"""Who gets SIGBUS when others want it too: faulthandler, a program's own handler, whoever sends one?"""

import ctypes
import faulthandler
import mmap
import os
import signal
import sys

import numpy as np
import pytest
from native_kit import PAGE, address_of, counted, end_of_child, in_child, pest
from support import EVERY_DELIVERY, each_user, needs_compiler, over_deliveries, run_child

import lazymem as lm

pytestmark = needs_compiler
delivery = over_deliveries(EVERY_DELIVERY)

WORDS = PAGE // 8


def all_right(delivery):
    a = counted(64 * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    assert np.array_equal(a, np.arange(64 * WORDS))
    return a


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("order", ["before", "after", "disabled later", "twice", "to a file", "registered for another"])
def test_faulthandler_in_any_order(delivery, user, order, folder):
    in_child(faulthandler_in_any_order, delivery, order, str(folder / f"f-{user}"), user=user)


def faulthandler_in_any_order(delivery, order, path):
    if order in ("before", "disabled later"):
        faulthandler.enable()
    a = counted(64 * PAGE, delivery=delivery, block_nbytes=PAGE)[0]
    assert int(a[0]) == 0
    if order in ("after", "twice"):
        faulthandler.enable()
    elif order == "to a file":
        with open(path, "w") as f:
            faulthandler.enable(f)
            assert int(a[WORDS]) == WORDS
            faulthandler.disable()
    elif order == "registered for another":
        faulthandler.register(signal.SIGUSR2)
    assert int(a[2 * WORDS]) == 2 * WORDS
    if order in ("disabled later", "twice"):
        faulthandler.disable()
        assert int(a[3 * WORDS]) == 3 * WORDS
    if order == "twice":
        faulthandler.enable()
        faulthandler.enable()
    assert np.array_equal(a, np.arange(64 * WORDS))
    all_right(delivery)


@pytest.mark.parametrize("how", [["-X", "faulthandler"], ["-X", "dev"]])
def test_python_started_with_faulthandler(delivery, how):
    code = f"import test_faulthandler as t; t.all_right({delivery!r}); print('fine')"
    from native_kit import _command

    env = _command(all_right, (delivery,))[1]
    status, out, err = run_child([sys.executable, *how, "-W", "ignore", "-c", code], env=env)
    assert (status, out.strip()) == (0, "fine"), err


@pytest.mark.parametrize("when", ["before", "after"])
def test_faulthandler_still_tells_of_other_peoples_faults(delivery, when, folder):
    status, _, err = end_of_child(a_foreign_fault, delivery, f"faulthandler {when}", str(folder / "f"))
    assert status == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in err
    assert "a_foreign_fault" in err
    assert "lazymem:" not in err


def foreign_page(path):
    """A page of a mapped file that has no bytes any more: the kernel's own SIGBUS."""
    with open(path, "wb") as f:
        f.write(bytes(2 * PAGE))
    with open(path, "r+b") as f:
        mapped = mmap.mmap(f.fileno(), 0)
    os.truncate(path, 0)
    return mapped


def a_foreign_fault(delivery, owner, path):
    if owner == "faulthandler before":
        faulthandler.enable()
    elif owner == "C handler":
        pest().own_signal(signal.SIGBUS)
    elif owner == "Python handler":
        signal.signal(signal.SIGBUS, lambda *_: os._exit(79))
    all_right(delivery)
    if owner == "faulthandler after":
        faulthandler.enable()
    mapped = foreign_page(path)
    pest().touch_one(ctypes.addressof((ctypes.c_ubyte * 1).from_buffer(mapped)))


def test_a_foreign_fault_ends_the_process_as_ever(delivery, folder):
    status, _, err = end_of_child(a_foreign_fault, delivery, "nobody", str(folder / "f"))
    assert status == -signal.SIGBUS
    assert "lazymem:" not in err


def test_the_owner_before_us_gets_foreign_faults(delivery, folder):
    status, _, err = end_of_child(a_foreign_fault, delivery, "C handler", str(folder / "f"))
    assert status == 77, err
    assert "the owner before was called" in err


@each_user
@pytest.mark.parametrize(("owner", "status"), [("nobody", -signal.SIGBUS), ("C handler", 78), ("Python handler", 79)])
def test_a_sigbus_that_somebody_sends(delivery, user, owner, status):
    got, _, err = end_of_child(send_ourselves_a_sigbus, delivery, owner, user=user)
    assert got == status, err


def send_ourselves_a_sigbus(delivery, owner):
    if owner == "C handler":
        pest().own_signal(signal.SIGBUS)
    elif owner == "Python handler":
        signal.signal(signal.SIGBUS, lambda *_: os._exit(79))
    all_right(delivery)
    os.kill(os.getpid(), signal.SIGBUS)
    for _ in range(1000):  # Python's handlers run between its instructions
        pass
    print("went on")


def test_an_ignored_sigbus_stays_ignored(delivery):
    in_child(ignore_sigbus, delivery)


def ignore_sigbus(delivery):
    signal.signal(signal.SIGBUS, signal.SIG_IGN)
    a = all_right(delivery)
    os.kill(os.getpid(), signal.SIGBUS)
    assert np.array_equal(a, np.arange(64 * WORDS))
    assert int(counted(PAGE, delivery=delivery, block_nbytes=PAGE)[0][5]) == 5


def test_a_handler_installed_after_us_is_found_at_the_next_array():
    in_child(a_handler_installed_after_us)


def a_handler_installed_after_us():
    a = all_right("inline")
    pest().own_signal(signal.SIGBUS)
    b = counted(PAGE, delivery="inline", block_nbytes=PAGE)[0]
    assert int(b[1]) == 1
    assert address_of(a) != address_of(b)


def test_making_an_array_where_sigbus_is_blocked():
    in_child(make_where_sigbus_is_blocked)


def make_where_sigbus_is_blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
    with pytest.raises(RuntimeError, match="blocks SIGBUS"):
        lm.from_provider(bytes(PAGE), delivery="inline")
    all_right("threads")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGBUS])
    all_right("inline")
