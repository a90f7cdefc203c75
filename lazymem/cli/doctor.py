"""Does lazymem work here, and what would allow what does not?"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from typing import Any

from lazymem.counters import human

_WIDE = 34


def diagnose() -> dict[str, Any]:
    """Look, and try. Blocks: at most trial.PATIENCE_S.

    Returns
    -------
    dict
        verdict: one line; works, kernel_faults: bool; auto: the delivery that `auto` takes, or None; auto_because: str;
        facts by topic; trials; remedies.
    """
    from lazymem.cli import remedies

    if not sys.platform.startswith("linux"):
        remedy = remedies.elsewhere()
        return {"verdict": f"does not work: {remedy.what}", "works": False, "kernel_faults": False, "auto": None, "trials": [],
                "remedies": [remedy.as_dict()]}  # fmt: skip
    from lazymem.cli import facts, trial

    found = facts.collect()
    trials = trial.try_all()
    auto = trials[0]
    others = [t["asked"] for t in trials[1:] if t["right"]]
    rungs = found["privileges"]["rungs"]
    works = auto["right"] or bool(others)
    kernel_faults = bool(auto["right"] and auto["kernel_faults"] and auto["system_call"] == "right")
    if kernel_faults:
        verdict = f"works fully; delivery 'auto' takes '{auto['delivery']}'"
    elif auto["right"] and auto["delivery"] == "mprotect":
        verdict = (
            "works without userfaultfd; delivery 'auto' takes 'mprotect'; system calls on absent pages get "
            f"{auto['system_call']}"
        )
    elif auto["right"]:
        verdict = (
            f"works with user faults only; delivery 'auto' takes '{auto['delivery']}'; system calls on absent pages get "
            f"{auto['system_call']}"
        )
    elif others:
        verdict = f"works only with delivery={others[0]!r}; 'auto' fails: {auto['error'] or 'values were wrong'}"
    else:
        verdict = f"does not work: {auto['error'] or 'values were wrong'}"
    return {
        "verdict": verdict, "works": works, "kernel_faults": kernel_faults,
        "auto": auto["delivery"] if auto["right"] else None, "auto_because": _because(rungs), **found, "trials": trials,
        "remedies": [r.as_dict() for r in remedies.remedies(found, trials)],
    }  # fmt: skip


def _because(rungs: list[dict[str, Any]]) -> str:
    """Why "auto" takes what it takes: which way to a userfaultfd is open."""
    device, system_call, user_faults = rungs
    if device["allowed"] or system_call["allowed"]:
        return f"{(device if device['allowed'] else system_call)['name']} gives kernel faults: threads, and system calls wait"
    if user_faults["allowed"]:
        return "userfaultfd(2) gives user faults only: inline"
    refused = f"device {device['errno_name']}, system call {user_faults['errno_name']}"
    return f"there is no userfaultfd ({refused}): mprotect"


def run(args: argparse.Namespace) -> int:
    """The command. Returns the exit status."""
    found = diagnose()
    if args.json:
        print(json.dumps(found))
    else:
        print("\n".join(report(found)))
    return 0 if found["works"] else 1


def report(found: dict[str, Any]) -> list[str]:
    """What diagnose found, as lines."""
    lines = [f"lazymem {found['verdict']}."]
    if "kernel" in found:
        lines += _system(found) + _tried(found["trials"], found["auto_because"])
        lines += _features(found["features"]) + _machine(found)
    if found["remedies"]:
        lines += ["", "What does not work here, and what would allow it"]
        for number, remedy in enumerate(found["remedies"], 1):
            lines += ["", *textwrap.wrap(remedy["what"], 110, initial_indent=f"  {number}. ", subsequent_indent="     ")]
            wide = max(len(way["where"]) for way in remedy["ways"])
            lines += [f"     {way['where']:<{wide}}  {way['do']}" for way in remedy["ways"]]
    elif found["works"]:
        lines += ["", "Nothing that lazymem needs is missing here."]
    return lines


def _row(name: str, value: str) -> str:
    return f"  {name:<{_WIDE}} {value}"


def _system(found: dict[str, Any]) -> list[str]:
    kernel, privileges, versions = found["kernel"], found["privileges"], found["versions"]
    device = privileges["device"]
    beside = {
        "/dev/userfaultfd": f"{device['mode']} {device['owner']} {device['group']}" if device["there"] else device["why"],
        "userfaultfd(2)": f"vm.unprivileged_userfaultfd = {privileges['unprivileged_userfaultfd']}",
    }
    ptrace = "with" if privileges["cap_sys_ptrace"] else "without"
    account = f"{privileges['user']} (uid {privileges['uid']}), {ptrace} CAP_SYS_PTRACE"
    lines = [
        "",
        "System",
        _row("kernel", f"{kernel['system']} {kernel['release']}, {kernel['machine']}"),
        _row("page", human(kernel["page_nbytes"])),
        _row("versions", f"lazymem {versions['lazymem']}, Python {versions['python']}, numpy {versions['numpy']}"),
        "",
        "Privileges",
        _row("account", account),
        _row("seccomp", privileges["seccomp"] + (", no new privileges" if privileges["no_new_privs"] else "")),
    ]
    for rung in privileges["rungs"]:
        said = "allowed" if rung["allowed"] else f"refused, {rung['errno_name']}"
        more = beside.get(rung["name"])
        lines.append(_row(rung["name"], f"{said:<18} {more}" if more else said))
    return lines


def _tried(trials: list[dict[str, Any]], because: str) -> list[str]:
    lines = ["", "Tried just now, each in a process of its own"]
    for trial in trials:
        if trial["right"]:
            taken = f" (took '{trial['delivery']}')" if trial["asked"] == "auto" else ""
            said = f"values right; os.write(plain view): {trial['system_call']}; file.write(array): {trial['array_write']}"
            lines.append(_row(f"delivery='{trial['asked']}'{taken}", said))
        else:
            why = (trial["error"] or "values were wrong").split("; `python -m lazymem doctor`")[0]  # here we are
            lines.append(_row(f"delivery='{trial['asked']}'", f"FAILED: {why}"))
        if trial["asked"] == "auto":
            lines.append(_row("", f"since {because}"))
    guarded = [trial["guarded"] for trial in trials if trial["right"] and trial["guarded"] is not None]
    if guarded:
        said = "arrays go on: a thread of ours holds it too" if all(guarded) else "arrays LOSE THEIR MEMORY: see below"
        lines.append(_row("if somebody closes our userfaultfd", said))
    return lines


def _features(features: list[dict[str, Any]] | None) -> list[str]:
    lines = ["", "Features of this kernel's userfaultfd"]
    if features is None:
        return [*lines, "  not known: it cannot be asked"]
    for feature in features:
        if feature["used"]:
            lines.append(_row(feature["name"], "there" if feature["there"] else f"ABSENT: {feature['if_absent']}"))
    for there, title in ((True, "there, not used by this version"), (False, "absent, not used by this version")):
        names = [f["name"] for f in features if not f["used"] and f["there"] == there]
        for i in range(0, len(names), 4):
            lines.append(_row(title if i == 0 else "", " ".join(names[i : i + 4])))
    return lines


def _machine(found: dict[str, Any]) -> list[str]:
    machine, signals = found["machine"], found["signals"]
    lines = [
        "",
        "Machine and process",
        _row("cores", str(machine["cores"])),
        _row("memory", f"{human(machine['memory_nbytes'])}; arrays may fill {human(machine['usable_nbytes'])} of it"),
        _row("vm.max_map_count", f"{machine['max_map_count']}; an array takes a few, all of delivery 'mprotect' a quarter"),
        _row("vm.overcommit_memory", str(machine["overcommit_memory"])),
    ]
    about = {
        "AS": "address space, which all of an array's bytes take",
        "NOFILE": "descriptors; every array of a file holds one",
        "MEMLOCK": "locked memory; lazymem locks none",
    }
    for name, limit in machine["rlimits"].items():
        if limit is not None:
            lines.append(_row(f"RLIMIT_{name}", f"{limit if name == 'NOFILE' else human(limit)}: {about[name]}"))
    if machine["container"]:
        lines.append(_row("container", machine["container"]))
    owner = signals["sigbus_owner"]
    passed = "" if owner == "nobody" else "; lazymem steps in front, and passes on what is not its own"
    lines.append(_row("SIGBUS belongs to", f"{owner}{passed}{'; BLOCKED' if signals['sigbus_blocked'] else ''}"))
    return lines
