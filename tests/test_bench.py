"""Does `bench` count what it says, measure what it names, and judge two files rightly?"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import IS_ROOT, PAGE, check_child, each_user, run_child, wait_until

import lazymem
from lazymem.bench import fault
from lazymem.bench.cases import ASLEEP_TOUCHES, BESIDE_PROVIDED, DEFAULTS, PINNED, PROVIDED, RATIOS
from lazymem.bench.compare import BadRows, compare, exit_code, read_rows
from lazymem.bench.provider import _spent_ns
from lazymem.cli import main

# What measures runs in one process of the tests, one after another.
pytestmark = pytest.mark.xdist_group("measuring")

FACTS = {"kernel", "cpu", "cores", "python", "numpy", "lazymem", "revision", "root", "pinned", "date", "command"}
COMMANDS = ("python -m lazymem bench ", "python -m lazymem soak ", "python bench/", "python tests/injection_kit.py")
RESULTS = Path(lazymem.__file__).resolve().parent.parent / "bench" / "results"


ASLEEP = {"floor-wake", "inline-python-asleep", "threads-python-asleep"}


def touches_of(case, plan):
    """How many a row counts."""
    return (min(plan.nblocks, ASLEEP_TOUCHES) if case in ASLEEP else plan.nblocks) * plan.slices * plan.rounds


def bench(*words, user=None, timeout=120, env=None):
    status, out, err = run_child([sys.executable, "-m", "lazymem", "bench", *words], timeout, user, env)
    assert status == 0, err[-3000:]
    return [json.loads(line) for line in out.splitlines()], err


# ---------------------------------------------------------------------------------------------------------------------------
# bench fault


@pytest.mark.slow
@each_user
def test_fault_rows_are_whole(user):
    blocks = (PAGE, 16 * PAGE)
    rows, err = bench("fault", "--quick", "--json", *[word for b in blocks for word in ("--block", str(b))], user=user)
    assert err == ""
    faults = {(row["case"], row["block_nbytes"]): row for row in rows if row["bench"] == "fault"}
    assert set(faults) == {(case, block) for case in PINNED for block in blocks}
    for (case, block), row in faults.items():
        plan = fault.plan_for(block, True)
        assert row["n"] == touches_of(case, plan)
        assert 0 < row["p50_ns"] <= row["p90_ns"] <= row["p99_ns"] <= row["p99_9_ns"], (case, row)
        assert row["p50_ns"] <= 10**9
        assert row["mean_ns"] > 0
        assert row["spread"] >= 0
        assert (row["rounds"], row["threads"], row["pinned"]) == (plan.rounds, 1, True)
    for row in rows:
        assert set(row) >= FACTS
        assert row["root"] is (user == "root" and os.geteuid() == 0)
        assert row["command"] == f"python -m lazymem bench fault --block {blocks[0]} --block {blocks[1]} --quick"
        assert row["lazymem"] == lazymem.__version__
    ratios = {(row["case"], row["block_nbytes"]): row for row in rows if row["bench"] == "ratio"}
    assert set(ratios) == {(f"{a}/{b}", block) for a, b, _ in RATIOS for block in blocks}
    limits = {f"{a}/{b}": limit for a, b, limit in RATIOS}
    cores = len(os.sched_getaffinity(0))
    for (case, block), row in ratios.items():
        assert row["value"] > 0, case
        judged = block == PAGE and limits[case] is not None and (cores > 1 or "python" not in case)
        assert ("ok" in row) == judged
        if judged:
            assert row["limit"] == limits[case]
            assert row["ok"] is (row["value"] <= row["limit"])


@pytest.mark.long
def test_unpinned_and_several_threads():
    rows, err = bench("fault", "--quick", "--block", str(64 << 10), "--threads", "1", "3", user="nobody")
    faults = [row for row in rows if row["bench"] == "fault"]
    assert {(row["case"], row["threads"]) for row in faults} == {(c, t) for c in (*PINNED, *DEFAULTS) for t in (1, 3)}
    plan = fault.plan_for(64 << 10, True)
    assert all(row["n"] == touches_of(row["case"], plan) for row in faults)
    assert all(row["touches_per_s"] > 0 and not row["pinned"] for row in faults)
    assert all(f"{row['case']} " in err for row in faults), "the table for people lacks a case"


@pytest.mark.long
def test_a_touch_costs_more_where_more_is_copied():
    """The clock is around the fault: 256 times the bytes take longer, in every case that copies."""
    rows, _ = bench("fault", "--quick", "--json", "--block", str(PAGE), "--block", str(256 * PAGE))
    p50 = {(row["case"], row["block_nbytes"]): row["p50_ns"] for row in rows if row["bench"] == "fault"}
    for case in set(PINNED) - ASLEEP - {"memmap-warm"}:
        assert p50[case, 256 * PAGE] > 4 * p50[case, PAGE], (case, p50)


def test_only_the_cases_asked_for():
    rows, _ = bench("fault", "--quick", "--block", "8KiB", "--case", "floor-inline", "--json")
    assert [row["case"] for row in rows] == ["floor-inline"]
    status, out, err = run_child([sys.executable, "-m", "lazymem", "bench", "fault", "--quick", "--case", "floor-outline"])
    assert (status, out) == (2, "")
    assert "floor-outline" in err


@pytest.mark.parametrize("block", ["3000", "12KiB", "4MiB", "x"])
def test_a_block_that_cannot_be(block, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "fault", "--block", block])
    assert stopped.value.code == 2
    assert block in capsys.readouterr().err


@pytest.mark.parametrize("delivery", ["inline", "threads"])
def test_a_floor_copies_each_block_once_on_one_fault(delivery):
    """What stands below the ratio does the work: right bytes, one fault a block, none on a second touch."""
    check_child(
        f"""
        import ctypes, mmap
        import numpy as np
        from lazymem.core import measure
        block, n = 2 * mmap.PAGESIZE, 300
        source = np.random.default_rng(5).integers(1, 255, block, np.uint8)
        measure.floor_start({delivery!r}, source.ctypes.data, block)
        base, mapping, nbytes = measure.floor_map(n * block)
        offsets = np.random.default_rng(6).permutation(n).astype(np.uint64) * np.uint64(block)
        took = np.zeros(n, np.uint64)
        wall = measure.touch(base, offsets.ctypes.data, took.ctypes.data, n)
        assert measure.floor_served() == n, measure.floor_served()
        assert (took > 0).all() and took.sum() <= wall, (took.sum(), wall)
        region = np.ctypeslib.as_array(ctypes.cast(base, ctypes.POINTER(ctypes.c_uint8)), (n, block))
        assert (region == source).all()
        again = np.zeros(n, np.uint64)
        measure.touch(base, offsets.ctypes.data, again.ctypes.data, n)
        assert measure.floor_served() == n
        assert np.median(again) < np.median(took)
        del region
        measure.floor_unmap(mapping, nbytes)
        try:
            measure.floor_start({delivery!r}, source.ctypes.data, block)
        except RuntimeError:
            pass
        else:
            raise SystemExit("a second floor in one process")
        """
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_touching_threads_share_the_places(threads):
    """Every place once, whoever touches it: by what a write leaves behind."""
    check_child(
        f"""
        import mmap
        import numpy as np
        from lazymem.core import measure
        n, page = 101, mmap.PAGESIZE
        memory = np.zeros(3 * n * page, np.uint8)
        offsets = np.arange(n, dtype=np.uint64)[::-1] * np.uint64(3 * page)
        took = np.zeros(n, np.uint64)
        wall = measure.touch(memory.ctypes.data, offsets.ctypes.data, took.ctypes.data, n, 2 * page, {threads})
        assert (took > 0).all() and took.max() <= wall
        pages = memory.reshape(n, 3, page)
        assert (pages[:, :2, 0] == 1).all() and memory.sum() == 2 * n   # a byte in each of two pages, the third left alone
        """
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_a_pause_comes_before_each_touch_and_is_not_counted_in_it(threads):
    check_child(
        f"""
        import mmap
        import numpy as np
        from lazymem.core import measure
        n, page = 12, mmap.PAGESIZE
        memory = np.zeros(n * page, np.uint8)
        offsets, took = np.arange(n, dtype=np.uint64) * np.uint64(page), np.zeros(n, np.uint64)
        wall = measure.touch(
            memory.ctypes.data, offsets.ctypes.data, took.ctypes.data, n, threads={threads}, pause_ns=30_000_000
        )
        assert wall >= n // {threads} * 30_000_000, wall
        assert np.median(took) < 10_000_000, took
        """
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_the_gil_is_kept_while_touching_if_so_asked(threads):
    """By how often another thread of Python's comes round meanwhile."""
    check_child(
        f"""
        import sys, threading, time
        import numpy as np
        from lazymem.core import measure
        sys.setswitchinterval(1000)  # nobody is asked to give it up
        memory, offsets, took = np.zeros(8, np.uint8), np.arange(4, dtype=np.uint64), np.zeros(4, np.uint64)
        rounds = 0
        def run():
            global rounds
            while True:
                rounds += 1
                time.sleep(0.001)
        threading.Thread(target=run, daemon=True).start()
        def rounds_while(keep):
            before = rounds
            measure.touch(
                memory.ctypes.data, offsets.ctypes.data, took.ctypes.data, 4, 0, {threads}, pause_ns=100_000_000, keep_gil=keep
            )
            return rounds - before
        assert rounds_while(False) >= 5
        assert rounds_while(True) == 0
        """
    )


