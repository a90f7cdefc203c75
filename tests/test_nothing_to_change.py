"""Does code that knows nothing of lazymem get from a lazy array what it gets from an ordinary one?

Each call of tests/calls.py, and numpy's own tests: in children, so that a call that kills its process is found and named.
A library that is not installed is skipped; where LAZYMEM_CALLS=required (pip install '.[calls]'), that is a failure.
"""

import json
import os
import re
from pathlib import Path

import call_kit
import numpy as np
import numpy_kit
import pytest
from call_kit import FORMS
from calls import INPUTS, LIBRARIES, calls_of, counts
from sameness import difference
from support import USERS, run_child

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
IS_REQUIRED = os.environ.get("LAZYMEM_CALLS") == "required"
# First those that compile and learn, so that what ends last is short. Both users run what makes system calls; the rows in
# bench/results are of all, for each.
SLOW = ("numba", "scikit-learn")
RUNS = [(library, USERS[0]) for library in sorted(LIBRARIES, key=lambda name: name not in SLOW)]
RUNS += [
    (library, user) for user in USERS[1:] for library in LIBRARIES if any("kernel" in call.marks for call in calls_of(library))
]


def check(summary):
    if "absent" in summary:
        assert not IS_REQUIRED, summary["absent"]
        pytest.skip(summary["absent"])
    said = "\n".join(f"{call}\n    " + "\n    ".join(complaints) for call, complaints in summary["wrong"])
    assert not said, said


@pytest.mark.slow
@pytest.mark.parametrize(("form", "delivery"), list(zip(FORMS, ("inline", "threads"), strict=True)))
def test_numpys_own_tests(form, delivery):
    summary = numpy_kit.run_in_child(form, delivery)
    check(summary | {"wrong": [(name, [said]) for name, said in summary.get("wrong", [])]})
    assert sorted(summary["expected"]) == sorted(numpy_kit.FAIL_LAZY if form == call_kit.LAZY else numpy_kit.FAIL)
    assert summary["read"] > 1000


@pytest.mark.slow
@pytest.mark.parametrize(("library", "user"), RUNS)
def test_calls(library, user):
    """Results, files, inputs, and what was fetched: each call in both forms, from a file and from a function."""
    summary = call_kit.run_in_child(library, user)
    check(summary)
    calls = list(calls_of(library))
    assert summary["calls"] == summary["equal"] == len(calls)
    ways = len(FORMS) * len(call_kit.deliveries_of(user))
    frozen = [call for call in calls if call.has_to_ask()]
    assert summary["runs"] == ways * (len(calls) + len(frozen))
    assert summary["readonly"] == ways * len(frozen)
    reading = [call for call in calls if call.reads()]
    # What hands all that it is given to system calls that cannot wait reads nothing.
    assert sum("kernel" not in call.marks for call in reading) <= summary["read"] <= len(reading)
    assert (summary["efault"] > 0) == any("kernel" in call.marks for call in calls)


def test_numexpr_on_threads_that_block_signals():
    """Where the touching thread is told by a signal, threads that block it are ended by the kernel: README's limits."""
    pytest.importorskip("numexpr")
    code = """
        import numexpr, numpy as np, lazymem as lm
        numexpr.set_num_threads({})
        plain = np.arange(1 << 17, dtype="f8")
        a = lm.from_provider(plain, dtype="f8", delivery={!r})
        if {}:
            lm.populate(a)
        assert np.array_equal(numexpr.evaluate("a + 1"), plain + 1)
    """
    ended = [
        run_child(code.format(threads, delivery, populated))[0]
        for threads, delivery, populated in (
            (4, "threads", False), (1, "inline", False), (4, "inline", True), (4, "inline", False),
        )
    ]  # fmt: skip
    assert ended == [0, 0, 0, -7]


def test_the_list():
    by_library = counts()
    calls = [call for library in LIBRARIES for call in calls_of(library)]
    assert sum(call.reads() for call in calls) >= 200
    assert len(by_library) >= 6
    assert len({call.text for call in calls}) == len(calls), "a call is listed twice"
    assert all(call.names for call in calls)
    assert {name for call in calls for name in call.names} == set(INPUTS)


def rows(user):
    lines = (ROOT / "bench" / "results" / f"calls-{user}.jsonl").read_text().splitlines()
    return {row["case"]: row for row in map(json.loads, lines)}


def test_the_rows_are_of_this_list():
    """And what the README says of them."""
    for user in ("root", "user"):
        measured = rows(user)
        for library, n in counts().items():
            assert measured[library]["calls"] == measured[library]["equal"] == n, (library, "python bench/calls.py")
    measured = rows("root")
    text = README.split("## Nothing to change")[1].split("\n## ")[0]
    said = re.findall(r"^\| ([\w -]+) \| ([\d.]+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    assert [name for name, *_ in said] == list(LIBRARIES)
    for name, version, n, read in said:
        row = measured[name]
        assert [version, int(n), int(read)] == [row["version"], row["equal"], row["read"]], name
    text = " ".join(text.split())
    total, libraries, read = re.search(r"([\d,]+) calls of (\d+) libraries.*? ([\d,]+) of them read", text).groups()
    assert int(total.replace(",", "")) == sum(counts().values())
    assert int(libraries) == len(LIBRARIES)
    assert int(read.replace(",", "")) == sum(measured[name]["read"] for name in LIBRARIES)
    passed = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) of numpy's own tests", text)]
    assert passed == [min(row["equal"] for name, row in measured.items() if name.startswith("numpy's"))]


def test_the_comparison_tells_apart():
    """What finds no difference must be able to find one."""
    x = np.arange(3.0)
    for got, want in [
        (x, x.astype("f4")), (x, x[None]), (x, x + 1e-15), (x[0], float(x[0])), (x, [*x]), ((x, 1), (x, 2)),
        ({"a": x}, {"b": x}), (x, np.ma.array(x)), (np.ma.array(x, mask=x > 1), np.ma.array(x, mask=x > 5)), (0.0, -0.0),
        ("a", b"a"), (None, False),
    ]:  # fmt: skip
        assert difference(got, want, False), (got, want)
        assert difference(got, got, False) is None
    assert difference(x, x + 1e-15, True) is None
    assert difference(x, x + 1e-3, True)
