"""Which rows do the figures of COPY_OR_MOVE.md, and README.md's of scans, come from, and are they what the pages say?

    python bench/page.py   # write the pages' figures anew, from bench/results/copy-or-move-root.jsonl and scan-root.jsonl

A figure in the text is followed by a comment that names its row: `1.52<!-- copy 4K 1 us -->` is the value of the case "copy"
at blocks of 4 KiB with one thread running, in microseconds. `<!-- table: NAME -->` to `<!-- end -->` is a table of TABLES.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE / "COPY_OR_MOVE.md"
ROWS = HERE / "results" / "copy-or-move-root.jsonl"
README = HERE.parent / "README.md"
SCAN_ROWS = HERE / "results" / "scan-root.jsonl"
SIZES = {"4K": 4 << 10, "64K": 64 << 10, "2M": 2 << 20}
FIGURE = re.compile(r"[\d.,]+(?=<!-- ([\w/-]+) (4K|64K|2M|-) ([12]) ?([\w/-]*) -->)")
TABLE = re.compile(r"(?<=<!-- table: )(\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)
FILLS = (
    "memcpy", "copy", "copy-protected", "move-fresh", "move-fresh-small", "move-recycled", "copy-evicting", "zero",
    "shared-copy", "shared-continue", "mremap",
)  # fmt: skip
RANGES = ("ranges-memcpy", "ranges-move", "ranges-mremap")


class Rows:
    """What was measured, by case, block and threads."""

    def __init__(self, path: Path) -> None:
        self._rows: dict[tuple[str, int, int], dict[str, Any]] = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            self._rows[row["case"], row.get("block_nbytes", 0), row.get("threads", 1)] = row

    def cases(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(case for case, _, _ in self._rows))

    def row(self, case: str, size: str = "4K", threads: int = 1) -> dict[str, Any] | None:
        """One of them, if there is such a one; of those without a block size for any."""
        return self._rows.get((case, SIZES.get(size, 0), threads))


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def figure(rows: Rows, case: str, size: str, threads: str, unit: str) -> str:
    """A row's value as the page says it. `unit`: us, placing, went-on (us too), GB/s, n, or none: as it is."""
    row = rows.row(case, size, int(threads))
    if row is None:
        raise KeyError(f"no row {case} {size} {threads}")
    keys = {"placing": "placing_ns", "went-on": "went_on_ns", "GB/s": "gb_per_s", "n": "n"}
    value = float(row[keys.get(unit, "value")])
    return number(value / 1000 if unit in ("us", "placing", "went-on") else value)


def _cell(rows: Rows, case: str, size: str, threads: int, unit: str = "us") -> str:
    return figure(rows, case, size, str(threads), unit) if rows.row(case, size, threads) else ""


def _timed(rows: Rows, cases: tuple[str, ...]) -> list[str]:
    lines = ["| us a block | 4 KiB | busy | 64 KiB | busy | 2 MiB | busy | GB/s at 2 MiB | busy | |"]
    lines.append("|---|" + "---:|" * 8 + "---|")
    for case in cases:
        cells = [_cell(rows, case, size, threads) for size in SIZES for threads in (1, 2)]
        cells += [_cell(rows, case, "2M", threads, "GB/s") for threads in (1, 2)]
        row = rows.row(case, "2M")
        lines.append(f"| `{case}` | {' | '.join(cells)} | {row['of'] if row else ''} |")
    return lines


def _placing(rows: Rows) -> list[str]:
    lines = ["| us a block, the fetch left out | 4 KiB | busy | 64 KiB | busy | 2 MiB | busy |", "|---|" + "---:|" * 6]
    for case in FILLS[1:]:
        cells = [_cell(rows, case, size, threads, "placing") for size in SIZES for threads in (1, 2)]
        lines.append(f"| `{case}` | {' | '.join(cells)} |")
    return lines


def _wakes(rows: Rows) -> list[str]:
    lines = ["| us | 4 KiB | 64 KiB | 2 MiB | until it goes on: 4 KiB | 64 KiB | 2 MiB |", "|---|" + "---:|" * 6]
    for threads, where in ((1, "on the same core"), (2, "on another core")):
        for case in ("wake-folded", "wake-apart"):
            cells = [_cell(rows, case, size, threads, unit) for unit in ("us", "went-on") for size in SIZES]
            lines.append(f"| `{case}`, the sleeper {where} | {' | '.join(cells)} |")
    return lines


def _calls(rows: Rows) -> list[str]:
    lines = ["| | system calls | |", "|---|---:|---|"]
    for case in rows.cases():
        row = rows.row(case)
        if case.startswith("syscalls-") and row:
            which = ", ".join(f"`{name}` {times:g}" for name, times in row["calls"].items())
            lines.append(f"| {row['of'].removeprefix('system calls of ')} | {row['value']:g} | {which} |")
    return lines


def _scans(rows: Rows) -> list[str]:
    lines = ["| | measured | | |", "|---|---:|---|---|"]
    for case in rows.cases():
        row = next(filter(None, (rows.row(case, size) for size in (*SIZES, "-"))))
        bound, value, unit = row.get("least", row.get("limit")), row["value"], ""
        if bound is None:
            continue
        if case == "memory":
            bound, value, unit = bound / (1 << 20), value / (1 << 20), " MiB"
        shown = f"{value:g}" if row["unit"] == "fetches" else number(value) + unit
        lines.append(f"| `{case}` | {shown} | {'at least' if 'least' in row else 'at most'} {bound:g}{unit} | {row['of']} |")
    return lines


TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "fills": lambda rows: _timed(rows, FILLS),
    "placing": _placing,
    "ranges": lambda rows: _timed(rows, RANGES),
    "wakes": _wakes,
    "calls": _calls,
    "scans": _scans,
}


def written(text: str, rows: Rows) -> str:
    """The page with its figures as the rows have them. Raises KeyError: there is no such row."""
    text = FIGURE.sub(lambda found: figure(rows, *found.groups()), text)
    return TABLE.sub(lambda found: f"{found[1]} -->\n\n" + "\n".join(TABLES[found[1]](rows)) + "\n\n", text)


def main() -> int:
    """Write the pages anew. Returns the exit code: 0."""
    for page, rows in ((PAGE, ROWS), (README, SCAN_ROWS)):
        before = page.read_text()
        after = written(before, Rows(rows))
        page.write_text(after)
        print(f"{page.name}: {'as it was' if after == before else 'figures rewritten: read its sentences again'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
