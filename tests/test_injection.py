"""When the i-th system call of the core fails, is there an answer: right bytes, an error, or a stop that says why?"""

import os

import pytest
from injection_kit import DELIVERIES, SOURCES, sample, sweep
from native_kit import in_child, library
from support import needs_compiler

pytestmark = needs_compiler

# LAZYMEM_TEST_SEED_OF_FAILURES: another sample.
SEED = int(os.environ.get("LAZYMEM_TEST_SEED_OF_FAILURES", "1"))


@pytest.mark.thin
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_the_first_call_of_each_kind_and_a_sample(delivery, source):
    library("inject.c")
    user = "nobody" if delivery == "inline" else "root"
    print(in_child(sample, delivery, source, SEED, user=user, timeout=100))


@pytest.mark.slow
@pytest.mark.skipif("LAZYMEM_TEST_ALL_FAILURES" not in os.environ, reason="half an hour: set LAZYMEM_TEST_ALL_FAILURES=1")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_every_call(delivery, source):
    library("inject.c")
    print(in_child(sweep, delivery, source, timeout=3600))
