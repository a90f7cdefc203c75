"""Does `bench copy-or-move` measure what it names, and does bench/COPY_OR_MOVE.md say what was measured?"""

import errno
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support import PAGE, check_child, each_user, run_child

import lazymem
from lazymem.bench.copy_or_move import BLOCKS, DELIVERIES, RATIOS, WAYS

pytestmark = pytest.mark.xdist_group("measuring")

BENCH = Path(lazymem.__file__).resolve().parent.parent / "bench"
CORES = len(os.sched_getaffinity(0))
HUGE = 2 << 20
in_a_checkout = pytest.mark.skipif(not (BENCH / "page.py").is_file(), reason="not a checkout")

# A small field of its own, beside lazymem.bench.copy_or_move: what is expected is computed here.
FIELD = """
    import ctypes, errno, mmap, os
    import numpy as np
    from lazymem.core import moves
    known = moves.start()
    memory = mmap.mmap(-1, 2 * (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    source = np.frombuffer(memory, "u1")
    source[:] = np.random.default_rng(7).integers(0, 256, len(source), np.uint8)
    def lay(way, n, block):
        return moves.lay(way, n, block, source.ctypes.data, min(64, len(source) // block))
    def fill(n, order=None, busy=-1):
        order = np.arange(n, dtype=np.uint64) if order is None else order.astype(np.uint64)
        took, placing = np.full(n, 7, np.uint64), np.full(n, 7, np.uint64)
        moves.fill(order.ctypes.data, len(order), took.ctypes.data, placing.ctypes.data, busy)
        return took, placing
    def expected(n, block):
        blocks = source.reshape(-1, block)[:64]
        return b"".join(bytes(blocks[i % len(blocks)]) for i in range(n))
"""


# ---------------------------------------------------------------------------------------------------------------------------
# core/moves.pyx


@each_user
@pytest.mark.parametrize("block", [PAGE, 16 * PAGE, HUGE])
def test_the_bytes_are_right_after_every_way(block, user):
    """More blocks than the source has, in shuffled order, alone and beside a busy core; fill after fill in a process."""
    n = 5 if block == HUGE else 70
    ways = json.loads(check_child(
        FIELD + f"""
    import json
    block, n, checked = {block}, {n}, []
    busy, right = min(os.sched_getaffinity(0)), expected(n, block)
    for number, way in enumerate(known):
        for core in (-1, busy):
            at = lay(way, n, block)
            order = np.random.default_rng(number).permutation(n)
            took, placing = fill(n, order, core)
            assert (placing <= took).all(), way
            assert core >= 0 or (took > 0).all(), way
            found = ctypes.string_at(at, n * block)
            assert found == (bytes(n * block) if way == "zero" else right), (way, core)
            moves.clear()
        checked.append(way)
    print(json.dumps(checked))
    """,
        user=user,
    ))  # fmt: skip
    assert set(ways) <= set(WAYS)
    assert {"memcpy", "copy", "copy-evicting", "zero", "mremap", "ranges-memcpy", "ranges-mremap"} <= set(ways)


def test_nothing_is_left_behind():
    """Neither mappings nor descriptors nor threads, after every way; what is dropped or moved away is gone from its place."""
    check_child(
        FIELD
        + f"""
    import time
    def left():
        return len(open("/proc/self/maps").readlines()), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    def threads_are(n):
        end = time.monotonic() + 10
        while len(os.listdir("/proc/self/task")) > n and time.monotonic() < end:
            time.sleep(0.002)
    for rounds in range(2):  # the first makes a thread's stack, and what malloc keeps
        before = left()
        for way in known:
            lay(way, 64, {PAGE})
            fill(64, busy=min(os.sched_getaffinity(0)))
            moves.clear()
            threads_are(before[2])
    after = left()
    assert after[1:] == before[1:] and abs(after[0] - before[0]) < 8, (before, after)
    def here(at, n):
        flags = (ctypes.c_ubyte * n)()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(at), ctypes.c_size_t(n * {PAGE}), flags) == 0
        return sum(flag & 1 for flag in flags)
    for way in ("copy-evicting", *("move-recycled" for _ in range("move-recycled" in known))):
        at = lay(way, 64, {PAGE})
        assert (here(at - 64 * {PAGE}, 64), here(at, 64)) == (64, 0), way
        fill(40)
        assert (here(at - 64 * {PAGE}, 64), here(at, 64)) == (24, 40), way
        moves.clear()
    """
    )


