"""What can be asked of an array, and of whatever else lies in its memory?

By address: views, plain arrays, torch tensors and buffers are found as surely as the array itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lazymem.core import lazyarray as core
from lazymem.core.memory import budget as core_budget
from lazymem.core.memory import region_owner
from lazymem.core.registered import look
from lazymem.handle import Region
from lazymem.lazyarray import LazyArray

if TYPE_CHECKING:
    from lazymem.counters import Stats

_LEAST_BUDGET_NBYTES = 4 << 20


def _addresses(x: Any) -> tuple[int, int]:
    """The address range of an array's, a tensor's or a buffer's elements."""
    if isinstance(x, np.ndarray):
        low, high = core.bounds(x)
        return low, high
    if hasattr(x, "data_ptr") and hasattr(x, "element_size") and hasattr(x, "stride"):  # a torch tensor
        low = high = x.data_ptr()
        if x.numel():
            high += (sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1) * x.element_size()
        return low, high
    interface = getattr(x, "__array_interface__", None)
    if interface is not None:
        return _addresses(np.asarray(x))
    try:
        view = memoryview(x)
    except TypeError:
        raise TypeError(f"{type(x).__name__} is no array, tensor or buffer") from None
    return _addresses(np.asarray(view)) if view.nbytes else (0, 0)


def _find(x: Any) -> tuple[Region | None, int, int]:
    if isinstance(x, Region):
        return x, x.address, x.address + x.nbytes
    low, high = _addresses(x)
    return cast("Region | None", region_owner(low)), low, high


def _need(x: Any) -> tuple[Region, int, int]:
    """The region that x lies in, and the bytes of it that x covers."""
    found, low, high = _find(x)
    if found is None:
        raise ValueError(f"this {type(x).__name__} does not lie in a lazy array's memory")
    return found, low - found.address, high - found.address


def is_lazy(x: Any) -> bool:
    """Does x lie in a lazy array's memory? By address: views, plain arrays and torch tensors too.

    Returns
    -------
    bool
        False for anything that has no memory to look at.
    """
    try:
        return _find(x)[0] is not None
    except (TypeError, ValueError, BufferError):
        return False


def region(x: Any) -> Region:
    """The region that x lies in, by address.

    Parameters
    ----------
    x : LazyArray, or a view, plain array, torch tensor or buffer of one

    Raises
    ------
    ValueError
        It lies in ordinary memory.
    TypeError
        It has no memory.
    """
    return _need(x)[0]


def _parts(x: Any) -> tuple[Region, Iterable[tuple[int, int]]]:
    """The region of x, and which bytes of it, run by run: a strided view needs not all that lies between its ends."""
    owner, low, high = _need(x)
    if not isinstance(x, np.ndarray) or x.size == 0 or x.flags.forc:
        return owner, [(low, high)] if high > low else []
    return owner, _runs(x, owner.address, owner.block_nbytes)


def _runs(x: np.ndarray[Any, Any], base: int, block_nbytes: int) -> Iterable[tuple[int, int]]:
    low, high = core.bounds(x)
    inner = x
    while inner.ndim > 1 and inner.size and (high - low) > block_nbytes:
        steps = [abs(s) if n > 1 else 0 for n, s in zip(inner.shape, inner.strides, strict=True)]
        widest = steps.index(max(steps))
        if max(steps) <= block_nbytes:
            break
        for i in range(inner.shape[widest]):
            yield from _runs(inner[(slice(None),) * widest + (i,)], base, block_nbytes)
        return
    if inner.ndim == 1 and abs(inner.strides[0]) > block_nbytes:
        first = inner.__array_interface__["data"][0] - base
        for i in range(inner.shape[0]):
            start = first + i * inner.strides[0]
            yield start, start + inner.itemsize
        return
    yield low - base, high - base


def populate(x: Any) -> None:
    """Fetch what is missing of x now.

    Parameters
    ----------
    x : LazyArray, or a view, plain array, torch tensor or buffer of one

    Raises
    ------
    PageError
        A block could not be fetched; those before it may have been.
    ValueError
        Ordinary memory, or a closed array.

    Notes
    -----
    Blocks: until all of x is in memory. GIL: released meanwhile. Several threads fetch a long run together.
    """
    owner, parts = _parts(x)
    for start, stop in parts:
        _check_fits(owner, stop - start)
        owner.populate(start, stop)


