"""How does a child start with its imports done? Forked from one that has made no array or thread yet."""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading

# What a seed process runs: the code of each child is executed where `python -c` would, and ends as there.
START = "import seedling as _s; exec(compile(_s.serve(), '<string>', 'exec'), (globals().pop('_s'), globals())[1])"


def serve() -> str:
    """Fork a child for every request, report its process and its end; in the child, return the code it is to run.

    One request at a time. The asker's end is the seed's: what it still runs is killed.
    """
    import native_kit  # noqa: F401
    import numpy as np  # noqa: F401
    import pytest  # noqa: F401
    import support  # noqa: F401

    import lazymem
    import lazymem.core.lazyarray  # noqa: F401

    asked = socket.socket(fileno=int(os.environ.pop("LAZYMEM_TEST_SEED")))
    while True:
        text, fds, _, _ = socket.recv_fds(asked, 1 << 20, 2)
        if not text:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            asked.close()
            os.setsid()
            for fd, number in zip(fds, (1, 2), strict=True):
                os.dup2(fd, number)
                os.close(fd)
            request = json.loads(text)
            os.environ.update(request["env"])
            return request["code"]
        for fd in fds:
            os.close(fd)
        ended = os.pidfd_open(pid)
        asked.send(f"{pid}\n".encode())
        if asked in select.select([asked, ended], [], [])[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os._exit(1)
        os.close(ended)
        asked.send(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


class Seed:
    """A seed process of one user; `start` gives a child that looks like a Popen."""

    def __init__(self, prefix: tuple[str, ...], environment: dict[str, str]) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.set_inheritable(theirs.fileno(), True)
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", START], cwd="/", stdin=subprocess.DEVNULL, start_new_session=True,
            env={**environment, "LAZYMEM_TEST_SEED": str(theirs.fileno())}, pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        atexit.register(self.end)

    def start(self, code: str, env: dict[str, str], out: int, err: int) -> Seedling:
        """Run code in a child; one at a time, so the next waits until this one's end was read."""
        self._lock.acquire()
        text = json.dumps({"code": code, "env": env}).encode()
        self._socket.settimeout(60)
        self._socket.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [out, err]))])
        return Seedling(self, self._number())

    def _number(self, timeout: float | None = 60) -> int:
        self._socket.settimeout(timeout)
        said = self._socket.recv(64)
        if not said:
            raise RuntimeError("the tests' seed process is gone")
        return int(said)

    def end(self) -> None:
        """It goes when its socket closes."""
        self._socket.close()
        self._process.wait(10)


class Seedling:
    """A child of a seed: `pid`, `wait` and `returncode` as subprocess.Popen has them."""

    def __init__(self, seed: Seed, pid: int) -> None:
        self._seed, self.pid = seed, pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            try:
                self.returncode = self._seed._number(timeout)
            except TimeoutError:
                raise subprocess.TimeoutExpired(f"child {self.pid}", timeout or 0) from None
            self._seed._lock.release()
        return self.returncode
