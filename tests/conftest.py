"""What is given to every test: both deliveries, a folder that everybody can read, and arrays that are gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from native_kit import make_folder
from support import DELIVERIES


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # xdist's processes inherit it
        make_folder()


def pytest_pyfunc_call():
    """Arrays made with one environment share their provider processes: pytest must not change it with each test."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


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
