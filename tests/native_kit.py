"""How are the tests' own native parts (tests/native) built, and how does a child find them?"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import importlib.util
import inspect
import mmap
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import check_child, compiler, has_openmp, run_child

PAGE = mmap.PAGESIZE
HERE = Path(__file__).resolve().parent
# Where a child finds what its parent built.
_BUILT = "LAZYMEM_TEST_BUILT"


@functools.cache
def _folder() -> Path:
    return Path(os.environ[_BUILT])


def make_folder() -> None:
    """One for the whole run, made by the process that starts the others and gone with it: each part is built once."""
    made = tempfile.mkdtemp(prefix="lazymem-native-")
    os.chmod(made, 0o755)
    os.environ[_BUILT] = made
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(made, ignore_errors=True))


@contextlib.contextmanager
def _building(path: Path) -> Iterator[Path | None]:
    """Where to build what is to be `path`, while no other test process builds; nothing if it is there."""
    if path.exists():
        yield None
        return
    if compiler() is None:
        pytest.skip("no C compiler (cc, gcc or clang) for the tests' native parts")
    with open(_folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        half = path.with_name("half-" + path.name)
        yield half
        half.rename(path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@functools.cache
def library(source: str, *flags: str) -> Path:
    """A plain C file of tests/native, compiled to a shared library."""
    path = (_folder() / source).with_suffix(".so")
    with _building(path) as half:
        if half is not None:
            import lazymem

            _run([str(compiler()), "-O2", "-Wall", "-Wno-unknown-pragmas", "-Werror", "-shared", "-fPIC", "-pthread", *flags,
                  f"-I{lazymem.get_include()}", "-o", str(half), str(HERE / "native" / source)])  # fmt: skip
    return path


def _library_path() -> Path:
    return library("pest.c", *(["-fopenmp"] if has_openmp() else []))


@functools.cache
def _extension_path() -> Path:
    path = _folder() / ("probe" + sysconfig.get_config_var("EXT_SUFFIX"))
    if not path.exists() and importlib.util.find_spec("Cython") is None:
        pytest.skip("Cython is not installed; tests/native/probe.pyx reaches the core through its .pxd files")
    with _building(path) as half:
        if half is not None:
            import lazymem

            root = Path(lazymem.__file__).resolve().parent.parent
            c = _folder() / "probe.c"
            _run([sys.executable, "-m", "cython", "-3", "-I", str(root), str(HERE / "native" / "probe.pyx"), "-o", str(c)])
            _run([str(compiler()), "-O2", "-shared", "-fPIC", "-pthread", f"-I{lazymem.get_include()}",
                  f"-I{sysconfig.get_paths()['include']}", "-o", str(half), str(c)])  # fmt: skip
    return path


@functools.cache
def pest() -> ctypes.CDLL:
    """The plain C library: sources that count, delay, fail and touch; threads, readers and signal handlers."""
    lib = ctypes.CDLL(str(_library_path()))
    u64, pointer = ctypes.c_uint64, ctypes.c_void_p
    lib.touch_apart.argtypes = [pointer, u64, u64, u64, u64]
    lib.touch_together.argtypes = [pointer, u64, u64, u64]
    lib.touch_one.argtypes = [pointer]
    lib.touch_rounds.argtypes = [pointer, u64, u64, u64]
    lib.read_and_drop.argtypes = [pointer, u64, u64, u64, u64, u64, pointer]
    lib.touch_and_mark.argtypes = [pointer, u64, u64, u64]
    lib.omp_sum.argtypes = [pointer, u64, ctypes.c_int]
    lib.handle_by_touching.argtypes = [ctypes.c_int, pointer, u64, u64]
    lib.map_latency.argtypes = [ctypes.POINTER(ctypes.c_int)]
    lib.start_toucher.argtypes = [pointer]
    lib.poke.argtypes = [pointer, ctypes.c_long]
    lib.fork_twice_and_touch.argtypes = [pointer, u64, u64]
    lib.touch_at_the_end.argtypes = lib.touch_as_this_thread_ends.argtypes = [pointer]
    counting = "touch_apart touch_together touch_one touch_rounds touch_and_mark omp_sum handled map_latency"
    for name in counting.split():
        getattr(lib, name).restype = ctypes.c_int64
    return lib


@functools.cache
def probe() -> Any:
    """The Cython extension that calls the core's functions: tests/native/probe.pyx."""
    path = _extension_path()
    spec = importlib.util.spec_from_file_location("probe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Kit(ctypes.Structure):
    """What pest.c's sources are told, and what they count: `struct kit` there."""

    _fields_ = [
        ("calls", ctypes.c_uint64), ("at_once", ctypes.c_uint64), ("most_at_once", ctypes.c_uint64),
        ("delay_ns", ctypes.c_uint64), ("error", ctypes.c_int64), ("pattern", ctypes.c_uint64),
        ("block_nbytes", ctypes.c_uint64), ("touch", ctypes.c_void_p), ("touch_step", ctypes.c_uint64),
        ("gate", ctypes.c_uint64), ("touched", ctypes.c_uint64), ("per_block", ctypes.c_void_p),
    ]  # fmt: skip


def counted(nbytes: int, mode: str = "r", dtype: str = "i8", **options: Any) -> tuple[Any, Kit]:
    """An array of a counting C source: its int64 elements are their own index. With it the kit: knobs and counts."""
    import lazymem as lm

    kit = Kit()
    kit.block_nbytes = options["block_nbytes"]
    for name, _ in Kit._fields_:
        if name in options and name != "block_nbytes":
            setattr(kit, name, options.pop(name))
    a = lm.from_provider(lm.CFunction(pest().fetch, nbytes, kit), dtype=dtype, mode=mode, **options)
    return a, kit


def address_of(a: Any) -> int:
    """Of the first element."""
    return int(a.__array_interface__["data"][0])


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library, errno kept, with the calls that tests make declared."""
    c = ctypes.CDLL(None, use_errno=True)
    size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    c.mmap.argtypes, c.mmap.restype = [pointer, size, number, number, number, ctypes.c_long], pointer
    c.mremap.argtypes, c.mremap.restype = [pointer, size, size, number, pointer], pointer
    c.munmap.argtypes = c.mlock.argtypes = c.munlock.argtypes = [pointer, size]
    c.madvise.argtypes = c.mprotect.argtypes = [pointer, size, number]
    c.mincore.argtypes = [pointer, size, pointer]
    c.prctl.argtypes = [number, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
    c.write.argtypes = c.read.argtypes = [number, pointer, size]
    c.write.restype = c.read.restype = c.pread.restype = c.pwrite.restype = ctypes.c_ssize_t
    c.pread.argtypes = c.pwrite.argtypes = [number, pointer, size, ctypes.c_long]
    c.vmsplice.argtypes, c.vmsplice.restype = [number, pointer, size, ctypes.c_uint], ctypes.c_ssize_t
    for name in ("process_vm_readv", "process_vm_writev"):
        call = getattr(c, name)
        call.argtypes = [number, pointer, ctypes.c_ulong, pointer, ctypes.c_ulong, ctypes.c_ulong]
        call.restype = ctypes.c_ssize_t
    return c


PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_RANDOM, MADV_NORMAL = 4, 14, 15, 1, 0


def must(result: int) -> int:
    """A libc call that may not fail."""
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def drop(address: int, nbytes: int) -> None:
    """madvise(MADV_DONTNEED): the pages are gone."""
    must(libc().madvise(address, nbytes, MADV_DONTNEED))


def pages_here(address: int, npages: int) -> list[bool]:
    """Which pages are in memory, as mincore(2) says; touches nothing."""
    there = (ctypes.c_ubyte * npages)()
    must(libc().mincore(address, npages * PAGE, there))
    return [bool(b & 1) for b in there]


def ours() -> dict[int, int]:
    """This process's userfaultfds and the features that each has, from /proc/self/fdinfo."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "userfaultfd" in os.readlink(f"/proc/self/fd/{name}"):
                lines = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{name}").read_text().splitlines())
                found[int(name)] = int(lines["API"].strip().split(":")[1], 16)
    return found


def _command(function: Any, args: tuple[Any, ...]) -> tuple[str, dict[str, str]]:
    module = Path(inspect.getfile(function)).stem
    _library_path()
    _extension_path()
    return f"import {module} as t\nt.{function.__name__}(*{args!r})\n", {_BUILT: str(_folder())}


def in_child(
    function: Any, *args: Any, user: str | None = None, timeout: float = 60, env: dict[str, str] | None = None
) -> str:
    """Run a function of a test module in a child that must end well; what it printed. `env`: an interpreter of its own."""
    code, built = _command(function, args)
    return check_child(code, timeout, user, {**built, **(env or {})}, fresh=env is not None)


def end_of_child(
    function: Any, *args: Any, user: str | None = None, timeout: float = 60, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a function of a test module in a child that may die: (status, stdout, stderr). `env`: an interpreter of its own."""
    code, built = _command(function, args)
    return run_child(code, timeout, user, {**built, **(env or {})}, fresh=env is not None)