def test_the_floor_of_waking_wakes_a_process_that_sleeps():
    """It is asleep before it is asked, has answered all, and goes when who asks does."""
    pid = int(check_child(
        """
        import os, sys, time
        import numpy as np
        from lazymem.core import measure
        took = np.zeros(20, np.uint64)
        try:
            measure.wake(took.ctypes.data, 1, 0)
        except RuntimeError as error:
            assert "wake_start" in str(error)
        else:
            sys.exit("woke nobody")
        pid = measure.wake_start()
        wall = measure.wake(took.ctypes.data, 20, 2_000_000)
        assert (took > 0).all() and wall >= 20 * 2_000_000 + took.sum(), (took, wall)
        time.sleep(0.1)
        state, switches = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0], open(f"/proc/{pid}/status").read()
        assert state == "S", state
        assert int(switches.split("voluntary_ctxt_switches:")[1].split()[0]) >= 20, "it was not asleep each time"
        try:
            measure.wake_start()
        except RuntimeError:
            print(pid)
        """
    ))  # fmt: skip
    assert wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_hot_memory_is_one_page():
    grown, nbytes = json.loads(check_child(
        """
        import json, mmap
        from lazymem.bench.cases import hot_memory
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE
        hot_memory(mmap.PAGESIZE)
        before = resident()
        memory = hot_memory(64 << 20)
        print(json.dumps([resident() - before, len(memory)]))
        """
    ))  # fmt: skip
    assert nbytes == 64 << 20
    assert grown < 8 << 20  # of 64 MiB; the kernel's own count is some hundred pages coarse


