"""Did anything become slower between two files of rows?

A row's figure (p50_ns, or value) is compared with that of the row of the same bench, case, block size, threads, pinning and
privilege. Less is better, but of what must be something at `least`. What differs by no more than the larger of the two spreads
is the same. Slower by more than that and by more than TOLERANCE is a failure.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

TOLERANCE = 0.10
# Without a spread of its own a row is taken to be as unsteady as this.
SPREAD_UNKNOWN = 0.10

Key = tuple[str, str, int, int, bool, bool]


class BadRows(ValueError):
    """A file does not hold rows; the message says where."""


@dataclass(frozen=True)
class Verdict:
    """What became of one row.

    Attributes
    ----------
    ratio : float or None
        New / old.
    spread : float or None
        The larger one of the two.
    verdict : str
        "same", "faster", "slower", "gone" (only in the old file) or "new".
    failed : bool
        Slower by more than the spread and the tolerance.
    """

    bench: str
    case: str
    block_nbytes: int
    threads: int
    old: float | None
    new: float | None
    ratio: float | None
    spread: float | None
    verdict: str
    failed: bool


def read_rows(path: str) -> list[dict[str, Any]]:
    """Read a file of JSON lines. Raises BadRows, OSError."""
    rows = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                _figure(row)
                _key(row)
            except (ValueError, TypeError, KeyError) as error:
                raise BadRows(f"{path}, line {number}: no row of a bench ({type(error).__name__}: {error})") from None
            rows.append(row)
    if not rows:
        raise BadRows(f"{path}: no rows")
    return rows


def _figure(row: dict[str, Any]) -> float:
    return float(row["p50_ns"] if "p50_ns" in row else row["value"])


def _key(row: dict[str, Any]) -> Key:
    return (
        str(row["bench"]), str(row["case"]), int(row.get("block_nbytes", 0)), int(row.get("threads", 1)),
        bool(row.get("pinned", True)), bool(row.get("root", True)),
    )  # fmt: skip


def _judge(old: dict[str, Any], new: dict[str, Any]) -> tuple[float, float, str, bool]:
    spread = max(float(row.get("spread", SPREAD_UNKNOWN)) for row in (old, new))
    before, after = _figure(old), _figure(new)
    if before <= 0:  # a figure that may be nothing, bytes say
        return (1.0, spread, "same", False) if after <= 0 else (float("inf"), spread, "slower", True)
    ratio = after / before
    worse = ratio if "least" not in new else before / after if after > 0 else float("inf")
    if worse > 1 + spread:
        return ratio, spread, "slower", worse > 1 + TOLERANCE
    if worse < 1 / (1 + spread):
        return ratio, spread, "faster", False
    return ratio, spread, "same", False


def compare(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[Verdict]:
    """Judge every row of either. Of several rows of one kind in a file the last counts."""
    before = {_key(row): row for row in old}
    after = {_key(row): row for row in new}
    verdicts = []
    for key in [*before, *(k for k in after if k not in before)]:
        head = key[:4]
        if key not in after:
            verdicts.append(Verdict(*head, _figure(before[key]), None, None, None, "gone", False))
        elif key not in before:
            verdicts.append(Verdict(*head, None, _figure(after[key]), None, None, "new", False))
        else:
            verdicts.append(Verdict(*head, _figure(before[key]), _figure(after[key]), *_judge(before[key], after[key])))
    return verdicts


def _number(figure: float | None, width: int, form: str) -> str:
    return f"{'-':>{width}}" if figure is None else f"{figure:>{width}{form}}"


def table(verdicts: list[Verdict]) -> str:
    """For people."""
    lines = [f"{'bench':8} {'case':30} {'block':>8} {'thr':>3} {'old':>11} {'new':>11} {'ratio':>7} {'spread':>7}  verdict"]
    for v in verdicts:
        form = ",.0f" if max(v.old or 0, v.new or 0) >= 1000 else ".4g"
        figures = f"{_number(v.old, 11, form)} {_number(v.new, 11, form)}"
        change = f"{_number(v.ratio, 7, '.3f')} {_number(v.spread, 7, '.1%')}"
        mark = v.verdict.upper() if v.failed else v.verdict
        lines.append(f"{v.bench:8} {v.case:30} {v.block_nbytes:>8} {v.threads:>3} {figures} {change}  {mark}")
    return "\n".join(lines)


def json_rows(verdicts: list[Verdict]) -> list[str]:
    """For programs, a line each."""
    return [json.dumps({**asdict(v), "bench": "compare", "of": v.bench}) for v in verdicts]


def exit_code(verdicts: list[Verdict]) -> int:
    """0; 1: something became slower; 2: the files have nothing in common."""
    if any(v.failed for v in verdicts):
        return 1
    return 0 if any(v.ratio is not None for v in verdicts) else 2
