"""What may a constructor be told, and what does it mean?

Every constructor takes the same keyword options; none is ever required.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Any, NamedTuple

PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")

_UNITS = {
    "": 1, "B": 1,
    "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_MODES = {
    "r": "r", "readonly": "r", "c": "c", "copyonwrite": "c",
    "r+": "r+", "readwrite": "r+", "w+": "w+", "write": "w+",
}  # fmt: skip
BLOCK_MAX_NBYTES = 1 << 30
PROCESSES_MAX = 16
# How blocks get into place, and in which memory they can.
FILLINGS = {"private": ("auto", "copy", "move", "zero"), "shared": ("auto", "copy", "continue", "zero")}
# An instruction may touch several blocks at once: with fewer it would never end.
BUDGET_BLOCKS, BUDGET_PAGES = 16, 64
DELIVERIES = ("auto", "threads", "inline", "mprotect")


def nbytes(value: Any, name: str) -> int:
    """Read a number of bytes: an int, or text such as "64 KiB", "1.5 GB".

    Raises
    ------
    ValueError, TypeError
        Naming the option and what was given.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f'{name}={value!r}: give an int, or text such as "64 KiB" (B KiB MiB GiB TiB KB MB GB TB)')
        return int(float(match[1]) * _UNITS[match[2].upper()])
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f'{name}={value!r}: give a number of bytes, as an int or text such as "64 KiB"')
    return int(value.__index__())


def mode_of(mode: Any) -> str:
    """Read a mode, in numpy's short or long form, as "r", "c", "r+" or "w+"."""
    if not isinstance(mode, str) or mode not in _MODES:
        raise ValueError(f"mode={mode!r}: give one of {', '.join(repr(m) for m in _MODES)}")
    return _MODES[mode]


def writes_back(mode: str) -> bool:
    """Does what is written to an array of this mode, as `mode_of` says it, go back to its source?"""
    return mode in ("r+", "w+")


def nothing_to_create(mode: str, what: str) -> None:
    """Refuse "w+" where there is no file to be made.

    Raises
    ------
    ValueError
    """
    if mode == "w+":
        raise ValueError(f"mode='w+' makes a file, and {what} is none; 'r+' writes to what is there")


class Options(NamedTuple):
    """The options of one array, read and checked.

    Attributes
    ----------
    block_nbytes : int, bytes
        Fetch unit; whole pages.
    block_asked : bool
        Somebody asked for just that.
    delivery : str
        "auto", "threads", "inline" or "mprotect".
    threads : int
        Handler threads that must at least be there, and threads that a populate may use.
    timeout_ns : int
        How long to wait for a block that another thread fetches, and to go on asking a source that says "again".
    retries : int
        How often to ask such a source again.
    processes : int
        How many processes may serve a Python provider.
    memory : str
        "private", or "shared": a file of memory.
    budget_nbytes : int, bytes
        How much of the array may be resident, or wait to be wanted again; 0: as much as the process may have.
    fill : str
        "auto", "copy", "zero"; "move" for private memory, "continue" for shared.
    scratch_dir : str
        Where mode "c" keeps changed blocks that are evicted; an absolute path.
    scratch_asked : bool
        Somebody asked for just that.
    """

    block_nbytes: int
    block_asked: bool
    delivery: str
    threads: int
    timeout_ns: int
    retries: int
    processes: int
    memory: str
    budget_nbytes: int
    fill: str
    scratch_dir: str
    scratch_asked: bool


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _integer(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}={value!r}: give an int")
    number = int(value.__index__())
    if not least <= number <= most:
        raise ValueError(f"{name}={value!r}: give {least} to {most}")
    return number


def _folder(value: Any) -> tuple[str, bool]:
    if value is None:
        return os.path.abspath(os.environ.get("TMPDIR") or "/var/tmp"), False
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"scratch_dir={value!r}: give the path of a folder")
    folder = os.fsdecode(value)
    if not folder or "\0" in folder:
        raise ValueError(f"scratch_dir={value!r}: give the path of a folder")
    return os.path.abspath(os.path.expanduser(folder)), True


