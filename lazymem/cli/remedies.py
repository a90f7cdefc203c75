"""What would allow what does not work here? Exact commands, flags and settings."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

from lazymem.cli.facts import DEVICE
from lazymem.counters import human

_MEANWHILE = ("meanwhile", "numpy.memmap, for local files")
_WITHOUT = (
    "so arrays are made without one (delivery='mprotect'). There a system call on absent pages gets EFAULT, a touch of many "
    "scattered blocks takes more faults, and a fork copies what is resident of arrays of mode 'c'"
)


@dataclass(frozen=True)
class Remedy:
    """One thing that does not work.

    Attributes
    ----------
    what : str
    ways : tuple of (str, str)
        For whom or where; what to do.
    """

    what: str
    ways: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "ways": [{"where": where, "do": do} for where, do in self.ways]}


def remedies(facts: dict[str, Any], trials: list[dict[str, Any]]) -> list[Remedy]:
    """Look at the facts, and say what would help; most important first."""
    found: list[Remedy] = []
    privileges = facts["privileges"]
    device, system_call, user_only = privileges["rungs"]
    if not any(rung["allowed"] for rung in privileges["rungs"]):
        found.append(_nothing_allowed(facts))
    elif not (device["allowed"] or system_call["allowed"]):
        found += _user_faults_only(facts)
    found += _features(facts)
    if facts["signals"]["sigbus_blocked"]:
        found.append(Remedy(
            "SIGBUS is blocked here, and children inherit that: a touch under delivery='inline' would end the process",
            (("Python", "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGBUS]) before arrays are made"),
             ("or", "delivery='threads', which needs no signal")),
        ))  # fmt: skip
    if any(trial["right"] and trial["guarded"] is False for trial in trials):
        found.append(_no_guardian())
    found += _limits(facts["machine"])
    opened = {"threads": device["allowed"] or system_call["allowed"] or user_only["allowed"]}
    opened["inline"] = opened["threads"] and not facts["signals"]["sigbus_blocked"]
    opened["mprotect"] = not facts["signals"]["sigsegv_blocked"]
    for trial in trials:
        if opened.get(trial["asked"]) and not trial["right"]:
            found.append(Remedy(
                f"delivery={trial['asked']!r} should work and does not: {trial['error'] or 'values were wrong'}",
                (("please", "report it with what `lazymem doctor --json` prints, unless something above explains it"),),
            ))  # fmt: skip
    return found


def _device_ways(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """How to be let into the device: it gives kernel faults too, and no seccomp filter stands in front of it."""
    privileges = facts["privileges"]
    device, user = privileges["device"], privileges["user"]
    ways = []
    if not device["there"]:
        ways.append(("no container", f"Linux 6.1 or newer has {DEVICE}, which can be given to single accounts"))
    elif privileges["rungs"][0]["errno_name"] == "EACCES":
        ways += [
            ("this account", f"sudo setfacl -m u:{user}:rw {DEVICE}   (until the machine restarts)"),
            ("a group, to stay", f"sudo groupadd -f userfaultfd; sudo usermod -aG userfaultfd {user}"),
            ("", 'echo \'KERNEL=="userfaultfd", GROUP="userfaultfd", MODE="0660"\' |'),
            ("", "  sudo tee /etc/udev/rules.d/99-userfaultfd.rules"),
            ("", f"sudo udevadm control --reload; sudo udevadm trigger {DEVICE}; then log in again"),
        ]
    return [
        *ways,
        ("Docker, Podman", f"docker run --device {DEVICE} ...   (the stock seccomp profile may stay)"),
        ("", "The account inside needs read and write permission on it too: run as root inside, or give"),
        ("", "it a group on the host (by a udev rule) and add --group-add with that group's number"),
        ("Kubernetes", f"a device plugin that hands out {DEVICE} (for example generic-device-plugin),"),
        ("", "or securityContext: {privileged: true}"),
    ]


def _nothing_allowed(facts: dict[str, Any]) -> Remedy:
    privileges = facts["privileges"]
    user_only = privileges["rungs"][2]
    filtered = privileges["seccomp"] == "filter"
    if user_only["errno_name"] == "ENOSYS" and not filtered:
        return Remedy(
            "This kernel has no userfaultfd(2): built without CONFIG_USERFAULTFD, or no Linux at all (gVisor answers so); "
            f"{_WITHOUT}",
            (("kernel", "one with CONFIG_USERFAULTFD=y; distributions have it"),),
        )
    if user_only["errno_name"] == "EINVAL":
        return Remedy(
            f"This kernel knows no user faults only (Linux 5.11 does), and refuses this account the rest; {_WITHOUT}",
            (("every account", "sudo sysctl vm.unprivileged_userfaultfd=1"), ("or", "a newer kernel")),
        )
    who = "a seccomp filter, as containers have," if filtered else "a security module (SELinux, AppArmor, ...) or sandbox"
    return Remedy(
        f"{who[0].upper()}{who[1:]} answers {user_only['errno_name']} to userfaultfd(2), and {DEVICE} is not to be had "
        f"({privileges['rungs'][0]['errno_name']}); {_WITHOUT}",
        (
            ("meanwhile", "lazymem.populate(a[...]) before such a call; larger blocks for scattered touches"),
            *_device_ways(facts),
            ("seccomp profile", "a copy of the runtime's default, with this added to its syscalls:"),
            ("", '{"names": ["userfaultfd"], "action": "SCMP_ACT_ALLOW"}'),
            ("", "Any account may then use user faults (delivery='inline')"),
            ("  Docker, Podman", "docker run --security-opt seccomp=PROFILE.json ..."),
            ("  Kubernetes", "securityContext: {seccompProfile: {type: Localhost, localhostProfile: PROFILE.json}}"),
            ("  systemd", "add userfaultfd to the list that the unit's SystemCallFilter= already allows"),
        ),
    )


def _user_faults_only(facts: dict[str, Any]) -> list[Remedy]:
    return [
        Remedy(
            "A system call that reads or writes absent pages fails with EFAULT (mlock: ENOMEM), or stops short: "
            "os.write(fd, numpy.asarray(a)), readinto of a plain view, O_DIRECT, io_uring, a C library that calls write(2)",
            (
                ("work all the same", "file.write(a), sock.sendall(a), a.tofile(f), numpy.save(f, a),"),
                ("", "f.readinto(a) in mode 'c': a LazyArray fetches first what it hands to them"),
                ("for the others", "lazymem.populate(a[...]) before the call"),
            ),
        ),
        Remedy(
            "Kernel faults, which would let those calls wait for their pages, are not allowed to this account",
            (
                *_device_ways(facts),
                ("every account", "sudo sysctl vm.unprivileged_userfaultfd=1   (to stay: a line in a file of /etc/sysctl.d)"),
            ),
        ),
    ]


def _no_guardian() -> Remedy:
    return Remedy(
        "No thread can hold lazymem's userfaultfd apart from the process's descriptors: close_range(2) is refused (a seccomp "
        "filter, or Linux before 5.9). If code of this process closes descriptors that it does not own (os.closerange, a "
        "daemoniser, a double close), arrays lose their memory: operations and lazymem.guard() raise RuntimeError, a touch "
        "ends the process; a plain touch before that is noticed reads zeros",
        (
            ("seccomp profile", "a copy of the runtime's default (newer ones allow it), with this added to its syscalls:"),
            ("", '{"names": ["close_range"], "action": "SCMP_ACT_ALLOW"}'),
            ("kernel", "Linux 5.9 or newer"),
            ("meanwhile", "make arrays after such code has run; with lazymem.guard(): around plain touches"),
            ("or", "delivery='mprotect', which has no userfaultfd"),
        ),
    )


def _features(facts: dict[str, Any]) -> list[Remedy]:
    return [
        Remedy(f"The kernel lacks UFFD_FEATURE_{f['name']}: {f['if_absent']}", (("kernel", "a newer one"),))
        for f in facts["features"] or ()
        if f["used"] and not f["there"]
    ]


def _limits(machine: dict[str, Any]) -> list[Remedy]:
    found = []
    space = machine["rlimits"]["AS"]
    if space is not None:
        found.append(Remedy(
            f"RLIMIT_AS is {human(space)}: an array takes address space for all its bytes, so larger ones cannot be made",
            (("shell", "ulimit -v unlimited"), ("Python", "resource.setrlimit(resource.RLIMIT_AS, ...) up to the hard limit")),
        ))  # fmt: skip
    files = machine["rlimits"]["NOFILE"]
    if files is not None and files < 256:
        found.append(Remedy(
            f"RLIMIT_NOFILE is {files}: every array of a file holds a descriptor", (("shell", "ulimit -n 1024"),)
        ))  # fmt: skip
    if machine["overcommit_memory"] == 2:
        found.append(Remedy(
            "vm.overcommit_memory is 2: arrays of mode 'c' count in full, and large ones are refused",
            (("this machine", "sudo sysctl vm.overcommit_memory=0"), ("or", "mode 'r', which counts nothing")),
        ))  # fmt: skip
    return found


def elsewhere() -> Remedy:
    """For systems that are not Linux."""
    return Remedy(
        f"lazymem needs Linux and its userfaultfd; this is {sys.platform!r}",
        (("Windows", "WSL 2"), ("macOS", "a Linux virtual machine or container"), _MEANWHILE),
    )