def _check_fits(owner: Region, nbytes: int) -> None:
    """Raise if so much of an array cannot be in memory at once."""
    whose = f"the budget of array {owner.name!r} is"
    budget = owner.budget_nbytes
    process = core_budget()[0]
    if process and (not budget or process < budget):
        whose, budget = "the budget of all arrays is (lazymem.set_budget)", process
    if budget and nbytes > budget - budget // 8:
        raise ValueError(
            f"{nbytes} bytes of array {owner.name!r} cannot be in memory at once: {whose} {budget} bytes, some of them for "
            "what else is touched meanwhile. Ask for a part of it, or raise the budget"
        )


class Pin:
    """What `lazymem.pin` returns: until `release`, or the end of its `with`, what was pinned stays in memory."""

    def __init__(self, owner: Region, parts: list[tuple[int, int]], write: bool) -> None:
        self._owner: Region | None = owner
        self._parts: list[tuple[int, int]] = []
        self._write = write
        try:
            for start, stop in parts:
                owner.pin(start, stop, write)
                self._parts.append((start, stop))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """It may be evicted again. Blocks: no. GIL: kept."""
        owner, self._owner = self._owner, None
        if owner is not None:
            for start, stop in self._parts:
                owner.unpin(start, stop, self._write)

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def pin(x: Any, write: bool = False) -> Pin:
    """Fetch x, and keep it in memory: for system calls and devices that work on it while nobody can wait for a page.

    Parameters
    ----------
    x : LazyArray, or a view, plain array, torch tensor or buffer of one
    write : bool
        Something writes to it that is no thread of this process (O_DIRECT, io_uring, a GPU): until it is released it counts as
        written, so that it is written back.

    Returns
    -------
    Pin
        For `with`; or call its `release()`. What is pinned counts in the budget.

    Raises
    ------
    PageError
        A block could not be fetched; nothing is pinned.
    ValueError
        More than the budget has room for; ordinary memory; a closed array; `write` on a read-only array.

    Notes
    -----
    Blocks: until all of x is in memory. GIL: released meanwhile. Memory that is handed to the kernel without being
    pinned there (vmsplice, MSG_ZEROCOPY) is recycled when its block is evicted, and the reader would see other bytes: pin it.
    """
    owner, parts = _parts(x)
    parts = list(parts)
    if write and not owner.writable:
        raise ValueError(f"array {owner.name!r} is read-only (mode 'r')")
    _check_fits(owner, sum(stop - start for start, stop in parts))
    return Pin(owner, parts, write)


def evict(x: Any) -> int:
    """Give the memory of x back to the system; what was written is written back first. It is fetched again when it is touched.

    Parameters
    ----------
    x : LazyArray, or a view, plain array, torch tensor or buffer of one
        Blocks that lie in it partly go too.

    Returns
    -------
    int
        How many blocks stay: pinned, or being fetched, or written and not to be written back now.

    Raises
    ------
    ValueError
        Ordinary memory, or a closed array.

    Notes
    -----
    Blocks: on writing back. GIL: released meanwhile. Private writes (mode "c") go to a scratch file.
    """
    owner, parts = _parts(x)
    return sum(owner.evict(start, stop) for start, stop in parts)


def set_budget(budget_nbytes: Any) -> None:
    """How much memory all lazy arrays of this process may have together; what is touched beyond it evicts what is there.

    Parameters
    ----------
    budget_nbytes : int, text such as "2 GiB", or None
        None: the default again, half of what physical memory and the process's cgroups leave now.

    Raises
    ------
    ValueError
        Less than 4 MiB.

    Notes
    -----
    Blocks: no. GIL: kept. What is in memory beyond a smaller budget goes as memory is needed; `lazymem.evict` gives it
    back at once. An array has a budget of its own by the option `budget_nbytes`, and always room for 16 blocks.
    """
    from lazymem import making, system
    from lazymem.options import nbytes

    given = system.default_budget_nbytes() if budget_nbytes is None else nbytes(budget_nbytes, "budget_nbytes")
    if given < _LEAST_BUDGET_NBYTES:
        raise ValueError(f"budget_nbytes={budget_nbytes!r}: give {_LEAST_BUDGET_NBYTES} or more")
    making.budget_process(given)


