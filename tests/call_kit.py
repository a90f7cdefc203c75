"""Does a call of tests/calls.py give on a lazy array what it gives on an ordinary one?

This runs in a child, which says what it is about to run: whoever finds it dead knows where.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from calls import INPUTS, LIBRARIES, Call, calls_of
from support import DELIVERIES, PAGE, settled

import lazymem as lm

LAZY, PLAIN = FORMS = ("lazy array", "plain view")
SOURCES = ("file", "provider")


def sent(send: Callable[[socket.socket], Any]) -> bytes:
    """What arrives at the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours)
        ours.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: theirs.recv(1 << 20), b""))


def received(receive: Callable[[socket.socket], Any]) -> Any:
    """What `receive` answers at an end that 4,000 bytes have come to."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"lazy" * 1000)
        return receive(ours)


# ---------------------------------------------------------------------------------------------------------------------------
# Inputs


class Inputs:
    """Ordinary arrays, and the same ones lazily: from a file, and from a Python function in another process."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._arrays = {}
        for number, (name, expression) in enumerate(INPUTS.items()):
            array = np.asarray(eval(expression, {"np": np, "random": np.random.default_rng(number)}))
            assert array.nbytes > PAGE, name
            array.T.tofile(self._path(name)) if self._is_fortran(array) else array.tofile(self._path(name))
            self._arrays[name] = array

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _is_fortran(self, array: np.ndarray) -> bool:
        return not array.flags.c_contiguous

    def ordinary(self, name: str) -> np.ndarray:
        return self._arrays[name].copy("K")

    def lazy(self, name: str, source: str, delivery: str, mode: str) -> lm.LazyArray:
        """One of which nothing is there yet."""
        array, path = self._arrays[name], self._path(name)
        shape = array.shape[::-1] if self._is_fortran(array) else array.shape
        options: dict[str, Any] = {"mode": mode, "block_nbytes": PAGE, "delivery": delivery}
        if source == "file":
            made = lm.memmap(path, array.dtype, shape=shape, **options)
        else:
            itemsize = array.dtype.itemsize

            def fill(out, start):
                out[:] = np.fromfile(path, out.dtype, out.size, offset=start * itemsize)

            made = lm.from_fill(fill, shape, array.dtype, **options)
        assert not lm.residency(made).any()
        return made.T if self._is_fortran(array) else made


# ---------------------------------------------------------------------------------------------------------------------------
# Running


class Outcome:
    """What a call answered or raised, how many blocks it read, what it wrote to files, and what it left of its arrays."""

    def __init__(self, call: Call, arrays: dict[str, Any], names: dict[str, Any], folder: Path) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        with open(folder / "tmp", "wb+", buffering=0) as tmp:
            files = {"tmp": tmp, "path": str(folder / "file"), "bytes_io": io.BytesIO(), "text_io": io.StringIO()}
            try:
                self.value = eval(call.text, {**names, **files, **arrays})
            except Exception as error:
                self.error = error.with_traceback(None)
        self.wrote = [files["bytes_io"].getvalue(), files["text_io"].getvalue().encode()]
        for path in sorted(folder.iterdir()):
            self.wrote.append(path.read_bytes())
            path.unlink()
        self.blocks = {name: settled(x).blocks for name, x in arrays.items() if lm.is_lazy(x)}
        self.left = {name: np.asarray(x).tobytes() for name, x in arrays.items()}