def test_pinned_means_the_handler_threads_too():
    core = max(os.sched_getaffinity(0))
    with fault.Child("threads-native", fault.plan_for(PAGE, True), "", core) as child:
        child.slice(1, 1)
        tasks = list(Path(f"/proc/{child._process.pid}/task").iterdir())
        names = [(task / "comm").read_text().strip() for task in tasks]
        assert "lazymem-handler" in names
        assert [os.sched_getaffinity(int(task.name)) for task in tasks] == [{core}] * len(tasks)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core for both")
@pytest.mark.parametrize("name", ["inline-python", "threads-python-asleep"])
def test_a_provider_process_has_a_core_of_its_own(name):
    """All threads of the toucher's on one, all of the process's on another; and it is asked waiting awake."""
    core = max(os.sched_getaffinity(0))
    with fault.Child(name, fault.plan_for(PAGE, True), "", core) as child:
        child.slice(1, 1)
        child.slice(2, 1)
        asked = [
            int(pid) for pid in Path(f"/proc/{child._process.pid}/task/{child._process.pid}/children").read_text().split()
        ]
        assert len(asked) == 1
        for pid, place in ((child._process.pid, core), (asked[0], fault._another(core))):
            tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
            assert [os.sched_getaffinity(task) for task in tasks] == [{place}] * len(tasks)


