"""How does a test live where a container's seccomp filter refuses userfaultfd?"""

from __future__ import annotations

import sys

from support import run_child

ERRNOS = {"EPERM": 1, "ENOSYS": 38}
# A real filter: the system calls named answer an errno, all else is allowed; for good, and for all that is started from here.
# A filter cannot see paths, so the device stays openable for whoever may; what it cannot do then is make a userfaultfd.
_FILTER = """
def refuse(errno, calls=("userfaultfd",), device=True):
    import ctypes, platform, struct
    column, ARCH = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}[platform.machine()]
    NUMBERS = {"userfaultfd": (323, 282), "memfd_create": (319, 279), "ioctl": (16, 29), "close_range": (436, 436)}
    NEW_OF_DEVICE = 0xAA00  # the ioctl
    def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
    load_arch, load_number, load_argument = op(0x20, 0, 0, 4), op(0x20, 0, 0, 0), op(0x20, 0, 0, 24)
    allow, answer = op(0x06, 0, 0, 0x7FFF0000), op(0x06, 0, 0, 0x00050000 | errno)
    def unless_equal(k, skipped): return op(0x15, 0, skipped, k)
    steps = [load_arch, op(0x15, 1, 0, ARCH), allow, load_number]
    for call in calls:
        steps += [unless_equal(NUMBERS[call][column], 1), answer]
    if device:
        steps += [unless_equal(NUMBERS["ioctl"][column], 3), load_argument, unless_equal(NEW_OF_DEVICE, 1), answer]
    program = b"".join([*steps, allow])
    class Program(ctypes.Structure):
        _fields_ = [("n", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    libc = ctypes.CDLL(None, use_errno=True)
    PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    made = Program(len(program) // 8, program)
    assert libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(made), 0, 0) == 0, ctypes.get_errno()
    for call in calls:
        assert libc.syscall(NUMBERS[call][column], 1) == -1 and ctypes.get_errno() == errno, "the filter does not work"
"""


def refusing(errno_name: str, calls: tuple[str, ...] = ("userfaultfd",), device: bool = True) -> str:
    """Code that puts the process that runs it under the filter; `device`: the device makes no userfaultfd either."""
    return f"{_FILTER}\nrefuse({ERRNOS[errno_name]}, {calls!r}, {device!r})\n"


def run_refused(
    errno_name: str, arguments: list[str], user: str | None, calls: tuple[str, ...] = ("userfaultfd",), device: bool = True
) -> tuple[int, str, str]:
    """Run a new interpreter under the filter: (status, stdout, stderr)."""
    then = f"import os, sys\nos.execv(sys.executable, [sys.executable, *{arguments!r}])\n"
    return run_child(refusing(errno_name, calls, device) + then, user=user)


assert sys.byteorder == "little", "where an argument's low half lies"
