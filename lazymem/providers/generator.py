"""How does a generator, which only ever goes forward, become a provider?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from lazymem.formats.layout import count
from lazymem.providers.base import Provider, check_call
from lazymem.providers.elements import clear_holes, holes_of, name_of, read_elements
from lazymem.providers.spool import Spool, reserve

# How far the generator goes before what came is kept, and those who wait for it can read it.
_STEP_NBYTES = 1 << 20
_STEP_SECONDS = 0.005

_END = object()


class GeneratorError(ValueError):
    """A generator did not give what its array was said to hold: too little, too much, or other bytes when it was run again."""


class GeneratorProvider(Provider):
    """An array of what a generator gives, in C order. It is run as far as the block that is touched, and no further.

    What it has given is kept in a file without a name (in the folder for temporary files, TMPDIR), so that going back is a
    read. A touch far ahead takes as long as the generator takes to get there: a `timeout=` to match is needed.

    Parameters
    ----------
    make : callable
        `make()` returns an iterator of pieces, each of any length, and new each time:

        - bytes, or anything with a buffer of bytes: the array's own bytes, whole elements or not;
        - numpy arrays and scalars, or a buffer of other numbers: elements, which begin where an element begins. Their dtype is
          the array's, or casts to it safely (`numpy.can_cast`): a generator of float64 for an array of float32 says
          `.astype("f4")` itself. A uint8 array is numbers, not bytes.

        A piece may be the same memory each time. The iterator runs in one other process, and is advanced by one thread at a
        time, not always the same. When that process was killed, or the iterator raised something, `make()` is called again,
        and must give the same bytes again.
    shape : int or sequence of int
        What comes after its last element is not asked for, as `numpy.fromiter` has it: a generator may be endless. But a piece
        that reaches past the end is an error.
    dtype : dtype

    Raises
    ------
    TypeError
        `make` is a generator, not a function that returns one; it needs arguments; a dtype of objects or subarrays.
    ValueError
        A negative length; 2**63 bytes and more.
    OSError
        There is no folder for temporary files.

    Notes
    -----
    The file is held open by the process that made this object, until this object is gone. A copy (by pickle) that finds it
    there goes on with it, or copies it where another one writes to it; a copy that does not (elsewhere, or later) begins anew.
    """

    processes_max = 1

    _spool: Spool | None = None

    def __init__(self, make: Any, shape: Any, dtype: Any = float) -> None:
        check_make(make)
        self.name = f"from_generator({name_of(make)})"
        self.make = make
        self.shape, self.dtype = read_elements(shape, dtype, self.name)
        self.nbytes = count(self.shape) * self.dtype.itemsize
        self._holes = holes_of(self.dtype)
        self._place = reserve(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, shape={self.shape}, dtype={self.dtype})"

    def open(self) -> None:
        """Find what a predecessor in this place has kept. The generator is not run."""
        self._spool = Spool(self._place)
        self._run: _Run | None = None
        self._failed: str | None = None
        self._goals: list[int] = []  # how far those who wait need it, bytes
        self._advancing = False
        self._moved = threading.Condition()

    def close(self) -> None:
        """End the generator, and close the file."""
        self._run = None
        if self._spool is not None:
            self._spool.close()
        self._spool = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        spool = self._spool
        if spool is None:
            raise RuntimeError(f"{self.name}: open() comes before read_into()")
        if offset + len(buffer) > spool.nbytes:
            self._advance(spool, offset + len(buffer))
        spool.read_into(buffer, offset)

    def _advance(self, spool: Spool, stop: int) -> None:
        """Wait until there are `stop` bytes; whoever finds nobody at it advances the generator by a step meanwhile."""
        with self._moved:
            self._goals.append(stop)
            try:
                while True:
                    self._moved.wait_for(lambda: spool.nbytes >= stop or not self._advancing)
                    if spool.nbytes >= stop:
                        return
                    self._advancing = True
                    self._moved.release()
                    try:
                        self._step(spool)
                    finally:
                        self._moved.acquire()
                        self._advancing = False
                        self._moved.notify_all()
            finally:
                self._goals.remove(stop)

    def _step(self, spool: Spool) -> None:
        """Advance the generator towards the first who waits for it, and keep what came."""
        if self._failed is not None:
            raise GeneratorError(self._failed)
        run = self._run or _Run(self.make, self.name)
        self._run = None  # until the step has ended well: after anything else the generator begins again
        pending = bytearray()
        enough = spool.nbytes + _STEP_NBYTES
        until = time.monotonic() + _STEP_SECONDS
        try:
            try:
                while run.position < self._goal(spool) and spool.nbytes + len(pending) < enough and time.monotonic() < until:
                    self._take(run, spool, pending)
            finally:
                if pending:
                    spool.append(pending)
        except GeneratorError as error:
            self._failed = str(error)  # running it once more would take as long and end the same way
            raise
        if run.position < self.nbytes:
            self._run = run

    def _goal(self, spool: Spool) -> int:
        """How far the first needs it whose bytes are not there; 0: nobody."""
        return min((goal for goal in tuple(self._goals) if goal > spool.nbytes), default=0)

    def _take(self, run: _Run, spool: Spool, pending: bytearray) -> None:
        """Take one piece: what is kept already must be the same, the rest is to be kept."""
        piece = next(run.iterator, _END)
        if piece is _END:
            raise GeneratorError(
                f"{self.name}: it ended after {run.position} of {self.nbytes} bytes "
                f"({run.position // self.dtype.itemsize} of {count(self.shape)} elements)"
            )
        view = self._bytes_of(piece, run.position)
        over = run.position + len(view) - self.nbytes
        if over > 0:
            raise GeneratorError(
                f"{self.name}: a piece of {len(view)} bytes came after {run.position} of {self.nbytes} bytes: {over} too many"
            )
        known = min(max(spool.nbytes - run.position, 0), len(view))
        if known and (place := spool.difference(view[:known], run.position)) is not None:
            raise GeneratorError(
                f"{self.name}: it was run again (its process had died, or it had raised something) and gave other bytes than "
                f"before, at byte {place} of {self.nbytes} first: each run must give the same"
            )
        run.position += len(view)
        if len(view) - known < _STEP_NBYTES:
            pending += view[known:]
        else:  # no need to copy it first
            spool.append(pending)
            pending.clear()
            spool.append(view[known:])

    def _bytes_of(self, piece: Any, position: int) -> memoryview:
        if isinstance(piece, (bytes, bytearray)):
            return memoryview(piece)
        if not hasattr(piece, "__array__"):
            try:
                view = memoryview(piece)
            except TypeError:
                raise TypeError(
                    f"{self.name}: a piece is a {type(piece).__qualname__}: give bytes or arrays, many elements at a time "
                    f"(numpy.array(list_of_them, {self.dtype.str!r}))"
                ) from None
            if view.format.lstrip("@=<>!") in ("B", "c"):
                return view if view.format == "B" and view.ndim == 1 and view.contiguous else memoryview(view.tobytes())
            piece = view
        array = np.asarray(piece)
        if array.dtype != self.dtype and not np.can_cast(array.dtype, self.dtype, "safe"):
            raise TypeError(
                f"{self.name}: a piece is an array of {array.dtype}, which does not cast to {self.dtype} safely: "
                f"give array.astype({self.dtype.str!r})"
            )
        if position % self.dtype.itemsize:
            raise GeneratorError(f"{self.name}: an array came after {position} bytes, in the middle of an element")
        array = np.ascontiguousarray(array, self.dtype).reshape(-1)
        if self._holes is not None:  # what they hold is nothing to compare
            array = array.copy()
            clear_holes(array, self._holes)
        return array.view("u1").data


class _Run:
    """One call of `make`, and how many bytes of it were taken."""

    def __init__(self, make: Any, name: str) -> None:
        made = make()
        try:
            self.iterator: Iterator[Any] = iter(made)
        except TypeError:
            raise TypeError(
                f"{name}: it returned a {type(made).__qualname__}, which is no iterator: yield the pieces, or return an "
                "iterator of them"
            ) from None
        self.position = 0


def check_make(make: Any) -> None:
    """Check that `make` is a function that takes nothing, not what it should return.

    Raises
    ------
    TypeError
        Saying what to pass instead.
    """
    if not callable(make):
        what = "an iterator, which runs only once, and here" if hasattr(make, "__next__") else "no function"
        raise TypeError(
            f"from_generator({make!r}): this is {what}: pass a function that returns it: lambda: (piece for piece in ...)"
        )
    check_call(make, (), name_of(make))