@each_user
def test_a_sleeper_gets_its_pages(user):
    """All of them, woken by the copy and apart, on any core; the sleeper goes on after the filling began."""
    check_child(
        FIELD
        + f"""
    n, block = 20, {2 * PAGE}
    for core in (-1, *os.sched_getaffinity(0)):
        for apart in (False, True):
            at = lay("copy", n, block)
            order = np.random.default_rng(1).permutation(n).astype(np.uint64)
            filled, woke = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
            moves.wake(order.ctypes.data, n, filled.ctypes.data, woke.ctypes.data, apart, core)
            assert ctypes.string_at(at, n * block) == expected(n, block), (core, apart)
            assert (filled > 0).all() and (woke > 0).all() and (woke < 10**10).all(), (filled, woke)
            moves.clear()
    """,
        user=user,
    )


def test_a_field_is_laid_once_and_filled_once():
    check_child(
        FIELD
        + f"""
    def refused(kind, call, *arguments):
        try:
            call(*arguments)
        except kind as error:
            return error
        raise SystemExit(f"{{call}} {{arguments}} went well")
    refused(ValueError, lay, "no-such-way", 4, {PAGE})
    refused(ValueError, lay, "copy", 0, {PAGE})
    for block in (0, {PAGE} // 2, 3 * {PAGE}, {2 * HUGE}):
        refused(ValueError, moves.lay, "copy", 4, block, source.ctypes.data, 1)
    refused(ValueError, fill, 4)
    lay("copy", 4, {PAGE})
    refused(RuntimeError, lay, "copy", 4, {PAGE})
    refused(ValueError, fill, 5)
    fill(4)
    assert refused(OSError, fill, 4).errno == errno.EEXIST, "a block that was there already was timed"
    moves.clear()
    moves.clear()
    """
    )


def test_mremap_runs_out_of_mappings():
    """ENOMEM within three of the limit; the process can map again at once. Fewer tries than that: not refused."""
    with open("/proc/sys/vm/max_map_count") as f:
        allowed = int(f.read())
    if allowed > 1 << 17:
        pytest.skip(f"vm.max_map_count is {allowed}")
    check_child(
        FIELD
        + f"""
    moved, mappings, error = moves.run_out(300)
    assert (moved, error) == (300, 0) and 300 < mappings < 2000, (moved, mappings, error)
    moved, mappings, error = moves.run_out({1 << 17})
    assert error == errno.ENOMEM, error
    assert 1000 < moved < mappings and {allowed} - 4 <= mappings <= {allowed} + 1, (moved, mappings)
    np.ones(64 << 20, np.uint8)
    """,
        user="nobody",
    )


# ---------------------------------------------------------------------------------------------------------------------------
# The command


