"""Would it be found? One bit that a source gets wrong, or one fetch that never ends."""

from __future__ import annotations

import lazymem
from lazymem.soak.actor import Actor
from lazymem.soak.content import words
from lazymem.soak.sources import PAGE_WORDS, Mixed
from lazymem.testing import Failure, FaultyProvider

WAYS = ("bytes", "time")
_LIMIT_S = 1.0


def act(me: Actor, way: str) -> None:
    """Spoil something once, and look at it as everybody does."""
    how = Failure("wrong" if way == "bytes" else "hang", times=1)
    timeout = 30.0 if way == "bytes" else 3600.0
    n = 16 * PAGE_WORDS
    array = lazymem.from_provider(FaultyProvider(Mixed(me.seed, n), [how]), dtype="u8", timeout=timeout)
    with me.within(timeout if way == "bytes" else _LIMIT_S, "spoiled"):
        me.same(array[:n], words(me.seed, n), "spoiled")
