"""What are the elements of an array whose bytes are computed, and which of an element's bytes hold nothing?"""

from __future__ import annotations

from typing import Any

import numpy as np

from lazymem.formats.layout import dtype_of, shape_of


def read_elements(shape: Any, dtype: Any, what: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read a shape and a dtype.

    Parameters
    ----------
    shape : int or sequence of int
    dtype : dtype
    what : str
        Of whose shape an error speaks.

    Raises
    ------
    TypeError
        No shape; no dtype, or one of Python objects, of subarrays, or of no size.
    ValueError
        A negative length, or 2**63 bytes and more.
    """
    kind = dtype_of(dtype)
    if kind.subdtype is not None:
        base, lengths = kind.subdtype
        raise TypeError(f"dtype {kind}: an element is an array; give dtype {base}, and a shape that ends in {lengths}")
    if shape is None:
        raise TypeError(f"shape=None: {what} has no length of its own; give an int or a sequence of ints")
    return shape_of(shape, kind, None, what), kind


def name_of(function: Any) -> str:
    """What to call a function in names and errors."""
    return str(getattr(function, "__name__", None) or type(function).__qualname__)


def holes_of(dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    """Which bytes of an element hold nothing: between fields, and in numbers narrower than their room.

    numpy leaves them as they were when it assigns, so what a block's memory held before would stay visible there.

    Returns
    -------
    numpy.ndarray or None
        Their places in an element, bytes; None where there are none.
    """
    used = np.zeros(dtype.itemsize, bool)
    _mark(dtype, used)
    return None if used.all() else np.flatnonzero(~used)


def _mark(dtype: np.dtype[Any], used: np.ndarray[Any, Any]) -> None:
    if dtype.fields is not None:
        for field, offset, *_ in dtype.fields.values():
            _mark(field, used[offset : offset + field.itemsize])
    elif dtype.subdtype is not None:
        base = dtype.subdtype[0]
        for start in range(0, dtype.itemsize, base.itemsize):
            _mark(base, used[start : start + base.itemsize])
    elif dtype.char in "gG" and np.finfo(np.longdouble).nmant == 63:  # the 80 bits of x86, in 12 or 16 bytes
        room = np.dtype(np.longdouble).itemsize
        for start in range(0, dtype.itemsize, room):
            part = used[start : start + room] if dtype.isnative else used[start : start + room][::-1]
            part[:10] = True
    else:
        used[:] = True


def clear_holes(array: np.ndarray[Any, Any], holes: np.ndarray[Any, Any]) -> None:
    """Make the bytes that hold nothing zero, in a contiguous 1-D array."""
    array.view("u1").reshape(array.size, -1)[:, holes] = 0
