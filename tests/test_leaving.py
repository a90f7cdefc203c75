"""However a program leaves, and whatever its arrays are at: does it end soon, as it said, silently, and alone?"""

import atexit
import ctypes
import gc
import itertools
import os
import random
import re
import signal
import sys
import threading
import time
import uuid
import weakref

import numpy as np
import pytest
from native_kit import address_of, counted, end_of_child, pest
from odd_providers import PAGE, WORDS, Odd, SlowBehind
from support import DELIVERIES, PATIENCE, USERS, wait_until
from test_provider_life import MARK, marked

import lazymem as lm

NBLOCKS = 64
HANGS = 20  # seconds: nobody waits for it
SOON = 3  # seconds: a program's end takes a tenth of it; on a busy machine, no longer
kept: list = []


# ---------------------------------------------------------------------------------------------------------------------------
# What the arrays are at when the program leaves: in a child, where `setting` says how they are made

setting: dict = {}


def array(seconds=0.0, **options):
    """Elements that are their own index; each block but the first takes so long (not where it is a file)."""
    options = {"block_nbytes": PAGE, "delivery": setting["delivery"], **options}
    if setting["source"] == "file":
        return lm.memmap(setting["path"], "i8", **options)
    if setting["source"] == "provider":
        return lm.from_provider(SlowBehind(NBLOCKS, seconds=seconds), dtype="i8", **options)
    a, kit = counted(NBLOCKS * PAGE, **options)
    assert a[0] == 0
    kit.delay_ns = int(seconds * 1e9)
    return a


def touch(a, i):
    """One element, by C code: it does not hold the GIL."""
    value = pest().touch_one(address_of(a) + i * 8)
    assert value == i, value
    return value


def thread_in_mid_fault(seconds, daemon):
    """A file is never slow: there one fault comes after another."""
    under_way = threading.Event()

    def of_a_file():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            a = array()
            under_way.set()
            for block in range(NBLOCKS):
                touch(a, block * WORDS)

    def of_another():
        a = array(seconds)
        under_way.set()
        touch(a, WORDS)

    threading.Thread(target=of_a_file if setting["source"] == "file" else of_another, daemon=daemon).start()
    under_way.wait()
    time.sleep(0.05)


def say(name, a, i=5):
    os.write(1, f"{name} {a[i]}\n".encode())


def nothing():
    kept.append(array())
    assert touch(kept[-1], 5) == 5


def daemon_in_mid_fault():
    thread_in_mid_fault(HANGS, True)


def daemons_in_mid_fault():
    for _ in range(8):
        thread_in_mid_fault(HANGS, True)


def thread_in_mid_fault_that_is_waited_for():
    thread_in_mid_fault(0.4, False)


def daemon_in_mid_fault_that_holds_the_gil():
    plain, under_way = np.asarray(array(0.4)), threading.Event()

    def read():
        under_way.set()
        assert plain[WORDS] == WORDS

    threading.Thread(target=read, daemon=True).start()
    under_way.wait()


def daemon_whose_fetch_fails_meanwhile():
    """It is in C code while the interpreter ends, which takes its time. A file has no such fetch."""
    if setting["source"] == "provider":
        a = lm.from_provider(Odd("fails_late"), dtype="i8", block_nbytes=PAGE, delivery=setting["delivery"], retries=0)
        assert touch(a, WORDS) == WORDS
    else:
        a, kit = counted(NBLOCKS * PAGE, block_nbytes=PAGE, delivery=setting["delivery"], retries=0)
        kit.delay_ns, kit.error = 300_000_000, -5
    threading.Thread(target=pest().touch_one, args=(address_of(a),), daemon=True).start()
    kept.extend([a, Slow()])
    time.sleep(0.1)


class Slow:
    """Takes its time to die."""

    def __del__(self, sleep=time.sleep):
        sleep(0.6)


def populating():
    a = array(HANGS)
    threading.Thread(target=lm.populate, args=(a,), daemon=True).start()
    time.sleep(0.05)


def operating():
    a = array(HANGS)
    threading.Thread(target=lambda: a + 1, daemon=True).start()
    time.sleep(0.05)


def prefetching():
    kept.extend(array(HANGS) for _ in range(8))
    for a in kept:
        lm.prefetch(a)
    time.sleep(0.05)


def prefetching_what_is_gone():
    for _ in range(8):
        lm.prefetch(array(HANGS))


def closing():
    """Another thread waits in close() for a fetch that is under way."""
    a = array(HANGS)
    lm.prefetch(a)
    time.sleep(0.05)
    threading.Thread(target=a.close, daemon=True).start()
    time.sleep(0.05)


def under_a_guard():
    guard = lm.guard()
    guard.__enter__()
    kept.append(guard)
    nothing()


def a_thread_under_a_guard():
    def touch_under_guard():
        with lm.guard():
            touch(array(HANGS), WORDS)

    threading.Thread(target=touch_under_guard, daemon=True).start()
    time.sleep(0.05)


class Loop:
    """One half of a cycle."""


def in_a_cycle():
    gc.disable()
    loop = Loop()
    loop.me, loop.array = loop, array(HANGS)
    loop.array[3]
    lm.prefetch(loop.array)


def views_everywhere():
    a = array()
    kept.extend([a[1:], memoryview(a), np.asarray(a), iter(a), np.asarray(a)[5:], weakref.ref(a), lm.region(a)])


def in_a_static():
    a = array()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(a))
    assert a[5] == 5


def touched_at_exit():
    a = array()
    atexit.register(lambda: say("at exit", a))


