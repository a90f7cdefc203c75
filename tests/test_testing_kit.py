"""Does ProviderContract find nothing wrong with our own providers, and in each wrong one what is wrong?"""

import os
import re
import sys
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from support import PAGE, PATIENCE, check_child, run_child
from wrong_providers import RIGHT

from lazymem.providers import Checked, Provider
from lazymem.providers.functions import FillProvider, FunctionProvider
from lazymem.providers.generator import GeneratorProvider
from lazymem.providers.http import HttpProvider
from lazymem.testing import Failure, FaultyProvider, ProviderContract, RangeServer, SlowProvider

# ---------------------------------------------------------------------------------------------------------------------------
# Our own providers keep it


class TestFunction(ProviderContract):
    SHAPE, KIND = (1000, 7), np.dtype("V3")

    def make_provider(self):
        kind = self.KIND
        return FunctionProvider(lambda i, j: (i * 7 + j).astype("<i8").view("V8").astype(kind), self.SHAPE, self.KIND)

    def expected_bytes(self):
        return np.arange(7000).view("V8").astype(self.KIND).tobytes()


class TestTebibyteOfAFunction(ProviderContract):
    def make_provider(self):
        return FunctionProvider(lambda i: i, 2**37, "i8")

    def expected(self, offset, nbytes):
        first, last = offset // 8, -(-(offset + nbytes) // 8)
        return np.arange(first, last).tobytes()[offset - 8 * first :][:nbytes]


def write_indices(out, start):
    out[:] = np.arange(start, start + out.size)


class TestFill(ProviderContract):
    def make_provider(self):
        return FillProvider(write_indices, 5001, "<i4")

    def expected_bytes(self):
        return np.arange(5001, dtype="<i4").tobytes()


class TestGenerator(ProviderContract):
    def make_provider(self):
        return GeneratorProvider(lambda: (RIGHT[i : i + 999] for i in range(0, len(RIGHT), 999)), len(RIGHT), "u1")

    def expected_bytes(self):
        return RIGHT


class TestHttp(ProviderContract):
    @pytest.fixture(autouse=True)
    def server(self):
        with RangeServer({"a.bin": RIGHT}) as server:
            self.url = server.url_of("a.bin")
            yield

    def make_provider(self):
        return HttpProvider(self.url)

    def expected_bytes(self):
        return RIGHT


class TestChecked(ProviderContract):
    STEP = 1000

    def make_provider(self):
        sums = [zlib.crc32(RIGHT[i : i + self.STEP]).to_bytes(4, "big") for i in range(0, len(RIGHT), self.STEP)]
        return Checked(SlowProvider(RIGHT), sums, block_nbytes=self.STEP, algorithm="crc32")

    def expected_bytes(self):
        return RIGHT


class TestFaultyWithoutFailures(ProviderContract):
    def make_provider(self):
        return FaultyProvider(RIGHT, [Failure("die", after=10**6), Failure("keep", at=len(RIGHT))])

    def expected_bytes(self):
        return RIGHT


class Pages(Provider):
    """Knows whole pages on pages only, as lazymem asks for them, and has no more of them than one."""

    nbytes, concurrent = 100, False

    def read_into(self, buffer, offset):
        if offset % PAGE or np.frombuffer(buffer, "u1").ctypes.data % PAGE:
            raise ValueError("not on a page")
        buffer[:] = RIGHT[: len(buffer)]


class TestPages(ProviderContract):
    unit_nbytes = PAGE

    def make_provider(self):
        return Pages()

    def expected_bytes(self):
        return RIGHT[:100]


class TestNothing(ProviderContract):
    def make_provider(self):
        return FillProvider(write_indices, 0, "i8")

    def expected_bytes(self):
        return b""


# ---------------------------------------------------------------------------------------------------------------------------
# Wrong ones fail it, each for its own reason