@pytest.fixture
def own_providers(folder):
    """A module of a user's, readable by everybody."""
    (folder / "own_providers.py").write_text(
        """
import time
class Slow:
    nbytes = 100_000
    block_nbytes = 5000
    def read_into(self, buffer, offset):
        time.sleep(0.05)
        buffer[:] = b"x" * len(buffer)
def make():
    return Slow()
ready = Slow()
class Short(Slow):
    nbytes = 8192
class Fails(Slow):
    def read_into(self, buffer, offset):
        raise LookupError("nothing here")
"""
    )
    folder.chmod(0o755)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(lazymem.__file__).resolve().parent.parent)])}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Slow", "make", "ready"])
def test_a_provider_of_the_users(own_providers, name):
    """Touched as often as time allows, in whole pages as it says, beside what asking costs."""
    where = f"own_providers:{name}"
    rows, _ = bench("fault", "--quick", "--json", "--provider", where, env=own_providers)
    faults = {row["case"]: row for row in rows if row["bench"] == "fault"}
    block = -(-5000 // PAGE) * PAGE
    assert {row["block_nbytes"] for row in faults.values()} == {block}
    assert set(faults) == {*BESIDE_PROVIDED, *PROVIDED}
    for case in PROVIDED:
        # 50 ms each: of the eleven blocks besides the last, at most eight are begun within a quarter of a second.
        assert 4 <= faults[case]["n"] <= 8 * 4
        assert 50e6 <= faults[case]["p50_ns"] < 2e9
        assert faults[case]["command"].endswith(f"bench fault --provider {where} --quick")


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("own_providers", 2, "MODULE:NAME"),
        ("own_providers:nobody", 2, "nobody"),
        ("no_such_module:x", 2, "no_such_module"),
        ("own_providers:time", 2, "not callable"),
        ("own_providers:Short", 1, "at least two blocks"),
        ("own_providers:Fails", 1, "nothing here"),
    ],
)
def test_a_provider_of_the_users_that_cannot_be_measured(own_providers, where, status, said):
    words = ["fault", "--quick", "--provider", where, "--case", "inline-provider"]
    ended, out, err = run_child([sys.executable, "-m", "lazymem", "bench", *words], env=own_providers)
    assert (ended, out) == (status, "")
    assert said in err
    assert "most recent call last" not in err or where.endswith("Fails")  # which is the user's own


def test_the_same_order_for_every_case_and_another_for_every_slice():
    seen = []

    class Spy:
        def slice(self, seed, threads):
            seen.append(seed)
            return np.ones(4, np.uint64), 4

    plan = fault.Plan(PAGE, 4, 3, 2)
    took, walls = fault.take_turns([Spy(), Spy()], plan, 1, lambda text: None)
    counted = seen[4:]  # after the warm-up
    assert len(counted) == 2 * 3 * 2
    assert counted[::2] == counted[1::2]
    assert len(set(counted)) == 6
    assert [[len(r) for r in rounds] for rounds in took] == [[12, 12]] * 2
    assert walls == [[12, 12]] * 2


def test_a_summary_is_the_median_of_the_rounds():
    rounds = [np.arange(1, 1001) * k for k in (1, 3, 2)]
    row = fault.summary(rounds, [10**9, 10**9, 2 * 10**9])
    assert row == {
        "n": 3000, "p50_ns": 1001, "p90_ns": 1800, "p99_ns": 1980, "p99_9_ns": 1998, "mean_ns": 1001, "spread": 1.0,
        "rounds": 3, "touches_per_s": 1000,
    }  # fmt: skip


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    """Each round's own: noise that hits both cases of a round alike cancels."""
    names = ["floor-inline", "inline-native", "floor-threads"]  # no threads-native: no ratio of it
    took = [[np.full(5, b) for b in (100, 400, 200)], [np.full(5, a) for a in (110, 480, 260)], [np.full(5, 1)] * 3]
    (row,) = fault._ratio_rows(names, took, {"block_nbytes": PAGE, "threads": 1})
    assert (row["case"], row["value"], row["spread"]) == ("inline-native/floor-inline", 1.2, round(0.2 / 1.2, 4))
    assert (row["limit"], row["ok"], row["rounds"]) == (1.25, True, 3)
    (row,) = fault._ratio_rows(names, [took[0], [r * 2 for r in took[1]], took[2]], {"block_nbytes": PAGE, "threads": 1})
    assert row["ok"] is False


