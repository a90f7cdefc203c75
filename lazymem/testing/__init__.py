"""What do tests of code that reads over a network need? A server that does as it is told."""

from lazymem.testing.apart import ServerApart
from lazymem.testing.misbehaviour import Misbehaviour
from lazymem.testing.rangeserver import RangeServer, Request

__all__ = ["Misbehaviour", "RangeServer", "Request", "ServerApart"]
