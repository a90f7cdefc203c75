"""How often did something happen, in whichever process it did, and though that process was killed?

The counts are in a file without a name. The process that makes a tally holds it open as long as the tally is there; others
open it through /proc, and one that is killed leaves the counts as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from typing import Any

from lazymem.options import PAGE_NBYTES
from lazymem.providers.spool import reserve

# After what identifies the file; then 8 bytes a counter; then one byte for each page of the array, and for as many pages that
# the file stays within what every file system allows. Nearly all of it is a hole.
_COUNTERS_AT = 64
_PAGES_MAX = 1 << 36


class Tally:
    """Counters, and how often each page was asked for (modulo 256), shared with every copy of this object (by pickle).

    Parameters
    ----------
    ncounters : int

    Raises
    ------
    OSError
        There is no folder for temporary files.

    Notes
    -----
    Blocks: while another process counts. GIL: released meanwhile.
    """

    def __init__(self, ncounters: int) -> None:
        self._ncounters = ncounters
        self._place = reserve(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"_ncounters": self._ncounters, "_place": self._place}

    def open(self) -> None:
        """Find the file.

        Raises
        ------
        FileNotFoundError
            The process that made the tally has gone, or is on another machine: nobody knows the counts.
        """
        self._fd = self._find()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close it; a second time does nothing."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else counts meanwhile, in any process."""
        with self._lock:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def add(self, counter: int) -> int:
        """Count one more; what the counter was before. Within `alone`."""
        place = _COUNTERS_AT + 8 * counter
        before = int.from_bytes(os.pread(self._fd, 8, place), "little")
        os.pwrite(self._fd, (before + 1).to_bytes(8, "little"), place)
        return before

    def add_page(self, offset: int) -> int:
        """Count that the page was asked for which holds byte `offset`; how often it was before. Within `alone`."""
        place = _COUNTERS_AT + 8 * self._ncounters + offset // PAGE_NBYTES % _PAGES_MAX
        before = int.from_bytes(os.pread(self._fd, 1, place), "little")
        os.pwrite(self._fd, bytes([(before + 1) % 256]), place)
        return before

    def values(self) -> list[int]:
        """What the counters are now. In any process, whether `open` was called or not."""
        fd = self._find()
        try:
            return [int.from_bytes(os.pread(fd, 8, _COUNTERS_AT + 8 * k), "little") for k in range(self._ncounters)]
        finally:
            os.close(fd)

    @property
    def is_here(self) -> bool:
        """Is this the process that made it?"""
        return self._place.pid == os.getpid()

    def _find(self) -> int:
        path = f"/proc/{self._place.pid}/fd/{self._place.fd}"
        try:
            if self._place.is_at(path):  # before it is opened: opening something else might do something
                return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            pass
        raise FileNotFoundError(f"{path}: the process that made this has gone, and with it what was counted")
