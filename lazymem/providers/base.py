"""What must an object be to give the bytes of an array, and to take them back? The protocol of a provider."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

from lazymem.options import BLOCK_MAX_NBYTES


class Provider:
    """The protocol. Inherit from it, or only resemble it: nothing asks for the class.

    A provider is pickled once, when its array is made, and run in other processes from that copy: what it changes of itself
    stays there, what it holds must be picklable, and what belongs to a process (connections, locks, open files) is made in
    `open`. Whoever touches the array may hold the GIL of the user's process; the provider has one of its own.

    Attributes
    ----------
    nbytes : int, bytes
        How long the array's memory is, 0 to 2**63 - 1; read once, when the array is made. It has no default.
    block_nbytes : int, bytes, or None
        The block that suits it best, rounded up to whole pages; None leaves the choice to lazymem. The user's own
        `block_nbytes=` comes first.
    concurrent : bool
        False: `read_into` is called by one thread of a process at a time.
    processes_max : int or None
        In how many processes it may run at once; None: in as many as the user asks for.
    stored_ranges : iterable of (int, int), bytes, or None
        Where it has bytes, (start, stop) each, in any order: everything else is `fill_value`. Read once, when the array is
        made, in the user's process. None: it does not know. Blocks without a stored byte are then never asked for, and where
        the array is read-only they take no memory. A block of which a part is stored is asked for whole: `read_into` gives
        `fill_value` there too.
    fill_value : number, numpy scalar, bytes or None
        What is not stored, element by element. Only zeros (0, False, 0.0, numpy.float32(0), b"\\0") are put into place without
        asking: with any other value, or None, `stored_ranges` is not looked at, and `read_into` is asked for everything.
        Nor is it where the array is written to ("r+"): what is stored changes then.

    Examples
    --------
    >>> import numpy as np
    >>> class Squares(Provider):
    ...     nbytes = 8 * 10**9
    ...     def read_into(self, buffer, offset):
    ...         out = np.frombuffer(buffer, "i8")
    ...         first = offset // 8
    ...         out[:] = np.arange(first, first + out.size) ** 2
    >>> check_provider(Squares()).nbytes
    8000000000

    A store of which only some parts have ever been written:

    >>> class Parts(Provider):
    ...     fill_value = 0
    ...     def __init__(self, nbytes, parts):
    ...         self.nbytes, self.parts = nbytes, parts
    ...     @property
    ...     def stored_ranges(self):
    ...         return [(start, start + len(part)) for start, part in self.parts.items()]
    ...     def read_into(self, buffer, offset):
    ...         buffer[:] = bytes(len(buffer))
    ...         for start, part in self.parts.items():
    ...             low, high = max(start, offset), min(start + len(part), offset + len(buffer))
    ...             if low < high:
    ...                 buffer[low - offset : high - offset] = part[low - start : high - start]
    >>> import lazymem as lm
    >>> a = lm.from_provider(Parts(10**12, {5 * 10**11: b"here"}))
    >>> int(a[: 10**9].max()), bytes(a[5 * 10**11 : 5 * 10**11 + 4])
    (0, b'here')
    """

    nbytes: int
    block_nbytes: int | None = None
    concurrent: bool = True
    processes_max: int | None = None
    stored_ranges: Iterable[tuple[int, int]] | None = None
    fill_value: Any = 0

    def open(self) -> None:
        """Make what belongs to a process. Called once in each, before anything is read; what it raises fails the read."""

    def close(self) -> None:
        """Let go of what `open` made. Called when a process is done with the provider; not when it is killed or dies."""

    def stamp(self) -> Any:
        """What tells one state of the bytes from another: picklable, compared by `==`. None: nothing does."""
        return None

    def read_into(self, buffer: memoryview, offset: int) -> int | None:
        """Write the bytes from `offset` on.

        Parameters
        ----------
        buffer : memoryview
            Writable, 1-D, of format "B", beginning on a page. All of it must be written: what it holds before is of no
            meaning. It is released on return, and keeping it (or an array over it) is an error.
        offset : int, bytes
            `offset + len(buffer)` is `nbytes` at most: the last block is short.

        Returns
        -------
        int or None
            How many bytes were written. Any count but `len(buffer)` is a failed fetch; None says that all were.

        Raises
        ------
        OSError
            The fetch is tried again, as often as the array's `retries` say.
        Exception
            Any other fails the block at once. Its traceback is shown to whoever asked for the block.

        Notes
        -----
        Called from several threads at once, unless `concurrent` is False. Blocks: as long as it likes, up to the array's
        `timeout`; then its process is killed and another one is asked.
        """
        raise NotImplementedError(f"{type(self).__qualname__}.read_into")

    def write_from(self, buffer: memoryview, offset: int) -> int | None:
        """Take back the bytes from `offset` on. Only for what can be written to: without it mode "r+" is an error.

        When it has returned, `read_into` must give these bytes, in whichever process it is called: what was changed may leave
        memory and be read again. That they outlive a crash of the machine is for `flush` to see to.

        Parameters
        ----------
        buffer : memoryview
            Read-only, 1-D, of format "B", beginning on a page. It is released on return, and keeping it is an error.
        offset : int, bytes
            On a page; `offset + len(buffer)` is `nbytes` at most. Part of a block, or several.

        Returns
        -------
        int or None
            How many bytes were taken. Any count but `len(buffer)` is a failure; None says that all were.

        Raises
        ------
        OSError
            It is tried again, as often as the array's `retries` say.
        Exception
            Any other fails at once. What was changed stays in memory, and whoever flushes is told.

        Notes
        -----
        It may be called again with the same bytes, some of which were taken before: by another process, when this one was
        killed in the middle. Threads and timeout as for `read_into`; never twice at once with the same bytes.
        """
        raise NotImplementedError(f"{type(self).__qualname__}.write_from")

    def flush(self) -> None:
        """Make safe what `write_from` has taken, in all processes. Called in one of them, when the array is flushed."""


class Traits(NamedTuple):
    """What a provider says of itself, checked: the attributes of `Provider` that are no methods.

    Attributes
    ----------
    stored : bytes or None
        Where it has bytes, everything else being zeros: uint64 starts and stops by turns, ascending, never touching. None: not
        known, or not zeros.
    """

    nbytes: int
    block_nbytes: int | None
    concurrent: bool
    processes_max: int | None
    stored: bytes | None = None


def check_provider(provider: Any) -> Traits:
    """Check that an object resembles a provider.

    Returns
    -------
    Traits

    Raises
    ------
    TypeError
        A class instead of an instance; something missing, or of the wrong type. What and how is said.
    ValueError
        A number out of range.

    Notes
    -----
    Blocks: no more than the object's own properties do. GIL: kept.
    """
    name = type(provider).__qualname__
    if isinstance(provider, type):
        raise TypeError(f"{provider.__qualname__} is a class: give an instance, {provider.__qualname__}(...)")
    read_into = getattr(provider, "read_into", None)
    if read_into is None or getattr(read_into, "__func__", None) is Provider.read_into:
        raise TypeError(f"{name} is no provider: it has no read_into(buffer, offset)")
    if not callable(read_into):
        raise TypeError(
            f"{name}.read_into is of type {type(read_into).__qualname__}: make it a method, read_into(buffer, offset)"
        )
    check_call(read_into, ("buffer", "offset"), f"{name}.read_into")
    for method in ("open", "close", "stamp", "write_from", *(("flush",) if takes_back(provider) else ())):
        made = getattr(provider, method, None)
        if made is not None and not callable(made):
            raise TypeError(f"{name}.{method} is of type {type(made).__qualname__}: make it a method, or leave it out")
    if takes_back(provider):
        check_call(provider.write_from, ("buffer", "offset"), f"{name}.write_from")
    if not hasattr(provider, "nbytes"):
        raise TypeError(f"{name} has no nbytes: set it to the number of bytes that it knows")
    nbytes = _integer(provider.nbytes, f"{name}.nbytes", 0, (1 << 63) - 1)
    block_nbytes = getattr(provider, "block_nbytes", None)
    if block_nbytes is not None:
        block_nbytes = _integer(block_nbytes, f"{name}.block_nbytes", 1, BLOCK_MAX_NBYTES)
    concurrent = getattr(provider, "concurrent", True)
    if not isinstance(concurrent, bool):
        raise TypeError(f"{name}.concurrent is {concurrent!r}: True or False")
    processes_max = getattr(provider, "processes_max", None)
    if processes_max is not None:
        processes_max = _integer(processes_max, f"{name}.processes_max", 1, 1 << 30)
    ranges = getattr(provider, "stored_ranges", None)
    stored = None
    if ranges is not None and _is_zeros(getattr(provider, "fill_value", 0)):
        stored = _sorted_ranges(ranges, nbytes, f"{name}.stored_ranges")
    return Traits(nbytes, block_nbytes, concurrent, processes_max, stored)


def _is_zeros(value: Any) -> bool:
    """Has an element of this value no byte but zeros? -0.0 has one."""
    import numpy as np

    element = np.asarray(value)
    return element.dtype != object and not any(element.tobytes())


def _sorted_ranges(ranges: Any, nbytes: int, what: str) -> bytes:
    """Ranges in order, those that touch or overlap made one, as `Traits.stored`."""
    if callable(ranges) or not isinstance(ranges, Iterable):
        raise TypeError(f"{what} is {ranges!r}: make it an attribute or a property, pairs of start and stop in bytes")
    pairs = []
    for pair in ranges:
        try:
            start, stop = pair
        except (TypeError, ValueError):
            raise TypeError(f"{what} has {pair!r}: give pairs of start and stop in bytes") from None
        start = _integer(start, f"{what}: start", 0, nbytes)
        pairs.append((start, _integer(stop, f"{what}: stop of {start}", start, nbytes)))
    merged = array("Q")
    for start, stop in sorted(pairs):
        if start == stop:
            continue
        if merged and start <= merged[-1]:
            merged[-1] = max(merged[-1], stop)
        else:
            merged.extend((start, stop))
    return merged.tobytes()


def takes_back(provider: Any) -> bool:
    """Can its bytes be written to: has it a `write_from` of its own?"""
    write_from = getattr(provider, "write_from", None)
    return write_from is not None and getattr(write_from, "__func__", None) is not Provider.write_from


def _integer(value: Any, what: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        how = ": it is a method; make it an attribute or a property" if callable(value) else ""
        raise TypeError(f"{what} is {value!r}, not an int{how}")
    number = int(value.__index__())
    if not least <= number <= most:
        raise ValueError(f"{what} is {number}: it must be {least} to {most}")
    return number


def check_call(function: Any, arguments: tuple[str, ...], what: str) -> None:
    """Check that a function can be called with so many arguments, as far as it says what it takes.

    Raises
    ------
    TypeError
        It cannot be called so, or what it gives would have to be awaited.
    """
    import inspect  # takes as long to import as a tenth of numpy

    call = f"{what}({', '.join(arguments)})"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{call} is async: it is called by plain threads, which await nothing; use asyncio.run inside")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # many a function in C does not say
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{what}{signature} cannot be called as {call}: {error}") from None
