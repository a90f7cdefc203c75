"""What do numpy's methods do on a lazy array?

Three kinds: those that compute or copy run on a plain view, as one operation, so that their results are plain and a failed
fetch is their PageError; those that view stay lazy; those that hand bytes to the system fetch them first, in pieces.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lazymem.core import lazyarray as core
from lazymem.core.operation import begin_operation, end_operation

if TYPE_CHECKING:
    from lazymem.handle import Region

# One system call is given this much at a time, so that a file larger than memory can be written.
PIECE_NBYTES = 32 << 20

_ON_PLAIN = (
    "all", "any", "argmax", "argmin", "argpartition", "argsort", "byteswap", "choose", "clip", "compress", "conj",
    "conjugate", "copy", "cumprod", "cumsum", "dot", "fill", "flatten", "item", "itemset", "max", "mean", "min", "nonzero",
    "partition", "prod", "ptp", "put", "repeat", "round", "searchsorted", "setfield", "sort", "std", "sum", "take", "tobytes",
    "tolist", "tostring", "trace", "var", "__complex__", "__contains__", "__copy__", "__deepcopy__", "__format__",
)  # fmt: skip
# Of them, those that need not read all of the array.
_ON_PART = frozenset((
    "all", "any", "choose", "compress", "fill", "item", "itemset", "put", "searchsorted", "setfield", "take", "trace",
))  # fmt: skip
_REAL: Any = np.ndarray.__dict__["real"]
_IMAG: Any = np.ndarray.__dict__["imag"]
_ASTYPE: Any = np.ndarray.astype
_ON_VIEW = ("diagonal", "ravel", "reshape", "squeeze")


def _owner(array: LazyArray) -> Region | None:
    return cast("Region | None", core.owner(array))


class LazyArray(core.LazyBase):
    """A numpy array whose memory is filled when it is touched.

    Made by `lazymem.open`, `lazymem.memmap` and the other constructors, never directly. It is an `ndarray` in every
    respect; what differs:

    - Views of it are LazyArrays; copies and results of arithmetic are plain arrays, reductions numpy scalars.
      `numpy.asarray(a)` is a plain view in no time, and still lazy.
    - A block that cannot be fetched makes operations on a LazyArray raise `PageError`. On a plain view nothing can raise in
      the middle of an access to memory: the process ends, by SIGBUS, with a message that names array, block and cause.
      `lazymem.populate` fetches beforehand, and raises.
    - It pickles as a recipe (file, stamp, shape), not as its bytes; a plain view of it pickles as numpy does, its bytes.
    - `with lazymem.open(path) as a:` closes it at the end, and flushes it before.

    Attributes
    ----------
    filename : str or None
        As numpy.memmap's.
    offset : int, bytes
        Of the array in the file, as numpy.memmap's.
    mode : str
        "r", "c", "r+" or "w+", as numpy.memmap's; in a forked child "c" instead of the latter two: writes are private there.
    """

    __slots__ = ()

    @property
    def filename(self) -> str | None:
        owner = _owner(self)
        return owner.filename if owner is not None else None

    @property
    def offset(self) -> int | None:
        owner = _owner(self)
        return owner.offset if owner is not None else None

    @property
    def mode(self) -> str | None:
        owner = _owner(self)
        return owner.mode if owner is not None else None

    def flush(self) -> None:
        """`lazymem.flush(self)`; of ordinary memory, nothing."""
        owner = _owner(self)
        if owner is not None and owner.writes_back:
            low, high = core.bounds(self)
            owner.flush(low - owner.address, high - owner.address)

    def close(self, discard: bool = False) -> None:
        """`lazymem.close(self, discard)`."""
        owner = _owner(self)
        if owner is not None:
            owner.close(self, discard=discard)

    def __enter__(self) -> LazyArray:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def tofile(self, fid: Any, sep: str = "", format: str = "%s") -> None:
        """As ndarray's, in pieces: what is written is fetched first, so that no system call meets an absent page.

        Raises
        ------
        PageError
            A block could not be fetched; what lies before it has been written.

        Notes
        -----
        Blocks: on source and file. GIL: released meanwhile.
        """
        if sep:
            core.run_plain(np.ndarray.tofile, self, (fid,), {"sep": sep, "format": format})
        elif hasattr(fid, "write"):
            _write_pieces(self, fid)
        else:
            with open(os.fspath(fid), "wb", buffering=0) as f:
                _write_pieces(self, f)

    def astype(self, dtype: Any, order: Any = "K", casting: Any = "unsafe", subok: Any = True, copy: Any = True) -> Any:
        """As ndarray's. Without a copy, where none is needed, it reads nothing and answers with this array."""
        args = (dtype, order, casting, subok, copy)
        if not copy and np.dtype(dtype) == self.dtype:
            return core.run_view(_ASTYPE, self, args, {})
        return core.run_plain(_ASTYPE, self, args, {}, reads_all=True)

    def __bytes__(self) -> bytes:
        return self.tobytes()  # by its buffer a failed fetch could not be told

    def __reduce_ex__(self, protocol: Any) -> Any:
        from lazymem.recipes import reduce_array

        return reduce_array(self, protocol)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)

    @property
    def real(self) -> Any:
        return core.run_view(_REAL.__get__, self, (), {})

    @real.setter
    def real(self, value: Any) -> None:
        core.run_plain(_REAL.__set__, self, (value,), {})

    @property
    def imag(self) -> Any:
        return core.run_view(_IMAG.__get__, self, (), {})

    @imag.setter
    def imag(self, value: Any) -> None:
        core.run_plain(_IMAG.__set__, self, (value,), {})

    def __repr__(self) -> str:
        return self._text(np.ndarray.__repr__)

    def __str__(self) -> str:
        return self._text(np.ndarray.__str__)

    def _text(self, write: Callable[[Any], str]) -> str:
        owner = _owner(self)
        if owner is not None and owner.closed:
            return f"<closed LazyArray of {owner.name!r}, shape {self.shape}, {self.dtype}>"
        sequence = begin_operation()
        try:
            return write(self)
        finally:
            end_operation(sequence, (core.bounds(self),))


