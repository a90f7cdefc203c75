"""Does one delivery work here? Make small arrays, touch them, compare. Run in a process of its own: it may die of it."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import subprocess
import sys
import time
from typing import Any

DELIVERIES = ("auto", "threads", "inline", "mprotect")
PATIENCE_S = 20


def trial(delivery: str) -> dict[str, Any]:
    """Try it in this process.

    Returns
    -------
    dict
        right: bool, every value was; delivery, kernel_faults: what was taken; system_call: "right", or the errno's name, of a
        write(2) from absent pages of a plain view; array_write: the same of file.write of the array; guarded: would it survive
        that somebody closes lazymem's userfaultfd (None: it has none)?; error: None, or why not.
    """
    import numpy as np

    import lazymem

    found: dict[str, Any] = {"asked": delivery, "right": False, "delivery": None, "kernel_faults": None, "system_call": None,
                             "array_write": None, "guarded": None, "error": None}  # fmt: skip
    wanted = np.arange(1, 32769, dtype="i8")  # four blocks, and no zero in them
    held = wanted.tobytes()

    def make() -> Any:
        return lazymem.from_provider(held, dtype="i8", delivery=delivery)

    try:
        first = make()
        region = lazymem.region(first)
        found["delivery"], found["kernel_faults"] = region.delivery, region.kernel_faults
        found["guarded"] = _guarded(region.delivery)
        by_numpy = np.array_equal(np.asarray(first), wanted)
        second = make()
        pointer = ctypes.cast(second.ctypes.data, ctypes.POINTER(ctypes.c_int64))
        by_pointer = all(pointer[i] == i + 1 for i in range(0, wanted.size, mmap.PAGESIZE // 8))
        found["right"] = by_numpy and by_pointer
        plain: Any = np.asarray(make())
        found["system_call"] = _written(held, lambda file: os.write(file.fileno(), plain))
        fourth = make()
        found["array_write"] = _written(held, lambda file: file.write(fourth))
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def _guarded(delivery: str) -> bool | None:
    from lazymem.core import inline, threads

    if delivery == "mprotect":
        return None
    return (inline.descriptor() if delivery == "inline" else threads.descriptor(1))[1]


def _written(wanted: bytes, write: Any) -> str:
    with open(os.memfd_create("lazymem-doctor"), "w+b", buffering=0) as file:
        try:
            write(file)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        file.seek(0)
        return "right" if file.read() == wanted else "wrong"


def try_all() -> list[dict[str, Any]]:
    """Try every delivery, each in a process of its own, side by side. Blocks: at most PATIENCE_S."""
    import faulthandler

    import lazymem

    here = os.path.dirname(os.path.dirname(os.path.abspath(lazymem.__file__)))
    path = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)
    flags = ["-X", "faulthandler"] if faulthandler.is_enabled() else []
    children = [
        subprocess.Popen(
            [sys.executable, *flags, "-m", "lazymem.cli.trial", delivery],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
        )
        for delivery in DELIVERIES
    ]  # fmt: skip
    end = time.monotonic() + PATIENCE_S
    return [_answer(child, delivery, end) for child, delivery in zip(children, DELIVERIES, strict=True)]


def _answer(child: subprocess.Popen[bytes], delivery: str, end: float) -> dict[str, Any]:
    try:
        out, err = child.communicate(timeout=max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return {"asked": delivery, "right": False, "error": f"no answer within {PATIENCE_S} s"}
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        how = f"died of signal {-child.returncode}" if child.returncode < 0 else f"ended with status {child.returncode}"
        said = err.decode(errors="replace").strip().splitlines()
        return {"asked": delivery, "right": False, "error": f"{how}: {said[-1] if said else 'it said nothing'}"}
    return answer


if __name__ == "__main__":
    print(json.dumps(trial(sys.argv[1])))
