"""What do the rows of `bench fault`, of `bench copy-or-move` and of `bench scan` look like?"""

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


ALONE, BUSY = "#2171b5", "#e6550d"


def _time(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def _speed(gb_per_s: float) -> str:
    return f"{gb_per_s:,.0f} GB/s" if gb_per_s >= 1000 else f"{gb_per_s:.3g} GB/s"


def _matplotlib() -> tuple[Any, Any]:
    """Its Figure and FuncFormatter. Raises ImportError, with what to install."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install 'lazymem[bench]'") from error
    return Figure, FuncFormatter


def _machine(row: dict[str, Any]) -> str:
    return f"{row.get('cpu', '')}, Linux {row.get('kernel', '')}, {'root' if row.get('root') else 'ordinary user'}"


def save(rows: list[dict[str, Any]], path: str) -> None:
    """Draw a bar per case (p50, a line up to p99), grouped by block size.

    Raises
    ------
    ImportError
        matplotlib is missing: the `bench` extra brings it.
    ValueError
        No row of `bench fault`.
    """
    Figure, FuncFormatter = _matplotlib()
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
                    f"{_machine(row)}", fontsize=10)  # fmt: skip
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def save_ways(rows: list[dict[str, Any]], path: str) -> None:
    """Draw the ways of filling: a bar per way (p50), a panel per block size, alone and with a second core busy.

    Raises
    ------
    ImportError
        matplotlib is missing: the `bench` extra brings it.
    ValueError
        No row of `bench copy-or-move`.
    """
    Figure, FuncFormatter = _matplotlib()
    rows = [row for row in rows if row["bench"] == "copy-or-move" and "gb_per_s" in row]
    if not rows:
        raise ValueError("no rows of `bench copy-or-move` to draw")
    sizes = sorted({row["block_nbytes"] for row in rows})
    ways = list(dict.fromkeys(row["case"] for size in reversed(sizes) for row in rows if row["block_nbytes"] == size))
    figure = Figure(figsize=(5 * len(sizes) + 1.5, 0.42 * len(ways) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        for threads, colour, shift in ((1, ALONE, -0.2), (2, BUSY, 0.2)):
            mine = {row["case"]: row for row in rows if row["block_nbytes"] == size and row["threads"] == threads}
            at = [y + shift for y, way in enumerate(ways) if way in mine]
            found = [mine[way] for way in ways if way in mine]
            label = "alone" if threads == 1 else "another thread computes on a second core"
            once = label if size == sizes[0] else None
            axes.barh(at, [row["value"] for row in found], 0.38, color=colour, zorder=2, label=once)
            for y, row in zip(at, found, strict=True):
                axes.annotate(f"{_time(row['value'])}, {_speed(row['gb_per_s'])}", (row["value"], y), xytext=(3, 0),
                              textcoords="offset points", va="center", fontsize=7)  # fmt: skip
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.45)  # room for the numbers
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ns, _: _time(ns)))
        axes.xaxis.grid(True, color="#dddddd", zorder=0)
        axes.set_title(f"block {human(size)}", fontsize=10)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_yticks(range(len(ways)), ways)
    panels[0].invert_yaxis()
    panels[0].set_xlabel("fetch and place one block, p50 (log)")
    figure.suptitle(f"lazymem {rows[0].get('lazymem', '')}: getting a block into place\n{_machine(rows[0])}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def save_scans(rows: list[dict[str, Any]], path: str) -> None:
    """Draw how fast each way of going through a file is: a bar each, ours apart from the others.

    Raises
    ------
    ImportError
        matplotlib is missing: the `bench` extra brings it.
    ValueError
        No row of `bench scan`.
    """
    Figure, _ = _matplotlib()
    rows = [row for row in rows if row["bench"] == "scan" and "gb_per_s" in row]
    if not rows:
        raise ValueError("no rows of `bench scan` to draw")
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    ours = ("time-lazy", "time-first", "time-operation", "time-fill-copy", "time-first-cold", "time-add-lazy")
    colours = [BUSY if row["case"].startswith(ours) else ALONE for row in rows]
    axes.barh(range(len(rows)), [row["gb_per_s"] for row in rows], 0.7, color=colours, zorder=2)
    for y, row in enumerate(rows):
        axes.annotate(_speed(row["gb_per_s"]), (row["gb_per_s"], y), xytext=(3, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["case"].removeprefix("time-") for row in rows])
    axes.invert_yaxis()
    axes.xaxis.grid(True, color="#dddddd", zorder=0)
    axes.set_xlabel("GB/s of the file")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    what = f"lazymem {rows[0].get('lazymem', '')}: a file of {human(rows[0]['nbytes'])} through 32 MiB"
    figure.suptitle(f"{what}\n{_machine(rows[0])}", fontsize=10)
    figure.savefig(path, dpi=100)
