"""lazymem: numpy arrays that are real memory, filled on first touch.

Names only. On systems without userfaultfd the package imports, and its constructors say why they cannot work.
"""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from lazymem.errors import PageError, ProviderError, TouchError, UnsupportedPlatform
from lazymem.version import __version__

if _sys.platform.startswith("linux"):
    from lazymem.arrays import from_provider, get_include, memmap, open
    from lazymem.asking import (
        check,
        close,
        evict,
        flush,
        is_lazy,
        pin,
        populate,
        prefetch,
        region,
        residency,
        set_budget,
        stats,
    )  # fmt: skip
    from lazymem.guards import guard
    from lazymem.handle import Region
    from lazymem.lazyarray import LazyArray

    if _TYPE_CHECKING:
        from lazymem.functions import from_fill, from_function, from_generator
        from lazymem.providers.cfunction import CFunction
else:
    from lazymem.elsewhere import (  # type: ignore[assignment]
        CFunction,
        LazyArray,
        Region,
        check,
        close,
        evict,
        flush,
        from_fill,
        from_function,
        from_generator,
        from_provider,
        get_include,
        guard,
        is_lazy,
        memmap,
        open,
        pin,
        populate,
        prefetch,
        region,
        residency,
        set_budget,
        stats,
    )

__all__ = [
    "CFunction",
    "LazyArray",
    "PageError",
    "ProviderError",
    "Region",
    "Stats",
    "TouchError",
    "UnsupportedPlatform",
    "__version__",
    "check",
    "close",
    "evict",
    "flush",
    "from_fill",
    "from_function",
    "from_generator",
    "from_provider",
    "get_include",
    "guard",
    "is_lazy",
    "memmap",
    "open",
    "pin",
    "populate",
    "prefetch",
    "providers",
    "region",
    "residency",
    "set_budget",
    "set_executable",
    "stats",
]

if _TYPE_CHECKING:
    from lazymem import providers
    from lazymem.counters import Stats
    from lazymem.executable import set_executable

# What not every program needs, and where it is: together as long to import as a tenth of numpy.
_LATER = {
    "CFunction": "lazymem.providers.cfunction",
    "Stats": "lazymem.counters",
    "from_fill": "lazymem.functions",
    "from_function": "lazymem.functions",
    "from_generator": "lazymem.functions",
    "providers": "lazymem.providers",
    "set_executable": "lazymem.executable",
}


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module 'lazymem' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(_LATER[name])
    found = globals()[name] = module if _LATER[name] == f"lazymem.{name}" else getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


# A program that imports logging later gets the handler with its next array (arrays.py): importing it here would take a third
# as long as all of lazymem.
if "logging" in _sys.modules:
    from lazymem import log as _log

    _log.quieten()
