"""Does a provider do all that `lazymem.providers.Provider` promises? A class for pytest; inherit it."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import cloudpickle
import numpy as np
import pytest

import lazymem as lm
from lazymem.options import DELIVERIES
from lazymem.providers.base import Traits, check_provider
from lazymem.providers.pickled import pickle_provider
from lazymem.providers.wrapper import call_if_there
from lazymem.testing.lending import PAGE_NBYTES, Loan, blocks, parts

_USUAL_NBYTES = 256 << 10  # the block of a provider that does not say which it wants
_POPULATE_NBYTES = 4 << 20
_THREADS = 4
_Test = TypeVar("_Test", bound=Callable[..., None])
each_delivery = pytest.mark.parametrize("delivery", [name for name in DELIVERIES if name != "auto"])


def limited(test: _Test) -> _Test:
    """Run a test on a thread, which is given up when it takes longer than `limit_s`."""

    @functools.wraps(test)
    def run(self: ProviderContract) -> None:
        raised: list[BaseException] = []

        def body() -> None:
            try:
                test(self)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=body, name=test.__name__, daemon=True)
        thread.start()
        thread.join(self.limit_s)
        if thread.is_alive():
            frame = sys._current_frames().get(thread.ident or 0)
            where = "".join(traceback.format_stack(frame)[-3:])
            pytest.fail(f"no end after {self.limit_s} s (limit_s says how long a test may take). It is here:\n{where}", False)
        if raised:
            raise raised[0]

    return run  # type: ignore[return-value]


class ProviderContract:
    """Tests of a provider. Inherit, say what is to be tested and what is right, and let pytest find the class.

    One with `write_from` is tested by `WritableProviderContract`.

    Some ask the provider in this process; others lay arrays over it, so that it runs where it will run in the end, and kill
    that process. Providers of any length can be tested: of long ones some blocks are read.

    Attributes
    ----------
    unit_nbytes : int, bytes
        Where reads begin and how long they are is a whole number of it, the end of all excepted, and so is where memory
        begins; it divides a page. lazymem itself asks for whole pages, on pages: a provider that relies on it says so here.
        One that knows whole float64 elements only says 8.
    limit_s : float, s
        How long a test may take, and an attempt at a block of an array.

    Notes
    -----
    The provider's class must be one that other processes can import or that cloudpickle can send: one in the test file is.
    With pytest's `--import-mode=importlib` test files cannot be imported there: have its class in a module that can.

    Examples
    --------
    >>> import lazymem as lm
    >>> from lazymem.testing import ProviderContract
    >>> class Sevens(lm.providers.Provider):
    ...     nbytes = 100_000
    ...     def read_into(self, buffer, offset):
    ...         buffer[:] = b"\\x07" * len(buffer)
    >>> class TestSevens(ProviderContract):
    ...     def make_provider(self):
    ...         return Sevens()
    ...     def expected_bytes(self):
    ...         return b"\\x07" * 100_000
    """

    unit_nbytes: int = 1
    limit_s: float = 30.0

    def make_provider(self) -> Any:
        """A new provider, not opened. Each test asks for one."""
        raise NotImplementedError("say what is tested: def make_provider(self): return ...")

    def expected_bytes(self) -> bytes:
        """All bytes that are right. Of a provider with many, say `expected` instead."""
        raise NotImplementedError("say what is right: def expected_bytes(self), or def expected(self, offset, nbytes)")

    def expected(self, offset: int, nbytes: int) -> bytes:
        """The bytes that are right from `offset` on."""
        if not hasattr(self, "_expected"):
            self._expected = bytes(self.expected_bytes())
        return self._expected[offset : offset + nbytes]

    # ------------------------------------------------------------------------------------------------------------------
    # What it says of itself

    @limited
    def test_it_is_a_provider(self) -> None:
        """It has what a provider has, of the right types: `lazymem.providers.base.check_provider`."""
        check_provider(self.make_provider())

    @limited
    def test_it_has_as_many_bytes_as_it_says(self) -> None:
        """`nbytes` is right, and stays."""
        provider = self.make_provider()
        nbytes = check_provider(provider).nbytes
        if type(self).expected is ProviderContract.expected:
            right = len(self.expected(0, sys.maxsize))
            assert nbytes == right, f"nbytes is {nbytes}; expected_bytes() has {right}"
        with opened(provider):
            assert check_provider(provider).nbytes == nbytes, "open() changed nbytes, which is read before"

    @limited
    def test_it_can_be_pickled(self) -> None:
        """A copy, which is what its process has, says the same of itself and reads the same."""
        provider = self.make_provider()
        copy = made_copy(provider)
        said, says = check_provider(provider), check_provider(copy)
        assert said == says, f"a copy of it (by pickle) says {says}; it said {said}"
        with opened(copy):
            for offset, nbytes in self._blocks(said)[:3]:
                self._check_read(copy, offset, nbytes, of="a copy (by pickle): ")

    @limited
    def test_its_stamp_tells_its_bytes(self) -> None:
        """`stamp()` is the same for the same bytes: asked twice, of a copy, before and after `open`, and pickled itself."""
        provider = self.make_provider()
        stamp = call_if_there(provider, "stamp")
        try:
            pickled = pickle.loads(pickle.dumps(stamp))
        except Exception as error:
            pytest.fail(f"stamp() returned {stamp!r}, which cannot be pickled: {error!r}")
        copy = made_copy(provider)
        found = {"when it has been pickled": pickled, "asked again": call_if_there(provider, "stamp")}
        found["of a copy (by pickle)"] = call_if_there(copy, "stamp")
        with opened(copy):
            found["of a copy that is open"] = call_if_there(copy, "stamp")
        for how, other in found.items():
            assert bool(stamp == other), f"stamp() is {stamp!r}, but {how} it is {other!r}: the bytes are the same"

    @limited
    def test_it_stores_what_is_not_zero(self) -> None:
        """Outside of `stored_ranges` everything is zeros, if `fill_value` is: nobody will ask it for that."""
        provider = self.make_provider()
        traits = check_provider(provider)
        if traits.stored is None:
            return
        edges = np.frombuffer(traits.stored, "u8").tolist()
        again = np.frombuffer(check_provider(made_copy(provider)).stored or b"", "u8").tolist()
        assert again == edges, f"a copy of it (by pickle) has other stored_ranges: {again[:8]}..., not {edges[:8]}..."
        with opened(provider):
            gaps = list(zip([0, *edges[1::2]], [*edges[::2], traits.nbytes], strict=True))
            for start, stop in [*gaps[:8], *gaps[-8:]]:
                for offset in {start, max(start, stop - _USUAL_NBYTES)}:
                    nbytes = min(stop - offset, _USUAL_NBYTES)
                    right = self.expected(offset, nbytes)
                    where = f"bytes {start}..{stop} are in no range of stored_ranges, fill_value being zeros"
                    assert not any(right), f"{where}, and are something else"

    # ------------------------------------------------------------------------------------------------------------------
    # What it writes

    @limited
    def test_it_fills_blocks(self) -> None:
        """Blocks as lazymem asks for them: whole pages, the last one short."""
        with self._open() as (provider, traits):
            for offset, nbytes in self._blocks(traits):
                self._check_read(provider, offset, nbytes)

    @limited
    def test_it_fills_any_part(self) -> None:
        """Parts that begin and end anywhere: `unit_nbytes`."""
        with self._open() as (provider, traits):
            for offset, nbytes in parts(traits.nbytes, self._unit()):
                self._check_read(provider, offset, nbytes)

    @limited
    def test_it_fills_memory_that_begins_anywhere(self) -> None:
        """Memory that does not begin on a page: a wrapper may lend such. `unit_nbytes` again."""
        unit = self._unit()
        with self._open() as (provider, traits):
            for k, (offset, nbytes) in enumerate(parts(traits.nbytes, unit)):
                self._check_read(provider, offset, nbytes, shift=unit * (2 * k + 1) % PAGE_NBYTES)

    @limited
    def test_it_fills_nothing(self) -> None:
        """No bytes at all are as good as any other number."""
        unit = self._unit()
        with self._open() as (provider, traits):
            for offset in sorted({0, traits.nbytes // 2 // unit * unit, traits.nbytes // unit * unit}):
                self._check_read(provider, offset, 0)

    @limited
    def test_it_returns_none_or_the_count(self) -> None:
        """Anything else that `read_into` returns is a failed fetch."""
        with self._open() as (provider, traits):
            for offset, nbytes in self._blocks(traits):
                count = Loan(self.expected(offset, nbytes)).read(provider, offset)
                fine = count is None or (not isinstance(count, (str, bytes, np.ndarray)) and count == nbytes)
                assert fine, f"read_into(buffer, {offset}) returned {count!r}: give None, or {nbytes}, as many as it wrote"

    @limited
    def test_it_keeps_no_memory(self) -> None:
        """What it was lent is not its own once `read_into` has returned: the memory is used for other reads."""
        with self._open() as (provider, traits):
            for offset, nbytes in self._blocks(traits)[:3]:
                loan = Loan(self.expected(offset, nbytes))
                loan.read(provider, offset)
                how = "a slice of its buffer, or an array over it"
                assert not loan.is_kept(), f"read_into(buffer, {offset}) kept {how}: copy what is needed later"

    @limited
    def test_it_gives_the_same_again(self) -> None:
        """Whichever order the blocks are read in, and however often: a block may be fetched many times."""
        with self._open() as (provider, traits):
            asked = self._blocks(traits)
            for offset, nbytes in [*asked, *reversed(asked), *asked]:
                self._check_read(provider, offset, nbytes, of="after other reads: ")

    # ------------------------------------------------------------------------------------------------------------------
    # Where and when it is called

    @limited
    def test_several_threads_may_read(self) -> None:
        """At once, unless it says `concurrent = False`: then one at a time, but not always the same."""
        with self._open() as (provider, traits):
            asked, at_once = self._blocks(traits), traits.concurrent
            one = contextlib.nullcontext() if at_once else threading.Lock()
            start, failed = threading.Barrier(_THREADS), []

            def read(first: int) -> None:
                start.wait()
                try:
                    for offset, nbytes in 3 * (asked[first:] + asked[:first]):
                        with one:
                            self._check_read(provider, offset, nbytes, of=f"{_THREADS} threads{' at once' * at_once}: ")
                except BaseException as error:
                    failed.append(error)

            threads = [threading.Thread(target=read, args=(k,), daemon=True) for k in range(_THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if failed:
                raise failed[0]

    @limited
    def test_it_opens_and_closes(self) -> None:
        """`open`, reads, `close`; a second `close` does nothing, and neither does one without any read."""
        for reads in (1, 0):
            provider = self.make_provider()
            with opened(provider):
                for offset, nbytes in self._blocks(check_provider(provider))[:reads]:
                    self._check_read(provider, offset, nbytes)
            try:
                call_if_there(provider, "close")
            except Exception as error:
                error.add_note("This was the second close().")
                raise

    @limited
    def test_copies_do_not_disturb_each_other(self) -> None:
        """A process that serves two arrays of one provider has two copies: they are opened and closed each by itself."""
        provider = self.make_provider()
        first, second = made_copy(provider), made_copy(provider)
        asked = self._blocks(check_provider(provider))
        with opened(second):
            with opened(first):
                for offset, nbytes in asked:
                    self._check_read(first, offset, nbytes, of="one of two copies: ")
                    self._check_read(second, offset, nbytes, of="one of two copies: ")
            for offset, nbytes in asked:
                self._check_read(second, offset, nbytes, of="a copy, when another one was closed: ")

    # ------------------------------------------------------------------------------------------------------------------
    # As an array

    @each_delivery
    def test_its_array_is_right(self, delivery: str) -> None:
        """An array over it has the right values, block by block, in its own process."""
        array = self._array(delivery)
        for offset, nbytes in blocks(array.nbytes, PAGE_NBYTES):
            self._check_array(array, offset, nbytes)

    @each_delivery
    def test_its_array_can_be_populated(self, delivery: str) -> None:
        """Several blocks at once, in two processes if it may, of the size that it prefers."""
        array = self._array(delivery, block_nbytes=None, processes=2)
        nbytes = min(array.nbytes, _POPULATE_NBYTES)
        for offset in {0, array.nbytes - nbytes}:
            lm.populate(array[offset : offset + nbytes])
            self._check_array(array, offset, nbytes)

    @each_delivery
    def test_its_process_may_be_killed(self, delivery: str) -> None:
        """A process that is killed does not call `close`; the next one begins with `open`, and reads the same."""
        from lazymem.core.provider import process_ids

        array = self._array(delivery)
        asked = blocks(array.nbytes, PAGE_NBYTES)
        for k, (offset, nbytes) in enumerate(asked):
            if k in (min(1, len(asked) - 1), len(asked) - 1):
                kill(process_ids())
            self._check_array(array, offset, nbytes, after=", after its process was killed")

    # ------------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, Traits]]:
        provider = self.make_provider()
        traits = check_provider(provider)
        with opened(provider):
            yield provider, traits

    def _unit(self) -> int:
        unit = self.unit_nbytes
        assert unit > 0, f"unit_nbytes is {unit}: give 1 and more"
        assert PAGE_NBYTES % unit == 0, f"unit_nbytes is {unit}, which does not divide a page, {PAGE_NBYTES}"
        return unit

    def _blocks(self, traits: Traits) -> list[tuple[int, int]]:
        """Small ones, and of those that it prefers the first and the last."""
        own = -(-(traits.block_nbytes or _USUAL_NBYTES) // PAGE_NBYTES) * PAGE_NBYTES
        large = blocks(traits.nbytes, own)
        return [*blocks(traits.nbytes, PAGE_NBYTES), *dict.fromkeys([*large[:1], *large[-1:]])]

    def _check_read(self, provider: Any, offset: int, nbytes: int, shift: int = 0, of: str = "") -> None:
        wanted = self.expected(offset, nbytes)
        assert len(wanted) == nbytes, f"expected({offset}, {nbytes}) gave {len(wanted)} bytes"
        loan = Loan(wanted, shift)
        loan.read(provider, offset)
        wrong = loan.what_is_wrong(offset)
        if wrong is not None:
            pytest.fail(of + wrong)

    def _array(self, delivery: str, **options: Any) -> lm.LazyArray:
        try:
            lm.from_provider(b"any", delivery=delivery)
        except (OSError, RuntimeError) as error:  # an UnsupportedPlatform is one too
            pytest.skip(f"delivery={delivery!r} is not to be had here: {error}")
        options = {"block_nbytes": PAGE_NBYTES, **options}
        return lm.from_provider(self.make_provider(), delivery=delivery, timeout=self.limit_s, **options)

    def _check_array(self, array: lm.LazyArray, offset: int, nbytes: int, after: str = "") -> None:
        made, wanted = array[offset : offset + nbytes].tobytes(), self.expected(offset, nbytes)
        if made != wanted:
            first = next((i for i in range(nbytes) if made[i : i + 1] != wanted[i : i + 1]), nbytes)
            pytest.fail(
                f"the array{after}: byte {offset + first} is {made[first : first + 1].hex()}, expected "
                f"{wanted[first : first + 1].hex()}. Asked in this process the provider may be right: what is different there?"
            )


@contextlib.contextmanager
def opened(provider: Any) -> Iterator[None]:
    """As its process does it."""
    call_if_there(provider, "open")
    try:
        yield
    finally:
        call_if_there(provider, "close")


def made_copy(provider: Any) -> Any:
    return cloudpickle.loads(pickle_provider(provider))


def kill(pids: list[int]) -> None:
    """As a machine short of memory does it."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
