"""Do numpy's own tests pass on lazy arrays? `run_in_child(form, delivery)`.

Each test module finds, instead of numpy, one whose functions that make arrays make lazy ones of the same values: all that it
then does, it does on lazy arrays. What it was given by other ways (pytest's parameters, results) stays ordinary.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from call_kit import LAZY, in_child

import lazymem as lm

CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"
MODULES = [f"{CORE}.tests.test_{name}" for name in ("datetime", "half", "indexing", "item_selection", "numeric")] + [
    f"numpy.lib.tests.test_{name}"
    for name in (
        "arraypad", "arraysetops", "histograms", "index_tricks", "shape_base", "stride_tricks", "twodim_base", "type_check",
        "ufunclike",
    )
]  # fmt: skip
# They make no arrays, or make them by ways of their own, and take longer than all others.
OTHERS = ("TestTypes", "TestCreationFuncs", "TestLikeFuncs", "test_clip_property")

MAKERS = (
    "arange", "array", "concatenate", "copy", "empty", "eye", "full", "identity", "linspace", "logspace", "ones", "repeat",
    "tile", "tri", "zeros",
)  # fmt: skip

# What must fail, since it asks for more than equal results.
_OWNS = "it compares flags, and a view of a region does not own its memory"
_BASE = "it asks whose view a view is: the region's, in the end"
_TYPE = "it asks for the type itself, and a LazyArray is a subclass of ndarray"
_REFS = "it counts references to a dtype, and what a test read is counted on its arrays, which are held until then"
_LENGTH = "numpy adds the length to an index twice for any subclass, when C asks through the sequence protocol"
FAIL = {
    "TestClip::test_clip_complex": _OWNS,
    "TestClip::test_simple_int32_inout[unsafe]": _OWNS,
    "TestClip::test_simple_int64_out": _OWNS,
    "TestClip::test_simple_int64_inout": _OWNS,
    "TestClip::test_simple_int32_out": _OWNS,
    "TestClip::test_clip_with_out_simple2": _OWNS,
    "TestClip::test_clip_with_out_simple_int32": _OWNS,
    "TestClip::test_clip_with_out_array_int32": _OWNS,
    "TestClip::test_clip_with_out_array_outint32": _OWNS,
    "TestIndexing::test_small_regressions": _REFS,
}
FAIL_LAZY = {
    **FAIL,
    "TestIndexing::test_empty_tuple_index": _BASE,
    "TestIndexing::test_ellipsis_index": _BASE,
    "TestIndexing::test_void_scalar_empty_tuple": _TYPE,
    "TestUnique::test_unique_1d": _TYPE,
    "test_subclasses": _TYPE,
    "TestCApiAccess::test_getitem": _LENGTH,
    "TestCApiAccess::test_setitem": _LENGTH,
}


def run_in_child(form: str, delivery: str) -> dict[str, Any]:
    """`run(form, delivery)`, and which of the failures are none of those that must be."""
    summary = in_child(f"import numpy_kit; numpy_kit.run({form!r}, {delivery!r})", None, 100)
    expected = FAIL_LAZY if form == LAZY else FAIL
    failures = summary.pop("failures", {})
    return summary | {
        "wrong": [(name, said) for name, said in failures.items() if name not in expected],
        "expected": [name for name in failures if name in expected],
    }


class Making:
    """A module like numpy whose MAKERS make lazy arrays."""

    def __init__(self, form: str, delivery: str) -> None:
        self.regions: list[lm.Region] = []
        self._form, self._delivery = form, delivery
        self.makers = {name: self._lazily(getattr(np, name)) for name in MAKERS}
        self.__dict__.update(self.makers)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def _lazily(self, make: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            array = make(*args, **kwargs)
            return self._laid(array) if self._is_ours(array) else array

        return made

    def _is_ours(self, array: Any) -> bool:
        """Is it what a region can hold: an ordinary array with elements that are bytes, all its own?"""
        return (
            type(array) is np.ndarray
            and array.flags.owndata and array.flags.forc and array.nbytes > 0
            and not array.dtype.hasobject and array.dtype.kind != "T"
        )  # fmt: skip

    def _laid(self, array: np.ndarray) -> np.ndarray:
        flat = lm.from_provider(array.ravel("K").view("u1"), array.size, array.dtype, mode="c", delivery=self._delivery)
        self.regions.append(lm.region(flat))
        lazy = flat.reshape(array.shape, order="C" if array.flags.c_contiguous else "F")
        return lazy if self._form == LAZY else np.asarray(lazy)


class Plugin:
    """Hand the modules their numpy, say each test before it runs, and count how it ended and what it read."""

    def __init__(self, making: Making) -> None:
        self._making = making
        self.failed: dict[str, str] = {}
        self.counts = {"passed": 0, "failed": 0, "skipped": 0, "read": 0, "arrays": 0}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for module in {item.module for item in items}:
            for name, value in list(vars(module).items()):
                if value is np:
                    setattr(module, name, self._making)
                elif name in MAKERS and value is getattr(np, name):
                    setattr(module, name, self._making.makers[name])

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int, str]) -> None:
        print("\nat", nodeid, flush=True)

    def pytest_runtest_call(self) -> None:
        self._making.regions.clear()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        self.counts[report.outcome] += 1
        if report.failed:
            self.failed[report.nodeid.partition("::")[2]] = str(report.longrepr)[-1000:]
        were_read = sum(region.stats().resident_blocks > 0 for region in self._making.regions)
        self.counts["arrays"] += were_read
        self.counts["read"] += report.passed and were_read > 0


def run(form: str, delivery: str) -> None:
    """Run MODULES; a summary at the end."""
    if importlib.util.find_spec(MODULES[0].rpartition(".")[0]) is None:
        print("summary", json.dumps({"absent": "this numpy was installed without its tests"}))
        return
    plugin = Plugin(Making(form, delivery))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "-c", os.devnull, f"--rootdir={folder}"]
        options += ["--assert=plain", "--tb=native", "-k", " and ".join(f"not {name}" for name in OTHERS)]
        pytest.main([*options, "--pyargs", *MODULES], plugins=[plugin])
        os.chdir("/")
    print("\nsummary", json.dumps({"version": np.__version__, **plugin.counts, "failures": plugin.failed}))
