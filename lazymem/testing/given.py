"""What is the simplest provider? Bytes."""

from __future__ import annotations

from typing import Any

from lazymem.providers.base import Provider


class BytesProvider(Provider):
    """Bytes that go along with it to its process: for tests, with few of them."""

    def __init__(self, given: bytes | bytearray | memoryview) -> None:
        self._bytes = bytes(given)
        self.nbytes = len(self._bytes)

    def __repr__(self) -> str:
        return f"{self.nbytes} bytes"

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = memoryview(self._bytes)[offset : offset + len(buffer)]


def provider_of(given: Any) -> Any:
    """A provider as it is; one of bytes, if bytes are given."""
    return BytesProvider(given) if isinstance(given, (bytes, bytearray, memoryview)) else given
