"""Can lazymem work here, and how much memory may it use?"""

from __future__ import annotations

import os
import sys

from lazymem.errors import UnsupportedPlatform

# What of the memory it may have a process may fill: the kernel kills at the limit, it does not refuse.
SHARE = 0.8


def require() -> None:
    """Raise UnsupportedPlatform where lazymem is installed but cannot work."""
    if not sys.platform.startswith("linux"):
        raise UnsupportedPlatform(
            f"lazymem needs Linux (userfaultfd); this is {sys.platform!r}. The package imports here so that programs "
            "can share code; use numpy.memmap, or run in a Linux container or WSL 2."
        )


def _read_number(path: str) -> int | None:
    try:
        with open(path) as f:
            text = f.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cgroup_limits() -> list[int]:
    """memory.max, memory.high and version 1's limit of this process's cgroup and those above it."""
    limits = []
    try:
        with open("/proc/self/cgroup") as f:
            lines = f.read().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots, names = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], ["memory.max", "memory.high"]
        elif "memory" in controllers.split(","):
            roots, names = ["/sys/fs/cgroup/memory"], ["memory.limit_in_bytes"]
        else:
            continue
        parts = [p for p in path.split("/") if p and p != ".."]
        for root in roots:
            for depth in range(len(parts) + 1):
                folder = os.path.join(root, *parts[:depth])
                limits += [n for name in names if (n := _read_number(os.path.join(folder, name))) is not None]
    return limits


def cores() -> float:
    """How many cores this process may use at a time: its affinity, or what cgroup v2's cpu.max allows."""
    found = float(len(os.sched_getaffinity(0)))
    try:
        with open("/proc/self/cgroup") as f:
            paths = [line[3:].strip() for line in f if line.startswith("0::")]
    except OSError:
        paths = []
    for path in paths:
        parts = [p for p in path.split("/") if p and p != ".."]
        for depth in range(len(parts) + 1):
            try:
                with open(os.path.join("/sys/fs/cgroup", *parts[:depth], "cpu.max")) as f:
                    quota, period = f.read().split()
                    found = min(found, int(quota) / int(period))
            except (OSError, ValueError):  # no such file; "max"
                continue
    return found


def memory_nbytes() -> int:
    """How much memory this process may have: physical, or what its cgroups allow.

    Returns
    -------
    int, bytes

    Notes
    -----
    Source: cgroup v2 memory.max and memory.high, v1 memory.limit_in_bytes; sysconf(3).
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_cgroup_limits()])
