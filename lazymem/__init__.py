"""lazymem: numpy arrays that are real memory, filled on first touch.

Names only. On systems without userfaultfd the package imports, and its constructors say why they cannot work.
"""

import logging as _logging
import sys as _sys

from lazymem.errors import PageError, UnsupportedPlatform
from lazymem.version import __version__

if _sys.platform.startswith("linux"):
    from lazymem.arrays import (
        CFunction,
        close,
        from_provider,
        get_include,
        is_lazy,
        memmap,
        open,
        populate,
        prefetch,
        region,
        residency,
        stats,
    )
    from lazymem.handle import Region
    from lazymem.lazyarray import LazyArray
    from lazymem.stats import Stats
else:
    from lazymem.elsewhere import (  # type: ignore[assignment]
        CFunction,
        LazyArray,
        Region,
        Stats,
        close,
        from_provider,
        get_include,
        is_lazy,
        memmap,
        open,
        populate,
        prefetch,
        region,
        residency,
        stats,
    )

__all__ = [
    "CFunction",
    "LazyArray",
    "PageError",
    "Region",
    "Stats",
    "UnsupportedPlatform",
    "__version__",
    "close",
    "from_provider",
    "get_include",
    "is_lazy",
    "memmap",
    "open",
    "populate",
    "prefetch",
    "region",
    "residency",
    "stats",
]

_logging.getLogger("lazymem").addHandler(_logging.NullHandler())