def run(library: str) -> None:
    """Run a library's calls, in both forms and deliveries; say each before it runs, and a summary at the end."""
    names: dict[str, Any] = {"np": np}
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    try:
        exec(LIBRARIES[library][0], names)
    except ImportError as error:
        print("absent:", error)
        return
    wrong, refused, runs = [], 0, 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as written:
        inputs = Inputs(folder)
        for number, call in enumerate(calls_of(library)):
            print("at", call.text, "on ordinary arrays", flush=True)
            ordinary = {name: inputs.ordinary(name) for name in call.names}
            before = {name: x.tobytes() for name, x in ordinary.items()}
            want = Outcome(call, ordinary, names, Path(written))
            complaints = list(_mistakes(call, want, before))
            for delivery, form in itertools.product(DELIVERIES, FORMS):
                source = SOURCES[(number + DELIVERIES.index(delivery)) % 2]  # every second call, and both for each
                how = f"{form}, {delivery}, {source}"
                print("at", call.text, how, flush=True)
                names.get("prepare", str)(delivery)
                lazy = {
                    name: inputs.lazy(name, source, delivery, "c" if call.is_written(name) else "r") for name in call.names
                }
                nblocks = {name: lm.stats(x).nblocks for name, x in lazy.items()}
                arrays = lazy if form == LAZY else {name: np.asarray(x) for name, x in lazy.items()}
                got = Outcome(call, arrays, names, Path(written))
                runs += 1
                if call.is_refused(form == PLAIN) and not system_calls_wait(delivery):
                    refused += 1
                    complaints += [] if _is_refused(got.error) else [f"{how}: no EFAULT, but {got.error!r}"]
                elif form == LAZY and "fault" in call.marks:
                    refused += 1
                    complaints += [] if type(got.error).__name__ == call.marked("fault")[0] else [f"{how}: {got.error!r}"]
                else:
                    complaints += [f"{how}: {said}" for said in _differences(call, form, got, want, nblocks)]
            if complaints:
                wrong.append((call.text, complaints))
    print("summary", json.dumps({"runs": runs, "refused": refused, "wrong": wrong}))


def system_calls_wait(delivery: str) -> bool:
    """May a system call touch what is not there yet? With handler threads, where the kernel's own faults come to us."""
    return delivery == "threads" and os.geteuid() == 0


def _is_refused(error: BaseException | None) -> bool:
    """Is it EFAULT, or what C's stdio makes of it?"""
    return isinstance(error, OSError) and (error.errno == errno.EFAULT or "requested and" in str(error))


def _mistakes(call: Call, want: Outcome, before: dict[str, bytes]) -> Iterator[str]:
    """What the list has wrong: the ordinary array says."""
    raised = type(want.error).__name__ if want.error is not None else ""
    if raised != call.marks.get("raises", ""):
        yield f"ordinary: {raised} {want.error}"
    changed = sorted(name for name in before if want.left[name] != before[name])
    if changed != sorted(call.marked("writes")):
        yield f"ordinary: it changed {changed}"
    if not call.names:
        yield "it names no array"


def _differences(call: Call, form: str, got: Outcome, want: Outcome, nblocks: dict[str, int]) -> Iterator[str]:
    is_lazy = form == LAZY
    values = [got.value, want.value]
    if type(got.error) is not type(want.error):
        yield f"raised {got.error!r}, not {want.error!r}"
        return
    if want.error is not None:
        values = [_without_arrays(str(x.error)) if is_lazy else str(x.error) for x in (got, want)]
    elif is_lazy and isinstance(want.value, str):
        values[0] = got.value.replace("LazyArray(", "array(")
    if is_lazy and "copied" in call.marks:
        values[0], were = _unwrapped(values[0])
        if not were:
            yield "marked as copied, and gives no LazyArray of ordinary memory"
    said = difference(*values, "close" in call.marks)
    if said:
        yield said
    if got.wrote != want.wrote:
        yield "other bytes in its files"
    for name in call.names:
        if got.left[name] != want.left[name]:
            yield f"{name} is other than it should be afterwards"
        blocks = got.blocks[name]
        fetched = "none" if not blocks else "some" if blocks < nblocks[name] else ""
        marked = next((mark for mark in ("none", "some") if name in call.marked(mark)), "")
        # What looks like the argument of a system call is fetched ahead of a simple buffer of a lazy array.
        if fetched != marked and not (marked == "some" and fetched == "" and is_lazy):
            yield f"of {name} it fetched {blocks} of {nblocks[name]} blocks"


def _without_arrays(text: str) -> str:
    """As far as it does not show one: a type's longer name breaks its lines elsewhere."""
    return re.split(r"(?:LazyA|a)rray\(", text)[0]


def _unwrapped(value: Any) -> tuple[Any, int]:
    """With plain arrays for LazyArrays of ordinary memory, and how many those were."""
    if isinstance(value, lm.LazyArray) and not lm.is_lazy(value):
        return np.asarray(value), 1
    if isinstance(value, tuple):
        parts = [_unwrapped(x) for x in value]
        items = [x for x, _ in parts]
        return (type(value)._make(items) if hasattr(value, "_make") else type(value)(items)), sum(n for _, n in parts)
    return value, 0


