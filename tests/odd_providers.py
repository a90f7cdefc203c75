"""What does a provider do that does more than fill its buffer? Providers for the tests, imported by their processes too."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import signal
import sys
import threading
import time

import numpy as np

PAGE = mmap.PAGESIZE
WORDS = PAGE // 8
KEPT: list = []  # what a provider keeps, in its process
CALLS: dict[str, int] = {}  # how often each act was called, in this process


class Counting:
    """int64 elements that are their own index, plus `shift`."""

    def __init__(self, nblocks: int = 16, shift: int = 0, seconds: float = 0, concurrent: bool = True) -> None:
        self.nbytes = nblocks * PAGE
        self.shift, self.seconds, self.concurrent = shift, seconds, concurrent

    def fill(self, buffer, offset: int) -> None:
        """Write what is right."""
        out = np.frombuffer(buffer, "i8")
        out[:] = np.arange(offset // 8, offset // 8 + out.size) + self.shift

    def read_into(self, buffer, offset: int) -> None:
        if self.seconds:
            time.sleep(self.seconds)
        self.fill(buffer, offset)

    def right(self) -> np.ndarray:
        """All of its elements."""
        return np.arange(self.nbytes // 8) + self.shift


class SlowBehind(Counting):
    """Each block but the first takes `seconds`."""

    def read_into(self, buffer, offset: int) -> None:
        time.sleep(self.seconds if offset else 0)
        self.fill(buffer, offset)


class Odd(Counting):
    """Fills every block rightly but block 0, with which it does what `act` says."""

    def __init__(self, act: str, nblocks: int = 4, **more) -> None:
        super().__init__(nblocks, **more)
        self.act = act

    def read_into(self, buffer, offset: int):
        if offset:
            return self.fill(buffer, offset)
        CALLS[self.act] = CALLS.get(self.act, 0) + 1
        return globals()["act_" + self.act](self, buffer)


class Telling:
    """Tells what its process is like, as JSON and spaces; a new look for each block."""

    nbytes = 1 << 18
    block_nbytes = 1 << 16

    def read_into(self, buffer, offset: int) -> None:
        buffer[:] = json.dumps(tell()).encode().ljust(len(buffer))


def tell() -> dict:
    """What this process is like, and the thread that asks."""
    names = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them
            names[fd] = os.readlink(f"/proc/self/fd/{fd}")
    with open("/proc/thread-self/status") as f:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    with open("/proc/self/maps") as f:
        special = {line.split(maxsplit=5)[-1].strip() for line in f if "anon_inode" in line or "memfd" in line}
    pid = os.getpid()
    return {
        "pid": pid, "ppid": os.getppid(), "sid": os.getsid(0), "pgid": os.getpgid(0), "fds": names, "mapped": sorted(special),
        "environ": dict(os.environ), "path": sys.path, "cwd": os.getcwd(), "blocked": int(status["SigBlk"], 16),
        "ignored": int(status["SigIgn"], 16), "affinity": sorted(os.sched_getaffinity(pid)),
        "policy": os.sched_getscheduler(pid), "umask": status["Umask"], "uid": os.getuid(), "warnings": sys.warnoptions,
        "xoptions": sorted(sys._xoptions), "executable": sys.executable, "main": sorted(vars(sys.modules["__main__"])),
        "flags": {k: getattr(sys.flags, k) for k in ("optimize", "dont_write_bytecode", "utf8_mode", "safe_path", "dev_mode")},
    }  # fmt: skip


class Nothing:
    """Says that all is well, and has written `part` of each block with 0x11."""

    def __init__(self, nbytes: int, part: float) -> None:
        self.nbytes, self.part = nbytes, part

    def read_into(self, buffer, offset: int) -> None:
        n = int(len(buffer) * self.part)
        buffer[:n] = b"\x11" * n


class Dying(Counting):
    """Ends its process at some blocks, the first time that it is asked for each."""

    def __init__(self, folder: str, nblocks: int, blocks: tuple[int, ...]) -> None:
        super().__init__(nblocks)
        self.folder, self.blocks = folder, blocks

    def read_into(self, buffer, offset: int) -> None:
        if offset // PAGE in self.blocks:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(f"{self.folder}/{offset}", os.O_CREAT | os.O_EXCL))
                os._exit(3)
        self.fill(buffer, offset)


class Logging(Counting):
    """Writes down, a line each, that it was opened, read and closed, and in which process."""

    def __init__(self, path: str, nblocks: int = 1, seconds_to_open: float = 0, **more) -> None:
        super().__init__(nblocks, **more)
        self.path, self.seconds_to_open = path, seconds_to_open

    def _log(self, word: str) -> None:
        with open(self.path, "a") as f:
            f.write(f"{word} {os.getpid()}\n")

    def open(self) -> None:
        self._log("open")
        time.sleep(self.seconds_to_open)

    def read_into(self, buffer, offset: int) -> None:
        self._log("read")
        super().read_into(buffer, offset)

    def close(self) -> None:
        self._log("close")


# ---------------------------------------------------------------------------------------------------------------------------
# It fails


class Unspeakable(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def act_raises(self, buffer):
    raise ValueError("told so")


def act_fails_late(self, buffer):
    time.sleep(0.3)
    raise ValueError("told so")


def act_raises_chained(self, buffer):
    try:
        kept = np.frombuffer(buffer, "i8")  # lives on in the first one's traceback
        raise KeyError("the first")
    except KeyError:
        raise ValueError("the second", kept.size)  # noqa: B904


def act_raises_oserror(self, buffer):
    raise OSError(5, "the disk")


def act_raises_oserror_twice(self, buffer):
    if CALLS[self.act] <= 2:
        raise OSError(5, "the disk")
    self.fill(buffer, 0)


def act_raises_file_not_found(self, buffer):
    raise FileNotFoundError(2, "gone")


def act_exits_by_sys_exit(self, buffer):
    sys.exit(3)


def act_raises_keyboard_interrupt(self, buffer):
    raise KeyboardInterrupt


def act_recurses(self, buffer):
    return act_recurses(self, buffer)


def act_raises_memory_error(self, buffer):
    bytearray(1 << 62)


def act_raises_huge_text(self, buffer):
    raise ValueError("x" * (8 << 20) + "the end")


def act_raises_strange_text(self, buffer):
    raise ValueError("a lone \ud800, a \0, an \N{SNOWMAN}")


def act_raises_unspeakable(self, buffer):
    raise Unspeakable


def act_returns_short(self, buffer):
    self.fill(buffer, 0)
    return len(buffer) - 1


def act_returns_long(self, buffer):
    self.fill(buffer, 0)
    return len(buffer) + 1


def act_returns_zero(self, buffer):
    return 0


def act_returns_negative(self, buffer):
    return -1


def act_returns_text(self, buffer):
    return "all of it"


def act_returns_array(self, buffer):
    return np.arange(3)


def act_returns_the_count(self, buffer):
    self.fill(buffer, 0)
    return len(buffer)


# ---------------------------------------------------------------------------------------------------------------------------
# It keeps what it was lent


def act_keeps_slice(self, buffer):
    self.fill(buffer, 0)
    KEPT.append(buffer[8:])


def act_keeps_array(self, buffer):
    self.fill(buffer, 0)
    KEPT.append(np.frombuffer(buffer, "u1")[5:])


def act_keeps_cast(self, buffer):
    self.fill(buffer, 0)
    KEPT.append(buffer.cast("d"))


def act_keeps_in_thread(self, buffer):
    self.fill(buffer, 0)
    view = np.frombuffer(buffer, "u1")
    threading.Thread(target=lambda: (time.sleep(60), view[0]), daemon=True).start()


def act_keeps_buffer_itself(self, buffer):
    self.fill(buffer, 0)
    KEPT.append(buffer)  # released when this returns: of no use, and no harm


def act_keeps_in_cycle(self, buffer):
    self.fill(buffer, 0)
    cycle = [np.frombuffer(buffer, "u1")]
    cycle.append(cycle)
    gc.disable()


# ---------------------------------------------------------------------------------------------------------------------------
# It harms its process


def act_sleeps(self, buffer):
    time.sleep(60)


def act_sleeps_in_c(self, buffer):
    ctypes.PyDLL(None).sleep(60)  # the GIL is kept


def act_exits(self, buffer):
    os._exit(3)


def act_segfaults(self, buffer):
    ctypes.string_at(0)


def act_aborts(self, buffer):
    os.abort()


def act_stops(self, buffer):
    os.kill(os.getpid(), signal.SIGSTOP)  # whichever thread takes it
    time.sleep(60)


def act_execs(self, buffer):
    os.execv("/bin/sleep", ["sleep", "60"])


def act_closes_descriptors(self, buffer):
    os.closerange(0, 256)
    self.fill(buffer, 0)


def act_closes_and_opens_descriptors(self, buffer):
    os.closerange(3, 256)
    pipes = [os.pipe() for _ in range(20)]  # take the numbers of what was closed
    for _, end in pipes:
        os.write(end, b"x" * 100)
    time.sleep(0.3)
    for begin, end in pipes:
        if os.read(begin, 200) != b"x" * 100:
            raise ValueError("somebody else read it")
        os.close(begin)
        os.close(end)
    self.fill(buffer, 0)


def ring() -> tuple[int, int]:
    """Where the ring begins and ends in this process."""
    with open("/proc/self/maps") as f:
        for line in f:
            if "memfd:lazymem-ring" in line:
                first, last = line.split()[0].split("-")
                return int(first, 16), int(last, 16)
    raise LookupError("no ring")


class Scribbling(Counting):
    """Writes `byte` over bytes [start, stop) of the ring, before or after it fills block 0."""

    def __init__(self, start: int, stop: int, byte: int, after: bool, **more) -> None:
        super().__init__(4, **more)
        self.start, self.stop, self.byte, self.after = start, stop, byte, after

    def read_into(self, buffer, offset: int) -> None:
        if self.after:
            self.fill(buffer, offset)
        if offset == 0:
            first, _ = ring()
            ctypes.memset(first + self.start, self.byte, self.stop - self.start)
        if not self.after:
            self.fill(buffer, offset)


# ---------------------------------------------------------------------------------------------------------------------------
# It forks


def act_forks(self, buffer):
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    self.fill(buffer, 0)


def act_child_returns(self, buffer):
    pid = os.fork()
    if pid == 0:
        return
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 70
    self.fill(buffer, 0)


def act_child_raises(self, buffer):
    pid = os.fork()
    if pid == 0:
        raise ValueError("in the child")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 70
    self.fill(buffer, 0)


def act_forks_and_dies(self, buffer):
    if os.fork() == 0:  # holds on to whatever a fork holds on to
        with contextlib.suppress(OSError):
            os.close(1)
            os.close(2)
        time.sleep(10)
        os._exit(0)
    os._exit(3)


# ---------------------------------------------------------------------------------------------------------------------------
# It changes its process


class Surroundings(Counting):
    """Fails where it does not find what a process begins with; changes it for who comes next."""

    def __init__(self, cwd: str, errors: dict) -> None:
        super().__init__()
        self.cwd, self.errors = cwd, errors

    def read_into(self, buffer, offset: int) -> None:
        if os.getcwd() != self.cwd or np.geterr() != self.errors:
            raise ValueError(f"cwd {os.getcwd()}, errors {np.geterr()}")
        np.seterr(all="raise")
        np.setbufsize(16 * 10)
        np.errstate(divide="ignore").__enter__()
        os.chdir("/proc")
        self.fill(buffer, offset)


def act_starts_threads(self, buffer):
    for _ in range(5):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        threading.Thread(target=time.sleep, args=(0.2,)).start()
    self.fill(buffer, 0)


def act_changes_signals(self, buffer):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            ctypes.CDLL(None).signal(int(number), ctypes.c_void_p(1))  # SIG_IGN, from any thread
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    self.fill(buffer, 0)


def act_prints(self, buffer):
    for i in range(100):
        print(f"out {i} \N{SNOWMAN}")
        print(f"err {i}", file=sys.stderr)
    os.write(1, b"below Python \xff\n")
    self.fill(buffer, 0)


def act_prints_for_ever(self, buffer):
    def run():
        while True:
            print("on and on" * 10, flush=True)
            print("and on" * 10, file=sys.stderr, flush=True)

    threading.Thread(target=run, daemon=True).start()
    self.fill(buffer, 0)


def act_prints_a_mebibyte(self, buffer):
    for i in range(1 << 14):
        os.write(1, b"%063d\n" % i)
    os.write(2, b"the end\n")
    self.fill(buffer, 0)
