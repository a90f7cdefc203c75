"""How is an array laid over a source? What every constructor does, whatever its bytes come from."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, cast

import numpy as np

import lazymem.core.fork  # noqa: F401  what a forked child finds
from lazymem import system
from lazymem.core import inline, threads, uffd
from lazymem.core import lazyarray as core
from lazymem.core.memory import set_budget
from lazymem.core.mprotect import most_mappings
from lazymem.core.source import NativeSource
from lazymem.handle import ProviderRecipe, Recipe, Region
from lazymem.lazyarray import LazyArray
from lazymem.options import Options, budget_of, check_scratch, writes_back
from lazymem.sigowner import own_signals
from lazymem.writing import flush_at_exit

# What the ways to a userfaultfd answer where there is none to be had: seccomp filters, old kernels, gVisor, ordinary users.
_NONE_HERE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENODEV, errno.ENXIO)
_NUMBERS = {"threads": 0, "inline": 1, "mprotect": 2}
# Without one every block that is resident alone takes two of the process's mappings: blocks that nobody chose are made larger,
# until every second one can be, but no larger than this, since each is fetched whole.
_COARSEST_NBYTES = 4 << 20
_FILLINGS = {"auto": 0, "copy": 1, "move": 2, "zero": 3, "continue": 0}
_begun = False


def budget_process(nbytes: int) -> None:
    """Let all arrays together have so much memory."""
    global _begun
    _begun = True
    set_budget(nbytes)
    core.largest_export_nbytes = nbytes // 4 if nbytes else 1 << 62


def _first_array() -> None:
    """What a process needs once, and `import lazymem` must not do."""
    if "logging" in sys.modules:
        from lazymem import log

        log.quieten()
    if not _begun:
        budget_process(system.default_budget_nbytes())


def kernel_faults_allowed() -> bool:
    """May this process take the faults of system calls? (root, /dev/userfaultfd, vm.unprivileged_userfaultfd)"""
    return any(error == 0 for _, error, _ in uffd.probe()[:2])


def settle(options: Options, nbytes: int) -> Options:
    """Say which delivery "auto" is here, and blocks that it can do with.

    Parameters
    ----------
    nbytes : int, bytes
        Of the source.
    """
    delivery = options.delivery
    if delivery == "auto":
        device, system_call, user_faults = (error for _, error, _ in uffd.probe())
        if device == 0 or system_call == 0:
            delivery = "threads"
        elif {device, system_call, user_faults} <= set(_NONE_HERE):
            delivery = "mprotect"
        else:
            delivery = "inline"
    block_nbytes = options.block_nbytes
    if delivery == "mprotect" and not options.block_asked:
        while nbytes // block_nbytes > most_mappings() // 4 and 2 * block_nbytes <= _COARSEST_NBYTES:
            block_nbytes *= 2
    return options._replace(delivery=delivery, block_nbytes=block_nbytes)


def _descriptor(options: Options) -> tuple[int, bool]:
    """Have the userfaultfd for an array open. Its delivery's number, and whether system calls wait for its pages."""
    delivery = options.delivery
    if delivery == "mprotect":
        if inline.blocks_sigsegv():
            raise RuntimeError(
                "delivery='mprotect' on a thread that blocks SIGSEGV: a touch here would end the process. "
                "Unblock it (signal.pthread_sigmask)"
            )
        return _NUMBERS[delivery], False
    try:
        privilege, guarded = threads.descriptor(options.threads) if delivery == "threads" else inline.descriptor()
    except OSError as error:
        raise OSError(
            error.errno,
            f"userfaultfd is not to be had here ({os.strerror(error.errno or 0)}); "
            "`python -m lazymem doctor` says what would allow it",
        ) from error
    if delivery == "inline" and inline.blocks_sigbus():
        raise RuntimeError(
            "delivery='inline' on a thread that blocks SIGBUS: a touch here would end the process. "
            "Unblock it (signal.pthread_sigmask), or use delivery='threads'"
        )
    if not guarded:  # an array that loses its memory must be able to say so
        inline.take_signals(segv=True)
    return _NUMBERS[delivery], delivery == "threads" and privilege == 2


def make_region(source: NativeSource, mode: str, options: Options, name: str, recipe: Recipe | ProviderRecipe | str) -> Region:
    if mode == "c":
        check_scratch(options)
    options = settle(options, source.nbytes)
    if options.fill == "continue" and options.delivery == "mprotect":
        raise ValueError(f"fill='continue' for array {name!r}: there is no userfaultfd here, so nothing to CONTINUE")
    delivery, kernel_faults = _descriptor(options)
    kind = 0
    if options.memory == "shared" and options.delivery != "mprotect":  # where an array lies in a file of memory anyway
        kind = 2 if options.fill == "continue" else 1
    own_signals(segv=options.delivery == "mprotect")
    _first_array()
    if options.budget_nbytes:
        budget_of(options.budget_nbytes, options.block_nbytes)  # its blocks may have become larger
    region = Region(
        source, options.block_nbytes, delivery, mode != "r", name, options.timeout_ns, options.retries, writes_back(mode),
        _FILLINGS[options.fill], options.budget_nbytes, os.fsencode(options.scratch_dir), kind,
    )  # fmt: skip
    region.asked_mode = mode
    region.take_kernel_faults(kernel_faults)
    # Those that wait for another process need no core of their own.
    at_once = options.threads if source.kind == "provider" else min(options.threads, len(os.sched_getaffinity(0)))
    region.helpers = at_once - 1
    region.recipe = recipe
    region.filename = None
    region.offset = 0
    if writes_back(mode):
        flush_at_exit(region)
    return region


def _no_value(dtype: np.dtype[Any]) -> bytes:
    """An element that says that it is none: NaN, NaT; empty where the dtype has no such thing."""
    if dtype.kind in "fc":
        return np.full((), complex(np.nan, np.nan) if dtype.kind == "c" else np.nan, dtype).tobytes()
    return np.array("NaT", dtype).tobytes() if dtype.kind in "mM" else b""


def make_array(region: Region, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, offset: int = 0) -> LazyArray:
    """Lay an array over a region. The root is a plain array of all its bytes, the base of every other."""
    root: np.ndarray[Any, Any] = np.ndarray((region.nbytes,), "u1", cast(Any, region))
    region.hold_elements(dtype.itemsize, offset, _no_value(dtype))
    array = LazyArray.__new__(LazyArray, shape, dtype, root, offset, None, cast(Any, order))
    region.remember(root, array)
    del root
    region.calibrate()
    return array
