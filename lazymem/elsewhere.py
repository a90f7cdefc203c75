"""What do the public names do where lazymem cannot work? They exist, and say why."""

from __future__ import annotations

from typing import Any, NoReturn

from lazymem import system
from lazymem.providers.cfunction import CFunction as _CFunction


class LazyArray:
    """No instance of it exists on this system."""

    def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse()


class Region(LazyArray):
    """No instance of it exists on this system."""


class CFunction(_CFunction):
    """Refused, as every constructor is."""

    def __init__(self, fn: Any, nbytes: int, user_data: Any = None, store: Any = None) -> None:
        _refuse()


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    system.require()
    raise AssertionError("this module is for systems without userfaultfd")


def is_lazy(x: Any) -> bool:
    """Nothing is, here."""
    return False


open = memmap = from_provider = from_function = from_fill = from_generator = get_include = _refuse
populate = prefetch = region = residency = stats = close = check = flush = guard = evict = pin = set_budget = _refuse

__all__ = [
    "CFunction", "LazyArray", "Region", "check", "close", "evict", "flush", "from_fill", "from_function",
    "from_generator",
    "from_provider", "get_include", "guard", "is_lazy", "memmap", "open", "pin", "populate", "prefetch", "region",
    "residency", "set_budget", "stats",
]  # fmt: skip
