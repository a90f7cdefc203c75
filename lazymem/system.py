"""Can lazymem work here, and how much memory may it use?"""

from __future__ import annotations

import os
import sys

from lazymem.errors import UnsupportedPlatform

# What of the memory that is left arrays may have, unless somebody says otherwise: the kernel kills at the limit, it does not
# refuse.
SHARE = 0.5


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


def _in_use(folder: str) -> int:
    """What a cgroup uses, but for files that the kernel would rather drop than kill."""
    used = _read_number(os.path.join(folder, "memory.current"))
    if used is None:
        used = _read_number(os.path.join(folder, "memory.usage_in_bytes"))
    try:
        with open(os.path.join(folder, "memory.stat")) as f:
            stat = dict(line.split() for line in f)
    except (OSError, ValueError):
        stat = {}
    return max(0, (used or 0) - int(stat.get("total_inactive_file", stat.get("inactive_file", 0))))


def _cgroup_limits() -> list[tuple[int, str]]:
    """memory.max, memory.high and version 1's limit of this process's cgroup and those above it, and where they were found."""
    limits: list[tuple[int, str]] = []
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
                limits += [(n, folder) for name in names if (n := _read_number(os.path.join(folder, name))) is not None]
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
    return min([physical, *(n for n, _ in _cgroup_limits())])


def _available_nbytes() -> int | None:
    try:
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return None


def default_budget_nbytes() -> int:
    """Half of what physical memory and this process's cgroups still leave, and at least 4 MiB.

    Returns
    -------
    int, bytes

    Notes
    -----
    Source: proc(5) meminfo MemAvailable; cgroup v2 memory.max, memory.high and memory.current, v1 memory.limit_in_bytes and
    memory.usage_in_bytes, files that are not in use not counted. All processes of a cgroup share it, hence half.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = [_available_nbytes() or physical]
    for limit, folder in _cgroup_limits():
        if limit < physical:  # version 1 writes "no limit" as a number
            left.append(limit - _in_use(folder))
    return max(4 << 20, int(min(left) * SHARE))