def _write_pieces(array: LazyArray, file: Any) -> None:
    owner = _owner(array)
    if array.size == 0:
        return
    if not array.flags.c_contiguous:
        if array.ndim == 1 or array[0].nbytes <= PIECE_NBYTES:
            rows = max(1, PIECE_NBYTES // max(1, array.nbytes // len(array)))
            for i in range(0, len(array), rows):
                _write_all(file, np.ascontiguousarray(array[i : i + rows].copy()))
        else:
            for row in array:
                _write_pieces(row, file)
        return
    flat = np.asarray(array).reshape(-1).view("u1") if array.ndim else np.asarray(array).reshape(1).view("u1")
    size = min(PIECE_NBYTES, core.largest_export_nbytes)
    if owner is not None and owner.budget_nbytes:
        size = min(size, owner.budget_nbytes // 4)
    for i in range(0, flat.size, size):
        piece = flat[i : i + size]
        if owner is None:
            _write_all(file, piece)
            continue
        low, high = (at - owner.address for at in core.bounds(piece))
        owner.pin(low, high, False)
        try:
            _write_all(file, piece)
        finally:
            owner.unpin(low, high, False)


def _write_all(file: Any, piece: np.ndarray[Any, Any]) -> None:
    left = memoryview(cast(Any, piece)).cast("B")
    while left:
        done = file.write(left)  # a raw file may take less than it is given
        left = left[done:] if done is not None else left[:0]


def _forward(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    method = getattr(np.ndarray, name)
    if run is core.run_plain and name not in _ON_PART:
        run = functools.partial(run, reads_all=True)

    @functools.wraps(method)
    def forwarded(self: LazyArray, *args: Any, **kwargs: Any) -> Any:
        return run(method, self, args, kwargs)

    return forwarded


for _name in _ON_PLAIN:
    if hasattr(np.ndarray, _name):  # some belong to numpy 1, some to 2
        setattr(LazyArray, _name, _forward(core.run_plain, _name))
for _name in _ON_VIEW:
    setattr(LazyArray, _name, _forward(core.run_view, _name))
LazyArray.__module__ = "lazymem"