def prefetch(x: Any) -> bool:
    """Fetch what is missing of x in the background. A block that fails is left to be found by whoever touches it.

    Parameters
    ----------
    x : LazyArray, or a view, plain array, torch tensor or buffer of one

    Returns
    -------
    bool
        False: so much is under way already that not all of it was taken on.

    Notes
    -----
    Blocks: no. GIL: kept.
    """
    owner, parts = _parts(x)
    taken_on = True
    for start, stop in parts:
        taken_on = owner.prefetch(start, stop) and taken_on
    return taken_on


def residency(x: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the blocks that x lies in are in memory.

    Returns
    -------
    numpy.ndarray of bool, (blocks from x's first byte to its last,)

    Notes
    -----
    Blocks: no. GIL: kept. Reads the block table: a page that somebody dropped by madvise still counts, until it is touched;
    with delivery "threads" a block touched some microseconds ago may not count yet (milliseconds, where the handler thread
    loses its core just then).
    """
    owner, low, high = _need(x)
    if high <= low:
        return np.zeros(0, bool)
    first, last = low // owner.block_nbytes, -(-high // owner.block_nbytes)
    return np.frombuffer(owner.resident(first, min(last, owner.nblocks)), dtype=bool)


def stats(x: Any) -> Stats:
    """The counters of the region that x lies in.

    Returns
    -------
    lazymem.Stats

    Notes
    -----
    Blocks: no. GIL: kept. With delivery "threads" the page wakes its toucher before the handler thread has counted it, so the
    last fault may be missing for some microseconds (milliseconds, where the handler thread loses its core just then).
    """
    return _need(x)[0].stats()


def check(x: Any) -> None:
    """Raise if a fetch of x's region has failed since the last look.

    For whoever is told nothing: a thread of C code that stopped reading, `prefetch`, values that were read some time ago.

    Parameters
    ----------
    x : LazyArray, or a view, plain array, torch tensor or buffer of one

    Raises
    ------
    PageError
        The latest failure since the array was made or last checked.
    RuntimeError
        It has lost its memory: somebody closed lazymem's userfaultfd, or unregistered what it serves; values read since may be
        zeros that are no data.
    ValueError
        Ordinary memory.

    Notes
    -----
    Of the whole region, wherever x lies in it. Blocks: no. GIL: kept. To prove that a stretch of code read nothing wrong, use
    `lazymem.guard`.
    """
    owner = _need(x)[0]
    look(owner)
    errors = owner.counters()["errors"]
    if errors != owner.checked:
        owner.checked = errors
        failed = owner.failure()
        if failed is not None:
            raise failed


def flush(x: Any) -> None:
    """Write back what was written to x, and have its source make it safe: fsync for a file, a provider's own `flush`.

    What was flushed survives the end of the process, however it ends. Of what was not, any page may have been written back or
    not, each wholly old or wholly new; pages are not written in the order in which they were changed.

    Parameters
    ----------
    x : LazyArray, or a view, plain array, torch tensor or buffer of one
        All blocks are flushed from the one that its first byte lies in to that of its last.

    Raises
    ------
    PageError
        A block could not be written back. What was written to it stays in memory, and is tried again by the next flush.
    ValueError
        Ordinary memory, or a closed array.

    Notes
    -----
    In modes "r" and "c", and in a forked child, there is nothing to be written back. Blocks: until the source has it. GIL:
    released meanwhile. What other threads write while it runs may be written back or not.
    """
    owner, low, high = _need(x)
    owner.flush(low, high)


def close(x: Any, discard: bool = False) -> None:
    """Take an array's memory and file descriptor away now; what was written in modes "r+" and "w+" is flushed first.

    Parameters
    ----------
    x : LazyArray or Region
    discard : bool
        Flush nothing: what was written since the last flush is lost, as far as it has not been written back.

    Raises
    ------
    PageError
        A block could not be written back. The array stays open: nothing is lost, and close may be tried again.
    BufferError
        Views or exported buffers of it are alive; their number is named.
    TypeError
        Neither.

    Notes
    -----
    Afterwards operations on it raise ValueError, and touching its memory otherwise ends the process, with a message. Closing
    twice is fine. Blocks: to flush; until running fetches end, at most 5 s. GIL: released meanwhile.
    """
    if not isinstance(x, (Region, LazyArray)):
        raise TypeError(f"close({type(x).__name__}): give the LazyArray that a constructor returned, or its region")
    x.close(discard=discard)