@pytest.mark.slow
def test_rows_are_whole():
    """As an ordinary user: nothing here needs more."""
    command = [sys.executable, "-m", "lazymem", "bench", "copy-or-move", "--quick", "--json"]
    status, out, err = run_child(command, 100, "nobody")
    assert status == 0, err[-3000:]
    rows = [json.loads(line) for line in out.splitlines()]
    for row in rows:
        assert row["bench"] == "copy-or-move"
        assert row["n"] > 0, row
        assert row["value"] > 0, row
        assert row["command"] == "python -m lazymem bench copy-or-move --quick"
        assert row["pinned"] is True
    skipped = set(re.findall(r"copy-or-move: ([\w-]+): skipped: this kernel", err))
    ways = [way for way in WAYS if way not in skipped]
    sides = (1, 2) if CORES > 1 else (1,)
    timed = {(row["case"], row["block_nbytes"], row["threads"]): row for row in rows if row.get("unit") == "ns"}
    expected = {(way, b, t) for way in ways for b in BLOCKS for t in sides if way != "move-fresh-small" or b == HUGE}
    expected |= {(f"wake-{how}", b, t) for how in ("folded", "apart") for b in BLOCKS for t in sides}
    for way in re.findall(r"copy-or-move: ([\w-]+), a second busy core: skipped: others have it", err):
        expected -= {(way, block, 2) for block in BLOCKS} - set(timed)
    assert set(timed) == expected
    for (way, block, _), row in timed.items():
        assert row["spread"] >= 0
        if way.startswith("wake"):
            assert row["went_on_ns"] > 0
            continue
        assert 0 <= row["placing_ns"] <= row["p90_ns"], row
        assert row["gb_per_s"] == pytest.approx(block / row["value"], rel=0.01, abs=0.001)
    ratios = {(row["case"], row["block_nbytes"], row["threads"]) for row in rows if row.get("unit") == "ratio"}
    for above, below in [*RATIOS, ("copy-evicting", "copy"), ("mremap", "copy")]:
        if {above, below} <= set(ways):
            assert {(f"{above}/{below}", block, 1) for block in BLOCKS} <= ratios
    assert all((f"{way}-busy/{way}", b, t) in ratios for way, b, t in timed if t == 2 and not way.startswith("wake"))
    (vmas,) = [row for row in rows if row["case"] == "mremap-vmas"] or [None]
    assert (vmas is None) is ("vmas: skipped: vm.max_map_count" in err)
    if vmas is not None:
        assert (vmas["errno"], vmas["error"], vmas["unit"]) == (errno.ENOMEM, "ENOMEM", "mappings")
        assert vmas["value"] > 1000
    calls = {row["case"]: row for row in rows if row["case"].startswith("syscalls-")}
    if "system calls: skipped: " in err:
        assert not calls
        return
    assert {"syscalls-inline", "syscalls-threads", "syscalls-copy"} <= set(calls)
    assert calls["syscalls-copy"]["calls"]["ioctl"] == 1
    assert "move-recycled" not in ways or calls["syscalls-move-recycled"]["calls"]["ioctl"] == 2
    assert calls["syscalls-inline"]["calls"].items() >= {"ioctl": 1.0, "rt_sigreturn": 1.0}.items()
    assert calls["syscalls-threads"]["calls"]["ioctl"] == pytest.approx(1, abs=0.1)
    assert all("strace -c -f" in row["counted"] for row in calls.values())


@pytest.mark.parametrize(("strace", "said"), [(None, "there is no strace"), (shutil.which("false"), "status 1")])
def test_without_strace_it_says_so(strace, said):
    _, out, err = run_child(
        f"""
        from lazymem.bench import copy_or_move
        copy_or_move.shutil.which = lambda name: {strace!r}
        print(list(copy_or_move._syscalls(True)))
        """
    )
    assert out == "[]\n"
    assert err == f"bench copy-or-move: system calls: skipped: {said}\n"


def test_wrong_bytes_are_no_measurement():
    out = check_child(
        f"""
        import ctypes
        from lazymem.bench.copy_or_move import Field, WrongBytesError
        from lazymem.core import moves
        moves.start()
        field = Field({PAGE}, 8)
        assert len(field.fill("copy", 1, None, True)[0]) == 8
        base = field.lay("memcpy")  # there, and not filled
        try:
            field.check("memcpy", base)
        except WrongBytesError as error:
            print(error)
        """
    )
    assert out == f"memcpy, blocks of {PAGE} bytes: block 0 is wrong\n"


@in_a_checkout
def test_a_picture_of_the_ways(folder):
    pytest.importorskip("matplotlib")
    from lazymem.bench.plot import save_ways

    rows = [json.loads(line) for line in (BENCH / "results" / "copy-or-move-root.jsonl").read_text().splitlines()]
    save_ways(rows, str(folder / "a.png"))
    assert (folder / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "a.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no rows of `bench copy-or-move`"):
        save_ways([row for row in rows if "gb_per_s" not in row], str(folder / "b.png"))


