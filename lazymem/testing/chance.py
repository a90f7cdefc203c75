"""What looks like chance, and is the same in every process and every run?"""

from __future__ import annotations

import hashlib


def chance(*numbers: int) -> float:
    """A number from 0 to 1, 1 excluded, that these numbers decide."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)  # as many bits as a float has
