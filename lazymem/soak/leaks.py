"""What is left of arrays that were closed: descriptors, threads, mappings, bytes on the process's account?"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import time
from collections import Counter

from lazymem.core.memory import budget

_SETTLE_S = 5.0
# Threads that serve from then on, of which there is a bounded number (core/threads.pyx, core/jobs.pyx).
_STANDING = {"lazymem-handler": 80, "lazymem-fetcher": 16}

Possessions = dict[str, Counter[str]]


def possessions() -> Possessions:
    """What this process has now: how many of each name.

    Returns
    -------
    dict of Counter
        "descriptors"; "threads", but for those that stay for good; "mappings": of lazy memory, and of memory files;
        "memory": bytes that count in the process's budget.
    """
    memory = Counter({"bytes in the budget": budget()[1]})
    return {"descriptors": _descriptors(), "threads": _threads(), "mappings": _mappings(), "memory": memory}


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them
            found[re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{fd}"))] += 1
    return found


def _threads() -> Counter[str]:
    found: Counter[str] = Counter()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:
            found[file.read().strip()] += 1
    for name, most in _STANDING.items():
        found[name] = max(0, found[name] - most)
    return found


def _mappings() -> Counter[str]:
    found: Counter[str] = Counter()
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("VmFlags:"):
                found["registered for missing pages"] += " um" in line
            elif "/memfd:" in line:
                found[line.split()[5]] += 1
    return found


def left_since(before: Possessions) -> Possessions:
    """How many more there are than before, once what ends in the background has ended. Blocks: at most 5 s."""
    end = time.monotonic() + _SETTLE_S
    while True:
        gc.collect()
        left = {what: now - before[what] for what, now in possessions().items()}
        if not any(left.values()) or time.monotonic() > end:
            return left
        time.sleep(0.05)