def test_asking_a_process_is_judged_where_it_has_a_core_of_its_own(monkeypatch):
    names = ["inline-python", "floor-inline"]
    took = [[np.full(5, 150)], [np.full(5, 100)]]
    for cores, judged in (({0, 1}, True), ({0}, False)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: cores)
        (row,) = fault._ratio_rows(names, took, {"block_nbytes": PAGE, "threads": 1})
        assert row["value"] == 1.5
        assert ("limit" in row) is judged


@pytest.mark.parametrize(
    ("name", "path", "said"), [("inline-file", "/nowhere/at/all", "FileNotFoundError"), ("no-such", "", "no case 'no-such'")]
)
def test_a_case_that_fails_says_why(name, path, said):
    with fault.Child(name, fault.plan_for(PAGE, True), path, None) as child, pytest.raises(fault.BenchError) as failed:
        child.slice(1, 1)
    assert name in str(failed.value)
    assert said in str(failed.value)


@pytest.mark.parametrize("sig", [signal.SIGSTOP, signal.SIGKILL])
def test_a_case_that_hangs_or_dies_is_an_error(monkeypatch, sig):
    plan = fault.plan_for(PAGE, True)
    with fault.Child("floor-anon", plan, "", None) as child:
        child.slice(1, 1)
        monkeypatch.setattr(fault, "SLICE_LIMIT_S", 0.5)
        child._process.send_signal(sig)
        began = time.monotonic()
        with pytest.raises(fault.BenchError, match="floor-anon") as failed:
            child.slice(2, 1)
        child.__exit__(fault.BenchError, failed.value, None)
    assert time.monotonic() - began < 15
    assert child._process.returncode == -signal.SIGKILL


def test_a_touch_that_was_no_fault_is_not_counted_silently():
    """A case whose pages are there already would measure nothing: it refuses."""
    out = check_child(
        """
        import lazymem as lm
        from lazymem.bench.cases import PAGE_NBYTES, make_case
        case = make_case("inline-native", 8 * PAGE_NBYTES, PAGE_NBYTES, "", [], "")
        case.make()
        lm.populate(case._array)
        try:
            case.end(8)
        except RuntimeError as error:
            print("refused:", error)
        """
    )
    assert out.startswith("refused: 8 touches, but 0 faults")


def test_a_picture(folder):
    pytest.importorskip("matplotlib")
    path = folder / "a.png"
    words = ["fault", "--quick", "--block", str(PAGE), "--case", "floor-anon", "--case", "inline-file", "--png", str(path)]
    rows, _ = bench(*words)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 10_000
    assert all(str(folder) not in json.dumps(row) for row in rows), "a row names a path of this machine"


def test_a_picture_without_matplotlib_says_what_to_install(folder):
    status, out, err = run_child(
        f"""
        import sys
        sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
        from lazymem.cli import main
        words = "bench fault --quick --block {PAGE} --case floor-anon --png {folder}/a.png"
        raise SystemExit(main(words.split()))
        """
    )
    assert status == 1
    assert len(out.splitlines()) == 1, "the rows are lost"
    assert "lazymem[bench]" in err
    assert not (folder / "a.png").exists()


# ---------------------------------------------------------------------------------------------------------------------------
# bench array


@each_user
def test_array_rows_are_whole(user):
    rows, _ = bench("array", "--quick", "--json", user=user)
    limits = {
        "sum": 1.05, "sum-same-pages": 1.05, "gather": 1.05, "item": 2.0, "slice": 2.0, "slice-add": 2.0, "create-first": 2e6,
        "create-later": 2e6, "create-first-memory": 2 << 20, "create-later-memory": 2 << 20, "import": 1.3,
    }  # fmt: skip
    assert {row["case"]: row["limit"] for row in rows} == limits
    for row in rows:
        assert set(row) >= FACTS
        assert row["bench"] == "array"
        assert row["ok"] is (row["value"] <= row["limit"])
        if row["unit"] == "ratio":
            assert 0.2 < row["value"] < 20, row
            assert row["lazy_ns"] > 0 < row["plain_ns"]
    # Not times of a few runs, so they hold here too.
    memory = {row["case"]: row["value"] for row in rows if row["unit"] == "bytes"}
    assert all(value <= 2 << 20 for value in memory.values()), memory


# ---------------------------------------------------------------------------------------------------------------------------
# bench provider


