"""Does a provider take back what was written, as `lazymem.providers.Provider` promises? A class for pytest; inherit it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lazymem as lm
from lazymem.core.provider import process_ids
from lazymem.providers.base import Traits, check_provider, takes_back
from lazymem.providers.wrapper import call_if_there
from lazymem.testing.contract import ProviderContract, each_delivery, kill, limited, made_copy, opened
from lazymem.testing.lending import PAGE_NBYTES, Loan, Offer, blocks

_ANOTHER = bytes(range(1, 256)) + b"\0"  # for each byte one that it is not


class WritableProviderContract(ProviderContract):
    """`ProviderContract`, and tests of `write_from` and `flush`.

    They write other bytes to what the provider stands for, and the right ones again when they have done so, whatever they
    found: they are asked for before, and must not be read from that place later. `make_provider` must give providers of the
    same place each time within one test.

    Examples
    --------
    >>> import os, tempfile
    >>> import lazymem as lm
    >>> from lazymem.testing import WritableProviderContract
    >>> class Raw(lm.providers.Provider):
    ...     def __init__(self, path):
    ...         self.path, self.nbytes = path, os.path.getsize(path)
    ...     def read_into(self, buffer, offset):
    ...         with open(self.path, "rb") as file:
    ...             file.seek(offset)
    ...             file.readinto(buffer)
    ...     def write_from(self, buffer, offset):
    ...         with open(self.path, "r+b") as file:
    ...             file.seek(offset)
    ...             file.write(buffer)
    >>> class TestRaw(WritableProviderContract):
    ...     path = os.path.join(tempfile.mkdtemp(), "raw")
    ...     def make_provider(self):
    ...         if not os.path.exists(self.path):
    ...             with open(self.path, "wb") as file:
    ...                 file.write(bytes(100_000))
    ...         return Raw(self.path)
    ...     def expected_bytes(self):
    ...         return bytes(100_000)
    """

    @limited
    def test_it_has_a_way_back(self) -> None:
        """`write_from(buffer, offset)`, which is not the one of `Provider`."""
        assert takes_back(self.make_provider()), "it has no write_from: test it by ProviderContract"

    @limited
    def test_it_gives_what_it_took(self) -> None:
        """What `write_from` was given, `read_into` gives from then on, here and in copies, and the rest is as it was."""
        with self._changing() as (provider, _, asked):
            copy = made_copy(self.make_provider())
            now = {part: self.expected(*part) for part in asked}
            with opened(copy):
                for part in asked:
                    now[part] = now[part].translate(_ANOTHER)
                    Offer(now[part]).write(provider, part[0])
                    for who, of in ((provider, "written to: "), (copy, "written to by another copy: ")):
                        for offset, nbytes in asked:
                            self._check_given(who, offset, now[offset, nbytes], of)

    @limited
    def test_it_takes_several_pages(self) -> None:
        """As many as are asked at once, from any page on."""
        with self._changing() as (provider, traits, _):
            for first in (0, 1, 2):
                offset = min(first * PAGE_NBYTES, traits.nbytes)
                nbytes = min(traits.nbytes - offset, 3 * PAGE_NBYTES)
                new = self.expected(offset, nbytes).translate(_ANOTHER)
                Offer(new).write(provider, offset)
                self._check_given(provider, offset, new, "several pages: ")
                Offer(self.expected(offset, nbytes)).write(provider, offset)

    @limited
    def test_write_from_returns_none_or_the_count(self) -> None:
        """Anything else is a failure."""
        with self._changing() as (provider, _, asked):
            for offset, nbytes in asked:
                count = Offer(self.expected(offset, nbytes)).write(provider, offset)
                fine = count is None or (not isinstance(count, (str, bytes)) and count == nbytes)
                assert fine, f"write_from(buffer, {offset}) returned {count!r}: give None, or {nbytes}, as many as it took"

    @limited
    def test_write_from_keeps_no_memory(self) -> None:
        """What it was given is used for other blocks once it has returned."""
        with self._changing() as (provider, _, asked):
            for offset, nbytes in asked[:3]:
                offer = Offer(self.expected(offset, nbytes))
                offer.write(provider, offset)
                assert not offer.is_kept(), f"write_from(buffer, {offset}) kept its buffer: copy what is needed later"

    @limited
    def test_it_can_be_flushed(self) -> None:
        """`flush`, if there is one, with and without anything written; afterwards all is there."""
        with self._changing() as (provider, _, asked):
            call_if_there(provider, "flush")
            for offset, nbytes in asked[:1]:
                new = self.expected(offset, nbytes).translate(_ANOTHER)
                Offer(new).write(provider, offset)
                call_if_there(provider, "flush")
                call_if_there(provider, "flush")
                self._check_given(provider, offset, new, "flushed: ")

    @each_delivery
    def test_its_array_can_be_written_to(self, delivery: str) -> None:
        """What is flushed is there for a new array, though its process was killed."""
        with self._changing() as (_, traits, _):
            places = blocks(traits.nbytes, PAGE_NBYTES)
            array = self._array(delivery, mode="r+")
            for offset, nbytes in places:
                array[offset : offset + nbytes] += 1
            lm.flush(array)
            kill(process_ids())
            again = self._array(delivery)
            for offset, nbytes in places:
                made = again[offset : offset + nbytes].tobytes()
                wanted = self.expected(offset, nbytes).translate(_ANOTHER)
                assert made == wanted, f"bytes {offset}..{offset + nbytes} are not what was flushed"
            lm.close(array)

    # ------------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Any, Traits, list[tuple[int, int]]]]:
        """An opened provider to be written to, and pages of it that are put right again."""
        provider = self.make_provider()
        traits = check_provider(provider)
        asked = blocks(traits.nbytes, PAGE_NBYTES)
        reach = min(traits.nbytes, 5 * PAGE_NBYTES)
        right = {part: self.expected(*part) for part in [(0, reach), *asked]}
        with opened(provider):
            try:
                yield provider, traits, asked
            finally:
                for (offset, _), content in right.items():
                    Offer(content).write(provider, offset)
                call_if_there(provider, "flush")

    def _check_given(self, provider: Any, offset: int, wanted: bytes, of: str) -> None:
        loan = Loan(wanted)
        loan.read(provider, offset)
        wrong = loan.what_is_wrong(offset)
        assert wrong is None, of + str(wrong)
