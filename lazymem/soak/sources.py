"""Where do the arrays of a soak get their bytes? One function each, that opens an array and says what must be in it."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import lazymem
from lazymem.core import samples
from lazymem.options import BUDGET_BLOCKS, BUDGET_PAGES, DELIVERIES, FILLINGS, PAGE_NBYTES
from lazymem.providers import Provider
from lazymem.soak.content import Words, bad_blocks, words
from lazymem.soak.held import WORD_NBYTES, Held
from lazymem.soak.kept import Kept, KeptFile
from lazymem.testing import Failure, FaultyProvider

PAGE_WORDS = PAGE_NBYTES // WORD_NBYTES
NATIVE_S = 5.0  # the timeout of sources that do not wait for anybody
ATTEMPT_S = 2.0  # of a provider process: it may have to be started, on a busy machine
_BAD_ONE_IN = 100
_BIG = 6  # times as many elements as others have: then there is room for units of 2 MiB
_SHARED = 0.2  # so many arrays are in a file of memory
_STAYING_PAGES = 128  # of an array whose blocks cannot be evicted: all such fit into the smallest budget (actors/budget.py)


@dataclass(frozen=True)
class Place:
    """What a round's arrays can be laid over.

    Attributes
    ----------
    path : str
        A file of `words(file_seed, file_words)`.
    url : str or None
        The same file at a server; None: HTTP cannot be read here.
    file_seed, file_words : int
    deliveries : tuple of str
        Which this machine can do.
    """

    path: str
    url: str | None
    file_seed: int
    file_words: int
    deliveries: tuple[str, ...]

    @functools.cached_property
    def file_content(self) -> Words:
        """What the file holds."""
        return words(self.file_seed, self.file_words)


def deliveries_here() -> tuple[str, ...]:
    """Which deliveries this machine can do: each is tried."""
    able = []
    for delivery in DELIVERIES[1:]:
        try:
            lazymem.close(lazymem.from_provider(b"x", delivery=delivery))
        except (OSError, NotImplementedError):
            continue
        able.append(delivery)
    return tuple(able)


def can_http() -> bool:
    """Is there what HTTP needs?"""
    return importlib.util.find_spec("urllib3") is not None


def _block_nbytes(rng: np.random.Generator) -> int:
    return PAGE_NBYTES * int(rng.choice([1, 1, 1, 2, 4, 16]))


def _size(rng: np.random.Generator, most_pages: int) -> int:
    """How many elements; the last page is seldom whole."""
    return int(rng.integers(8 * PAGE_WORDS, most_pages * PAGE_WORDS))


def _local_size(rng: np.random.Generator, options: dict[str, Any]) -> int:
    if not _can_leave(options):
        return _size(rng, _STAYING_PAGES)
    return _size(rng, 512) * (_BIG if rng.random() < 0.1 else 1)


def _mode(rng: np.random.Generator, *more: str) -> str:
    return str(rng.choice(["r", "r", "c", *more]))


def _options(rng: np.random.Generator, delivery: str, mode: str, block_nbytes: int) -> dict[str, Any]:
    """Of every second array the budget is so small that it is short of memory: the least there can be, or a bit more."""
    memory = "shared" if delivery != "mprotect" and rng.random() < _SHARED else "private"
    fill = str(rng.choice(["auto", "auto", "auto", *FILLINGS[memory]]))
    options = {"mode": mode, "delivery": delivery, "block_nbytes": block_nbytes, "memory": memory, "fill": fill}
    least = max(BUDGET_BLOCKS * block_nbytes, BUDGET_PAGES * PAGE_NBYTES)
    more = float(rng.choice([1, 1, 1.1, 2]))
    options["budget_nbytes"] = int(least * more) if rng.random() < 0.5 and _can_leave(options) else None
    return options


def _can_leave(options: dict[str, Any]) -> bool:
    """Can its blocks be evicted? Without a userfaultfd, and in a file, nobody can tell what was written at the last moment."""
    return bool(options["mode"] == "r" or (options["delivery"] != "mprotect" and options["memory"] == "private"))


def _none_injected() -> int:
    return 0


def _native(
    array: Any,
    kind: str,
    expected: Words,
    bad: Any = None,
    injected: Callable[[], int] = _none_injected,
    kept: Kept | None = None,
) -> Held:
    if bad is None:
        bad = np.zeros(lazymem.region(array).nblocks, bool)
    return Held(array, kind, expected, bad, False, NATIVE_S, injected, kept)


def from_file(place: Place, rng: np.random.Generator, delivery: str) -> Held:
    """A part of the file, from any element on; or, to write to, a file of its own."""
    mode = _mode(rng, "r+", "r+")
    options = _options(rng, delivery, mode, _block_nbytes(rng))
    n = _local_size(rng, options)
    if mode == "r+":
        expected = words(int(rng.integers(1 << 62)), n)
        kept = KeptFile(os.path.dirname(place.path), expected)
        return _native(lazymem.memmap(kept.path, "u8", timeout=NATIVE_S, **options), "file", expected, kept=kept)
    n = min(n, place.file_words // 2)
    start = int(rng.integers(place.file_words - n))
    array = lazymem.memmap(place.path, "u8", offset=start * WORD_NBYTES, shape=n, timeout=NATIVE_S, **options)
    return _native(array, "file", place.file_content[start : start + n].copy())


def from_memory(place: Place, rng: np.random.Generator, delivery: str) -> Held:
    """Bytes of this process."""
    mode = _mode(rng, "r+")
    options = _options(rng, delivery, mode, _block_nbytes(rng))
    seed, n = int(rng.integers(1 << 62)), _local_size(rng, options)
    memory = words(seed, n)
    array = lazymem.from_provider(memory, dtype="u8", timeout=NATIVE_S, **options)
    return _native(array, "memory", words(seed, n), kept=Kept(memory) if mode == "r+" else None)


def from_c(place: Place, rng: np.random.Generator, delivery: str) -> Held:
    """A function in C; of every second one some blocks always fail."""
    mode, block_nbytes = _mode(rng), _block_nbytes(rng)
    options = _options(rng, delivery, mode, block_nbytes)
    seed, n = int(rng.integers(1 << 62)), _local_size(rng, options)
    bad_one_in = int(rng.choice([0, _BAD_ONE_IN]))
    told = np.array([seed, block_nbytes, bad_one_in, 0], "u8")
    array = lazymem.from_provider(
        lazymem.CFunction(samples.mixed(), n * WORD_NBYTES, told), dtype="u8", timeout=NATIVE_S, **options
    )
    bad = bad_blocks(seed, lazymem.region(array).nblocks, bad_one_in)
    return _native(array, "C function", words(seed, n), bad, lambda: int(told[3]))


class Mixed(Provider):
    """`words` as a provider: in another process it computes what it is asked for.

    Parameters
    ----------
    seed : int
    n : int
        How many elements.
    """

    def __init__(self, seed: int, n: int) -> None:
        self.seed, self.nbytes = seed, n * WORD_NBYTES

    def read_into(self, buffer: memoryview, offset: int) -> None:
        start = offset // WORD_NBYTES
        # Element i of a seed is element 0 of a seed that is i steps on.
        ahead = (self.seed + start * 0x9E3779B97F4A7C15) % (1 << 64)
        np.frombuffer(buffer, "u8")[:] = words(ahead, len(buffer) // WORD_NBYTES)


def from_python(place: Place, rng: np.random.Generator, delivery: str, *, pages: int) -> Held:
    """A Python provider. One read in a hundred fails and is tried again; some blocks always fail."""
    mode, block_nbytes = _mode(rng), PAGE_NBYTES * pages
    options = _options(rng, delivery, mode, block_nbytes)
    seed, n = int(rng.integers(1 << 62)), _size(rng, 256 if _can_leave(options) else _STAYING_PAGES)
    bad = bad_blocks(seed, -(-n * WORD_NBYTES // block_nbytes), _BAD_ONE_IN)
    lost = [Failure("error", LookupError, at=int(block) * block_nbytes) for block in np.flatnonzero(bad)]
    faulty = FaultyProvider(Mixed(seed, n), lost, rate=0.01, kinds=("error", "error", "error", "die"), seed=seed)

    def injected() -> int:
        counts = faulty.counts()
        return sum(counts.values()) - counts["reads"]

    array = lazymem.from_provider(faulty, dtype="u8", timeout=ATTEMPT_S, retries=9, **options)
    return Held(array, "provider", words(seed, n), bad, True, 2 * ATTEMPT_S, injected)


class Store(Provider):
    """A file as a provider that takes back what is written.

    Parameters
    ----------
    path : str
    """

    def __init__(self, path: str) -> None:
        self.path, self.nbytes = path, os.path.getsize(path)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        with open(self.path, "rb") as file:
            os.preadv(file.fileno(), [buffer], offset)

    def write_from(self, buffer: memoryview, offset: int) -> None:
        with open(self.path, "r+b") as file:
            os.pwritev(file.fileno(), [buffer], offset)


def from_store(place: Place, rng: np.random.Generator, delivery: str) -> Held:
    """A Python provider that is written to."""
    options = _options(rng, delivery, "r+", 16 * PAGE_NBYTES)
    n = _size(rng, 512 if _can_leave(options) else _STAYING_PAGES)
    expected = words(int(rng.integers(1 << 62)), n)
    kept = KeptFile(os.path.dirname(place.path), expected)
    array = lazymem.from_provider(Store(kept.path), dtype="u8", timeout=ATTEMPT_S, retries=9, **options)
    bad = np.zeros(lazymem.region(array).nblocks, bool)
    return Held(array, "store", expected, bad, True, 2 * ATTEMPT_S, _none_injected, kept)


def from_url(place: Place, rng: np.random.Generator, delivery: str) -> Held:
    """The file, from a server that fails now and then."""
    options = _options(rng, delivery, _mode(rng), 16 * PAGE_NBYTES)
    if not _can_leave(options):  # it is all of the file
        options["mode"] = "r"
    array = lazymem.memmap(place.url, "u8", timeout=ATTEMPT_S, retries=9, **options)
    bad = np.zeros(lazymem.region(array).nblocks, bool)
    return Held(array, "http", place.file_content.copy(), bad, True, 2 * ATTEMPT_S, _none_injected)
