"""In which ways can a provider break what it promises? One class each, imported by its processes too."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import time

import numpy as np

PAGE = mmap.PAGESIZE
RIGHT = np.random.default_rng(11).bytes(5 * PAGE + 1000)
KEPT: list = []
AT_HOME = os.environ.get("LAZYMEM_TEST_HOME") == str(os.getpid())  # false in every process but that one


class Right:
    """Does all of it; each of the others does one thing differently."""

    def __init__(self) -> None:
        self.nbytes = len(RIGHT)

    def read_into(self, buffer, offset: int):
        buffer[:] = RIGHT[offset : offset + len(buffer)]


class Awaited(Right):
    async def read_into(self, buffer, offset: int):
        buffer[:] = RIGHT[offset : offset + len(buffer)]


class SaysTooMuch(Right):
    def __init__(self) -> None:
        self.nbytes = len(RIGHT) + 7

    def read_into(self, buffer, offset: int):
        buffer[:] = RIGHT[offset : offset + len(buffer)].ljust(len(buffer), b"\0")


class LearnsItsLengthLate(Right):
    def __init__(self) -> None:
        self.nbytes = 0

    def open(self) -> None:
        self.nbytes = len(RIGHT)


class StoresTooLittle(Right):
    """Or says so."""

    stored_ranges = [(0, PAGE)]  # noqa: RUF012


class HoldsALock(Right):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class LosesItsState(Right):
    def __init__(self) -> None:
        super().__init__()
        self.right = RIGHT

    def __getstate__(self):
        return {"nbytes": self.nbytes, "right": b""}

    def read_into(self, buffer, offset: int):
        buffer[:] = self.right[offset : offset + len(buffer)].ljust(len(buffer), b"\0")


class StampsTheTime(Right):
    def stamp(self):
        return time.monotonic_ns()


class StampsALock(Right):
    def stamp(self):
        return threading.Lock()


class LeavesTheEnd(Right):
    """Of a block that is a page."""

    def read_into(self, buffer, offset: int):
        n = PAGE - 1 if len(buffer) == PAGE else len(buffer)
        buffer[:n] = RIGHT[offset : offset + n]


class ForgetsTheShortBlock(Right):
    def read_into(self, buffer, offset: int):
        if offset % PAGE == 0 and offset + len(buffer) == len(RIGHT) and len(buffer) < PAGE:
            buffer[:] = RIGHT[: len(buffer)]
        else:
            super().read_into(buffer, offset)


class WritesBehind(Right):
    """What it is lent, where that is no page."""

    def read_into(self, buffer, offset: int):
        super().read_into(buffer, offset)
        if len(buffer) == PAGE - 1:
            ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(buffer)) + len(buffer), 0, 1)


class RoundsDown(Right):
    """Where it begins to read, to a whole page."""

    def read_into(self, buffer, offset: int):
        super().read_into(buffer, offset // PAGE * PAGE)


class WantsAPage(Right):
    """Memory that begins on one."""

    def read_into(self, buffer, offset: int):
        if len(buffer) and ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % PAGE:
            raise ValueError("not on a page")
        super().read_into(buffer, offset)


class WaitsForMore(Right):
    """Than nothing."""

    def read_into(self, buffer, offset: int):
        if len(buffer) == 0:
            threading.Event().wait()
        super().read_into(buffer, offset)


class SaysLess(Right):
    def read_into(self, buffer, offset: int):
        super().read_into(buffer, offset)
        return len(buffer) - 1


class SaysText(Right):
    def read_into(self, buffer, offset: int):
        super().read_into(buffer, offset)
        return "all of it"


class KeepsASlice(Right):
    def read_into(self, buffer, offset: int):
        super().read_into(buffer, offset)
        KEPT.append(buffer[1:])


class Tires(Right):
    """After every page has been read twice."""

    calls = 0

    def read_into(self, buffer, offset: int):
        self.calls += len(buffer) == PAGE
        super().read_into(buffer, 0 if self.calls > 10 and len(buffer) == PAGE else offset)


class OneAtATime(Right):
    """And does not say so."""

    def read_into(self, buffer, offset: int):
        self.offset = offset
        time.sleep(0.005)
        super().read_into(buffer, self.offset)


class OneThreadOnly(Right):
    """That which opened it."""

    concurrent = False

    def open(self) -> None:
        self.thread = threading.get_ident()

    def read_into(self, buffer, offset: int):
        if threading.get_ident() != self.thread:
            raise ValueError("opened by another thread")
        super().read_into(buffer, offset)


class ClosesOnce(Right):
    def open(self) -> None:
        self.file = open(os.devnull)  # noqa: SIM115

    def close(self) -> None:
        self.file.close()
        del self.file


class ClosesForAll(Right):
    """What its copies share."""

    closed = False

    def open(self) -> None:
        ClosesForAll.closed = False

    def close(self) -> None:
        ClosesForAll.closed = True

    def read_into(self, buffer, offset: int):
        if ClosesForAll.closed:
            raise ValueError("it is closed")
        super().read_into(buffer, offset)


class NeedsHome(Right):
    """What only the process has that made it."""

    def read_into(self, buffer, offset: int):
        buffer[:] = (RIGHT if AT_HOME else bytes(len(RIGHT)))[offset : offset + len(buffer)]


class NeedsItsClose(Right):
    """Marks a folder as taken, and cannot begin where a predecessor did not take the mark away."""

    processes_max = 1

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="lazymem-test-")

    def mark(self) -> str:
        return os.path.join(self.folder, "taken")

    def open(self) -> None:
        if not AT_HOME:
            with open(self.mark(), "x"):
                pass

    def close(self) -> None:
        if not AT_HOME:
            os.remove(self.mark())


class NeedsToBeAlone(Right):
    """In one process, and does not say so."""

    block_nbytes = PAGE

    def __init__(self) -> None:
        super().__init__()
        self.mark = os.path.join(tempfile.mkdtemp(prefix="lazymem-test-"), "whose")

    def open(self) -> None:
        if not AT_HOME:
            try:
                os.symlink(str(os.getpid()), self.mark)
            except FileExistsError:
                raise RuntimeError("another process has it") from None  # no OSError: it would be asked again, elsewhere

    def read_into(self, buffer, offset: int):
        if not AT_HOME:
            time.sleep(0.05)
        super().read_into(buffer, offset)
