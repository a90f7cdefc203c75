"""Does code that knows nothing of lazymem get from a lazy array what it gets from an ordinary one?

Each call of tests/calls.py, and numpy's own tests: in children, so that a call that kills its process is found and named.
"""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from call_kit import FORMS, LAZY
from calls import INPUTS, LIBRARIES, calls_of, counts
from numpy_kit import FAIL, FAIL_LAZY, MODULES
from support import USERS, each_user, run_child

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
# Those that take so long, to compile or to learn, that one user runs them (the tests run as root and as nobody), and not with
# every interpreter.
SLOW = ("scikit-learn", "numba")
# BLAS and others touch on several threads, also where there are fewer cores.
THREADS = {name: "4" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}


def run_named(code, user, timeout):
    """Run what says before each step what it is about to do; its summary. The step that a signal ended it in is named."""
    status, out, err = run_child(code, timeout, user, THREADS, fresh=True)
    lines = out.splitlines()
    at = next((line for line in reversed(lines) if line.startswith("at ")), "at its start")
    if status:
        pytest.fail(f"exit status {status} {at}\n{err[-6000:]}", pytrace=False)
    last = lines[-1]
    if last.startswith("absent: "):
        pytest.skip(last)
    return json.loads(last.removeprefix("summary "))


def check_calls(library, user):
    """Results, files, inputs, and what was fetched: each call four times, twice on arrays of a file and twice of a provider."""
    summary = run_named(f"import call_kit; call_kit.run({library!r})", user, 100)
    said = "\n".join(f"{call}\n    " + "\n    ".join(complaints) for call, complaints in summary["wrong"])
    assert not said, said
    calls = list(calls_of(library))
    assert summary["runs"] == 4 * len(calls)
    # System calls wait for pages in one delivery, for root alone.
    deliveries = 2 - (user == "root")
    refused = sum(deliveries * (call.is_refused(True) + call.is_refused(False)) + 2 * ("fault" in call.marks) for call in calls)
    assert summary["refused"] == refused


@each_user
@pytest.mark.parametrize("library", [library for library in LIBRARIES if library not in SLOW])
def test_calls(library, user):
    check_calls(library, user)


@pytest.mark.slow
@pytest.mark.parametrize("library", SLOW)
def test_calls_of_slow_libraries(library):
    check_calls(library, USERS[0])


@pytest.mark.slow
@pytest.mark.parametrize(("form", "delivery"), list(zip(FORMS, ("inline", "threads"), strict=True)))
def test_numpys_own_tests(form, delivery):
    if importlib.util.find_spec(MODULES[0].rpartition(".")[0]) is None:
        pytest.skip("this numpy was installed without its tests")
    summary = run_named(f"import numpy_kit; numpy_kit.run({form!r}, {delivery!r})", None, 100)
    expected = FAIL_LAZY if form == LAZY else FAIL
    others = {name: said for name, said in summary["failures"].items() if name not in expected}
    assert not others, "\n".join(f"{name}\n{said}" for name, said in others.items())
    assert sorted(summary["failures"]) == sorted(expected)
    assert summary["passed"] > 5000
    assert summary["made"] > 20_000


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
        for threads, delivery, populated in [(4, "threads", False), (1, "inline", False), (4, "inline", True), (4, "inline", False)]
    ]
    assert ended == [0, 0, 0, -7]


def test_the_list_is_what_the_readme_says():
    by_library = counts()
    text = " ".join(README.split())
    found = re.search(r"([\d,]+) calls of (\d+) libraries", text)
    assert int(found[1].replace(",", "")) == sum(by_library.values())
    assert int(found[2]) == len(by_library)
    for library, n in by_library.items():
        assert f"{library} {n}" in text or library == "Python" and f"Python's own {n}" in text, library
    assert sum(by_library.values()) >= 200
    assert len(by_library) >= 6
    calls = [call for library in LIBRARIES for call in calls_of(library)]
    assert len({call.text for call in calls}) == len(calls), "a call is listed twice"
    assert all(call.names for call in calls)
    assert {name for call in calls for name in call.names} == set(INPUTS)


def test_the_comparison_tells_apart():
    """What finds no difference must be able to find one."""
    from call_kit import difference

    x = np.arange(3.0)
    for got, want in [
        (x, x.astype("f4")), (x, x[None]), (x, x + 1e-15), (x[0], float(x[0])), (x, [*x]), ((x, 1), (x, 2)), ({"a": x}, {"b": x}),
        (x, np.ma.array(x)), (np.ma.array(x, mask=x > 1), np.ma.array(x, mask=x > 5)), (0.0, -0.0), ("a", b"a"), (None, False),
    ]:  # fmt: skip
        assert difference(got, want, False), (got, want)
        assert difference(got, got, False) is None
    assert difference(x, x + 1e-15, True) is None
    assert difference(x, x + 1e-3, True)
