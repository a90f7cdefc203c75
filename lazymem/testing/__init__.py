"""What do tests of providers need, and of code that reads over a network? A contract, failures to order, and a server."""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from lazymem.providers.checked import Checked, ChecksumError, checksums_of
from lazymem.testing.apart import ServerApart
from lazymem.testing.failure import Failure
from lazymem.testing.faulty import FaultyProvider
from lazymem.testing.misbehaviour import Misbehaviour
from lazymem.testing.rangeserver import RangeServer, Request
from lazymem.testing.slow import SlowProvider

if _TYPE_CHECKING:
    from lazymem.testing.contract import ProviderContract
    from lazymem.testing.writing import WritableProviderContract

__all__ = [
    "Checked",
    "ChecksumError",
    "Failure",
    "FaultyProvider",
    "Misbehaviour",
    "ProviderContract",
    "RangeServer",
    "Request",
    "ServerApart",
    "SlowProvider",
    "WritableProviderContract",
    "checksums_of",
]


def __getattr__(name: str) -> _Any:
    if name == "ProviderContract":  # it needs pytest, and nothing else here does
        from lazymem.testing.contract import ProviderContract

        return ProviderContract
    if name == "WritableProviderContract":
        from lazymem.testing.writing import WritableProviderContract

        return WritableProviderContract
    raise AttributeError(f"module 'lazymem.testing' has no attribute {name!r}")
