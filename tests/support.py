"""How does a test run what could hang or die, and as whom?"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from seedling import Seed, Seedling

PAGE = mmap.PAGESIZE
DELIVERIES = ("inline", "threads")
EVERY_DELIVERY = (*DELIVERIES, "mprotect")
IS_ROOT = os.geteuid() == 0
NOBODY = 65534
# A slow machine can be given more time: every limit is multiplied by this.
PATIENCE = float(os.environ.get("LAZYMEM_TEST_PATIENCE", "1"))

# A child asked by SIGUSR1 writes down where its Python threads stand.
_PROLOGUE = "import faulthandler as _f, signal as _s; _f.register(_s.SIGUSR1, all_threads=True); del _f, _s\n"

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root may do this")


def over_deliveries(deliveries: tuple[str, ...]):
    """A fixture that gives a test each of them: a module names it `delivery`, in place of conftest.py's."""
    return pytest.fixture(params=deliveries, name="delivery")(lambda request: request.param)


def covering(cases: list[list[tuple[str, object]]], together: int = 1) -> set[int]:
    """Which of a product's cases to take for so many values to be there together, each with each; and more, as it comes."""
    values = [{*case} for case in cases]
    missing_of = [{frozenset(some) for some in itertools.combinations(case, together)} for case in cases]
    beside_of = [{frozenset(some) for some in itertools.combinations(case, together + 1)} for case in cases]
    missing, beside = set().union(*missing_of), set().union(*beside_of)
    taken: set[int] = set()

    def worth(i: int) -> tuple[int, ...]:
        often = sum(len(values[i] & values[j]) for j in taken)
        return bool(missing_of[i] & missing), len(beside_of[i] & beside), len(missing_of[i] & missing), -often, -i

    while missing:
        best = max(range(len(cases)), key=worth)
        taken.add(best)
        missing -= missing_of[best]
        beside -= beside_of[best]
    return taken


def stop_of(delivery: str) -> int:
    """How a process ends whose touch cannot go on, as its exit status."""
    return -signal.SIGSEGV if delivery == "mprotect" else -signal.SIGBUS


def _package_root() -> str:
    import lazymem

    return str(Path(lazymem.__file__).resolve().parent.parent)


@functools.cache
def as_nobody() -> tuple[str, ...]:
    """What to put before a command so that an ordinary user runs it; nothing when we are one already. May skip the test."""
    if not IS_ROOT:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed, so root cannot run this as an ordinary user")
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    probe = subprocess.run(
        [*prefix, sys.executable, "-c", "import lazymem"],
        cwd="/",
        env=_environment(None),
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"an ordinary user cannot import lazymem from here: {probe.stderr.strip()[-200:]}")
    return prefix


# Who runs a child: ourselves, and an ordinary user (the same twice when the tests run as one, so once).
USERS = ("root", "nobody") if IS_ROOT else ("nobody",)
each_user = pytest.mark.parametrize("user", USERS)


@functools.cache
def _home() -> str:
    """A HOME that everybody may write to; it is empty and goes at exit."""
    import atexit

    path = tempfile.mkdtemp(prefix="lazymem-home-")
    os.chmod(path, 0o777)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _environment(env: dict[str, str] | None) -> dict[str, str]:
    made = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV_"))}
    made.update(
        HOME=_home(), PYTHONPATH=os.pathsep.join([_package_root(), str(Path(__file__).resolve().parent)]),
        PYTHONDONTWRITEBYTECODE="1", NUMBA_CACHE_DIR=_home(), MPLCONFIGDIR=_home(),
    )  # fmt: skip
    made.update(env or {})
    return made


@functools.cache
def _seed(user: str) -> Seed:
    return Seed(as_nobody() if user == "nobody" else (), _environment(None))


