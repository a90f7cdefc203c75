"""Where, when and with what was a row measured?"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from typing import Any

import numpy as np

from lazymem.version import __version__


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def _clock() -> str | None:
    """What CLOCK_MONOTONIC is read from: anything but tsc costs a system call per reading on x86."""
    try:
        with open("/sys/devices/system/clocksource/clocksource0/current_clocksource") as f:
            return f.read().strip()
    except OSError:
        return None


def _git(folder: str, *words: str) -> str:
    command = ["git", "-C", folder, "-c", f"safe.directory={folder}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _revision() -> str | None:
    """The commit of the checkout that this package lies in; with "+" if its files differ from it."""
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if not os.path.exists(os.path.join(folder, ".git")):
        return None
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "-uno", "--", "lazymem")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def facts(command: str, pinned: bool) -> dict[str, Any]:
    """What every row of one run carries.

    Parameters
    ----------
    command : str
        That makes the row, without paths of this machine.
    pinned : bool
        To one core, handler threads too.
    """
    return {
        "pinned": pinned,
        "root": os.geteuid() == 0,
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "page_nbytes": os.sysconf("SC_PAGE_SIZE"),
        "clock": _clock(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "lazymem": __version__,
        "revision": _revision(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
    }
