"""How does a function of Python become a provider: one that is asked for values, or one that writes elements in place?"""

from __future__ import annotations

from typing import Any

import numpy as np

from lazymem.formats.layout import count
from lazymem.providers.base import Provider, check_call
from lazymem.providers.elements import clear_holes, holes_of, name_of, read_elements

_AXES = "ijklmnopqrstuvwxyz"


class _ElementProvider(Provider):
    """What both kinds share: a block is made of elements, and may begin and end in the middle of one."""

    def __init__(self, shape: Any, dtype: Any, name: str) -> None:
        self.shape, self.dtype = read_elements(shape, dtype, name)
        self.name = name
        self.nbytes = count(self.shape) * self.dtype.itemsize
        self._itemsize = self.dtype.itemsize
        self._holes = holes_of(self.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, shape={self.shape}, dtype={self.dtype})"

    def read_into(self, buffer: memoryview, offset: int) -> None:
        first, skipped = divmod(offset, self._itemsize)
        if skipped or len(buffer) % self._itemsize:
            stop = -(-(offset + len(buffer)) // self._itemsize)
            out = np.zeros(stop - first, self.dtype)
            self._write(out, first)
            buffer[:] = out.view("u1")[skipped : skipped + len(buffer)].data
        else:
            self._write_block(buffer, first)

    def _write_block(self, buffer: memoryview, first: int) -> None:
        """Write a block that is whole elements. Its memory may hold anything."""
        self._write(np.frombuffer(buffer, self.dtype), first)

    def _write(self, out: np.ndarray[Any, Any], first: int) -> None:
        """Write the elements from number `first` on, in C order."""
        raise NotImplementedError


class FunctionProvider(_ElementProvider):
    """An array of what a function gives for the coordinates of its elements, as `numpy.fromfunction` has it.

    Parameters
    ----------
    f : callable
        `f(i, j, ...)` gets an int64 array of coordinates for each axis: 1-D, all of one length, those of one block's elements
        in C order; they are its own to change. It returns the values: an array of that length, or one value for all of them.
        For the same coordinates it must return the same. It is called in other processes, by several threads at once.
    shape : int or sequence of int
    dtype : dtype
        Of the elements. Values are converted as `numpy.asarray(values).astype(dtype)` does it, but complex numbers never to
        real ones.

    Raises
    ------
    TypeError
        f is not callable, or not with one argument for each axis; a dtype of objects or subarrays.
    ValueError
        A negative length; 2**63 bytes and more.

    Notes
    -----
    numpy calls its function once, with the coordinates of all elements in an array of the same shape; here each call sees some
    of them. So a function that looks at its coordinates as a whole (their maximum, their neighbours) means something else.
    """

    def __init__(self, f: Any, shape: Any, dtype: Any = float) -> None:
        if not callable(f):
            raise TypeError(f"from_function({f!r}): give a function of the coordinates, f(i, j, ...)")
        super().__init__(shape, dtype, f"from_function({name_of(f)})")
        axes = tuple(_AXES[k] if k < len(_AXES) else f"i{k}" for k in range(len(self.shape)))
        check_call(f, axes, name_of(f))
        self.f = f
        self._takes_complex = self.dtype.kind not in "iufmM"

    def _write(self, out: np.ndarray[Any, Any], first: int) -> None:
        n = len(out)
        values = self.f(*coordinates(self.shape, first, n))
        if type(values) is not np.ndarray:
            values = self._array_of(values)
        if values.dtype.kind == "c" and not self._takes_complex:
            raise TypeError(
                f"{self.name}: the function returned {values.dtype} values, which {self.dtype} elements cannot hold: "
                "return their .real, or say dtype=complex"
            )
        if values.shape != (n,) and values.shape:
            raise ValueError(
                f"{self.name}: the function returned values of shape {values.shape} for {n} elements: it gets 1-D arrays of "
                f"coordinates, and returns an array of shape ({n},), or one value for all"
            )
        out[...] = values
        if self._holes is not None:
            clear_holes(out, self._holes)

    def _array_of(self, values: Any) -> np.ndarray[Any, Any]:
        if values is None:
            raise TypeError(f"{self.name}: the function returned None: it must return the values")
        if self.dtype.names is not None and not hasattr(values, "dtype"):  # tuples, each of them an element
            return np.asarray(values, self.dtype)
        return np.asarray(values)


class FillProvider(_ElementProvider):
    """An array whose elements a function writes in place.

    Parameters
    ----------
    fill : callable
        `fill(out, start)` writes the elements from number `start` on, counted in C order, into `out`: a 1-D array of the
        dtype, all zeros. It returns nothing, and does not keep `out`. It is called in other processes, by several threads at
        once, and must write the same each time.
    shape : int or sequence of int
    dtype : dtype

    Raises
    ------
    TypeError
        fill is not callable, or not so; a dtype of objects or subarrays.
    ValueError
        A negative length; 2**63 bytes and more.
    """

    _zeros = b""

    def __init__(self, fill: Any, shape: Any, dtype: Any = float) -> None:
        if not callable(fill):
            raise TypeError(f"from_fill({fill!r}): give a function that writes elements in place, fill(out, start)")
        super().__init__(shape, dtype, f"from_fill({name_of(fill)})")
        check_call(fill, ("out", "start"), name_of(fill))
        self.fill = fill

    def _write_block(self, buffer: memoryview, first: int) -> None:
        # What the function leaves out must not show what another fetch left here. This is the cheapest way to zeros.
        zeros = self._zeros
        if len(zeros) != len(buffer):
            zeros = self._zeros = bytes(len(buffer))
        buffer[:] = zeros
        self._write(np.frombuffer(buffer, self.dtype), first)

    def _write(self, out: np.ndarray[Any, Any], first: int) -> None:
        returned = self.fill(out, first)
        if returned is not None:
            raise TypeError(
                f"{self.name}: the function returned a {type(returned).__qualname__}: it writes into out[...] and returns "
                "nothing. One that returns its values goes through lazymem.from_function"
            )
        if self._holes is not None:
            clear_holes(out, self._holes)


def coordinates(shape: tuple[int, ...], first: int, n: int) -> list[np.ndarray[Any, Any]]:
    """Where elements lie that follow one another in C order.

    Parameters
    ----------
    shape : tuple of int
    first : int
        Number of the first, in C order.
    n : int
        How many.

    Returns
    -------
    list of numpy.ndarray
        For each axis int64, (n,); each with memory of its own.
    """
    if len(shape) == 1:  # most arrays, and no division
        return [np.arange(first, first + n)]
    made: list[np.ndarray[Any, Any]] = []
    # From the last axis on, `positions` counts along the axes that are left, flattened: from a small number, for numbers that
    # stay small divide fast. The rest of it is in `base`, exact as an int of Python.
    base, last = first, first + n - 1
    positions: np.ndarray[Any, Any] | None = None
    for length in reversed(shape):
        row, start = divmod(base, length)
        if last // length == row:  # no row ends among them: the axes before this one stay where they are
            made.append(np.arange(start, start + n) if positions is None else _moved(positions, start))
            made.extend(_same(n, place) for place in _places(row, shape[: len(shape) - len(made)]))
            break
        positions = np.arange(start, start + n) if positions is None else _moved(positions, start)
        rows = positions // length
        positions -= rows * length
        made.append(positions)
        positions, base, last = rows, row, last // length
    made.reverse()
    return made


def _moved(positions: np.ndarray[Any, Any], start: int) -> np.ndarray[Any, Any]:
    if start:
        positions += start
    return positions


def _same(n: int, value: int) -> np.ndarray[Any, Any]:
    array = np.empty(n, np.int64)
    array.fill(value)
    return array


def _places(number: int, shape: tuple[int, ...]) -> list[int]:
    """Where one element lies, the last axis first."""
    places = []
    for length in reversed(shape):
        number, place = divmod(number, length)
        places.append(place)
    return places
