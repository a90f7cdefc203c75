"""What is there on this machine that lazymem depends on? Linux only; nothing is judged here."""

from __future__ import annotations

import errno
import faulthandler
import os
import platform
import signal
import stat
from typing import Any

DEVICE = "/dev/userfaultfd"
_CAP_SYS_PTRACE = 19

# Bit, name, and what it means for lazymem where it is absent; "" is what this version does not use.
FEATURES = (
    (0, "PAGEFAULT_FLAG_WP", ""),
    (1, "EVENT_FORK", ""),
    (2, "EVENT_REMAP", ""),
    (3, "EVENT_REMOVE", ""),
    (4, "MISSING_HUGETLBFS", ""),
    (5, "MISSING_SHMEM", ""),
    (6, "EVENT_UNMAP", ""),
    (7, "SIGBUS", "no delivery='inline'; Linux 4.14 has it"),
    (8, "THREAD_ID", "no delivery='threads'; Linux 4.14 has it"),
    (9, "MINOR_HUGETLBFS", ""),
    (10, "MINOR_SHMEM", ""),
    (11, "EXACT_ADDRESS", ""),
    (12, "WP_HUGETLBFS_SHMEM", ""),
    (13, "WP_UNPOPULATED", ""),
    (14, "POISON", "a touch that fails under 'threads' is stopped by a signal to its thread; Linux 6.6 has it"),
    (15, "WP_ASYNC", ""),
    (16, "MOVE", ""),
)


def collect() -> dict[str, Any]:
    """Take everything down. Blocks: no."""
    import mmap

    from lazymem.core import inline, uffd

    rungs: list[dict[str, Any]] = [
        {"name": name, "allowed": error == 0, "errno": error,
         "errno_name": errno.errorcode.get(error, str(error)) if error else None, "features": features}
        for name, error, features in uffd.probe()
    ]  # fmt: skip
    mask = next((rung["features"] for rung in rungs if rung["allowed"]), None)
    status = _status()
    seccomp = {"0": "off", "1": "strict", "2": "filter"}.get(status.get("Seccomp", ""), "unknown")
    return {
        "kernel": {"system": platform.system(), "release": platform.release(), "machine": platform.machine(),
                   "page_nbytes": mmap.PAGESIZE},
        "privileges": {
            "uid": os.geteuid(), "user": user_name(os.geteuid()), "root": os.geteuid() == 0,
            "cap_sys_ptrace": bool(int(status.get("CapEff", "0"), 16) >> _CAP_SYS_PTRACE & 1),
            "device": _device(), "unprivileged_userfaultfd": read_number("/proc/sys/vm/unprivileged_userfaultfd"),
            "seccomp": seccomp, "no_new_privs": status.get("NoNewPrivs") == "1", "rungs": rungs,
        },
        "features": None if mask is None else [
            {"name": name, "bit": bit, "there": bool(mask >> bit & 1), "used": bool(absent), "if_absent": absent}
            for bit, name, absent in FEATURES
        ],
        "machine": {**_machine(), "container": _container()},
        "signals": {"faulthandler": faulthandler.is_enabled(), "sigbus_owner": _sigbus_owner(),
                    "sigbus_blocked": inline.blocks_sigbus(), "sigsegv_blocked": inline.blocks_sigsegv()},
        "versions": versions(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python, numpy and lazymem."""
    import numpy as np

    from lazymem.version import __version__

    return {"python": platform.python_version(), "numpy": np.__version__, "lazymem": __version__}


def read_number(path: str) -> int | None:
    """The number in a file of /proc or /sys, or None."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def user_name(uid: int) -> str:
    """An account's name, or its number where it has none (containers)."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _status() -> dict[str, str]:
    try:
        with open("/proc/self/status") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except OSError:
        return {}


def _device() -> dict[str, Any]:
    import grp

    try:
        found = os.stat(DEVICE)
    except OSError as error:
        return {"path": DEVICE, "there": False, "why": error.strerror}
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return {
        "path": DEVICE, "there": True, "mode": stat.filemode(found.st_mode), "owner": user_name(found.st_uid),
        "group": group, "may_open": os.access(DEVICE, os.R_OK | os.W_OK),
    }  # fmt: skip


def _machine() -> dict[str, Any]:
    import resource

    from lazymem import system

    limits = {}
    for name in ("AS", "NOFILE", "MEMLOCK"):
        soft, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        limits[name] = None if soft == resource.RLIM_INFINITY else soft
    memory_nbytes = system.memory_nbytes()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_nbytes": memory_nbytes, "usable_nbytes": system.default_budget_nbytes(),
        "max_map_count": read_number("/proc/sys/vm/max_map_count"),
        "overcommit_memory": read_number("/proc/sys/vm/overcommit_memory"),
        "rlimits": limits,
    }  # fmt: skip


def _container() -> str | None:
    """What kind of container this looks like, if any."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "Kubernetes"
    if os.path.exists("/.dockerenv"):
        return "Docker"
    if os.path.exists("/run/.containerenv"):
        return "Podman"
    return os.environ.get("container") or None  # noqa: SIM112  systemd's and Podman's name for it


def _sigbus_owner() -> str:
    if faulthandler.is_enabled():
        return "faulthandler"
    handler = signal.getsignal(signal.SIGBUS)
    if handler is None:
        return "C code of another library"
    return "nobody" if handler in (signal.SIG_DFL, signal.SIG_IGN) else "a Python handler"
