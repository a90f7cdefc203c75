"""How is code that cannot raise made exact?"""

from __future__ import annotations

from types import TracebackType

from lazymem.core import told  # noqa: F401  threads of Python hear of what fails outside guards
from lazymem.core.guards import enter_guard, leave_guard


class guard:
    """Leaving it without an exception means: no value read inside was wrong.

    For plain arrays (`numpy.asarray(a)`), tensors, C and numba code, on any threads: a touch in the middle of an instruction
    cannot raise. Inside a guard a touch that fails goes on over values that are no data (NaN, NaT or 0), and leaving raises
    the `PageError` of the first.

    Raises
    ------
    PageError
        As it is left: a touch has failed somewhere in this process since it was entered, on whichever thread and whichever
        array. An exception of the code inside becomes its context; KeyboardInterrupt and the like pass.
    RuntimeError
        As it is left: an array has lost its memory, since somebody closed lazymem's userfaultfd or unregistered what it
        serves; values read from it may be zeros that are no data.
    TimeoutError
        As it is entered: another thread's operation has failed and not ended for 1 s.

    Notes
    -----
    Guards may be nested, and entered on several threads. Blocks: as it is entered, at most 1 s, while others' failed
    operations end; as it is left, some us for each array, at most 2 ms. GIL: released meanwhile; kept as it is left.

    Examples
    --------
    >>> import lazymem as lm, numpy as np
    >>> a = lm.from_provider(bytes(1000))
    >>> with lm.guard():
    ...     total = np.asarray(a).sum()
    """

    def __init__(self) -> None:
        self._entered: list[int] = []

    def __enter__(self) -> guard:
        self._entered.append(enter_guard())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        failed = leave_guard(self._entered.pop())
        if failed is not None and (kind is None or issubclass(kind, Exception)):
            raise failed