FILES = """
import os
os.environ["LAZYMEM_TEST_HOME"] = str(os.getpid())
import wrong_providers
from lazymem.testing import ProviderContract

def contract(kind):
    return type("Test" + kind.__name__, (ProviderContract,), {
        "limit_s": LIMIT if kind.__name__ == "WaitsForMore" else 30,
        "make_provider": lambda self: kind(),
        "expected_bytes": lambda self: wrong_providers.RIGHT,
    })

for kind in list(vars(wrong_providers).values()):
    if isinstance(kind, type):
        globals()["Test" + kind.__name__] = contract(kind)
"""
KILLED = "its_process_may_be_killed[inline]"  # only run for who fails nothing else: it takes longest
ARRAY = {"its_array_is_right[inline]", "its_array_can_be_populated[inline]"}
COPIES = {"it_can_be_pickled", "copies_do_not_disturb_each_other"}
READS = {"it_fills_blocks", "it_gives_the_same_again", "several_threads_may_read", "copies_do_not_disturb_each_other"}
PARTS = {"it_fills_any_part", "it_fills_memory_that_begins_anywhere"}
ALL = READS | PARTS | COPIES | ARRAY | {
    "it_is_a_provider", "it_has_as_many_bytes_as_it_says", "it_fills_nothing", "it_returns_none_or_the_count",
    "it_keeps_no_memory", "it_stores_what_is_not_zero", "it_opens_and_closes",
}  # fmt: skip
# provider: (the test that tells, what it says, which others fail of the same)
WRONG = {
    "Right": (None, "", set()),
    "Awaited": ("it_is_a_provider", "read_into.* is async", ALL),
    "SaysTooMuch": ("it_has_as_many_bytes_as_it_says", r"nbytes is \d+7; expected_bytes\(\) has \d+0",
                    READS | PARTS | ARRAY),
    "LearnsItsLengthLate": ("it_has_as_many_bytes_as_it_says", r"nbytes is 0; expected_bytes\(\) has 21480", set()),
    "StoresTooLittle": ("it_stores_what_is_not_zero", rf"bytes {PAGE}\.\.{5 * PAGE + 1000} are in no range",
                        {"its_array_is_right[inline]"}),
    "HoldsALock": ("it_can_be_pickled", r"provider\.lock is a _thread\.lock", COPIES | ARRAY | {"its_stamp_tells_its_bytes"}),
    "LosesItsState": ("it_can_be_pickled", r"a copy \(by pickle\): .* is 0x00, expected", COPIES | ARRAY),
    "StampsTheTime": ("its_stamp_tells_its_bytes", r"stamp\(\) is \d+, but asked again it is \d+", set()),
    "StampsALock": ("its_stamp_tells_its_bytes", r"returned <unlocked .*which cannot be pickled", set()),
    "LeavesTheEnd": ("it_fills_blocks", rf"byte {PAGE - 1} of it \(byte {PAGE - 1} of all\) was not written.*; 1 bytes",
                     READS | {"it_can_be_pickled", "its_array_is_right[inline]", "it_opens_and_closes"}),
    "ForgetsTheShortBlock": ("it_fills_blocks", rf"read_into\(buffer, {5 * PAGE}\), a buffer of 1000 bytes: byte 0",
                             READS | {"its_array_is_right[inline]"}),
    "WritesBehind": ("it_fills_any_part", "memory outside of the buffer was written", PARTS),
    "RoundsDown": ("it_fills_any_part", r"read_into\(buffer, 1\), a buffer of 1 bytes: byte 0 of it \(byte 1 of all\)", PARTS),
    "WantsAPage": ("it_fills_memory_that_begins_anywhere", "not on a page", set()),
    "WaitsForMore": ("it_fills_nothing", r"no end after .* It is here:(?s:.*)in read_into", set()),
    "SaysLess": ("it_returns_none_or_the_count", f"returned {PAGE - 1}: give None, or {PAGE}", ARRAY),
    "SaysText": ("it_returns_none_or_the_count", f"returned 'all of it': give None, or {PAGE}", ARRAY),
    "KeepsASlice": ("it_keeps_no_memory", "kept a slice of its buffer", ARRAY),
    "Tires": ("it_gives_the_same_again", "after other reads: .*expected", {"several_threads_may_read"}),
    "OneAtATime": ("several_threads_may_read", "4 threads at once: .*expected", set()),
    "OneThreadOnly": ("several_threads_may_read", "opened by another thread", set()),
    "ClosesOnce": ("it_opens_and_closes", r"AttributeError(?s:.*)the second close\(\)", set()),
    "ClosesForAll": ("copies_do_not_disturb_each_other", "it is closed", set()),
    "NeedsHome": ("its_array_is_right[inline]", "in this process the provider may be right: what is different", ARRAY),
    "NeedsToBeAlone": ("its_array_can_be_populated[inline]", "another process has it", set()),
    "NeedsItsClose": (KILLED, "FileExistsError", set()),
}  # fmt: skip
BY_CHANCE = {"OneThreadOnly": ARRAY}  # it depends on which thread is free


