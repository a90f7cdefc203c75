"""In which processes does a Python provider run, and with what are they started?

Processes are shared: arrays made with the same interpreter, `sys.path`, directory, environment, affinity and scheduling have
one set. The set that was used last is kept for the next array; any other ends with its last array.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import weakref
from typing import Any

from lazymem import system
from lazymem.core.provider import LAST_WORDS_AT, LAST_WORDS_NBYTES, Setting, attend, drain, flush, in_provider_process
from lazymem.executable import interpreter

# Longer than a provider takes over a block of some pages, short beside what waking a sleeping process costs.
SPIN_NS = 100_000
# How long the end of the interpreter waits for what a provider has printed just before.
FLUSH_NS = 200_000_000
# The least that a ring has room for in each slot: what most arrays ask for goes through one set.
ROOM_NBYTES = 1 << 20

_BOOT = f"""import sys
try:
    import json
    given = json.loads(sys.argv[1])
    sys.path[:] = given["path"]
    from lazymem.providers.child import main
    main(given)
except BaseException:
    import os, traceback
    os.pwrite(3, traceback.format_exc().encode("utf-8", "replace")[-{LAST_WORDS_NBYTES - 1}:], {LAST_WORDS_AT})
    raise
"""

_flags: list[str] | None = None
_settings: weakref.WeakValueDictionary[Any, Setting] = weakref.WeakValueDictionary()
_latest: Setting | None = None
_attended_by: int | None = None  # the process whose attendant runs
_writing = threading.Lock()
_ending = False


def _interpreter_flags() -> list[str]:
    """The flags that this interpreter was started with, as multiprocessing passes them on."""
    global _flags
    if _flags is None:
        import subprocess

        _flags = [f for f in subprocess._args_from_interpreter_flags() if f != "-P"]  # type: ignore[attr-defined]
    return _flags


def _environment() -> tuple[bytes, ...]:
    """This process's, with one thread for BLAS unless somebody has said how many."""
    here = dict(os.environb)
    if b"OMP_NUM_THREADS" not in here:
        for name in (b"OPENBLAS_NUM_THREADS", b"MKL_NUM_THREADS", b"BLIS_NUM_THREADS"):
            here.setdefault(name, b"1")
    return tuple(name + b"=" + value for name, value in here.items())


def _given() -> str:
    """What child.main wants to know, as JSON."""
    pid = os.getpid()  # of the main thread: another may be pinned or have its own policy
    try:
        cwd: str | None = os.getcwd()
    except FileNotFoundError:
        cwd = None
    return json.dumps(
        {
            "path": [p if p else cwd for p in sys.path if isinstance(p, str) and (p or cwd)],
            "cwd": cwd,
            "affinity": sorted(os.sched_getaffinity(pid)),
            "policy": os.sched_getscheduler(pid),
            "priority": os.sched_getparam(pid).sched_priority,
        }
    )


def setting_for(block_nbytes: int, processes: int) -> Setting:
    """The set of processes that an array made now is served by; its processes have been started, if they may be.

    Parameters
    ----------
    block_nbytes : int, bytes
        Of the array.
    processes : int

    Raises
    ------
    RuntimeError
        There is no interpreter.
    OSError
        It cannot be started.

    Notes
    -----
    Blocks: some ms where a process is to be started; it becomes ready in the background. Inside a provider process nothing is
    started: the first touch will. GIL: released meanwhile.
    """
    global _latest
    argv = [interpreter(), *_interpreter_flags(), "-P", "-c", _BOOT, _given(), "lazymem-provider"]
    environment = _environment()
    room_nbytes = max(ROOM_NBYTES, 1 << (block_nbytes - 1).bit_length())
    key = (tuple(argv), environment, room_nbytes)
    setting = _settings.get(key)
    if setting is None or not setting.whole:
        spin_ns = SPIN_NS if system.cores() >= 2 else 0
        setting = Setting([os.fsencode(a) for a in argv], list(environment), room_nbytes, spin_ns)
        _settings[key] = setting
    _latest = setting
    if not in_provider_process():
        setting.start(processes)
    _attend()
    return setting


def _write(stream: int, text: bytes) -> None:
    """Print what a provider process printed, wherever this program's output goes now."""
    if not _writing.acquire(timeout=1):  # whoever reads this program's output does not
        return
    try:
        out = sys.stderr if stream else sys.stdout
        if out is None or _ending:
            return
        if hasattr(out, "buffer"):  # as it is: a character may be cut in two here
            out.flush()
            out.buffer.write(text)
        else:
            out.write(text.decode("utf-8", "replace"))
        out.flush()
    except Exception:  # a closed or broken stream is the program's affair, and not worth its attendant
        return
    finally:
        _writing.release()


def _end() -> None:
    """As the interpreter ends: hand on what there is, and let nobody write from then on, whom it would wait for in vain."""
    global _ending
    if _attended_by != os.getpid():
        return
    flush(FLUSH_NS)
    for _ in range(2):  # what was dropped is said when nothing more is
        drain(_write)
    held = _writing.acquire(timeout=1)
    _ending = True
    if held:
        _writing.release()


def _attend() -> None:
    """Have one thread hand on what processes print, and clear away what they leave."""
    global _attended_by, _writing
    if _attended_by == os.getpid():
        return
    if _attended_by is None:
        import atexit

        atexit.register(_end)
    _writing = threading.Lock()  # in a forked child: a thread of the parent may have held it
    _attended_by = os.getpid()
    threading.Thread(target=attend, args=(_write,), name="lazymem-attendant", daemon=True).start()
