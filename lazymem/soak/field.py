"""Which arrays are there right now, who uses them, and how are they taken away and replaced?"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

import lazymem
from lazymem.soak import sources
from lazymem.soak.held import Held
from lazymem.soak.kept import Kept
from lazymem.soak.sources import Place

if TYPE_CHECKING:
    from lazymem.soak.actor import Actor

Source = Callable[[Place, np.random.Generator, str], Held]
_COUNTED = (
    "faults", "filled", "joins", "failed", "blocks", "refilled", "eexist", "eagain",
    "evicted", "rescued", "recycled", "moved", "refused", "units", "pinned_skips", "stored", "store_errors",
)  # fmt: skip
_ARRIVE_S = 10.0
_CLOSE_S = 2.0
_SETTLE_S = 2.0
_WAIT_S = 0.2


def sources_of(place: Place) -> list[Source]:
    """What each place of the field is for: many native arrays, some slow ones."""
    native: list[Source] = [sources.from_file, sources.from_memory, sources.from_c]
    # Each with blocks of one size: what serves a size of block stays for good (leaks.py).
    slow: list[Source] = [functools.partial(sources.from_python, pages=pages) for pages in (1, 16)]
    slow.append(sources.from_store)
    if place.url is not None:
        slow.append(sources.from_url)
    return native * 2 + slow


def count_faults(me: Actor, held: Held) -> None:
    """Count what has happened in an array, in this process."""
    stats = held.region.stats()
    for name in _COUNTED:
        me.count(name, getattr(stats, name))


def settle(me: Actor, held: Held) -> None:
    """Count an array that is done with, once handler threads have: every touch is accounted for. Blocks: briefly."""
    end = time.monotonic() + _SETTLE_S
    while True:
        stats = held.region.stats()
        if stats.faults == stats.filled + stats.joins + stats.failed:
            break
        if time.monotonic() > end:
            me.count("unaccounted")
            me.say(f"{held.name}: {stats!r} does not add up")
            break
        time.sleep(0.001)
    count_faults(me, held)
    me.count("errors_injected", held.injected())


def _holders(array: Any) -> list[str]:
    """Whose variables are views of an array: functions that run, and those in tracebacks that are kept."""
    frames: dict[FrameType, str] = {}
    for ident, frame in sys._current_frames().items():
        frames |= {f: f"thread {ident}" for f, _ in traceback.walk_stack(frame)}
    for error in [kept for kept in gc.get_objects() if isinstance(kept, BaseException)]:
        frames |= {f: f"{error!r}" for f, _ in traceback.walk_tb(error.__traceback__)}
    low = np.asarray(array).ctypes.data
    found = []
    for frame, where in frames.items():
        for name, value in list(frame.f_locals.items()):
            if isinstance(value, np.ndarray) and value is not array and low <= value.ctypes.data < low + array.nbytes:
                found.append(f"{name} of {frame.f_code.co_qualname}, {where}")
    return found


class Field:
    """The arrays of a round, each at a place of its own.

    Parameters
    ----------
    place : Place
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kinds = sources_of(place)
        self._helds: list[Held | None] = [None] * len(self.kinds)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, rng: np.random.Generator, wanted: Callable[[Held], bool] | None = None) -> Iterator[Held | None]:
        """One of the arrays; it is not taken away meanwhile. None: there is none such right now."""
        with self._lock:
            able = [h for h in self._helds if h is not None and not h.leaving and (wanted is None or wanted(h))]
            held = able[int(rng.integers(len(able)))] if able else None
            if held is not None:
                held.uses += 1
        try:
            yield held
        finally:
            if held is not None:
                with self._lock:
                    held.uses -= 1

    @contextlib.contextmanager
    def use_all(self) -> Iterator[list[Held]]:
        """All of them."""
        with self._lock:
            helds = [h for h in self._helds if h is not None and not h.leaving]
            for held in helds:
                held.uses += 1
        try:
            yield helds
        finally:
            with self._lock:
                for held in helds:
                    held.uses -= 1

    def failures(self) -> str:
        """What has failed of arrays that cannot fail, for messages; takes no lock."""
        told = ""
        for held in list(self._helds):
            failed = held.region.failure() if held is not None and held.certain and held.region is not None else None
            if failed is not None:
                told += f"; {failed}: {failed.__cause__}"
        return told

    def open(self, me: Actor, number: int) -> None:
        """Lay an array at a place that is empty."""
        delivery = str(me.rng.choice(self.place.deliveries))
        with me.within(sources.NATIVE_S, f"open array {number}, {delivery}"):
            held = self.kinds[number](self.place, me.rng, delivery)
        me.count("opened")
        with self._lock:
            self._helds[number] = held

    def close(self, me: Actor, number: int) -> bool:
        """Take an array away and count what it did; False: somebody uses it, for too long. Blocks: briefly."""
        with self._lock:
            held = self._helds[number]
            if held is None:
                return False
            held.leaving = True  # nobody takes it up any more
        end = time.monotonic() + _WAIT_S
        while held.uses and time.monotonic() < end:
            time.sleep(0.0005)
        with self._lock:
            held.leaving = False
            if held.uses:
                return False
            self._helds[number] = None
        settle(me, held)
        with me.within(6.0 + held.limit_s(0, len(held.expected)), f"close: {held.name}"):
            # Who drops an array is not there to be told that it could not be stored.
            if me.rng.random() < 0.5 or (held.kept is not None and held.mortal):
                self._close(me, held)
                arrives_s = 0.0
            else:
                held.array = held.region = None  # the last references: memory goes, and what was written is stored meanwhile
                arrives_s = _ARRIVE_S
        me.count("closed")
        if held.kept is not None:
            self._arrived(me, held, held.kept, arrives_s)
        return True

    @staticmethod
    def _arrived(me: Actor, held: Held, kept: Kept, within_s: float) -> None:
        """Is all that was ever written where it belongs?"""
        end = time.monotonic() + within_s
        while True:
            lost = int(np.count_nonzero(kept.words() != held.expected))
            if not lost or time.monotonic() > end:
                break
            gc.collect()  # an exception's traceback may hold it
            time.sleep(0.002)
        me.count("bytes_compared", held.expected.nbytes)
        me.count("lost_writes", lost)
        if lost:
            where = np.flatnonzero(kept.words() != held.expected)
            me.say(f"LOST: {lost} elements of {len(held.expected)}, +{where[0]} to +{where[-1]}: {held.name}")
        kept.close()

    @staticmethod
    def _close(me: Actor, held: Held) -> None:
        end = time.monotonic() + _CLOSE_S
        while time.monotonic() < end:
            try:
                lazymem.close(held.array)
                return
            except BufferError:  # an exception's traceback may hold a view, or who has just gone
                gc.collect()
                time.sleep(0.01)
            except lazymem.PageError as error:  # it could not be written back; it is open still
                me.last_error = f"{error}: {error.__cause__}"
                me.count("errors_seen")
                if not held.mortal:
                    me.unexpected(f"close, {held.name}: {error}")
        try:
            lazymem.close(held.array)
        except BufferError as error:
            me.unexpected(f"close, {held.name}: {error}; held by {_holders(held.array) or 'nobody who is seen'}")

    def count_open(self, me: Actor) -> None:
        """Count what those did that nobody will close."""
        with self.use_all() as helds:
            for held in helds:
                count_faults(me, held)
                me.count("errors_injected", held.injected())

    def close_all(self, me: Actor) -> None:
        """Take all away."""
        for number in range(len(self.kinds)):
            if not self.close(me, number):
                me.unexpected(f"array {number} is still in use")
