"""What does a provider process do when it has started? Its main, and what the native loop (core/serve.pyx) calls."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from typing import Any

import numpy as np

from lazymem.core.serve import AGAIN, CYCLE, FAILED, THREADS_MAX, Server
from lazymem.errors import PageError

RING_FD = 3
# Failures of the world that may pass; anything else a provider raises, it would raise again.
_FINAL = (PageError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def load(pickled: bytes) -> tuple[Any, Any, Any]:
    """Make a provider of its pickle, and open it: (read_into, lock or None, provider)."""
    import cloudpickle

    provider = cloudpickle.loads(pickled)
    opening = getattr(provider, "open", None)
    if opening is not None:
        opening()
    lock = None if getattr(provider, "concurrent", True) else threading.Lock()
    return provider.read_into, lock, provider


def forget(provider: Any) -> None:
    """Close a provider. What it raises is printed, and goes no further."""
    closing = getattr(provider, "close", None)
    if closing is not None:
        try:
            closing()
        except BaseException:
            traceback.print_exc()


def explain(error: BaseException) -> tuple[int, bytes]:
    """Whether a failure may pass, and what it says."""
    try:
        text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").replace(b"\0", b"\\x00")
    except BaseException as another:  # out of memory, say
        text = f"{type(error).__qualname__}; its traceback cannot be shown: {type(another).__qualname__}".encode()
    if isinstance(error, PageError) and error.errno == 35:  # EDEADLK
        return CYCLE, text
    return (AGAIN if isinstance(error, OSError) and not isinstance(error, _FINAL) else FAILED), text


def main(given: dict[str, Any]) -> None:
    """Serve the ring that is descriptor 3, until asked to end or the served process has gone.

    Parameters
    ----------
    given : dict
        path: sys.path. cwd, affinity, policy, priority: as the served process had them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.closerange(RING_FD + 1, 1 << 16)  # closed already, where the C library could
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, given["affinity"])
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, given["policy"], os.sched_param(given["priority"]))
    with contextlib.suppress(OSError):
        if given["cwd"] is not None and os.getcwd() != given["cwd"]:
            os.chdir(given["cwd"])
    sys.argv = [""]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    threads = 1

    def grow() -> None:
        nonlocal threads
        if threads < THREADS_MAX:
            threads += 1
            try:
                threading.Thread(target=server.serve, name=f"lazymem-provider-{threads}", daemon=True).start()
            except (RuntimeError, MemoryError):  # no more may be had now
                threads -= 1

    # numpy 2 keeps errstate in the surroundings that each request has of its own; numpy 1 on the thread.
    before = np.geterr()
    tidy = None if int(np.__version__.split(".")[0]) >= 2 else lambda: np.seterr(**before)
    server = Server(RING_FD, load, explain, grow, tidy, forget)
    server.ready()
    server.serve()
    server.finish()
    os._exit(0)
