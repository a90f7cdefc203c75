"""Does `bench scan` measure all that it names, on arrays that hold what they should?"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support import check_child, each_user, run_child

import lazymem
from lazymem.bench import scan

pytestmark = pytest.mark.xdist_group("measuring")

BENCH = Path(lazymem.__file__).resolve().parent.parent / "bench"
in_a_checkout = pytest.mark.skipif(not (BENCH / "page.py").is_file(), reason="not a checkout")

TIMES = {*(f"time-{name}" for name in scan._SIDES), *(f"time-add-{name}" for name in ("lazy", "hand", "hand-small"))}
COLD = {"time-first-cold", "time-memmap-cold", "scan-cold-memmap"}
LIMITS = {
    "scan": ("least", 0.85), "scan-fill-copy": ("least", 2.5), "scan-memmap": ("least", 0.4),
    "scan-cold-memmap": ("least", 0.9), "memory": ("limit", (32 + 64) << 20), "random": ("limit", 1.3),
    "hot": ("limit", 2), "hot-together": ("limit", 2), "add": ("limit", 2.5), "table": ("limit", 4.1),
}  # fmt: skip
OTHERS = {"scan-first", "scan-first-memmap", "scan-operation", "scan-hand", "random-default-block", "create-64-tib"}


@pytest.mark.slow
@each_user
def test_rows_are_whole(user, folder):
    """All of them, each with its limit; what counts, not times, is right."""
    command = [sys.executable, "-m", "lazymem", "bench", "scan", "--quick", "--json"]
    status, out, err = run_child(command, 100, user)
    assert status == 0, err[-3000:]
    rows = {row["case"]: row for row in map(json.loads, out.splitlines())}
    skipped = COLD if "a cold file: skipped" in err else set()
    assert set(rows) == (TIMES | COLD | set(LIMITS) | OTHERS) - skipped
    for case, row in rows.items():
        assert (row["bench"], row["command"], row["pinned"]) == ("scan", "python -m lazymem bench scan --quick", False)
        assert row["value"] > 0, row
        assert row["n"] > 0, row
        assert len(row["of"]) > 5, row
        assert row.get("spread", 0) >= 0, row
        assert ("gb_per_s" in row) is case.startswith("time-")
        if case in LIMITS:
            kind, bound = LIMITS[case]
            assert row[kind] == bound
            assert row["ok"] is (row["value"] >= bound if kind == "least" else row["value"] <= bound)
        else:
            assert "ok" not in row
    assert rows["hot"]["hot_blocks"] == rows["hot-together"]["hot_blocks"] == 51
    assert 1 <= rows["hot"]["mean_fetches"] <= rows["hot"]["value"]
    assert rows["hot"]["ok"], rows["hot"]
    assert rows["hot-together"]["value"] <= 4, rows["hot-together"]    # (so few rounds, and a busy machine)
    assert 3.5 < rows["table"]["value"] < 4.5
    memory = rows["memory"]
    assert memory["held_nbytes"] == scan.BUDGET_NBYTES
    assert scan.BUDGET_NBYTES / 2 < memory["own_nbytes"] <= memory["value"] < memory["nbytes"]
    assert memory["ok"], memory
    assert rows["add"]["against"] in ("time-add-hand", "time-add-hand-small")


def test_who_begins_changes_and_the_first_round_does_not_count():
    order, times = [], iter(range(100))

    def side(name):
        def run():
            order.append(name)
            return next(times)

        return run

    took = scan._take_turns({name: side(name) for name in "abc"}, 2)
    assert "".join(order) == "abcbcacab"
    assert took == {"a": [5, 7], "b": [3, 8], "c": [4, 6]}


def test_the_sum_is_that_of_the_file():
    nbytes = 3 * scan.HUGE_NBYTES
    with scan._file(nbytes) as path:
        values = np.fromfile(path)
        assert values.nbytes == nbytes
        pieces = values.reshape(3, -1)
        assert (np.floor(pieces) == [[0], [1], [2]]).all()
        assert scan._sum_of(nbytes) == pytest.approx(values.sum(), rel=1e-12)
        scans = scan._Scans(path, nbytes)
        try:
            assert scans.hand() > 0
            with open(path, "r+b") as f:
                f.write(np.array([1000.0]).tobytes())
            for way in (scans.hand, scans.memmap, scans.lazy, scans.operation):
                with pytest.raises(scan.WrongSumError):
                    way()
        finally:
            scans.close()


def test_fetches_are_counted():
    """The bench's way of counting them, by what the file holds when it is read, against the counters: half the hot blocks are
    evicted before each turn."""
    check_child(
        """
        import numpy as np
        import lazymem as lm
        from lazymem.bench import scan
        was, region, turns = scan.lm.memmap, [], 0
        class Plain(np.ndarray):
            def __getitem__(self, what):
                global turns
                if isinstance(what, np.ndarray):
                    a = region[0]
                    turns += 1
                    while lm.evict(a[: 10 * 65536 * 26 // 8]):
                        pass
                return np.ndarray.__getitem__(self, what).view(np.ndarray)
        def spied(*args, **options):
            region.append(was(*args, **options))
            return region[-1]
        class Asarray:
            def __getattr__(self, name):
                return getattr(np, name)
            def asarray(self, a):
                return np.asarray(a).view(Plain)
        scan.lm = type("Lm", (), {name: getattr(lm, name) for name in dir(lm)} | {"memmap": staticmethod(spied)})
        scan.np = Asarray()
        row = next(scan._hot(True))
        assert row["value"] == turns == row["n"], row
        assert 26 / 51 * turns < row["mean_fetches"] < 28 / 51 * turns + 3, row
        """
    )


@in_a_checkout
def test_a_picture_of_the_scans(folder):
    pytest.importorskip("matplotlib")
    from lazymem.bench.plot import save_scans

    rows = [json.loads(line) for line in (BENCH / "results" / "scan-root.jsonl").read_text().splitlines()]
    save_scans(rows, str(folder / "a.png"))
    assert (folder / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "a.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no rows of `bench scan`"):
        save_scans([row for row in rows if "gb_per_s" not in row], str(folder / "b.png"))
