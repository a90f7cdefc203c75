"""What tells what a call gave on a lazy array from what it gave on an ordinary one?

Types, shapes and every bit, unless the call is marked `close`; a view may stay lazy. What belongs to a library is compared as
that library compares.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

import lazymem as lm


def difference(got: Any, want: Any, close: bool) -> str | None:
    """What tells two results apart; None if nothing does. Bit for bit, unless `close`."""
    if isinstance(got, lm.LazyArray) and type(want) is np.ndarray and (lm.is_lazy(got) or not got.size):
        got = np.asarray(got)  # views stay lazy
    if type(got) is not type(want):
        return f"a {_kind(got)}, not a {_kind(want)}"
    how = next((compare for is_one, compare in _COMPARE if is_one(want)), None)
    if how is None:
        raise TypeError(f"how are two {_kind(want)} compared?")
    return how(got, want, close)


def unwrapped(value: Any) -> tuple[Any, int]:
    """With plain arrays for LazyArrays of ordinary memory, and how many those were."""
    if isinstance(value, lm.LazyArray) and not lm.is_lazy(value):
        return np.asarray(value), 1
    return value, 0


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _arrays(got: Any, want: Any, close: bool) -> str | None:
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype} {got.shape}, not {want.dtype} {want.shape}"
    if want.dtype.hasobject:
        return _sequences(got.ravel().tolist(), want.ravel().tolist(), close)
    if got.tobytes() == want.tobytes():
        return None
    if want.dtype.kind in "fc":
        if close and np.allclose(got, want, rtol=1e-7, atol=1e-9, equal_nan=True):
            return None
        return f"values differ by up to {np.nanmax(np.abs(got - want))}, close to {np.nanmax(np.abs(want))}"
    return f"{np.count_nonzero(got != want)} of {want.size} values differ"


def _masked(got: Any, want: Any, close: bool) -> str | None:
    mask = _arrays(np.ma.getmaskarray(got), np.ma.getmaskarray(want), False)
    return mask or _arrays(np.asarray(got.filled()), np.asarray(want.filled()), close)


def _scalars(got: Any, want: Any, close: bool) -> str | None:
    return _arrays(np.asarray(got), np.asarray(want), close)


def _sequences(got: Any, want: Any, close: bool) -> str | None:
    if len(got) != len(want):
        return f"{len(got)} items, not {len(want)}"
    said = (difference(g, w, close) for g, w in zip(got, want, strict=True))
    return next((f"item {at}: {x}" for at, x in enumerate(said) if x), None)


def _mappings(got: Any, want: Any, close: bool) -> str | None:
    return _sequences(list(got), list(want), close) or _sequences(list(got.values()), list(want.values()), close)


def _equal(got: Any, want: Any, _: bool) -> str | None:
    return None if got == want else f"{got!r:.99}, not {want!r:.99}"


def _sparse(got: Any, want: Any, close: bool) -> str | None:
    parts = [(x.shape, x.row, x.col, x.data) for x in (got.tocoo(), want.tocoo())]
    return _sequences(*parts, close)


def _by_its_own(got: Any, want: Any, close: bool) -> str | None:
    library = type(want).__module__.partition(".")[0]
    try:
        if library == "pyarrow":
            return None if got.equals(want) else f"{got}, not {want}"
        testing = importlib.import_module(f"{library}.testing")
        if library == "xarray":
            testing.assert_identical(got, want)
        else:
            kind = {"dataframe": "frame"}.get(type(want).__name__.lower(), type(want).__name__.lower())
            if library == "pandas" and kind not in ("frame", "series"):
                series = importlib.import_module(library).Series
                got, want, kind = series(got), series(want), "series"
            getattr(testing, f"assert_{kind}_equal")(got, want, check_exact=not close)
    except AssertionError as error:
        return str(error)
    return None


def _is_from(*libraries: str) -> Callable[[Any], bool]:
    return lambda x: type(x).__module__.partition(".")[0] in libraries


_COMPARE = (
    (lambda x: isinstance(x, np.ma.MaskedArray), _masked),
    (lambda x: isinstance(x, np.ndarray), _arrays),
    (lambda x: isinstance(x, (np.generic, float, complex)), _scalars),
    (lambda x: isinstance(x, (tuple, list)), _sequences),
    (lambda x: isinstance(x, dict), _mappings),
    (lambda x: x is None or isinstance(x, (int, str, bytes, bytearray, set, slice, range, np.dtype)), _equal),
    (lambda x: hasattr(x, "tocoo"), _sparse),
    (_is_from("pandas", "polars", "pyarrow", "xarray"), _by_its_own),
)