@pytest.mark.slow
@each_user
def test_provider_rows_are_whole(user):
    rows, err = bench("provider", "--quick", "--json", user=user)
    found = {row["case"]: row for row in rows}
    bounds = {
        "two-processes": ("least", 1.7), "create-first": None, "first-value": ("limit", 250e6),
        "create-second": ("limit", 2e6), "memory-rss": ("limit", 40e6), "memory-pss": None, "memory-uss": None,
        "idle-inline": ("limit", 0.1), "idle-threads": ("limit", 0.1), "http": ("least", 0.8),
    }  # fmt: skip
    if "http: skipped" in err:
        del bounds["http"]
    else:
        assert err == ""
    if len(os.sched_getaffinity(0)) < 2:
        bounds["two-processes"] = None
    assert set(found) == set(bounds)
    for case, row in found.items():
        assert set(row) >= FACTS
        assert (row["bench"], row["pinned"]) == ("provider", False)
        assert row["value"] > 0, case
        assert {key: row[key] for key in ("limit", "least") if key in row} == dict([bounds[case]] if bounds[case] else [])
        if bounds[case]:
            assert row["ok"] is (row["value"] <= row["limit"] if "limit" in row else row["value"] >= row["least"])
    # Not times of a few runs, so they hold here too.
    assert found["memory-rss"]["ok"]
    assert found["memory-uss"]["value"] <= found["memory-pss"]["value"] <= found["memory-rss"]["value"]
    assert found["create-first"]["value"] < found["first-value"]["value"]


def test_idleness_is_counted_of_all_threads_of_another_process():
    burning = (
        "import threading, time\nt = threading.Thread(target=sum, args=(range(10**7),))\n"
        "t.start(); t.join(); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", burning], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        spent = _spent_ns(child.pid)
        again = _spent_ns(child.pid)
        child.kill()
    assert 20e6 < spent < 60e9
    assert again - spent < 20e6


# ---------------------------------------------------------------------------------------------------------------------------
# bench failure


@pytest.mark.slow
def test_failure_rows_are_whole():
    rows, err = bench("failure", "--quick", "--json")
    assert err == ""
    found = {row["case"]: row for row in rows}
    deliveries = ("inline", "threads")
    ways = ("operation", "populate", "guard", "told")
    limits = {f"raised-{way}-{d}-{n}": 1e6 for way in ways for d in deliveries for n in (0, 3)}
    limits |= {f"others-{kind}-{d}": 1.5 for kind in ("native", "python") for d in deliveries}
    assert {case: row.get("limit") for case, row in found.items()} == limits | {"fork-r": 2.0, "fork-c": None}
    for row in rows:
        assert set(row) >= FACTS
        assert row["value"] > 0
    assert all(row["hung_on"] == row["rounds"] for case, row in found.items() if case.startswith("others"))


# ---------------------------------------------------------------------------------------------------------------------------
# bench/fuse.py


@pytest.mark.skipif(not RESULTS.is_dir(), reason="not a checkout")
@each_user
def test_fuse_gives_rows_or_says_why_not(user):
    status, out, err = run_child([sys.executable, str(RESULTS.parent / "fuse.py"), "--quick"], 120, user)
    assert status == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    if user == "nobody" or not rows:
        assert rows == []
        assert err.startswith("bench/fuse.py: skipped: ")
        assert ("only root" in err) is (user == "nobody" or not IS_ROOT)
        return
    assert {row["case"] for row in rows} == {"memmap-fuse", "memmap-fuse-apart", "inline-python", "inline-python/memmap-fuse"}
    plan = fault.plan_for(PAGE, True)
    for row in rows:
        assert set(row) >= FACTS
        assert row.get("n", row.get("limit")) in (plan.nblocks * plan.slices * plan.rounds, 0.35)


# ---------------------------------------------------------------------------------------------------------------------------
# bench compare


def row_of(p50_ns=1000, case="inline-native", **more):
    return {"bench": "fault", "case": case, "block_nbytes": 4096, "p50_ns": p50_ns, "spread": 0.02} | more


