"""Does a call of tests/calls.py give on lazy arrays what it gives on ordinary ones? `in_child(library, user)`.

In a child, which says what it is about to run: whoever finds it dead knows where.
"""

from __future__ import annotations

import errno
import importlib
import io
import itertools
import json
import os
import platform
import re
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calls import INPUTS, LIBRARIES, Call, calls_of
from sameness import difference, unwrapped
from support import DELIVERIES, PAGE, run_child, settled

import lazymem as lm

LAZY, PLAIN = FORMS = ("lazy array", "plain view")
SOURCES = ("file", "provider")
# BLAS and others touch on several threads, also where there are fewer cores; those that wait let the others run.
THREADS = {
    "OPENBLAS_NUM_THREADS": "4", "OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4", "NUMBA_NUM_THREADS": "4",
    "OMP_WAIT_POLICY": "passive",
}  # fmt: skip


def deliveries_of(user: str) -> tuple[str, ...]:
    """An ordinary user's is the one that `auto` would choose; whoever may choose has both."""
    return DELIVERIES if user == "root" else ("inline",)


def in_child(code: str, user: str | None, timeout: float) -> dict[str, Any]:
    """What a kit counted in a process of its own, its "summary"; one that cannot be run is said as "absent"."""
    status, out, err = run_child(code, timeout, user, THREADS, fresh=True)
    lines = out.splitlines()
    if status:
        at = next((line for line in reversed(lines) if line.startswith("at ")), "at its start")
        pytest.fail(f"exit status {status} {at}\n{err[-6000:]}", pytrace=False)
    return json.loads(lines[-1].removeprefix("summary "))


def run_in_child(library: str, user: str) -> dict[str, Any]:
    """`run(library)` as `user`."""
    return in_child(f"import call_kit; call_kit.run({library!r}, {deliveries_of(user)!r})", user, 100)


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

    def ordinary(self, names: tuple[str, ...], frozen: bool) -> dict[str, np.ndarray]:
        arrays = {name: self._arrays[name].copy("K") for name in names}
        for array in arrays.values():
            array.flags.writeable = not frozen
        return arrays

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


def run(library: str, deliveries: tuple[str, ...]) -> None:
    """Run a library's calls in both forms; say each before it runs, and a summary at the end."""
    module, imports, _ = LIBRARIES[library]
    names: dict[str, Any] = {"np": np}
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    try:
        exec(imports, names)
    except ImportError as error:
        print("summary", json.dumps({"absent": str(error)}))
        return
    wrong: list[tuple[str, list[str]]] = []
    counts = {"calls": 0, "equal": 0, "read": 0, "runs": 0, "efault": 0, "readonly": 0}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as written:
        inputs = Inputs(folder)
        for number, call in enumerate(calls_of(library)):
            complaints, has_read = [], False
            for frozen in (False, True) if call.has_to_ask() else (False,):
                print("at", call.text, "on ordinary arrays", flush=True)
                ordinary = inputs.ordinary(call.names, frozen)
                before = {name: x.tobytes() for name, x in ordinary.items()}
                want = Outcome(call, ordinary, names, Path(written))
                complaints += _mistakes(call, want, before, frozen)
                for delivery, form in itertools.product(deliveries, FORMS):
                    source = SOURCES[(number + DELIVERIES.index(delivery)) % 2]  # every second call, and both for each
                    how = f"{form}, {delivery}, {source}" + ", read-only" * frozen
                    print("at", call.text, how, flush=True)
                    names.get("prepare", str)(delivery)
                    mode = {name: "c" if call.is_written(name) and not frozen else "r" for name in call.names}
                    lazy = {name: inputs.lazy(name, source, delivery, mode[name]) for name in call.names}
                    nblocks = {name: lm.stats(x).nblocks for name, x in lazy.items()}
                    waits = all(lm.region(x).kernel_faults for x in lazy.values())
                    arrays = lazy if form == LAZY else {name: np.asarray(x) for name, x in lazy.items()}
                    got = Outcome(call, arrays, names, Path(written))
                    counts["runs"] += 1
                    if frozen:
                        counts["readonly"] += got.error is not None
                        said = list(_differences(call, form, got, want, None))
                    elif call.is_refused(form == PLAIN) and not waits:
                        counts["efault"] += 1
                        said = [] if _is_efault(got.error) else [f"no EFAULT, but {got.error!r}"]
                    else:
                        has_read |= any(got.blocks.values())
                        said = list(_differences(call, form, got, want, nblocks))
                    complaints += [f"{how}: {each}" for each in said]
            counts["calls"] += 1
            counts["read"] += has_read
            counts["equal"] += not complaints
            if complaints:
                wrong.append((call.text, complaints))
    version = getattr(importlib.import_module(module), "__version__", platform.python_version())
    print("summary", json.dumps({"version": version, **counts, "wrong": wrong}))


def _is_efault(error: BaseException | None) -> bool:
    """Or what C's stdio makes of it?"""
    return isinstance(error, OSError) and (error.errno == errno.EFAULT or "requested and" in str(error))


def _mistakes(call: Call, want: Outcome, before: dict[str, bytes], frozen: bool) -> Iterator[str]:
    """What the list has wrong: the ordinary array says."""
    raised = type(want.error).__name__ if want.error is not None else ""
    if frozen:
        if not raised:
            yield "ordinary: it needs no memory that it may write to"
    elif raised != call.marks.get("raises", ""):
        yield f"ordinary: {raised} {want.error}"
    changed = sorted(name for name in before if want.left[name] != before[name])
    if changed != ([] if frozen else sorted(call.marked("writes"))):
        yield f"ordinary: it changed {changed}"


def _differences(call: Call, form: str, got: Outcome, want: Outcome, nblocks: dict[str, int] | None) -> Iterator[str]:
    """In result, files, what was left of the arrays; and in what was fetched, where `nblocks` are there."""
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
        values[0], were = unwrapped(values[0])
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
        if nblocks is None:
            continue
        blocks = got.blocks[name]
        fetched = "none" if not blocks else "some" if blocks < nblocks[name] else ""
        marked = next((mark for mark in ("none", "some") if name in call.marked(mark)), "")
        # What looks like the argument of a system call is fetched ahead of a simple buffer of a lazy array.
        if fetched != marked and not (marked == "some" and fetched == "" and is_lazy):
            yield f"of {name} it fetched {blocks} of {nblocks[name]} blocks"


def _without_arrays(text: str) -> str:
    """As far as it does not show one: a type's longer name breaks its lines elsewhere. Types have their ordinary name."""
    return re.split(r"(?:LazyA|a)rray\(", text)[0].replace("not LazyArray", "not numpy.ndarray")
