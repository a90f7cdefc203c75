"""What is an array in a file: where its bytes begin, and how to read them?"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np


class Layout(NamedTuple):
    """An array's place in a file.

    Attributes
    ----------
    start : int, bytes
        Of its first byte in the file.
    dtype : numpy.dtype
    shape : tuple of int
    order : str
        "C" or "F".
    """

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str

    @property
    def nbytes(self) -> int:
        """Of its elements, bytes."""
        return count(self.shape) * self.dtype.itemsize


def count(shape: tuple[int, ...]) -> int:
    """How many elements a shape has, as an int that cannot overflow."""
    n = 1
    for length in shape:
        n *= length
    return n


def dtype_of(dtype: Any) -> np.dtype[Any]:
    """Read a dtype, refusing those whose elements are Python objects.

    Raises
    ------
    TypeError
        No dtype, or one with objects, or of no size.
    """
    made: np.dtype[Any] = np.dtype(dtype)
    if made.hasobject:
        raise TypeError(
            f"dtype {made} holds Python objects: their bytes are addresses, "
            "which mean nothing outside the process that made them"
        )
    if made.itemsize == 0:
        raise TypeError(f"dtype {made!r} has elements of no size: give a length, such as 'S8'")
    return made


def shape_of(shape: Any, dtype: np.dtype[Any], available_nbytes: int | None, what: str) -> tuple[int, ...]:
    """Read a shape; None, or one -1, is made to fill what is available.

    Parameters
    ----------
    shape : int, sequence of int, or None
    dtype : numpy.dtype
    available_nbytes : int, bytes, or None
        None: as much as is asked for.
    what : str
        Of whose shape an error speaks.

    Raises
    ------
    ValueError
        Negative, more than is available, not a whole number of elements, or more than an address space.
    """
    given: Any = (-1,) if shape is None else shape
    if hasattr(given, "__index__"):
        given = (given,)
    try:
        lengths = tuple(int(n.__index__()) for n in given)
    except (TypeError, AttributeError):
        raise TypeError(f"shape={shape!r}: give an int or a sequence of ints") from None
    unknown = [i for i, n in enumerate(lengths) if n == -1]
    if any(n < -1 for n in lengths) or len(unknown) > 1:
        raise ValueError(f"shape={shape!r}: lengths are 0 or more; one may be -1")
    if unknown:
        if available_nbytes is None:
            raise ValueError(f"shape={shape!r}: {what} has no length of its own, so every length must be given")
        row = count(tuple(n for n in lengths if n != -1)) * dtype.itemsize
        if row == 0 or available_nbytes % row:
            raise ValueError(
                f"shape={shape!r}: {available_nbytes} bytes of {what} are no whole number of "
                f"{row} bytes ({dtype}{'' if len(lengths) == 1 else ' rows'})"
            )
        lengths = tuple(available_nbytes // row if n == -1 else n for n in lengths)
    wanted = count(lengths) * dtype.itemsize
    reach = count(tuple(n for n in lengths if n)) * dtype.itemsize  # numpy's limit is on this, also when there are no elements
    if reach >= 1 << 63:
        raise ValueError(f"{what}: shape={shape!r} of {dtype} is {reach} bytes: more than an address space")
    if available_nbytes is not None and wanted > available_nbytes:
        raise ValueError(f"shape={shape!r} of {dtype} needs {wanted} bytes, but {what} has {available_nbytes}")
    return lengths


def offset_of(offset: Any, available_nbytes: int, name: str) -> int:
    """Read the offset of an array's first byte.

    Raises
    ------
    TypeError, ValueError
        No number of bytes; beyond what there is.
    """
    if isinstance(offset, bool) or not hasattr(offset, "__index__"):
        raise TypeError(f"offset={offset!r}: give a number of bytes")
    start = int(offset.__index__())
    if not 0 <= start <= available_nbytes:
        raise ValueError(f"offset={offset!r}: {name} has {available_nbytes} bytes")
    return start


def lengthen(fd: int, nbytes: int, name: str) -> None:
    """Make a file so long; what is new are zeros that take no space.

    Raises
    ------
    OSError
        It may not, or the file system cannot.
    """
    try:
        os.ftruncate(fd, nbytes)
    except OSError as error:
        raise type(error)(error.errno, f"cannot make it {nbytes} bytes long: {error.strerror}", name) from None


def order_of(order: Any) -> str:
    """Read "C" or "F"."""
    if order not in ("C", "F"):
        raise ValueError(f"order={order!r}: give 'C' or 'F'")
    return str(order)
