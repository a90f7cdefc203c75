"""How long does a first touch take?

Each case runs in a process of its own, pinned with its handler threads to one core, and the processes take turns, a slice
each: noise hits all cases alike. Provider processes are pinned to another core, where there is one. A round is as many slices
as make the wanted number of touches; what is reported is the median of the rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from lazymem.bench.cases import BESIDE_PROVIDED, DEFAULTS, HEAD, PINNED, PROVIDED, RATIOS, REFUSED, asks_python
from lazymem.options import PAGE_NBYTES

SLICE_LIMIT_S = 120.0  # a slice takes well under a second
QUANTILES = (("p50_ns", 50.0), ("p90_ns", 90.0), ("p99_ns", 99.0), ("p99_9_ns", 99.9))


class BenchError(RuntimeError):
    """A case could not be measured; the message says which and where it stood."""


@dataclass(frozen=True)
class Plan:
    """How much of a case is measured: rounds x slices x blocks touches."""

    block_nbytes: int
    nblocks: int
    slices: int
    rounds: int


def plan_for(block_nbytes: int, quick: bool) -> Plan:
    """20,000 touches a round, fewer where a block is large; regions of a few MiB, so that their own page tables stay warm."""
    if quick:
        return Plan(block_nbytes, 256 if block_nbytes <= PAGE_NBYTES else 64 if block_nbytes < 1 << 20 else 8, 2, 2)
    nblocks = max(16, min(2048, (64 << 20) // block_nbytes))
    touches = 20000 if block_nbytes < 1 << 20 else 512
    return Plan(block_nbytes, nblocks, -(-touches // nblocks), 5)


def _another(core: int) -> int:
    """A core that is not this one, if we have another."""
    return min(os.sched_getaffinity(0) - {core}, default=core)


class Child:
    """The process of one case.

    Parameters
    ----------
    path, provider : str
        As `cases.make_case` takes them.
    core : int or None
        Pin it there, before it starts any thread; where a provider's process has to have another one: before each slice.
    """

    def __init__(self, name: str, plan: Plan, path: str, core: int | None, provider: str = "") -> None:
        self.name = name
        pin = f"import os; os.sched_setaffinity(0, {{{core}}}); " if core is not None and not asks_python(name) else ""
        code = pin + "from lazymem.bench.cases import main; main()"
        cores = [] if core is None else [core, _another(core)]
        told = {"name": name, "nblocks": plan.nblocks, "block_nbytes": plan.block_nbytes, "path": path, "cores": cores}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(told | {"provider": provider})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def _read(self, nbytes: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        parts: list[bytes] = []
        while nbytes:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise BenchError(f"case {self.name}: no answer in {SLICE_LIMIT_S:.0f} s")
            part = self._process.stdout.read(min(nbytes, 1 << 16))
            if not part:
                raise BenchError(f"case {self.name}: its process ended with status {self._process.wait(10)}")
            parts.append(part)
            nbytes -= len(part)
        return b"".join(parts)

    def slice(self, seed: int, threads: int) -> tuple[np.ndarray[Any, Any], int]:
        """Have one slice touched. Returns its latencies and its wall time, ns."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + SLICE_LIMIT_S
        with contextlib.suppress(BrokenPipeError):  # it has said why, or ended: reading tells
            self._process.stdin.write(json.dumps({"seed": seed, "threads": threads}).encode() + b"\n")
        n, wall_ns = HEAD.unpack(self._read(HEAD.size, deadline))
        if n == REFUSED:
            raise BenchError(f"case {self.name}: {self._read(wall_ns, deadline).decode()}")
        return np.frombuffer(self._read(8 * n, deadline), np.uint64), wall_ns

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(0.1 if kind is not None else 20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._process.stdout.close()


def _median(values: list[float]) -> float:
    return statistics.median(values)


def spread_of(values: list[float]) -> float:
    """(max - min) / median."""
    return round((max(values) - min(values)) / _median(values), 4)


def summary(rounds: list[np.ndarray[Any, Any]], wall_ns: list[int]) -> dict[str, Any]:
    """One row's figures: each the median over the rounds.

    Parameters
    ----------
    rounds : list of arrays of ns
    wall_ns : list of int
        Of each round, the time its touches took together.
    """
    row: dict[str, Any] = {"n": sum(len(r) for r in rounds)}
    for key, percent in QUANTILES:
        row[key] = round(_median([float(np.percentile(r, percent)) for r in rounds]))
    row["mean_ns"] = round(_median([float(r.mean()) for r in rounds]))
    row["spread"] = spread_of([float(np.percentile(r, 50)) for r in rounds])
    row["rounds"] = len(rounds)
    row["touches_per_s"] = round(_median([len(r) / w * 1e9 for r, w in zip(rounds, wall_ns, strict=True)]))
    return row


class Turns(Protocol):
    """Who can be told to touch one slice: a `Child`, or what resembles it."""

    def slice(self, seed: int, threads: int) -> tuple[np.ndarray[Any, Any], int]:
        """Have one slice touched. Returns its latencies and its wall time, ns."""


def take_turns(
    children: Sequence[Turns], plan: Plan, threads: int, say: Callable[[str], None]
) -> tuple[list[list[np.ndarray[Any, Any]]], list[list[int]]]:
    """Latencies and wall times, [case][round]."""
    took: list[list[np.ndarray[Any, Any]]] = [[] for _ in children]
    walls: list[list[int]] = [[] for _ in children]
    for seed in range(2):  # the kernel's lists and our own tables, warm; not counted
        for child in children:
            child.slice(seed, threads)
    for number in range(plan.rounds):
        say(f"block {plan.block_nbytes}, threads {threads}, round {number + 1} of {plan.rounds}")
        slices: list[list[np.ndarray[Any, Any]]] = [[] for _ in children]
        wall_ns = [0] * len(children)
        for part in range(plan.slices):
            seed = 1000 + number * plan.slices + part  # the same order for every case
            first = (number + part) % len(children)  # nobody is always the one behind the same neighbour
            for i in [*range(first, len(children)), *range(first)]:
                latencies, wall = children[i].slice(seed, threads)
                slices[i].append(latencies)
                wall_ns[i] += wall
        for i in range(len(children)):
            took[i].append(np.concatenate(slices[i]))
            walls[i].append(wall_ns[i])
    return took, walls


def _ratio_rows(names: list[str], took: list[list[np.ndarray[Any, Any]]], common: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for above, below, limit in RATIOS:
        if above in names and below in names:
            pairs = zip(took[names.index(above)], took[names.index(below)], strict=True)
            values = [float(np.median(a)) / float(np.median(b)) for a, b in pairs]
            row = {"bench": "ratio", "case": f"{above}/{below}", **common, "value": round(_median(values), 4)}
            row |= {"spread": spread_of(values), "rounds": len(values)}
            fair = not asks_python(above) or len(os.sched_getaffinity(0)) > 1
            if limit is not None and fair and common["block_nbytes"] == PAGE_NBYTES and common["threads"] == 1:
                row |= {"limit": limit, "ok": _median(values) <= limit}
            yield row


def measure_block(
    plan: Plan, names: list[str], threads: list[int], core: int | None, say: Callable[[str], None], provider: str = ""
) -> Iterator[dict[str, Any]]:
    """All cases at one block size: their rows, then the ratios'.

    Parameters
    ----------
    threads : list of int
        Touching threads; each number is a set of rows.
    core : int or None
        Where all run, but for provider processes; None: anywhere.
    provider : str
        MODULE:NAME of the user's own, for its cases.
    """
    with tempfile.TemporaryDirectory(prefix="lazymem-bench-") as folder:
        path = os.path.join(folder, "blocks")
        content = np.random.default_rng(1).integers(0, 256, plan.nblocks * plan.block_nbytes, np.uint8)
        content.tofile(path)  # and so in the page cache
        children: list[Child] = []
        try:
            children = [Child(name, plan, path, core, provider) for name in names]
            for count in threads:
                took, walls = take_turns(children, plan, count, say)
                common = {"block_nbytes": plan.block_nbytes, "threads": count}
                for name, rounds, wall_ns in zip(names, took, walls, strict=True):
                    yield {"bench": "fault", "case": name, **common, **summary(rounds, wall_ns)}
                yield from _ratio_rows(names, took, common)
        finally:
            failed = sys.exc_info()
            for child in children:
                child.__exit__(*failed)


def cases_for(pinned: bool, block_nbytes: int, default_block_nbytes: int, provider: bool = False) -> list[str]:
    """The cases of a run: unpinned also those with every option at its default, at the block size that they choose.

    With a provider of the user's: its cases, and those that say what asking costs.
    """
    if provider:
        floors = block_nbytes <= 2 << 20 and not block_nbytes & (block_nbytes - 1)
        return [*(name for name in BESIDE_PROVIDED if floors or not name.startswith("floor")), *PROVIDED]
    return [*PINNED, *(DEFAULTS if not pinned and block_nbytes == default_block_nbytes else ())]
