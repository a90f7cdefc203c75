"""How does a test hold a thread up at a point of the core? Only in a debug build: core/parking.h, tests/native/parking.c."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_kit import library
from support import PATIENCE, wait_until

ARMED, PARKED = 1, 2


@functools.cache
def is_debug_build() -> bool:
    from lazymem.core import fill

    return hasattr(ctypes.CDLL(fill.__file__), "lm_parking_hook")


needs_debug_build = pytest.mark.skipif(
    not is_debug_build(), reason="only a debug build has parking points: tests/lanes.sh makes one and runs this file"
)


@functools.cache
def _lot() -> ctypes.CDLL:
    """The hook, set in every module of the core."""
    import importlib

    import lazymem.core

    lot = ctypes.CDLL(str(library("parking.c")))
    lot.parking_arm.argtypes = [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64]
    lot.parking_passed.argtypes, lot.parking_passed.restype = [ctypes.c_char_p], ctypes.c_uint64
    lot.parking_touch.argtypes = [ctypes.c_void_p]
    lot.parking_signal.argtypes = [ctypes.c_uint32, ctypes.c_void_p]
    lot.parking_touched.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int64)]
    lot.parking_handled.argtypes = [ctypes.POINTER(ctypes.c_int64)]
    hook = ctypes.cast(lot.parking_hook, ctypes.c_void_p).value
    found = 0
    for path in sorted(Path(lazymem.core.__file__).parent.glob("*.pyx")):
        module = importlib.import_module(f"lazymem.core.{path.stem}")
        try:
            ctypes.c_void_p.in_dll(ctypes.CDLL(module.__file__), "lm_parking_hook").value = hook
            found += 1
        except ValueError:
            pass
    assert found >= 3
    return lot


class Spot:
    """The n-th thread that comes by a point from now on stays there until `release`, or for so many seconds."""

    def __init__(self, point: str, nth: int = 1, seconds: float = 20) -> None:
        self._lot = _lot()
        self.point = point
        self._number = self._lot.parking_arm(point.encode(), nth, int(seconds * PATIENCE * 1e9))
        assert self._number >= 0, "no spot is left"

    @property
    def parked(self) -> bool:
        return bool(self._lot.parking_state(self._number) == PARKED)

    @property
    def came(self) -> bool:
        """Has a thread been there?"""
        return bool(self._lot.parking_state(self._number) != ARMED)

    @property
    def tid(self) -> int:
        return int(self._lot.parking_tid(self._number))

    def wait_parked(self) -> None:
        assert wait_until(lambda: self.parked), f"no thread came by {self.point!r}"

    def release(self) -> None:
        self._lot.parking_release(self._number)


def passed(point: str) -> int:
    """How often a point was come by in this process."""
    return int(_lot().parking_passed(point.encode()))


class Async:
    """A call on a Python thread: its value, or what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.value = call()
        except BaseException as error:
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def end(self, seconds: float = 15) -> Async:
        self._thread.join(seconds * PATIENCE)
        assert self.done, "it does not end"
        return self


class Touch:
    """A C thread that reads one word."""

    def __init__(self, address: int) -> None:
        self._lot = _lot()
        self._got = ctypes.c_int64()
        self._number = self._lot.parking_touch(address)

    @property
    def done(self) -> bool:
        return bool(self._lot.parking_touched(self._number, ctypes.byref(self._got)))

    def value(self) -> int:
        assert wait_until(lambda: self.done), "the touch does not end"
        return self._got.value


class Handled:
    """A signal handler that reads one word on a thread that is parked, or wherever it is."""

    def __init__(self, tid: int, address: int) -> None:
        self._lot = _lot()
        self._got = ctypes.c_int64()
        assert self._lot.parking_signal(tid, address) == 0

    @property
    def done(self) -> bool:
        return bool(self._lot.parking_handled(ctypes.byref(self._got)))

    def value(self) -> int:
        assert wait_until(lambda: self.done), "the handler does not end"
        return self._got.value


def ready() -> Any:
    """Before a child is started: what it will need is built."""
    return library("parking.c")