@pytest.mark.parametrize(
    ("old", "new", "verdict", "code"),
    [
        (row_of(1000), row_of(1000), "same", 0),
        (row_of(1000), row_of(1015), "same", 0),
        (row_of(1000), row_of(985), "same", 0),
        (row_of(1000), row_of(900), "faster", 0),
        (row_of(1000), row_of(1050), "slower", 0),  # beyond the spread, within 10 %
        (row_of(1000), row_of(1150), "slower", 1),
        (row_of(1000), row_of(1150, spread=0.3), "same", 0),
        (row_of(1000, spread=0.3), row_of(1150), "same", 0),
        (row_of(1000, spread=0.3), row_of(1350), "slower", 1),
    ],
)
def test_compare_verdicts(folder, capsys, old, new, verdict, code):
    paths = [folder / "old.jsonl", folder / "new.jsonl"]
    for path, row in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps(row) + "\n")
    assert main(["bench", "compare", *map(str, paths)]) == code
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[-1] == (verdict.upper() if code else verdict)
    assert main(["bench", "compare", *map(str, paths), "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["failed"]) == (verdict, bool(code))
    assert answer["ratio"] == pytest.approx(new["p50_ns"] / old["p50_ns"])


def test_of_what_must_be_at_least_something_less_is_worse():
    def judge(before, after):
        rows = [[{"bench": "provider", "case": "http", "value": value, "least": 0.8}] for value in (before, after)]
        (verdict,) = compare(*rows)
        return verdict.verdict, verdict.failed, verdict.ratio

    assert judge(1.0, 0.5) == ("slower", True, 0.5)
    assert judge(1.0, 1.5) == ("faster", False, 1.5)
    assert judge(1.0, 1.05) == ("same", False, 1.05)
    assert judge(1.0, 0.0) == ("slower", True, 0.0)


def test_one_slower_among_many_is_enough():
    old = [row_of(case=str(i)) for i in range(20)]
    new = [row_of(case=str(i), p50_ns=2000 if i == 13 else 500) for i in range(20)]
    verdicts = compare(old, new)
    assert [v.case for v in verdicts if v.failed] == ["13"]
    assert exit_code(verdicts) == 1


def test_rows_of_other_circumstances_are_not_compared():
    others = ({"threads": 2}, {"pinned": False}, {"root": False}, {"block_nbytes": 65536}, {"case": "other"})
    old = [row_of(threads=1), *(row_of(9, **other) for other in others)]
    assert {v.verdict for v in compare(old, [row_of()])} == {"same", "gone"}
    assert [v.verdict for v in compare([row_of(9, threads=2)], [row_of()])] == ["gone", "new"]
    assert exit_code(compare([row_of(9, threads=2)], [row_of()])) == 2


def test_values_and_the_last_of_several_rows_count():
    old = [{"bench": "array", "case": "sum", "value": 9.0}, {"bench": "array", "case": "sum", "value": 1.0}]
    verdicts = compare(old, [{"bench": "array", "case": "sum", "value": 1.2}])
    assert [(v.verdict, v.failed, v.ratio) for v in verdicts] == [("slower", True, 1.2)]
    free = [{"bench": "array", "case": "memory", "value": 0}]
    assert [v.verdict for v in compare(free, free)] == ["same"]
    assert [v.failed for v in compare(free, [{**free[0], "value": 4096}])] == [True]


@pytest.mark.parametrize("text", ["", "\n\n", "{}\n", "[1]\n", "no json\n", '{"bench": "a", "case": "b"}\n'])
def test_files_that_hold_no_rows(folder, capsys, text):
    good, bad = folder / "good.jsonl", folder / "bad.jsonl"
    good.write_text(json.dumps(row_of()) + "\n")
    bad.write_text(text)
    with pytest.raises(BadRows, match=r"bad\.jsonl"):
        read_rows(str(bad))
    assert main(["bench", "compare", str(good), str(bad)]) == 2
    assert main(["bench", "compare", str(good), str(folder / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


@pytest.mark.skipif(not RESULTS.is_dir(), reason="not a checkout")
def test_committed_rows_can_be_read_and_say_how_they_were_made():
    files = sorted(RESULTS.glob("*.jsonl"))
    assert files
    for path in files:
        for row in read_rows(str(path)):
            assert set(row) >= FACTS, path
            assert row["command"].startswith(COMMANDS)
            assert " /" not in row["command"]
        assert exit_code(compare(read_rows(str(path)), read_rows(str(path)))) == 0
