"""What is given to every test: both deliveries, a folder that everybody can read, and, where it says so, fewer cases."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from native_kit import make_folder
from support import DELIVERIES, covering


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # xdist's processes inherit it
        make_folder()


def pytest_pyfunc_call():
    """Arrays made with one environment share their provider processes: pytest must not change it with each test."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem():
    """Of a test marked `thin` those cases are quick that show every value of every parameter, or of `thin(2)` every pair
    of values; the others are slow.

    All of a test's cases are here, whichever are asked for, so that which they are does not depend on what is run.
    """
    made = yield
    if isinstance(made, list) and len(made) > 1 and all(isinstance(item, pytest.Function) for item in made):
        cases = [item for item in made if not any(item.iter_markers(name="slow")) and not any(item.iter_markers(name="long"))]
        thin = cases and cases[0].get_closest_marker("thin")
        if thin:
            chosen = covering([_values(item) for item in cases], *thin.args)
            for i in sorted({*range(len(cases))} - chosen):
                cases[i].add_marker(pytest.mark.slow)
    return made


def _values(item):
    """(parameter, value) of each; what need not be hashable, by which object it is."""
    plain = (str, int, bool, type(None))
    return [(name, value if isinstance(value, plain) else id(value)) for name, value in item.callspec.params.items()]


@pytest.fixture(params=DELIVERIES)
def delivery(request):
    """How a fault is delivered; a test that takes it runs once for each."""
    return request.param


@pytest.fixture
def folder():
    """A folder that children may read and write, whoever they are (pytest's own tmp_path is closed to others)."""
    path = Path(tempfile.mkdtemp(prefix="lazymem-test-"))
    os.chmod(path, 0o777)
    yield path
    shutil.rmtree(path, ignore_errors=True)
