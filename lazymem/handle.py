"""What is behind an array: the region, as users see it?"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from lazymem.core import inline
from lazymem.core.memory import Memory
from lazymem.errors import PageError

if TYPE_CHECKING:
    import numpy as np

    from lazymem.counters import Stats
    from lazymem.lazyarray import LazyArray


class Recipe(NamedTuple):
    """How another process makes the same region: a local file, and what it must still look like.

    Attributes
    ----------
    path : str
        Absolute.
    start, nbytes : int, bytes
        Which part of the file.
    stamp : (int, int)
        Size in bytes, modification time in ns.
    mode : str
    options : dict
        As the constructor takes them.
    """

    path: str
    start: int
    nbytes: int
    stamp: tuple[int, int]
    mode: str
    options: dict[str, Any]


class ProviderRecipe(NamedTuple):
    """How another process makes the same region of a Python provider.

    Attributes
    ----------
    pickled : bytes
        The provider.
    nbytes : int, bytes
        Of the provider.
    identity : int
        The same in every process: how a provider that waits for itself is noticed.
    name : str
        For messages.
    mode : str
    options : dict
        As the constructor takes them.
    processes : int
        How many may serve it.
    block_nbytes : int, bytes
    stored : bytes or None
        As `check_provider` answers.
    """

    pickled: bytes
    nbytes: int
    identity: int
    name: str
    mode: str
    options: dict[str, Any]
    processes: int
    block_nbytes: int
    stored: bytes | None


class Region(Memory):
    """The memory behind one lazy array: `lazymem.region(x)`.

    Not made by users. Arrays hold it; holding it does not keep an array alive, but keeps its memory.

    Attributes
    ----------
    name : str
        Of the array.
    nbytes, block_nbytes : int, bytes
        Of the source; of a block.
    nblocks : int
    delivery : str
        "threads", "inline" or "mprotect".
    memory : str
        "private" or "shared".
    kernel_faults : bool
        Do system calls wait for absent pages? Else they get EFAULT.
    mode : str
        "r", "c", "r+" or "w+"; in a forked child "c" instead of the latter two.
    filename : str or None
    offset : int, bytes
        Of the array in that file.
    closed : bool
    """

    asked_mode: str
    filename: str | None
    offset: int
    recipe: Recipe | ProviderRecipe | str
    alive: Any
    checked: int
    _root: weakref.ref[np.ndarray[Any, Any]] | None
    _array: weakref.ref[LazyArray] | None
    _root_references: int

    # Memory.__cinit__ takes the arguments; the rest is set by arrays.py.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.alive = None
        self.checked = 0
        self._root = None
        self._array = None
        self._root_references = 0

    @property
    def mode(self) -> str:
        return "c" if self.asked_mode in ("r+", "w+") and not self.writes_back else self.asked_mode

    def remember(self, root: np.ndarray[Any, Any], array: LazyArray) -> None:
        """Note root and array. The caller lets go of the root, then calls `calibrate`."""
        self._root = weakref.ref(root)
        self._array = weakref.ref(array)

    def calibrate(self) -> None:
        """Count the root's references while nobody views the array, for `views` to compare with."""
        self._root_references = self.references(self._root)

    def _left(self, closing: LazyArray | None) -> tuple[int, int]:
        """LazyArrays, and references to the root, that there are when nobody views the array."""
        array = self._array() if self._array is not None else None
        arrays = (array is not None) + (closing is not None and closing is not array)
        # A dead array's reference to the root is gone.
        return arrays, self._root_references - (array is None)

    def views(self, closing: LazyArray | None = None) -> int:
        """How many views would lose their memory: other LazyArrays, and plain arrays of `numpy.asarray`.

        Parameters
        ----------
        closing : LazyArray, optional
            One that is being closed, and does not count.

        Notes
        -----
        Plain views are counted by the references to a hidden plain array that they all share as base. A second name for
        the array, or a torch tensor made of it, holds the array itself, and cannot be told from a name.
        """
        arrays, references = self._left(closing)
        return self.arrays - arrays + max(0, self.references(self._root) - references)

    def close(self, closing: LazyArray | None = None, *, discard: bool = False) -> None:
        """Take the memory and the file descriptor away now; what was written is flushed first.

        Parameters
        ----------
        closing : LazyArray, optional
            As `views` takes it.
        discard : bool
            Flush nothing: what was written since the last flush is lost.

        Raises
        ------
        PageError
            A block could not be written back; the array stays open, and nothing is lost.
        BufferError
            Views or exported buffers are alive; their number is named. An operation that another thread is in counts.
        TimeoutError
            A fetch is still running after 5 s: memory is gone, the descriptor goes when that ends.

        Notes
        -----
        Afterwards operations on the array raise ValueError. Touching its memory, by a pointer that somebody kept, ends the
        process by SIGSEGV, with a message. Blocks: to flush; until running fetches end, at most 5 s. GIL: released meanwhile.
        """
        if self.closed:
            return
        if not discard:
            self._flush_to_close()
        inline.take_signals(segv=True)
        arrays, references = self._left(closing)
        while not self.end(self._root, references, arrays):
            views, exports = self.views(closing), self.exports
            if views or exports:
                alive = " and ".join(
                    f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((views, "view"), (exports, "exported buffer")) if n
                )
                verb = "is" if views + exports == 1 else "are"
                raise BufferError(f"array {self.name!r} cannot be closed: {alive} of it {verb} alive")

    def _flush_to_close(self) -> None:
        try:
            self.flush(0, self.nbytes)
            if self.dirty(0, self.nbytes):  # another thread has written meanwhile; one that never stops is not waited for
                self.flush(0, self.nbytes)
        except PageError as error:
            error.strerror = f"{error.strerror}; it stays open: lazymem.close(a, discard=True) gives up what is not written"
            raise

    def stats(self) -> Stats:
        """Its counters now. Blocks: no. GIL: kept."""
        from lazymem.counters import read_stats

        return read_stats(self)

    def __repr__(self) -> str:
        from lazymem.counters import human

        state = "closed" if self.closed else f"{self.delivery}, blocks of {human(self.block_nbytes)}"
        return f"<lazymem.Region {self.name!r}, {human(self.nbytes)}, mode {self.mode!r}, {state}>"
