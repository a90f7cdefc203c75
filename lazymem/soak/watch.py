"""Is a round's process still getting on? Asked from outside: one that hangs, with the GIL perhaps, cannot ask itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lazymem.soak.board import Board

GRACE_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_S = 0.05
_START_S = 60.0  # to import, and to warm up, on a busy machine
_END_S = 30.0
_LEFT_S = 30.0  # a forked child goes when it sees that it is alone; what it is at may take its time


@dataclass
class End:
    """How a round ended.

    Attributes
    ----------
    status : int
        Exit status of its process; negative: the signal that it died by.
    hang : str or None
        Who hung, at what.
    left : int
        Processes of its that were there long after it.
    """

    status: int
    hang: str | None
    left: int


def play(arguments: list[str], board: Board, seconds: float, moves: bool) -> End:
    """Run a round's process and look after it.

    Parameters
    ----------
    arguments : list of str
        Of `lazymem.soak.round`.
    board : Board
    seconds : float, s
        How long it plays.
    moves : bool
        Memory may be moved into place, where the kernel can.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whatever it leaves comes to us
    process = subprocess.Popen(
        [sys.executable, "-m", "lazymem.soak.round", *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ if moves else {**os.environ, "LAZYMEM_NO_MOVE": "1"},
    )
    try:
        hang = _watch(process, board, time.monotonic() + seconds + _START_S + _END_S)
        if hang is not None:
            sys.stderr.write(f"HANG: {hang}\n{where_they_stand([process.pid, *_family(process.pid)])}\n")
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGUSR2)  # writes where its Python threads stand
            time.sleep(0.5)
            sys.stderr.flush()
            process.kill()
        status = process.wait()
        left = 0 if hang is not None else _left(board)
    finally:
        process.kill()
        process.wait()
        _end_orphans()
    return End(status, hang, left)


def _watch(process: subprocess.Popen[bytes], board: Board, until: float) -> str | None:
    while process.poll() is None:
        late = board.late(GRACE_S)
        if late is not None:
            return late
        if time.monotonic() > until:
            return f"process {process.pid}: it does not end"
        time.sleep(_LOOK_S)
    return None


def _family(ancestor: int) -> list[int]:
    """The processes below one, in whichever session; provider processes have one each."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
    found = [ancestor]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _orphans() -> list[int]:
    """What is left of a round whose process has ended: it is below us now."""
    found = _family(os.getpid())
    for pid in found:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return [pid for pid in found if os.path.exists(f"/proc/{pid}")]


def _left(board: Board) -> int:
    """How many processes of a round are there though it has ended, and stay."""
    board.forget_threads()
    for pid in _orphans():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)  # `kill` may have stopped it: it could not see that it is alone
    end = time.monotonic() + _LEFT_S
    while (left := _orphans()) and time.monotonic() < end and board.late(GRACE_S) is None:
        time.sleep(0.02)
    if left:
        sys.stderr.write(f"LEFT: {board.late(0) or ''}\n{where_they_stand(left)}\n")
    return len(left)


def _end_orphans() -> None:
    end = time.monotonic() + _LEFT_S
    while (left := _orphans()) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def where_they_stand(pids: list[int]) -> str:
    """State, wait channel and system call of every thread of some processes, and what their userfaultfds say."""
    lines = []
    for pid in pids:
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            lines += [f"  {_words(task)}" for task in sorted(process.glob("task/*"))]
            for fd in process.glob("fd/*"):
                with contextlib.suppress(OSError):
                    if "userfaultfd" in os.readlink(fd):
                        said = (process / "fdinfo" / fd.name).read_text().split("\n")
                        lines.append(f"  {pid}/fd {fd.name}: {' '.join(line for line in said if ':' in line)}")
    return "\n".join(lines)


def _words(task: Path) -> str:
    words = {}
    for name in ("comm", "stat", "wchan", "syscall"):
        try:
            words[name] = (task / name).read_text().strip()
        except OSError as error:
            words[name] = f"({error.strerror})"
    state = "".join(words["stat"].rpartition(")")[2].split()[:1])
    return f"{'/'.join(task.parts[2:])} {words['comm']}: state {state}, wchan {words['wchan']}, syscall {words['syscall']}"