# ---------------------------------------------------------------------------------------------------------------------------
# The page


def page():
    spec = importlib.util.spec_from_file_location("page", BENCH / "page.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["page"] = module
    spec.loader.exec_module(module)
    return module


@in_a_checkout
def test_the_pages_figures_are_rows():
    """Its text and tables are what the rows give; every figure with a unit in its text names its row."""
    made = page()
    text = made.PAGE.read_text()
    rows = made.Rows(made.ROWS)
    assert made.written(text, rows) == text, "python bench/page.py writes the page anew"
    assert len(made.FIGURE.findall(text)) >= 35
    assert set(made.TABLE.findall(text)) == set(made.TABLES) - {"scans"}
    answer = text.split("## The answer")[1].split("## The rows")[0]
    unnamed = re.findall(
        r"(?<![\d.<])[\d.,]+ (?:us|ns|ms|GB/s|times|pages|mappings)\b", re.sub("<!--.*?-->", "", made.FIGURE.sub("", answer))
    )
    assert unnamed == []
    changed = re.sub(r"[\d.,]+(?=<!-- copy 4K 1 us -->)", "9.99", text)
    assert changed != text
    assert made.written(changed, rows) == text
    with pytest.raises(KeyError, match="no row no-such 4K 1"):
        made.written("1<!-- no-such 4K 1 us -->", rows)


@in_a_checkout
def test_the_pages_sentences_hold():
    """What it concludes, of the rows that are committed: should other rows say otherwise, the page has to be written anew."""
    rows = page().Rows(BENCH / "results" / "copy-or-move-root.jsonl")

    def of(case, size="4K", threads=1, key="value"):
        return rows.row(case, size, threads)[key]

    # A page at a time, copying wins; with a busy core by more, and copying itself is as before.
    assert of("move-fresh/copy") > 1.2
    assert of("move-recycled/copy") > 1.2
    assert of("move-fresh", key="placing_ns") > 0.9 * of("copy", key="placing_ns")
    assert of("move-fresh/copy", threads=2) > 2 * of("move-fresh/copy")
    assert of("copy-busy/copy", threads=2) < 1.3
    assert of("move-recycled", threads=2) > of("move-fresh", threads=2)
    assert of("copy-evicting", threads=2) > 2 * of("copy-evicting")
    # A price per call, not per page.
    flush = [of("ranges-move", size, 2) - of("ranges-move", size) for size in ("4K", "64K", "2M")]
    assert max(flush) < 3 * min(flush)
    assert of("move-recycled/copy", "64K") < 1 < of("move-recycled/copy", "64K", 2)
    # 2 MiB at a time, moving does, by far.
    assert of("move-fresh/copy", "2M") < 0.5
    assert of("move-recycled/copy", "2M") < 0.33
    assert of("move-recycled/copy", "2M", 2) < 0.4
    assert of("move-recycled/memcpy", "2M") < 1.3
    assert of("move-fresh-small/copy", "2M") > 1
    for way in ("memcpy", "move-fresh", "move-recycled"):
        assert of(way, "2M", key="huge_nbytes") == 32 * HUGE
    # The rest of the mail.
    assert of("mremap/copy") > 2
    assert of("mremap-vmas", "-", key="error") == "ENOMEM"
    assert of("ranges-move/ranges-mremap") < 0.5
    assert of("ranges-move/ranges-mremap", "2M") < 0.5
    assert of("ranges-move/ranges-memcpy") > 1 > of("ranges-move/ranges-memcpy", "2M")
    assert of("shared-continue/copy", "2M") > of("shared-copy/copy", "2M") > 1
    assert of("syscalls-copy") < of("syscalls-inline")
    assert {f"syscalls-{what}" for what in DELIVERIES} <= set(rows.cases())