@pytest.fixture(scope="session")  # a module's would be made again whenever this worker comes back to the file
def found(tmp_path_factory):
    """What a child's pytest says of wrong_providers: {provider: {test: text, or None where it passed}}."""
    folder = tmp_path_factory.mktemp("contract")
    os.chmod(folder, 0o777)
    file, report = folder / "test_wrong.py", folder / "report.xml"
    file.write_text(FILES.replace("LIMIT", str(PATIENCE)))
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "--tb=short"]
    chosen = ["-k", "not threads] and not mprotect] and (not killed or NeedsItsClose)", f"--junitxml={report}", str(file)]
    _, out, err = run_child([*command, *chosen], timeout=110, env={"TMPDIR": str(folder)})
    assert report.exists(), out + err
    made = {}
    for case in ElementTree.parse(report).iter("testcase"):
        assert case.find("skipped") is None, case.find("skipped").get("message")
        failure = case.find("failure")
        name = case.get("classname").rpartition(".Test")[2]
        text = None if failure is None else failure.get("message") + "\n" + failure.text
        made.setdefault(name, {})[case.get("name").removeprefix("test_")] = text
    return made


@pytest.mark.slow
@pytest.mark.xdist_group("contract")
def test_every_wrong_provider_is_known(found):
    assert set(found) == set(WRONG)
    assert {telling for telling, _, _ in WRONG.values()} == {None, *found["NeedsItsClose"]}, "each test has one"


@pytest.mark.slow
@pytest.mark.xdist_group("contract")
@pytest.mark.parametrize("name", WRONG)
def test_it_fails_for_its_own_reason(found, name):
    telling, text, others = WRONG[name]
    failed = {test for test, said in found[name].items() if said is not None}
    assert failed - BY_CHANCE.get(name, set()) == others | ({telling} if telling else set())
    assert len(found[name]) == 17 + (name == "NeedsItsClose")
    if telling:
        assert re.search(text, found[name][telling]), found[name][telling]


def test_without_what_it_is_about_it_says_what_to_write():
    contract = ProviderContract()
    with pytest.raises(NotImplementedError, match="def make_provider"):
        contract.test_it_is_a_provider()
    with pytest.raises(NotImplementedError, match="def expected_bytes"):
        contract.expected(0, 1)
    contract.make_provider = lambda: SlowProvider(RIGHT)
    contract.unit_nbytes = 3
    with pytest.raises(AssertionError, match="3, which does not divide a page"):
        contract.test_it_fills_any_part()


# ---------------------------------------------------------------------------------------------------------------------------


def test_nobody_needs_pytest_but_the_contract():
    out = check_child(
        """
        import sys
        import lazymem
        assert "lazymem.testing" not in sys.modules
        import lazymem.testing
        print(*(name for name in ("pytest", "_pytest", "lazymem.testing.contract") if name in sys.modules))
        """,
        fresh=True,
    )
    assert out.strip() == ""


def test_every_name_is_there():
    import lazymem.testing

    assert [name for name in lazymem.testing.__all__ if not hasattr(lazymem.testing, name)] == []
    with pytest.raises(AttributeError, match="Contract"):
        lazymem.testing.Contract
