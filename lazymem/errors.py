"""What can be raised?"""

from __future__ import annotations

import errno as _errno
from collections.abc import Callable

__all__ = ["PageError", "ProviderError", "TouchError", "UnsupportedPlatform", "page_error", "touch_error"]


class UnsupportedPlatform(NotImplementedError):
    """This system has no userfaultfd that lazymem can use."""


class ProviderError(Exception):
    """What a provider said of its failure, in its process: the traceback's text. It is the cause of a PageError."""

    def __str__(self) -> str:
        return "\n" + super().__str__()


class TouchError(BaseException):
    """A touch of a plain array failed, some time ago, somewhere on this thread.

    What was read there is no data. It is raised where nothing that was running could raise: soon after, but not at the touch
    itself; not an `Exception`, so that no `except Exception` takes it for something else. `lazymem.guard` is exact, and so
    are operations on the LazyArray.

    Attributes
    ----------
    error : PageError
        What failed. It is the `__cause__` too.
    """

    error: PageError


def touch_error(error: PageError, seen: Callable[[], str]) -> type[TouchError]:
    """A class whose instance says what `error` says: an asynchronous exception is made of a class, without arguments.

    `seen` is called as it is made: then it has come to light. It returns what else there is to say.
    """

    class Told(TouchError):
        def __init__(self, *args: object) -> None:
            super().__init__(f"a touch of memory failed, before this point and on this thread: {error}{seen()}")
            self.error = error
            self.__cause__ = error

    Told.__name__ = Told.__qualname__ = TouchError.__name__
    Told.__module__ = TouchError.__module__
    return Told


class PageError(OSError):
    """A block could not be fetched, or could not be written back: then it is still changed, and in memory.

    Attributes
    ----------
    errno : int
        What the source or the kernel answered.
    name : str
        Of the array.
    source : str
        "memory", "file", "function" or "provider".
    start, stop : int, bytes
        What part of the array's source is not there.
    block : int
        Its number.
    elements : tuple of (int, int), or None
        The same part, counted in elements as the array was opened, in its order: first, and behind the last. None: it has no
        elements.
    attempts : int
        How often its source was asked; 0 where that is not known any more.

    The message names what the program stored into the block between the failure and this error, which is lost.
    """

    name: str
    source: str
    start: int
    stop: int
    block: int
    elements: tuple[int, int] | None
    attempts: int


def page_error(
    name: str, source: str, block: int, start: int, stop: int, errno: int, cause: str, advice: str = "",
    elements: tuple[int, int] | None = None, attempts: int = 0, stored: bool = False,
) -> PageError:  # fmt: skip
    """Build the exception for one failed block; the caller raises it."""
    code = _errno.errorcode.get(errno, str(errno))
    part = f"bytes {start}..{stop}"
    if elements and elements != (start, stop):
        part += f", elements {elements[0]}..{elements[1]}"
    tries = f", after {attempts} attempts" if attempts > 1 else ""
    done = "written back" if stored else "fetched"
    text = f"array {name!r}: block {block} ({part}) could not be {done}: {cause} ({code}){tries}{advice}"
    error = PageError(errno, text)
    error.name = name
    error.source = source
    error.block = block
    error.start = start
    error.stop = stop
    error.elements = elements
    error.attempts = attempts
    return error
