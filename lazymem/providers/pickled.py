"""How does a provider get to other processes? Pickled once, and kept as bytes."""

from __future__ import annotations

import hashlib
import sys
import warnings
from typing import Any

LARGE_NBYTES = 16 << 20


def pickle_provider(provider: Any) -> bytes:
    """Pickle a provider as its processes will load it: functions and classes that they could not import go along.

    Returns
    -------
    bytes

    Raises
    ------
    TypeError
        It cannot be pickled. Which part of it is named by where it is, and the pickler's own error is the cause.

    Warns
    -----
    UserWarning
        More than 16 MiB.

    Notes
    -----
    Blocks: as long as pickling takes. GIL: kept.
    """
    import cloudpickle

    try:
        pickled: bytes = cloudpickle.dumps(provider)
    except MemoryError:
        raise
    except Exception as error:
        from lazymem.providers.unpicklable import find_unpicklable

        path, part = find_unpicklable(provider, "provider")
        kind = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
        raise TypeError(
            f"{type(provider).__qualname__} cannot be pickled: {path} is a {kind}. It runs in other processes: what belongs "
            "to a process must be made there, in open() or inside the function, or left out by __getstate__"
        ) from error
    if len(pickled) > LARGE_NBYTES:
        warnings.warn(
            f"{type(provider).__qualname__} is {len(pickled) / (1 << 20):.1f} MiB when it is pickled, which is kept in memory "
            "and sent to each process that runs it. What is large is better read there, in open(), from a file",
            UserWarning,
            stacklevel=_callers_level(),
        )
    return pickled


def _callers_level() -> int:
    """How far up, from the function that asks, the first line lies that is not ours."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "lazymem":
        level, frame = level + 1, frame.f_back
    return level


def identity_of(pickled: bytes, nbytes: int) -> int:
    """A number for what a provider is: 64 bits, never 0, the same for the same bytes in any process.

    Parameters
    ----------
    pickled : bytes
    nbytes : int, bytes
        How long its array's memory is.
    """
    digest = hashlib.blake2b(nbytes.to_bytes(8, "little"), digest_size=8)
    digest.update(pickled)
    return int.from_bytes(digest.digest(), "little") or 1
