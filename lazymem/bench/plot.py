"""What do the rows of `bench fault` look like?"""

from __future__ import annotations

from typing import Any

from lazymem.counters import human

# One colour per family, so that a case stands beside its floor and can be told from it.
COLOURS = {
    "floor-anon": "#9a9a9a",
    "floor-inline": "#9ecae1", "inline-native": "#2171b5", "inline-file": "#08306b",
    "floor-threads": "#fdbe85", "threads-native": "#e6550d", "threads-file": "#8c2d04",
    "mprotect-native": "#525252",
    "inline-python": "#41b6c4", "inline-python-gil": "#7fcdbb", "threads-python": "#dd3497", "threads-python-gil": "#fa9fb5",
    "inline-provider": "#225ea8", "threads-provider": "#7a0177",
    "floor-wake": "#d9d9d9", "inline-python-asleep": "#238b45", "threads-python-asleep": "#a50f15",
    "auto-native": "#74c476", "auto-file": "#006d2c", "auto-python": "#a1d99b",
    "memmap-warm": "#bcbddc", "memmap-copy": "#6a51a3",
}  # fmt: skip


def _time(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def save(rows: list[dict[str, Any]], path: str) -> None:
    """Draw a bar per case (p50, a line up to p99), grouped by block size.

    Raises
    ------
    ImportError
        matplotlib is missing: the `bench` extra brings it.
    ValueError
        No row of `bench fault`.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install 'lazymem[bench]'") from error
    rows = [row for row in rows if row["bench"] == "fault"]
    if not rows:
        raise ValueError("no rows of `bench fault` to draw")
    groups = list(dict.fromkeys((row["block_nbytes"], row["threads"]) for row in rows))
    cases = [case for case in COLOURS if any(row["case"] == case for row in rows)]
    figure = Figure(figsize=(max(7.0, 1.5 + 0.55 * len(cases) * len(groups)), 5.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.86 / len(cases)
    for i, case in enumerate(cases):
        mine = {(row["block_nbytes"], row["threads"]): row for row in rows if row["case"] == case}
        at = [g + (i - (len(cases) - 1) / 2) * width for g, group in enumerate(groups) if group in mine]
        found = [mine[group] for group in groups if group in mine]
        p50 = [row["p50_ns"] for row in found]
        up = [row["p99_ns"] - row["p50_ns"] for row in found]
        axes.bar(at, p50, 0.92 * width, color=COLOURS[case], label=case, zorder=2)
        axes.errorbar(at, p50, yerr=[[0] * len(up), up], fmt="none", ecolor="#333333", elinewidth=0.9, capsize=2, zorder=3)
        for x, row in zip(at, found, strict=True):
            axes.annotate(_time(row["p50_ns"]), (x, row["p99_ns"]), xytext=(0, 4), textcoords="offset points",
                          ha="center", va="bottom", rotation=90, fontsize=8)  # fmt: skip
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 3)  # room for the numbers
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ns, _: _time(ns)))
    axes.yaxis.grid(True, color="#dddddd", zorder=0)
    axes.set_axisbelow(True)
    several = len({threads for _, threads in groups}) > 1
    axes.set_xticks(
        range(len(groups)), [f"block {human(n)}" + (f", {t} thread{'s' * (t > 1)}" if several else "") for n, t in groups]
    )
    axes.set_ylabel("first touch of a block: p50, line to p99 (log)")
    row = rows[0]
    where = "pinned to one core" if row.get("pinned") else "not pinned"
    figure.suptitle(f"lazymem {row.get('lazymem', '')}: latency of a first touch, {where}\n"
                    f"{row.get('cpu', '')}, Linux {row.get('kernel', '')}, {'root' if row.get('root') else 'ordinary user'}",
                    fontsize=10)  # fmt: skip
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
