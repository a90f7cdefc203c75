"""Which Python interpreter runs provider processes?"""

from __future__ import annotations

import os
import sys
from typing import Any

_executable: str | None = None


def set_executable(path: Any) -> None:
    """Say which Python interpreter runs provider processes.

    Needed only where `sys.executable` is none: in a frozen program, or where Python is embedded in another.

    Parameters
    ----------
    path : str or os.PathLike
        Of an interpreter of the same version that can import lazymem and numpy from this process's `sys.path`.

    Raises
    ------
    FileNotFoundError, PermissionError
        Nothing there, or nothing that can be run.

    Notes
    -----
    For arrays made from then on. Blocks: no. GIL: kept.
    """
    global _executable
    given = os.path.abspath(os.path.expanduser(os.fsdecode(os.fspath(path))))
    if not os.path.exists(given):
        raise FileNotFoundError(2, "lazymem.set_executable: no such file", given)
    if os.path.isdir(given) or not os.access(given, os.X_OK):
        raise PermissionError(13, "lazymem.set_executable: this is no program that may be run", given)
    _executable = given


def interpreter() -> str:
    """The interpreter that provider processes are started with.

    Raises
    ------
    RuntimeError
        There is none.
    """
    if _executable is not None:
        return _executable
    found = sys.executable
    if getattr(sys, "frozen", False) or not found or not os.access(found, os.X_OK) or "python" not in os.path.basename(found):
        raise RuntimeError(
            f"a Python provider runs in a process of its own, and there is no Python interpreter here to start one with "
            f"(sys.executable is {found!r}): name one by lazymem.set_executable('/path/to/python')"
        )
    return found
