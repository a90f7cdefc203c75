"""What if every fetch takes its time?"""

from __future__ import annotations

import time
from typing import Any

from lazymem.providers.wrapper import Wrapper, fill
from lazymem.testing.chance import chance
from lazymem.testing.given import provider_of


class SlowProvider(Wrapper):
    """A provider that waits before it reads: as a network would, or a computation.

    Parameters
    ----------
    provider : object or bytes
        What resembles `lazymem.providers.Provider`, or its bytes.
    latency_s : float, s
        Of every read.
    per_byte_s : float, s
        Of every byte of it besides.
    jitter : float
        0 to 1: a read takes from `1 - jitter` to `1 + jitter` times as long; the same read always takes the same.
    seed : int
        Another one, other waits.

    Raises
    ------
    TypeError, ValueError
        No provider; a negative time; a jitter out of range.

    Notes
    -----
    Blocks: so long, in the provider's process. GIL: released there meanwhile.

    Examples
    --------
    >>> import lazymem as lm
    >>> from lazymem.testing import SlowProvider
    >>> a = lm.from_provider(SlowProvider(bytes(range(256)) * 1000, latency_s=0.05, jitter=0.5))
    >>> int(a[1000])
    232
    """

    def __init__(
        self, provider: Any, *, latency_s: float = 0.0, per_byte_s: float = 0.0, jitter: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(provider_of(provider))
        if not (latency_s >= 0 and per_byte_s >= 0):
            raise ValueError(f"latency_s={latency_s!r}, per_byte_s={per_byte_s!r}: give seconds, 0 and more")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter={jitter!r}: give 0 to 1")
        self.latency_s, self.per_byte_s, self.jitter, self.seed = latency_s, per_byte_s, jitter, seed

    def wait_s(self, offset: int, nbytes: int) -> float:
        """How long a read waits, in s."""
        return (self.latency_s + self.per_byte_s * nbytes) * (1 + self.jitter * (2 * chance(self.seed, offset, nbytes) - 1))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        time.sleep(self.wait_s(offset, len(buffer)))
        fill(self.provider, buffer, offset)
