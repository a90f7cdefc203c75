"""Is a round's process still getting on? Asked from outside: one that hangs, with the GIL perhaps, cannot ask itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lazymem.soak.board import Board

GRACE_S = 1.0
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


def play(arguments: list[str], board: Board, seconds: float) -> End:
    """Run a round's process and look after it.

    Parameters
    ----------
    arguments : list of str
        Of `lazymem.soak.round`.
    board : Board
    seconds : float, s
        How long it plays.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "lazymem.soak.round", *arguments], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        hang = _watch(process, board, time.monotonic() + seconds + _START_S + _END_S)
        if hang is not None:
            sys.stderr.write(f"HANG: {hang}\n{where_they_stand(process.pid)}\n")
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGUSR2)  # writes where its Python threads stand
            time.sleep(0.5)
            sys.stderr.flush()
            process.kill()
        status = process.wait()
        left = 0 if hang is not None else _left(process.pid, board)
    finally:
        _end_session(process.pid)
        process.wait()
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


def _session(sid: int) -> list[int]:
    """The processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(name)) == sid:
                    found.append(int(name))
    return found


def _left(sid: int, board: Board) -> int:
    """How many processes of a round are there though it has ended, and stay."""
    board.forget_threads()
    end = time.monotonic() + _LEFT_S
    while (left := _session(sid)) and time.monotonic() < end and board.late(GRACE_S) is None:
        time.sleep(0.02)
    if left:
        sys.stderr.write(f"LEFT: {board.late(0) or ''}\n{where_they_stand(sid)}\n")
    return len(left)


def _end_session(sid: int) -> None:
    for pid in _session(sid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def where_they_stand(sid: int) -> str:
    """State, wait channel and system call of every thread of a round's processes, and what their userfaultfds say."""
    lines = []
    for pid in _session(sid):
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
