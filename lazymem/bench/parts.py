"""How is a bench made of parts, each in a fresh process, and when is a row within its limit?"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lazymem.bench.fault import BenchError, spread_of

GROUPS = 5  # of figures, each with its own median: their spread is the row's
CHILD_LIMIT_S = 300.0

Part = Callable[[bool], Iterator[dict[str, Any]]]


def grouped_spread(values: list[float]) -> float:
    """(max - min) / median of the medians of GROUPS groups of what was measured."""
    return spread_of([statistics.median(values[i::GROUPS]) for i in range(min(GROUPS, len(values)))])


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its verdict: `limit`, at most so much; `least`, at least; neither, none."""
    if "limit" in row:
        return row | {"ok": row["value"] <= row["limit"]}
    return row | {"ok": row["value"] >= row["least"]} if "least" in row else row


def print_rows(parts: Mapping[str, Part]) -> None:
    """The child's life: one part, a row a line. Its arguments: part, quick (0 or 1)."""
    part, quick = sys.argv[1:]
    for row in parts[part](quick == "1"):
        print(json.dumps(row), flush=True)


def run_parts(
    bench: str, parts: Mapping[str, Part], quick: bool, core: int | None, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Run every part of lazymem/bench/`bench`.py ("_" for "-"), whose `main` prints its rows; the rows, judged.

    Parameters
    ----------
    core : int or None
        Where all run; None: anywhere.

    Raises
    ------
    BenchError
        A part failed, or took too long.
    """
    pin = f"import os; os.sched_setaffinity(0, {{{core}}}); " if core is not None else ""
    module = f"lazymem.bench.{bench.replace('-', '_')}"
    for part in parts:
        say(f"{bench}: {part}")
        command = [sys.executable, "-c", pin + f"from {module} import main; main()", part, str(int(quick))]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CHILD_LIMIT_S, check=True)
        except subprocess.SubprocessError as error:
            raise BenchError(f"{bench}, part {part}: {error}") from None
        for line in done.stdout.splitlines():
            row = json.loads(line)
            assert math.isfinite(row["value"])
            yield {"bench": bench, **judged(row)}
