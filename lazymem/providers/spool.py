"""Where does what came once stay, so that going back is a read, and the successor of a killed process can compare?

In a file without a name. The process that makes an array holds it open, a provider process opens it again through
/proc/<pid>/fd: it outlives any provider process, and is gone with its array, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
import warnings
import weakref
from typing import NamedTuple

# In front of the bytes: 16 of a random mark, 8 of how many bytes count, the rest nothing.
_MARK_NBYTES = 16
_HEADER_NBYTES = 64
_COPY_NBYTES = 1 << 20
_PATIENCE_SECONDS = 1.0  # for a killed process to let go of its files


class Place(NamedTuple):
    """Where a spool is held open, and how to tell that it is that one and nothing that took its number."""

    pid: int
    fd: int
    device: int
    inode: int
    mark: bytes

    def is_at(self, fd: int | str) -> bool:
        """Is it this file, to which a descriptor or a path leads?"""
        here = os.stat(fd)
        return stat.S_ISREG(here.st_mode) and (here.st_dev, here.st_ino) == (self.device, self.inode)


def reserve(owner: object) -> Place:
    """Make an empty spool that this process holds open until `owner` is gone.

    Its folder is the one for temporary files (TMPDIR).

    Raises
    ------
    OSError
        There is no folder for it, or no descriptor.
    """
    fd = _unlinked()
    try:
        mark = os.urandom(_MARK_NBYTES)
        os.pwrite(fd, mark.ljust(_HEADER_NBYTES, b"\0"), 0)
        here = os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise
    place = Place(os.getpid(), fd, here.st_dev, here.st_ino, mark)
    weakref.finalize(owner, _release, place).atexit = False
    return place


def _release(place: Place) -> None:
    with contextlib.suppress(OSError):  # somebody closed all descriptors
        if place.is_at(place.fd):
            os.close(place.fd)


def _unlinked() -> int:
    with tempfile.TemporaryFile(prefix="lazymem-spool-", buffering=0) as file:
        return os.dup(file.fileno())


class Spool:
    """Bytes in the order in which they came, and which count even when a process was killed as it wrote.

    Parameters
    ----------
    place : Place
        Of a spool that may hold bytes already. Where it cannot be opened (it is another machine's, or its process is gone),
        this one begins empty. Where another process writes to it, this one is a copy.

    Attributes
    ----------
    nbytes : int, bytes
        How many there are.
    """

    def __init__(self, place: Place) -> None:
        found = _open(place)
        self._fd = _unlinked() if found is None else found
        self.nbytes = 0
        try:
            if found is not None:
                alone = _lock(found)
                self.nbytes = int.from_bytes(os.pread(found, 8, _MARK_NBYTES), "little")
                if not alone:
                    self._fd = self._copy_of(found)
        except BaseException:
            self.close()
            raise

    def _copy_of(self, fd: int) -> int:
        copy = _unlinked()
        try:
            place, stop = _HEADER_NBYTES, _HEADER_NBYTES + self.nbytes
            while place < stop:
                place += os.pwrite(copy, os.pread(fd, min(_COPY_NBYTES, stop - place), place), place)
        except BaseException:
            os.close(copy)
            raise
        os.close(fd)
        return copy

    def append(self, piece: bytearray | memoryview) -> None:
        """Add bytes at the end. They count once all of them are written.

        Raises
        ------
        OSError
            There is no room; nothing was added.
        """
        view = memoryview(piece)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], _HEADER_NBYTES + self.nbytes + done)
            nbytes = self.nbytes + done
            os.pwrite(self._fd, nbytes.to_bytes(8, "little"), _MARK_NBYTES)
        except OSError as error:
            raise OSError(
                error.errno, f"what came after byte {self.nbytes} cannot be kept in the folder for temporary files (TMPDIR "
                f"names another): {os.strerror(error.errno or 0)}"
            ) from error  # fmt: skip
        self.nbytes = nbytes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Read bytes that are there, at any time and from any thread."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], _HEADER_NBYTES + offset + done)
            if not count:
                raise OSError(f"the spool ends at byte {offset + done} of {self.nbytes}: somebody cut it short")
            done += count

    def difference(self, view: memoryview, offset: int) -> int | None:
        """Where bytes first differ from those that are there from `offset` on; None: nowhere."""
        for start in range(0, len(view), _COPY_NBYTES):
            given = bytes(view[start : start + _COPY_NBYTES])
            kept = os.pread(self._fd, len(given), _HEADER_NBYTES + offset + start)
            if given != kept:
                pairs = enumerate(zip(given, kept, strict=False))
                return offset + start + next((i for i, (a, b) in pairs if a != b), len(kept))
        return None

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _open(place: Place) -> int | None:
    path = f"/proc/{place.pid}/fd/{place.fd}"
    try:
        if not place.is_at(path):  # before it is opened: opening something else might do something
            return None
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        if place.pid == os.getppid():
            warnings.warn(
                f"{path} may not be opened: should this process be killed, its successor cannot tell whether a generator "
                "gives the same bytes again",
                RuntimeWarning,
                stacklevel=2,
            )
        return None
    except OSError:
        return None
    if place.is_at(fd) and os.pread(fd, _MARK_NBYTES, 0) == place.mark:
        return fd
    os.close(fd)
    return None


def _lock(fd: int) -> bool:
    """Become the only one who writes. The predecessor may be on its way out still."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        else:
            return True