def read_options(given: dict[str, Any], block_nbytes: int) -> Options:
    """Read a constructor's keyword options.

    Parameters
    ----------
    given : dict
        block_nbytes, delivery, threads, timeout (seconds), retries, processes, budget_nbytes, memory, fill,
        scratch_dir.
    block_nbytes : int, bytes
        The default for this kind of source.

    Raises
    ------
    TypeError
        An unknown option (the closest known name is suggested), or a value of the wrong type.
    ValueError
        A value out of range, or in unknown units.
    """
    known = (
        "block_nbytes", "delivery", "threads", "timeout", "retries", "processes", "budget_nbytes", "memory", "fill",
        "scratch_dir",
    )  # fmt: skip
    for name in given:
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, [*known, "mode", "dtype", "shape", "offset", "order"], n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise TypeError(f"unknown option {name!r}: {hint}The options are {', '.join(known)}.")
    if given.get("block_nbytes") is not None:
        block_nbytes = nbytes(given["block_nbytes"], "block_nbytes")
    if not 1 <= block_nbytes <= BLOCK_MAX_NBYTES:
        raise ValueError(f"block_nbytes={given['block_nbytes']!r}: give 1 byte to 1 GiB (rounded up to whole pages)")
    block_nbytes = -(-block_nbytes // PAGE_NBYTES) * PAGE_NBYTES
    delivery = given.get("delivery", "auto")
    if delivery not in DELIVERIES:
        raise ValueError(f"delivery={delivery!r}: give one of {', '.join(repr(d) for d in DELIVERIES)}")
    threads = given.get("threads")
    threads = min(8, 2 * _cores()) if threads is None else _integer(threads, "threads", 1, 64)
    timeout = given.get("timeout", 30.0)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 86400 * 365:
        raise ValueError(f"timeout={timeout!r}: give seconds, more than 0 and at most a year")
    retries = _integer(given.get("retries", 3), "retries", 0, 1000)
    processes = _integer(given.get("processes", 1), "processes", 1, PROCESSES_MAX)
    asked = given.get("block_nbytes") is not None
    memory, fill = given.get("memory", "private"), given.get("fill", "auto")
    if memory not in FILLINGS:
        raise ValueError(f"memory={memory!r}: give one of {', '.join(repr(m) for m in FILLINGS)}")
    if fill not in FILLINGS[memory]:
        raise ValueError(f"fill={fill!r} with memory={memory!r}: give one of {', '.join(repr(f) for f in FILLINGS[memory])}")
    budget_nbytes = 0
    if given.get("budget_nbytes") is not None:
        budget_nbytes = budget_of(given["budget_nbytes"], block_nbytes)
    folder, folder_asked = _folder(given.get("scratch_dir"))
    return Options(
        block_nbytes, asked, delivery, threads, int(timeout * 1e9), retries, processes, memory, budget_nbytes, fill,
        folder, folder_asked,
    )  # fmt: skip


def check_scratch(options: Options) -> None:
    """Raise where the folder that somebody asked for cannot keep what is evicted: for arrays of mode "c".

    Raises
    ------
    ValueError
        It is memory itself (tmpfs, ramfs).
    OSError
        It is missing, no folder, or no file can be made there.

    Notes
    -----
    Blocks: on the disk. GIL: given up meanwhile.
    """
    if not options.scratch_asked:
        return
    from lazymem.core.scratch import check_folder

    error = -check_folder(os.fsencode(options.scratch_dir))
    if error == errno.EOPNOTSUPP:
        raise ValueError(
            f"scratch_dir={options.scratch_dir!r}: its files are memory (tmpfs), which is what is to be freed. "
            "Give a folder on a disk"
        )
    if error:
        raise OSError(error, f"scratch_dir: no file can be made there: {os.strerror(error)}", options.scratch_dir)


def budget_of(value: Any, block_nbytes: int) -> int:
    """Read an array's budget.

    Raises
    ------
    ValueError
        It has no room for what one instruction may touch at once: BUDGET_BLOCKS blocks, BUDGET_PAGES pages.
    """
    budget_nbytes = nbytes(value, "budget_nbytes")
    least = max(BUDGET_BLOCKS * block_nbytes, BUDGET_PAGES * PAGE_NBYTES)
    if budget_nbytes < least:
        what = "a block" if budget_nbytes < block_nbytes else f"{BUDGET_BLOCKS} blocks"
        raise ValueError(
            f"budget_nbytes={value!r}: there is no room in it for {what} of {block_nbytes} bytes, and so many must be "
            f"resident at once. Give {least} or more, or smaller blocks (block_nbytes=)"
        )
    return budget_nbytes
