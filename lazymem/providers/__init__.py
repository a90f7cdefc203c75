"""What can the bytes of an array come from? One file each."""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from lazymem.providers.base import Provider
    from lazymem.providers.checked import Checked, ChecksumError, checksums_of

__all__ = ["Checked", "ChecksumError", "Provider", "checksums_of"]


def __getattr__(name: str) -> _Any:  # most programs need none of them, and `import lazymem` must be light
    if name == "Provider":
        from lazymem.providers.base import Provider

        return Provider
    if name in __all__:
        from lazymem.providers import checked

        return getattr(checked, name)
    raise AttributeError(f"module 'lazymem.providers' has no attribute {name!r}")
