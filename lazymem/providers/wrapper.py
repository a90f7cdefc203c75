"""How does one provider stand in front of another?"""

from __future__ import annotations

from numbers import Integral
from typing import Any

from lazymem.providers.base import Provider, check_provider


class Wrapper(Provider):
    """Says of itself what another provider says, and is opened and closed with it. How it reads is left to who inherits.

    Parameters
    ----------
    provider : object
        What resembles `lazymem.providers.Provider`.

    Raises
    ------
    TypeError, ValueError
        It does not.
    """

    def __init__(self, provider: Any) -> None:
        self.nbytes, self.block_nbytes, self.concurrent, self.processes_max, _ = check_provider(provider)
        self.provider = provider

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.provider!r})"

    def open(self) -> None:
        call_if_there(self.provider, "open")

    def close(self) -> None:
        call_if_there(self.provider, "close")

    def stamp(self) -> Any:
        return call_if_there(self.provider, "stamp")


def call_if_there(provider: Any, method: str) -> Any:
    """Call a method that a provider need not have; None where it has not."""
    found = getattr(provider, method, None)
    return None if found is None else found()


def fill(provider: Any, buffer: memoryview, offset: int) -> None:
    """Have a provider write all of `buffer`.

    Raises
    ------
    ValueError
        It says that it wrote another number of bytes.
    Exception
        Whatever it raises.
    """
    count = provider.read_into(buffer, offset)
    if count is not None and not (isinstance(count, Integral) and count == len(buffer)):
        raise ValueError(
            f"{type(provider).__qualname__}.read_into(buffer, {offset}) returned {count!r}: it must fill all {len(buffer)} "
            f"bytes, and return None or {len(buffer)}"
        )
