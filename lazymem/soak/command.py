"""What can be asked of `python -m lazymem soak`, and what does it answer?

Rounds, each a process with a seed of its own (the first has the one that was given, the next one more), until the time is
over. What the server of the HTTP arrays does wrong happens here, beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from typing import Any

from lazymem.bench.facts import facts
from lazymem.counters import human
from lazymem.soak import spoil, watch
from lazymem.soak.actors import everybody
from lazymem.soak.board import Board
from lazymem.soak.content import words
from lazymem.soak.round import can_move, counts_of, end_of
from lazymem.soak.sources import PAGE_WORDS, can_http, deliveries_here
from lazymem.testing import Misbehaviour, RangeServer

ROUND_S = 15.0
_FILE_WORDS = 512 * PAGE_WORDS + 3
# What must stay 0.
FAULTLESS = (
    "mismatches", "lost_writes", "hangs", "crashes", "unexpected", "unaccounted",
    "leaked_descriptors", "leaked_threads", "leaked_mappings", "leaked_memory", "leaked_processes",
)  # fmt: skip
_WRONG = (Misbehaviour(status=503), Misbehaviour(reset_after=1000), Misbehaviour(status=500), Misbehaviour(extra_nbytes=-100))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `soak` takes."""
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="how long (default: 1)")
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        metavar="S",
        help="of the first round (default: by chance); a failure names the one that repeats it",
    )
    parser.add_argument(
        "--spoil", choices=spoil.WAYS, help="would it be found? A source gets one bit wrong (bytes), or never answers (time)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


class _Nuisance:
    """Has the server of a round fail in one request of a hundred."""

    def __init__(self, server: RangeServer, seed: int) -> None:
        self._server, self._dice = server, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nuisance", daemon=True)
        self._thread.start()
        self.orders = 0

    def _run(self) -> None:
        due = 20
        while not self._stop.wait(0.02):
            if len(self._server.requests) >= due:
                self._server.misbehave(self._dice.choice(_WRONG), times=1)
                self.orders += 1
                due = len(self._server.requests) + self._dice.randint(50, 150)

    def close(self) -> int:
        """Stop; how many orders there were."""
        self._stop.set()
        self._thread.join()
        return self.orders


class Soak:
    """All rounds together.

    Parameters
    ----------
    folder : str
        For temporary files.
    spoiled : str
        How, or "".
    quiet : bool
        Print nothing as it goes.
    """

    def __init__(self, folder: str, spoiled: str, quiet: bool) -> None:
        self._folder, self._spoiled, self._quiet = folder, spoiled, quiet
        self._counts = counts_of(everybody())
        found_outside = ("rounds", "hangs", "crashes", "leaked_processes")
        self.totals: Counter[str] = Counter(dict.fromkeys((*self._counts, *found_outside), 0))
        self.ends: list[str] = []

    def round(self, seed: int, seconds: float) -> None:
        """Play one."""
        path, place = os.path.join(self._folder, "content"), os.path.join(self._folder, "board")
        words(seed, _FILE_WORDS).tofile(path)
        with open(place, "wb"):
            pass
        board = Board(place, self._counts)
        with contextlib.ExitStack() as stack:
            url, nuisance = "", None
            if can_http():
                server = stack.enter_context(RangeServer({"content": path}))
                url, nuisance = server.url_of("content"), _Nuisance(server, seed)
            arguments = [place, str(seed), str(seconds), path, str(_FILE_WORDS), url, self._spoiled]
            end = watch.play(arguments, board, seconds, moves=can_move(seed))
            found = Counter(board.totals())
            if nuisance is not None:
                found["errors_injected"] += nuisance.close()
        found["rounds"] = 1
        found["hangs"] = int(end.hang is not None)
        found["crashes"] = int(end.hang is None and end.status != (-15 if end_of(seed) == "term" else 0))
        found["leaked_processes"] = end.left
        self.totals.update(found)
        self._say(seed, seconds, found, end)

    def _say(self, seed: int, seconds: float, found: Counter[str], end: watch.End) -> None:
        wrong = [f"{found[name]} {name.replace('_', ' ')}" for name in FAULTLESS if found[name]]
        if wrong:
            how = f" (ended with {end.status})" if found["crashes"] else ""
            spoiled = f" --spoil {self._spoiled}" if self._spoiled else ""
            text = f"{', '.join(wrong)}{how}: python -m lazymem soak --seed {seed} --minutes {seconds / 60:.2f}{spoiled}"
            self.ends.append(text)
        if not self._quiet:
            print(
                f"seed {seed}: {found['faults']:,} faults, {human(found['bytes_compared'])} compared, "
                f"{found['opened']} arrays, {found['evicted']:,} evicted, {found['stored']:,} stored, {found['forks']} forks, "
                f"{found['kills'] + found['stops']} kills{'' if can_move(seed) else ', no MOVE'}: "
                f"{', '.join(wrong) or 'all right'}",
                flush=True,
            )


def run(args: argparse.Namespace) -> int:
    """Soak. Exit status: 0 when all was right, else 1."""
    seed = int.from_bytes(os.urandom(3)) if args.seed is None else args.seed
    began = time.monotonic()
    until = began + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="lazymem-soak-") as folder:
        soak = Soak(folder, args.spoil or "", args.json)
        n = 0
        while n == 0 or time.monotonic() < until - 1:
            soak.round(seed + n, max(0.5, min(ROUND_S, until - time.monotonic())))
            n += 1
    right = not any(soak.totals[name] for name in FAULTLESS)
    command = f"python -m lazymem soak --minutes {args.minutes:g} --seed {seed} --json"
    row: dict[str, Any] = {
        "bench": "soak", "case": "soak", "value": soak.totals["mismatches"], "unit": "mismatches", "limit": 0, "ok": right,
        "seconds": round(time.monotonic() - began, 1), "seed": seed, "deliveries": list(deliveries_here()),
        "right": right, **soak.totals, "failures": soak.ends, **facts(command, pinned=False),
    }  # fmt: skip
    if args.json:
        print(json.dumps(row))
    else:
        _show(row, soak)
    return 0 if right else 1


def _show(row: dict[str, Any], soak: Soak) -> None:
    where = f"{', '.join(row['deliveries'])}, {row['cores']} cores, Linux {row['kernel']}"
    print(f"\n{row['seconds']} s, seed {row['seed']}, {where}")
    for name, n in soak.totals.items():
        print(f"  {name.replace('_', ' '):<20} {n:>16,}")
    for text in soak.ends:
        print(f"FAILED: {text}")
    print("All right." if row["right"] else "Not all right.")
