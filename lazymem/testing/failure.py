"""In which ways can a provider fail, and which of its reads is to?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["error", "short", "long", "wrong", "hang", "die", "keep"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Failure:
    """What goes wrong, and with which reads.

    Attributes
    ----------
    kind : {"error", "short", "long", "wrong", "hang", "die", "keep"}
        Raise `error`; say that a byte less, or more, was written; write one bit wrongly; never return; end the process; keep
        the memory that was lent.
    error : BaseException, or a class of them
        For "error". lazymem tries again after an OSError, and not after any other.
    at : int or None, bytes
        Only reads of this byte.
    after : int
        Such reads that it lets pass first.
    times : int or None
        Such reads that it is for then; None: all.

    Raises
    ------
    ValueError
        An unknown kind; a negative number.

    Notes
    -----
    Each counts the reads that it is about, whatever became of them, in every process: `Failure("die", after=5, times=1)` is
    for the sixth read, `Failure("hang", at=10**6, times=2)` for the first two attempts at byte 10**6.
    """

    kind: Kind
    error: BaseException | type[BaseException] = OSError
    at: int | None = None
    after: int = 0
    times: int | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if (self.at or 0) < 0 or self.after < 0 or (self.times or 0) < 0:
            raise ValueError(f"{self}: at, after and times are 0 and more")

    def is_about(self, offset: int, nbytes: int) -> bool:
        """Is a read of these bytes one that it counts?"""
        return self.at is None or offset <= self.at < offset + nbytes

    def is_due(self, before: int) -> bool:
        """Is it for the next such read, when there were so many before?"""
        return before >= self.after and (self.times is None or before < self.after + self.times)


def check_kind(kind: str) -> None:
    """Raise a ValueError unless there is such a kind."""
    if kind not in KINDS:
        raise ValueError(f"a failure of kind {kind!r}: give one of {', '.join(map(repr, KINDS))}")
