"""What may a provider do with another lazy array, and how is it seen what came of it? Their processes import this too."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np

import lazymem as lm


class Over:
    """Made of another array's int64 elements: twice each, plus one. `touch` says how it reads them."""

    def __init__(self, inner, touch="slice"):
        self.nbytes, self.inner, self.touch = inner.nbytes, inner, touch

    def read_into(self, buffer, offset):
        out = np.frombuffer(buffer, "i8")
        first, stop = offset // 8, offset // 8 + out.size
        part = self.inner[first:stop]
        if self.touch == "bare":
            part = np.asarray(part)
        elif self.touch == "populate":
            lm.populate(part)
        elif self.touch == "elements":
            part = [self.inner[i] for i in range(first, stop)]
        elif self.touch == "all":
            part = part + 0 * self.inner.sum()
        elif self.touch == "half":
            part = part + 0 * self.inner[self.inner.size // 2 :].sum()
        elif self.touch == "thread":
            part = on_a_thread(self.inner[first:stop].copy)
        elif self.touch == "bare thread":
            part = on_a_thread(lambda: np.asarray(self.inner)[first:stop].copy())
        np.multiply(part, 2, out=out)
        out += 1


def on_a_thread(function):
    """Call it on a thread of its own; what it returns or raises."""
    done = []

    def run():
        try:
            done.append((function(), None))
        except BaseException as error:
            done.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if done[0][1] is not None:
        raise done[0][1]
    return done[0][0]


class OverC(Over):
    """The same over an array of a C function, which only a process itself can make."""

    def __init__(self, nbytes, **options):
        self.nbytes, self.touch, self.options = nbytes, "slice", options

    def open(self):
        from native_kit import counted

        self.inner, self.kit = counted(self.nbytes, **self.options)


class OverCOver(OverC):
    """The same, and the C function touches an array of a provider, wherever it is asked for a block."""

    def __init__(self, base, **options):
        super().__init__(base.nbytes, **options)
        self.base = base

    def open(self):
        from native_kit import address_of

        super().open()
        self.kit.touch, self.kit.touch_step = address_of(self.base), 1

    def read_into(self, buffer, offset):
        super().read_into(buffer, offset)
        if not self.kit.touched or not lm.stats(self.base).faults:
            raise AssertionError("it was not touched")


class Reporting(Over):
    """The same; writes down a line for each call: its name, the process, and how many processes that one has."""

    def __init__(self, inner, path):
        super().__init__(inner)
        self.path = path

    def _report(self, name):
        from lazymem.core.provider import process_ids

        with open(self.path, "a") as f:
            f.write(f"{name} {os.getpid()} {len(process_ids())}\n")

    def open(self):
        self._report("open")

    def close(self):
        self._report("close")

    def read_into(self, buffer, offset):
        self._report("before")
        super().read_into(buffer, offset)
        self._report("after")


# ---------------------------------------------------------------------------------------------------------------------------
# How a test looks at them


def family():
    """The provider processes below this process, at any depth: {pid: how deep}."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "stat").read_text().rpartition(")")[2].split()
            if words[0] not in "ZX" and b"lazymem-provider" in (process / "cmdline").read_bytes():
                parents[int(process.name)] = int(words[1])
        except OSError:
            continue
    found, layer = {}, [os.getpid()]
    for depth in range(1, 10):
        layer = [child for child, parent in parents.items() if parent in layer]
        found.update(dict.fromkeys(layer, depth))
    return found


def text_of(error):
    """What a PageError says, and what its provider said."""
    return f"{error}\n{error.__cause__}"


def fails(touch, seconds=10):
    """The PageError that a touch ends in, soon."""
    began = time.monotonic()
    try:
        touch()
    except lm.PageError as error:
        assert time.monotonic() - began < seconds, "a deadline had to end it"
        return error
    raise AssertionError("it did not fail")