def touched_by_finalize():
    a = array()
    kept.append(Loop())
    weakref.finalize(kept[0], say, "finalized", a)


class Last:
    """Touches when it dies."""

    def __init__(self, a):
        self.array = a

    def __del__(self, write=os.write):
        write(1, b"deleted %d\n" % self.array[5])


def touched_by_del():
    kept.append(Last(array()))


def touched_in_a_destructor():
    a = array()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(a))
    pest().touch_at_the_end(address_of(a) + 40)


def touched_as_a_thread_ends():
    a = array()
    kept.append(a)
    thread = threading.Thread(target=lambda: pest().touch_as_this_thread_ends(address_of(a) + 40))
    thread.start()
    thread.join()
    assert wait_until(lambda: ctypes.c_int.in_dll(pest(), "threads_ended").value)  # Python's join does not wait for that


# What is printed: by an end of the interpreter's, and only if C's exit() follows, or in any case.
SCENES = {
    nothing: {}, daemon_in_mid_fault: {}, daemons_in_mid_fault: {}, thread_in_mid_fault_that_is_waited_for: {},
    daemon_in_mid_fault_that_holds_the_gil: {}, daemon_whose_fetch_fails_meanwhile: {}, populating: {}, operating: {},
    prefetching: {}, prefetching_what_is_gone: {},
    closing: {}, under_a_guard: {}, a_thread_under_a_guard: {}, in_a_cycle: {}, views_everywhere: {}, in_a_static: {},
    touched_at_exit: {"python": "at exit 5\n"}, touched_by_finalize: {"python": "finalized 5\n"},
    touched_by_del: {"python": "deleted 5\n"}, touched_in_a_destructor: {"c": "destructor 5\n"},
    touched_as_a_thread_ends: {"always": "thread's end 5\n"},
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------------
# How it leaves


def end():
    pass


def sys_exit():
    sys.exit(3)


def sys_exit_in_a_thread():
    thread = threading.Thread(target=sys.exit, args=(3,))
    thread.start()
    thread.join()


def exception():
    raise SystemError("on purpose")


def keyboard_interrupt():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def sigterm_with_a_handler():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    sigterm()


def os_exit():
    os._exit(5)


def abort():
    os.abort()


def sigkill():
    os.kill(os.getpid(), signal.SIGKILL)


# The status; whether the interpreter ends, and C's exit() is called; what plain Python prints.
ENDS = {
    end: (0, True, True, ""),
    sys_exit: (3, True, True, ""),
    sys_exit_in_a_thread: (0, True, True, ""),
    exception: (1, True, True, r"Traceback .*\nSystemError: on purpose\n"),
    keyboard_interrupt: (-signal.SIGINT, True, False, r"Traceback .*\nKeyboardInterrupt\n"),
    sigterm_with_a_handler: (4, True, True, ""),
    sigterm: (-signal.SIGTERM, False, False, ""),
    os_exit: (5, False, False, ""),
    abort: (-signal.SIGABRT, False, False, ""),
    sigkill: (-signal.SIGKILL, False, False, ""),
}


def leave(scene, how, **made):
    setting.update(made)
    globals()[scene]()
    os.write(1, f"{time.monotonic()}\n".encode())
    globals()[how]()


def check(scene, how, source, delivery, user, path):
    status, python_ends, c_ends, printed = ENDS[how]
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    try:
        got, out, err = end_of_child(_leave, scene.__name__, how.__name__, source, delivery, path, mark, user=user, timeout=30)
    finally:
        del os.environ[MARK]
    ended = time.monotonic()
    began = re.search(r"^\d+\.\d+\n", out, re.MULTILINE)
    assert began, (out, err)
    out = out.replace(began[0], "")
    case = f"{scene.__name__}, {how.__name__}, {source}, {delivery}, {user}"
    wanted = SCENES[scene]
    said = wanted.get("always", "") + wanted.get("python", "") * python_ends + wanted.get("c", "") * c_ends
    assert got == status, (case, got, out, err)
    assert out == said, (case, out, err)
    assert re.fullmatch(printed, err, re.DOTALL), (case, err)
    assert ended - float(began[0]) < SOON * PATIENCE, (case, ended - float(began[0]))
    assert wait_until(lambda: not marked(mark), 3), (case, marked(mark))


def _leave(scene, how, source, delivery, path, mark):
    os.environ[MARK] = mark
    leave(scene, how, source=source, delivery=delivery, path=path)


@pytest.fixture
def path(folder):
    path = folder / "counting.raw"
    np.arange(NBLOCKS * WORDS).tofile(path)
    return str(path)


SOURCES = ("file", "function", "provider")
EVERY = [*itertools.product(SCENES, ENDS, SOURCES, DELIVERIES, USERS)]


def _some():
    """Each scene and each end some times, seeded."""
    rng = random.Random(42)
    pairs = [*itertools.product(SOURCES, DELIVERIES, USERS)]
    ends = rng.sample([*ENDS], len(ENDS))
    return [(scene, ends[(i + k * 3) % len(ends)], *rng.choice(pairs)) for i, scene in enumerate(SCENES) for k in range(2)]


@pytest.mark.parametrize("case", _some(), ids=lambda case: "-".join(getattr(x, "__name__", x) for x in case))
def test_leaving(case, path):
    check(*case, path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_way_of_leaving(scene, path):
    wrong = []
    for case in EVERY:
        if case[0] is scene:
            try:
                check(*case, path)
            except AssertionError as error:
                wrong.append(str(error))
    assert not wrong, "\n".join(wrong)