# ---------------------------------------------------------------------------------------------------------------------------
# Comparing


def difference(got: Any, want: Any, close: bool) -> str | None:
    """What tells two results apart; None if nothing does. Bit for bit, unless `close`."""
    if isinstance(got, lm.LazyArray) and type(want) is np.ndarray and (lm.is_lazy(got) or not got.size):
        got = np.asarray(got)  # views stay lazy
    if type(got) is not type(want):
        return f"a {_kind(got)}, not a {_kind(want)}"
    how = next((compare for is_one, compare in _COMPARE if is_one(want)), None)
    if how is None:
        raise TypeError(f"how are two {_kind(want)} compared?")
    return how(got, want, close)


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _arrays(got: Any, want: Any, close: bool) -> str | None:
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype} {got.shape}, not {want.dtype} {want.shape}"
    if want.dtype.hasobject:
        return _sequences(got.ravel().tolist(), want.ravel().tolist(), close)
    if got.tobytes() == want.tobytes():
        return None
    if want.dtype.kind in "fc":
        if close and np.allclose(got, want, rtol=1e-7, atol=1e-9, equal_nan=True):
            return None
        return f"values differ by up to {np.nanmax(np.abs(got - want))}, close to {np.nanmax(np.abs(want))}"
    return f"{np.count_nonzero(got != want)} of {want.size} values differ"


def _masked(got: Any, want: Any, close: bool) -> str | None:
    mask = _arrays(np.ma.getmaskarray(got), np.ma.getmaskarray(want), False)
    return mask or _arrays(np.asarray(got.filled()), np.asarray(want.filled()), close)


def _scalars(got: Any, want: Any, close: bool) -> str | None:
    return _arrays(np.asarray(got), np.asarray(want), close)


def _sequences(got: Any, want: Any, close: bool) -> str | None:
    if len(got) != len(want):
        return f"{len(got)} items, not {len(want)}"
    said = (difference(g, w, close) for g, w in zip(got, want, strict=True))
    return next((f"item {at}: {x}" for at, x in enumerate(said) if x), None)


def _mappings(got: Any, want: Any, close: bool) -> str | None:
    return _sequences(list(got), list(want), close) or _sequences(list(got.values()), list(want.values()), close)


def _equal(got: Any, want: Any, _: bool) -> str | None:
    return None if got == want else f"{got!r:.99}, not {want!r:.99}"


def _sparse(got: Any, want: Any, close: bool) -> str | None:
    got, want = got.tocoo(), want.tocoo()
    parts = [(x.shape, x.row, x.col, x.data) for x in (got, want)]
    return _sequences(*parts, close)


def _by_its_own(got: Any, want: Any, close: bool) -> str | None:
    """As the library itself compares, exactly."""
    import importlib

    library = type(want).__module__.partition(".")[0]
    try:
        if library == "pyarrow":
            return None if got.equals(want) else f"{got}, not {want}"
        testing = importlib.import_module(f"{library}.testing")
        if library == "xarray":
            testing.assert_identical(got, want)
        else:
            kind = {"dataframe": "frame"}.get(type(want).__name__.lower(), type(want).__name__.lower())
            if library == "pandas" and kind not in ("frame", "series"):
                pandas = importlib.import_module(library)
                got, want, kind = pandas.Series(got), pandas.Series(want), "series"
            getattr(testing, f"assert_{kind}_equal")(got, want, check_exact=not close)
    except AssertionError as error:
        return str(error)
    return None


def _is_from(*libraries: str) -> Callable[[Any], bool]:
    return lambda x: type(x).__module__.partition(".")[0] in libraries


_COMPARE = (
    (lambda x: isinstance(x, np.ma.MaskedArray), _masked),
    (lambda x: isinstance(x, np.ndarray), _arrays),
    (lambda x: isinstance(x, (np.generic, float, complex)), _scalars),
    (lambda x: isinstance(x, (tuple, list)), _sequences),
    (lambda x: isinstance(x, dict), _mappings),
    (lambda x: x is None or isinstance(x, (int, str, bytes, bytearray, set, slice, range, np.dtype)), _equal),
    (lambda x: hasattr(x, "tocoo"), _sparse),
    (_is_from("pandas", "polars", "pyarrow", "xarray"), _by_its_own),
)
