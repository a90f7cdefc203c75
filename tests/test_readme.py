"""Is what README.md says so?"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_child

import lazymem

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_its_python_runs():
    """One after the other, as a reader would paste them."""
    assert len(blocks("python")) >= 3
    status, out, err = run_child("\n".join(blocks("python")), timeout=60)
    assert status == 0, err
    assert "is closed" in out
    assert "could not be fetched" in out


def test_no_block_is_left_unrun():
    """Every fenced block is Python, which runs above, or commands, which CI runs: two lines first, two for developers."""
    assert re.findall(r"^```(\w*)$", README, re.MULTILINE)[::2] == ["sh", *["python"] * len(blocks("python")), "sh"]
    assert [len(block.strip().splitlines()) for block in blocks("sh")] == [2, 2]


def test_the_reference_has_every_name_and_no_other():
    table = README.split("## Reference")[1].split("| command |")[0]
    names = re.findall(r"^\| `(\w+)", table, re.MULTILINE)
    assert sorted(names) == sorted(lazymem.__all__)


def test_every_command_is_there_and_has_help():
    said = set(re.findall(r"^\| `python -m lazymem (\w+)", README, re.MULTILINE))
    help_of = [sys.executable, "-m", "lazymem", "--help"]
    text = subprocess.run(help_of, capture_output=True, text=True, check=True, timeout=30).stdout
    known = set(re.findall(r"^    (\w+)  ", text, re.MULTILINE))
    assert said == known
    for command in known:
        helped = subprocess.run(
            [sys.executable, "-m", "lazymem", command, "--help"], capture_output=True, text=True, check=True, timeout=30
        )
        assert len(helped.stdout.splitlines()) > 3


def figures():
    """(row's file, case, block, what the table says in ns)."""
    table = README.split("<!-- figures")[1].split("<!-- table: scans")[0]
    for line in re.findall(r"^\| `(\w[\w-]*)`.*$", table, re.MULTILINE):
        cells = [c.strip() for c in re.search(rf"^\| `{line}` .*$", table, re.MULTILINE)[0].strip("|").split("|")]
        for block, cell in zip((4096, 65536, 2 << 20), cells[1:4], strict=True):
            number, unit = cell.replace(",", "").split()
            step = 10 ** -len(number.partition(".")[2])
            yield cells[4].strip("`"), line, block, float(number) * UNITS[unit], step * UNITS[unit]


def test_its_figures_are_rows():
    checked = 0
    for file, case, block, said, step in figures():
        rows = [json.loads(line) for line in (ROOT / "bench" / "results" / file).read_text().splitlines()]
        found = [r for r in rows if r["bench"] == "fault" and r["case"] == case and r["block_nbytes"] == block]
        assert len(found) == 1, (file, case, block)
        assert found[0]["p50_ns"] == pytest.approx(said, abs=step), (case, block)
        checked += 1
    assert checked >= 24


def test_its_first_figure_is_a_row():
    """The two numbers of the first screen."""
    rows = [json.loads(line) for line in (ROOT / "bench/results/fault-root.jsonl").read_text().splitlines()]
    (row,) = [r for r in rows if r["case"] == "inline-native" and r["block_nbytes"] == 4096]
    (ratio,) = [r for r in rows if r["case"] == "inline-native/floor-inline" and r["block_nbytes"] == 4096]
    takes, times = re.search(r"takes ([\d.]+) us here, ([\d.]+) times", README).groups()
    assert row["p50_ns"] / 1000 == pytest.approx(float(takes), abs=0.05)
    assert ratio["value"] == pytest.approx(float(times), abs=0.005)


def test_what_it_says_of_scans_are_rows():
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        import page
    finally:
        sys.path.pop(0)
    assert page.written(README, page.Rows(page.SCAN_ROWS)) == README, "python bench/page.py writes the figures anew"
    assert page.TABLE.findall(README) == ["scans"]
    assert len(page.FIGURE.findall(README)) >= 5


def test_its_ratios_are_rows():
    """What it says of resident arrays, and of the floors."""
    rows = {}
    for file in ("fault-root.jsonl", "array-root.jsonl"):
        for line in (ROOT / "bench" / "results" / file).read_text().splitlines():
            row = json.loads(line)
            if row["bench"] != "fault" and row.get("block_nbytes", 4096) == 4096:
                rows[row["case"]] = row["value"]
    text = " ".join(README.split("## Measured")[1].split())
    for pattern, case in {
        r"at 4 KiB: `inline` ([\d.]+)": "inline-native/floor-inline",
        r"`threads` ([\d.]+) times": "threads-native/floor-threads",
        r"`a.sum\(\)` over 256 MiB ([\d.]+)": "sum",
        r"random gather ([\d.]+)": "gather",
        r"`a\[5\]` ([\d.]+)": "item",
        r"`a\[1:5\]` ([\d.]+)": "slice",
        r"`a\[1:5\] \+ 1` ([\d.]+)": "slice-add",
        r"`import lazymem`: ([\d.]+)": "import",
    }.items():
        assert float(re.search(pattern, text)[1]) == pytest.approx(rows[case], abs=0.0051), case
    asked = {"inline-python/floor-inline": rows["inline-python/floor-inline"]}
    for file in ("provider-root.jsonl", "fuse-root.jsonl"):
        for line in (ROOT / "bench" / "results" / file).read_text().splitlines():
            row = json.loads(line)
            if "value" in row:
                asked[row["case"]] = row["value"]
    for pattern, case, unit, step in (
        (r"awake takes ([\d.]+) times", "inline-python/floor-inline", 1, 0.0051),
        (r"SIGBUS handler, ([\d.]+) of the", "inline-python/memmap-fuse", 1, 0.0051),
        (r"Two processes do ([\d.]+) times", "two-processes", 1, 0.0051),
        (r"first value: ([\d.]+) ms", "first-value", 1e6, 0.51),
        (r"is made in ([\d.]+) ms", "create-second", 1e6, 0.051),
        (r"takes ([\d.]+) MB", "memory-rss", 1e6, 0.51),
        (r"1 MiB: ([\d.]+) of urllib3", "http", 1, 0.0051),
    ):
        assert float(re.search(pattern, text)[1]) == pytest.approx(asked[case] / unit, abs=step), case
    first, later = re.search(r"1 TiB array: ([\d.]+) ms as a process's first, (\d+) us", text).groups()
    assert float(first) * 1e6 == pytest.approx(rows["create-first"], abs=5001)
    assert float(later) * 1e3 == pytest.approx(rows["create-later"], abs=501)