def run_child(
    code_or_args: str | list[str],
    timeout: float = 60,
    user: str | None = None,
    env: dict[str, str] | None = None,
    fresh: bool = False,
) -> tuple[int, str, str]:
    """Run Python code (or a command) in a process group of its own, for so long and no longer.

    Parameters
    ----------
    code_or_args : str or list of str
        Code is dedented; a list is a whole command line.
    timeout : float, s
    user : {None, "root", "nobody"}
        None and "root": whoever runs the tests.
    env : dict
        Added to the environment.
    fresh : bool
        Code gets an interpreter of its own that has imported nothing. Otherwise it is forked from a process that has
        imported numpy and lazymem and done nothing with them, which takes milliseconds, not 300.

    Returns
    -------
    (int, str, str)
        Exit status (negative: the signal that it died by), standard output, standard error. Past the limit the test fails, and
        says where each thread stood.
    """
    # Files, not pipes: a grandchild that holds on to a pipe must not hold us up.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child: Seedling | subprocess.Popen[bytes]
        if isinstance(code_or_args, str) and not fresh:
            seed = _seed("nobody" if user == "nobody" and IS_ROOT else "root")
            child = seed.start(_PROLOGUE + textwrap.dedent(code_or_args), env or {}, out.fileno(), err.fileno())
        else:
            if isinstance(code_or_args, str):
                command = [sys.executable, "-c", _PROLOGUE + textwrap.dedent(code_or_args)]
            else:
                command = list(code_or_args)
            if user == "nobody":
                command = [*as_nobody(), *command]
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd="/",
                env=_environment(env),
                start_new_session=True,
            )
        stood = None
        try:
            child.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            stood = where_it_stands(child.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGUSR1)
            time.sleep(0.5)  # for its tracebacks to be written; it is killed next, whatever it does
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if stood is not None:
        pytest.fail(
            f"no end after {timeout * PATIENCE} s\n{stood}\nstdout: {texts[0][-2000:]}\nstderr: {texts[1][-6000:]}",
            pytrace=False,
        )
    return child.returncode, texts[0], texts[1]


def where_it_stands(pgid: int) -> str:
    """State, wait channel and system call of every thread of a process group."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) != pgid:
                continue
            for task in sorted(process.glob("task/*")):
                words = {}
                for name in ("comm", "stat", "wchan", "syscall"):
                    try:
                        words[name] = (task / name).read_text().strip()
                    except OSError as error:
                        words[name] = f"({error.strerror})"
                state = words["stat"].rpartition(")")[2].split()[:1]
                lines.append(
                    f"  {process.name}/{task.name} {words['comm']}: state {''.join(state)}, wchan {words['wchan']}, "
                    f"syscall {words['syscall']}"
                )
        except (OSError, ValueError):
            continue
    return "\n".join(lines)


def check_child(
    code: str, timeout: float = 60, user: str | None = None, env: dict[str, str] | None = None, fresh: bool = False
) -> str:
    """Run code that must end well; what it printed."""
    status, out, err = run_child(code, timeout, user, env, fresh)
    if status:
        pytest.fail(f"exit status {status}\nstdout: {out[-3000:]}\nstderr: {err[-6000:]}", pytrace=False)
    return out


@functools.cache
def compiler() -> str | None:
    """A C compiler's name, if there is one."""
    return next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler (cc, gcc or clang) here")


def compile_library(code: str, folder: Path, name: str = "made", flags: tuple[str, ...] = ()) -> Path:
    """Compile C to a shared library that lazymem.h is visible to."""
    import lazymem

    source = folder / f"{name}.c"
    library = folder / f"{name}.so"
    source.write_text(textwrap.dedent(code))
    command = [compiler() or "cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{lazymem.get_include()}", *flags]
    made = subprocess.run([*command, "-o", str(library), str(source)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return library


@functools.cache
def has_openmp() -> bool:
    """Can the compiler do -fopenmp, and is its run-time library here?"""
    if compiler() is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "omp.c")
        source.write_text("#include <omp.h>\nint n(void) { return omp_get_max_threads(); }\n")
        return not subprocess.run(
            [compiler() or "cc", "-fopenmp", "-shared", "-fPIC", "-o", f"{folder}/omp.so", str(source)],
            capture_output=True, check=False,
        ).returncode  # fmt: skip


def wait_until(what, seconds: float = 10) -> bool:
    """Poll until `what()` is true; the last answer."""
    end = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.002)
    return bool(what())


def settled(array):
    """An array's stats once every fault is accounted for: a handler thread counts after it has woken the toucher."""
    import lazymem

    wait_until(lambda: _balanced(lazymem.stats(array)))
    stats = lazymem.stats(array)
    assert _balanced(stats), stats
    return stats


def _balanced(stats) -> bool:
    return stats.faults == stats.filled + stats.joins + stats.failed and stats.resident_blocks == stats.blocks - stats.refilled
