"""What becomes of a program in which the i-th system call of lazymem's core fails?

tests/native/inject.c makes it fail; here are the programs (scripts of everything that a user does with an array), the
failures (which call, which errno, which i), and the judge. A sweep forks a process for each case from one that has its
imports done. As a command: the whole sweep, a row of JSON for each delivery and source:

    python tests/injection_kit.py [--delivery D] [--source S] [--out FILE]
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import ctypes
import errno
import faulthandler
import functools
import gc
import importlib
import json
import mmap
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from typing import Any

import numpy as np
from native_kit import MADV_DONTNEED, address_of, counted, libc, library, pest
from support import PATIENCE, where_it_stands

import lazymem as lm
from lazymem.bench.facts import facts

PAGE = mmap.PAGESIZE
BLOCK = 4 * PAGE
E = BLOCK // 8          # elements of a block
BLOCKS = 22
N = BLOCKS * E + 1000   # the last page is not full
DELIVERIES = ("inline", "threads", "mprotect")
SOURCES = ("file", "memory", "function", "provider")
DEADLINE = 20 * PATIENCE
SHORT, ON = -1, True
# The same of pages that a MOVE has moved, and says otherwise: see inject.c.
MOVED, MOVED_FIRST, MOVED_MORE, HALF = -2, -3, -4, -5
NAMES = {SHORT: "SHORT", MOVED: "MOVED", MOVED_FIRST: "MOVED_FIRST", MOVED_MORE: "MOVED_MORE", HALF: "HALF"}

# Which errnos each call is made to fail with, SHORT: less than was asked for is done; and whether its failures may last (ON):
# from the i-th call on, all fail.
FAILURES: dict[str, tuple[tuple[int, ...], bool]] = {
    "mmap": ((errno.ENOMEM, errno.EAGAIN), ON),
    "munmap": ((errno.ENOMEM,), ON),
    "mprotect": ((errno.ENOMEM, errno.EACCES), ON),
    "madvise": ((errno.ENOMEM, errno.EAGAIN, errno.EINVAL), ON),
    "mincore": ((errno.EAGAIN,), False),
    "userfaultfd": ((errno.EPERM, errno.ENOSYS, errno.EMFILE, errno.ENOMEM), ON),
    "open_device": ((errno.EACCES, errno.EMFILE), ON),
    "NEW": ((errno.EPERM, errno.ENOMEM), ON),
    "API": ((errno.EINVAL, errno.EPERM), ON),
    "REGISTER": ((errno.ENOMEM, errno.EINVAL, errno.EBUSY), ON),
    "WAKE": ((errno.EAGAIN, errno.EINVAL), False),
    "COPY": ((SHORT, errno.ENOMEM, errno.EAGAIN, errno.EEXIST, errno.ENOENT, errno.EFAULT, errno.EINTR, errno.ESRCH), ON),
    "ZEROPAGE": ((SHORT, errno.ENOMEM, errno.EAGAIN, errno.EEXIST), ON),
    "POISON": ((errno.EAGAIN, errno.ENOMEM), False),
    "MOVE": ((errno.EBUSY, errno.ENOMEM, errno.EAGAIN, SHORT, MOVED, MOVED_FIRST, MOVED_MORE, HALF), ON),
    "WRITEPROTECT": ((errno.EAGAIN, errno.ENOMEM), False),
    "SCAN": ((errno.ENOMEM, errno.EINTR), ON),
    "open_pagemap": ((errno.EACCES, errno.EMFILE), ON),
    "read_message": ((errno.EINTR, errno.EAGAIN), False),
    "pread": ((SHORT, errno.EIO, errno.EINTR, errno.EAGAIN, errno.ENOMEM), ON),
    "preadv2": ((SHORT, errno.EAGAIN, errno.EOPNOTSUPP, errno.EINTR, errno.EIO), ON),
    "pwrite": ((SHORT, errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, errno.EFAULT), ON),
    "fsync": ((errno.EIO, errno.EINTR), ON),
    "fallocate": ((errno.EOPNOTSUPP,), ON),
    "lseek": ((errno.EINVAL,), ON),
    "fstat": ((errno.EIO,), ON),
    "process_vm_readv": ((errno.EPERM, errno.ENOMEM), ON),
    "process_vm_writev": ((errno.EPERM, errno.ENOMEM), ON),
    "futex_wait": ((errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT), False),
    "futex_wake": ((errno.EFAULT,), False),
    "posix_spawn": ((errno.EAGAIN, errno.ENOMEM, errno.ENOENT), ON),
    "memfd_create": ((errno.EMFILE, errno.ENOMEM, errno.EINVAL), ON),
    "ftruncate": ((errno.ENOSPC, errno.EINTR), ON),
    "pidfd_open": ((errno.EMFILE, errno.ENOSYS), ON),
    "pthread_create": ((errno.EAGAIN, errno.EPERM), ON),
    "fcntl": ((errno.EMFILE,), ON),
    "sigaction": ((errno.EINVAL,), ON),
}


class Wrong(Exception):
    """Bytes that are not the source's, or no error where there was one."""


# ---------------------------------------------------------------------------------------------------------------------------
# The injector


class State(ctypes.Structure):
    """`struct injection` of inject.c."""

    _fields_ = [
        ("counts", ctypes.c_uint64 * len(FAILURES)), ("nth", ctypes.c_uint64), ("struck", ctypes.c_uint64),
        ("from_", ctypes.c_uint64), ("kind", ctypes.c_int32), ("error", ctypes.c_int32), ("on", ctypes.c_uint32),
    ]  # fmt: skip


class Injector:
    """The core's calls in this process and those forked from it."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(str(library("inject.c")))
        self._lib.inject_state.restype = ctypes.POINTER(State)
        self._lib.inject_kinds.restype = ctypes.POINTER(ctypes.c_char)
        self._lib.inject_arm.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int]
        text = ctypes.string_at(self._lib.inject_kinds(), 4096).split(b"\0\0")[0]
        self.kinds = text.decode().split("\0")
        assert self.kinds == list(FAILURES), self.kinds
        self.install()
        self.state = self._lib.inject_state().contents

    def install(self) -> None:
        """Every module of the core that is loaded now."""
        assert self._lib.inject_install(b"/lazymem/core/") > 50, "the core's modules were not found"

    def arm(self, kind: str, error: int, nth: int, on: bool) -> None:
        self._lib.inject_arm(self.kinds.index(kind), error, nth, on)

    def count_only(self) -> None:
        self._lib.inject_arm(-1, 0, 0, 0)

    def disarm(self) -> None:
        self._lib.inject_disarm()

    def counts(self) -> dict[str, int]:
        return {kind: int(self.state.counts[i]) for i, kind in enumerate(self.kinds)}

    def where(self) -> str:
        out = ctypes.create_string_buffer(200)
        self._lib.inject_where(out, len(out))
        return out.value.decode()


# ---------------------------------------------------------------------------------------------------------------------------
# The scripts: what a user does with an array


def fill(dead: str, out: Any, start: int) -> None:
    """A provider's function: it fails while there is a file of that name."""
    if os.path.exists(dead):
        raise OSError(errno.EIO, "dead")
    out[:] = np.arange(start, start + len(out))


class Script:
    """One run of a script: each step is right or an error, else the run ends."""

    def __init__(self, delivery: str, source: str, path: str) -> None:
        self.delivery, self.source, self.path = delivery, source, path
        self.dead_path = path + ".dead"
        self.said: list[list[str]] = []
        self.kit: Any = None
        self.changed: tuple[Any, Any, Any] | None = None   # array, what is right, where that is known

    def make(self, mode: str = "c") -> Any:
        options: dict[str, Any] = {"delivery": self.delivery, "block_nbytes": BLOCK, "timeout": 3, "threads": 2}
        options.update(mode=mode, dtype="i8")
        if self.source == "file":
            return lm.memmap(self.path, **options)
        if self.source == "memory":
            return lm.from_provider(np.arange(N), **options)
        if self.source == "function":
            a, self.kit = counted(N * 8, retries=0, **options)
            return a
        return lm.from_fill(functools.partial(fill, self.dead_path), N, retries=0, **options)

    def step(self, name: str, run: Any, must_fail: bool = False) -> Any:
        """Run a step; nothing if it raised what a user can expect."""
        try:
            got = run()
            for _ in range(1000):  # an asynchronous exception comes now, if there is one
                pass
        except (OSError, MemoryError, lm.TouchError) as error:
            self.said.append([name, f"{type(error).__name__}: {error}"[:300]])
            return None
        except ValueError as error:
            if "is closed" not in str(error) and "was not inherited" not in str(error):
                raise
            self.said.append([name, f"ValueError: {error}"[:300]])
            return None
        if must_fail:
            raise Wrong(f"{name}: no error")
        return got

    def same(self, name: str, read: Any, expected: Any) -> None:
        def compare():
            got = read()
            equal = bool(np.array_equal(got, expected))  # touches, where what was read is a lazy view
            return equal, [] if equal else np.flatnonzero(np.asarray(got) != expected)

        equal, at = self.step(name, compare) or (True, [])
        if not equal:
            raise Wrong(f"{name}: {len(at)} elements are wrong, the first {at[:1]}")

    def forked(self, name: str, a: Any, expected: Any) -> None:
        """A child reads everything, by operations and by a plain array."""
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                signal.alarm(int(DEADLINE))
                self.said = []
                self.same("operation", lambda: a[3 * E : 9 * E], expected[3 * E : 9 * E])
                self.same("plain", lambda: np.asarray(a).copy(), expected)
                self.same("operation", lambda: a + 0, expected)
                code = 1 if self.said else 0
            except Wrong as wrong:
                print(f"forked child: {wrong}", file=sys.stderr, flush=True)
                code = 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 2:
            raise Wrong(f"{name}: in the forked child")
        if code == -signal.SIGALRM:
            raise TimeoutError(f"{name}: the forked child hangs")
        if code == 3:
            raise RuntimeError(f"{name}: the forked child raised what no user expects")
        if code:
            self.said.append([name, f"child {code}"])

    def live(self) -> None:
        """A source that answers: every way to touch it."""
        a = self.step("make", self.make)
        if a is None:
            a = self.step("make again", self.make)
        if a is None:
            return
        expected = np.arange(N)
        self.same("item", lambda: a[5], 5)
        self.same("plain", lambda: np.asarray(a)[E : 2 * E].copy(), expected[E : 2 * E])

        def guarded():
            with lm.guard():
                return np.asarray(a)[2 * E : 3 * E].copy()

        self.same("guard", guarded, expected[2 * E : 3 * E])

        def populated():
            lm.populate(a[3 * E : 10 * E])
            return a[3 * E : 10 * E]

        self.same("populate", populated, expected[3 * E : 10 * E])

        def stored():
            a[7] = -7
            expected[7] = -7
            return a[:9]

        self.same("store", stored, np.array([0, 1, 2, 3, 4, 5, 6, -7, 8]))

        def dropped():
            libc().madvise(address_of(a) + 4 * BLOCK, BLOCK, MADV_DONTNEED)
            return np.asarray(a)[4 * E : 5 * E].copy()

        self.same("dropped", dropped, expected[4 * E : 5 * E])
        self.step("prefetch", lambda: lm.prefetch(a[10 * E : 12 * E]))
        self.forked("fork", a, expected)
        self.same("last", lambda: a[-1000:], expected[-1000:])

        def in_thread():
            got: list[Any] = []

            def read():
                try:
                    got.append(np.asarray(a)[13 * E : 15 * E].copy())
                    for _ in range(200):
                        time.sleep(0.0005)
                        if len(got) == 1 and not lm.stats(a).errors:
                            break
                except (lm.TouchError, lm.PageError) as error:
                    got.append(error)

            thread = threading.Thread(target=read)
            thread.start()
            thread.join()
            if isinstance(got[-1], BaseException):
                raise got[-1]
            return got[0]

        self.same("thread", in_thread, expected[13 * E : 15 * E])

        # C threads, which nobody can tell but by a stop; losers of a claim wait.
        self.same("C threads", lambda: pest().touch_together(address_of(a), 3, 17, BLOCK), 0)
        self.same("all", lambda: a + 0, expected)
        b = self.step("second", lambda: self.make("r"))
        if b is not None:
            self.same("second", lambda: b[E : 3 * E], np.arange(E, 3 * E))
            self.step("close second", lambda: lm.close(b))
        self.step("close", lambda: lm.close(a))

    def dead(self) -> None:
        """A source that fails at first: stand-ins come and go, and nothing that was read there counts."""
        a = self.step("make", self.make)
        if a is None:
            return
        expected = np.arange(N)
        self.die(True)
        self.step("item", lambda: a[5], must_fail=True)

        def guarded():
            with lm.guard():
                return np.asarray(a)[2 * E : 4 * E].copy()

        self.step("guard", guarded, must_fail=True)
        self.step("plain", lambda: np.asarray(a)[4 * E : 6 * E].copy(), must_fail=True)
        self.step("sum", lambda: a[6 * E : 10 * E].sum(), must_fail=True)
        self.step("populate", lambda: lm.populate(a[10 * E : 14 * E]), must_fail=True)
        self.step("plain again", lambda: np.asarray(a)[5 * E : 6 * E].copy(), must_fail=True)
        self.die(False)
        self.same("item", lambda: a[5], 5)
        self.same("guard", guarded, expected[2 * E : 4 * E])
        self.same("plain", lambda: np.asarray(a)[4 * E : 6 * E].copy(), expected[4 * E : 6 * E])
        self.forked("fork", a, expected)
        self.same("all", lambda: a + 0, expected)
        self.step("close", lambda: lm.close(a))

    def written(self) -> None:
        """One that writes back: whatever fails, memory has what was written, and so has the source when a flush is silent."""
        a = self.step("make", self.make_written)
        if a is None:
            a = self.step("make again", self.make_written)
        if a is None:
            return
        expected = np.arange(N)
        known = np.ones(N, bool)
        self.changed = (a, expected, known)

        def stored(start: int, stop: int, value: int) -> bool:
            a[start:stop] = value
            return True

        def flushed(start: int, stop: int) -> bool:
            lm.flush(a[start:stop])
            return True

        for k in range(4):
            start, stop = 5 * k * E + 7 * k, 5 * k * E + 2 * E
            if self.step("store", lambda s=start, e=stop, v=-k - 1: stored(s, e, v)):
                expected[start:stop] = -k - 1
            else:  # some of it may have been
                known[start:stop] = False
            is_flushed = self.step("flush", lambda s=start, e=stop: flushed(s, e)) and known[start:stop].all()
            if is_flushed and not np.array_equal(self.source_now()[start:stop], expected[start:stop]):
                raise Wrong(f"flush {k}: it said nothing, and the source does not have it")
            self.same("memory", lambda: a[known], expected[known])

    def make_written(self) -> Any:
        options: dict[str, Any] = {"delivery": self.delivery, "block_nbytes": BLOCK, "timeout": 3, "threads": 2}
        options["dtype"] = "i8"
        if self.source == "memory":
            self.memory = np.arange(N)
            return lm.from_provider(self.memory, mode="r+", **options)
        self.copy = f"{self.path}.{os.getpid()}"
        shutil.copyfile(self.path, self.copy)
        return lm.memmap(self.copy, mode="r+", **options)

    def source_now(self) -> Any:
        return self.memory if self.source == "memory" else np.fromfile(self.copy, "i8")

    def flush_afterwards(self) -> None:
        """What could not be flushed while calls failed is not lost."""
        if self.changed is None:
            return
        a, expected, known = self.changed
        lm.flush(a)
        now = self.source_now()
        if not np.array_equal(now[known], expected[known]) or not np.array_equal(now, np.asarray(a)):
            raise Wrong("afterwards: what was written is not in the source")
        a[0] = 5
        lm.close(a)
        if self.source_now()[0] != 5:
            raise Wrong("afterwards: close has not flushed")

    def die(self, dead: bool) -> None:
        if self.kit is not None:
            self.kit.error = -errno.EIO if dead else 0
        elif dead:
            open(self.dead_path, "w").close()
        else:
            os.unlink(self.dead_path)

    def afterwards(self) -> None:
        """Nothing fails any more: everything works, so nothing was left locked."""
        self.said = []
        self.flush_afterwards()
        expected = np.arange(N)
        b = self.make()
        if not np.array_equal(b[: 4 * E], expected[: 4 * E]):
            raise Wrong("afterwards: an operation")
        with lm.guard():
            if not np.array_equal(np.asarray(b)[4 * E : 6 * E], expected[4 * E : 6 * E]):
                raise Wrong("afterwards: a guard")
        lm.populate(b)
        if not np.array_equal(np.asarray(b), expected):
            raise Wrong("afterwards: populate")
        self.forked("fork afterwards", b, expected)
        lm.close(b)
        if self.said:
            raise Wrong(f"afterwards: {self.said}")


# ---------------------------------------------------------------------------------------------------------------------------
# A case, in a process of its own, and the judge

Case = collections.namedtuple("Case", "script kind error nth on")


def name_of(error: int) -> str:
    return NAMES.get(error) or errno.errorcode.get(error, "none")


def describe(case: Case) -> str:
    return f"{case.script}: {case.kind} {name_of(case.error)} at {case.nth}{' and on' if case.on else ''}"


class Sweep:
    """Cases of one delivery and source."""

    def __init__(self, delivery: str, source: str) -> None:
        self.delivery, self.source = delivery, source
        self.injector = Injector()
        self.folder = tempfile.mkdtemp(prefix="lazymem-injection-")
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.path = os.path.join(self.folder, "raw")
        np.arange(N).tofile(self.path)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.per_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.places: dict[str, set[str]] = collections.defaultdict(set)
        self.bad: list[str] = []
        pest(), libc()
        # What a first array imports is imported here, once for all cases.
        for name in self._run(Case("live", "", 0, 0, False))["imported"]:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        self.injector.install()

    def counts(self, script: str) -> dict[str, int]:
        """How many calls of each kind a script makes when none fails."""
        return self._run(Case(script, "", 0, 0, False))["counts"]

    def case(self, case: Case) -> str:
        """Run one and judge it."""
        answer = self._run(case)
        outcome = answer["outcome"]
        self.outcomes[outcome] += 1
        self.per_kind[case.kind][outcome] += 1
        if answer.get("where"):
            self.places[case.kind].add(answer["where"])
        if outcome.startswith("BAD"):
            where = f"{self.delivery} {self.source} {describe(case)} (in {answer.get('where')})"
            self.bad.append(f"{where}: {outcome}\n{answer['text'][-2500:]}")
        return str(outcome)

    def _run(self, case: Case) -> dict[str, Any]:
        readable, writable = os.pipe()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path + ".dead")
        if case.kind:
            self.injector.arm(case.kind, case.error, case.nth, case.on)
        else:
            self.injector.count_only()
        with tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                os.setsid()
                os.close(readable)
                os.dup2(err.fileno(), 2)
                self._in_child(case, writable)
            os.close(writable)
            ended = os.pidfd_open(pid)
            hangs = not select.select([ended], [], [], DEADLINE)[0]
            os.close(ended)
            if hangs:
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.3)
                stood = where_it_stands(pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with open(readable, "rb") as pipe:
                said = pipe.read()
            err.seek(0)
            text = err.read().decode(errors="replace")
        answer: dict[str, Any] = json.loads(said) if said else {}
        answer["text"] = f"{answer.get('said', '')}\n{text}"
        struck = int(self.injector.state.struck)
        answer["where"] = self.injector.where() if struck else ""
        if hangs:
            answer["text"] += stood
            outcome = "BAD: hangs"
        elif code < 0 and "lazymem:" in text:
            outcome = "loud stop"
        elif code < 0:
            outcome = f"BAD: died by {signal.Signals(-code).name} without a word"
        elif code or not answer.get("outcome"):
            outcome = f"BAD: {answer.get('wrong', 'ended')} (status {code})"
        elif any(" -" in said and "child -" in said for _, said in answer["said"]) and "lazymem:" not in text:
            outcome = "BAD: the forked child died without a word"
        elif not struck:
            outcome = "not reached"
        else:
            outcome = answer["outcome"]
        answer["outcome"] = outcome
        return answer

    def _in_child(self, case: Case, writable: int) -> None:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        code, before = 1, set(sys.modules)
        answer: dict[str, Any] = {}
        script = Script(self.delivery, self.source, self.path)
        try:
            getattr(script, case.script)()
            answer["counts"] = self.injector.counts()
            answer["imported"] = sorted(sys.modules.keys() - before)
            answer["said"] = script.said
            answer["outcome"] = "error" if script.said else "right"
            self.injector.disarm()
            script.afterwards()
            gc.collect()
            code = 0
        except (Wrong, TimeoutError) as wrong:
            answer["wrong"] = f"{type(wrong).__name__}: {wrong}"
        except BaseException:
            answer["wrong"] = "raised what no user expects"
            traceback.print_exc()
        finally:
            os.write(writable, json.dumps(answer).encode())
            os._exit(code)

    def all_cases(self, script: str) -> list[Case]:
        cases = []
        for kind, n in self.counts(script).items():
            errors, on = FAILURES[kind]
            for nth in range(1, n + 1):
                cases += [Case(script, kind, error, nth, False) for error in errors]
                if on:
                    cases += [Case(script, kind, error, nth, True) for error in errors if error > 0][:1]
        return cases

    def scripts(self) -> tuple[str, ...]:
        return ("live", "dead") if self.source in ("function", "provider") else ("live", "written")

    def row(self) -> dict[str, Any]:
        return {
            "delivery": self.delivery, "source": self.source, "cases": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes), "kinds": {k: dict(v) for k, v in self.per_kind.items()},
            "places": sum(len(p) for p in self.places.values()),
        }  # fmt: skip


# What providers add to the calls of other sources; their cases take ten times as long.
OF_PROVIDERS = (
    "mmap", "mprotect", "futex_wait", "futex_wake", "posix_spawn", "memfd_create", "ftruncate", "pidfd_open", "pthread_create",
)  # fmt: skip


def sample(delivery: str, source: str, seed: int) -> None:
    """The first call of every kind, and some other cases. Raises when one is bad."""
    some = Sweep(delivery, source)
    chance = random.Random(seed)
    for script in some.scripts()[:1] if source == "provider" else some.scripts():
        cases = some.all_cases(script)
        chance.shuffle(cases)
        first = {c.kind: c for c in cases if c.nth == 1}
        if source == "provider":
            first = {kind: first[kind] for kind in OF_PROVIDERS}
        for case in [*first.values(), *cases[: 2 if source == "provider" else 10]]:
            some.case(case)
    print(json.dumps(some.row()))
    assert not some.bad, f"seed {seed}\n" + "\n".join(some.bad[:5])
    assert some.outcomes["right"], some.outcomes
    assert some.outcomes["error"], some.outcomes


def sweep(delivery: str, source: str) -> None:
    """Every case. Raises when one is bad."""
    all_of_it = Sweep(delivery, source)
    for script in all_of_it.scripts():
        for case in all_of_it.all_cases(script):
            all_of_it.case(case)
    print(json.dumps(all_of_it.row()))
    assert not all_of_it.bad, "\n".join(all_of_it.bad[:20])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delivery", choices=DELIVERIES)
    parser.add_argument("--source", choices=SOURCES)
    parser.add_argument("--kind", choices=list(FAILURES))
    parser.add_argument("--script")
    parser.add_argument("--every", type=int, default=1, help="one case in so many")
    parser.add_argument("--out")
    given = parser.parse_args()
    bad = 0
    for source in [given.source] if given.source else SOURCES:
        for delivery in [given.delivery] if given.delivery else DELIVERIES:
            began, told = time.monotonic(), 0
            made = Sweep(delivery, source)
            for script in [given.script] if given.script else made.scripts():
                for case in made.all_cases(script)[:: given.every]:
                    if given.kind in (None, case.kind):
                        made.case(case)
                        for text in made.bad[told:]:
                            print("BAD", text, file=sys.stderr, flush=True)
                        told = len(made.bad)
            words = [f"--delivery {delivery} --source {source}", *([f"--every {given.every}"] if given.every > 1 else [])]
            row = {"bench": "injection", "case": f"{delivery}-{source}", "value": len(made.bad), "unit": "bad", "limit": 0}
            row.update(made.row(), ok=not made.bad, seconds=round(time.monotonic() - began, 1))
            row.update(facts(" ".join(["python tests/injection_kit.py", *words]), pinned=False))
            print(json.dumps(row), flush=True)
            bad += len(made.bad)
            if given.out:
                with open(given.out, "a") as out:
                    out.write(json.dumps(row) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    from native_kit import make_folder

    make_folder()
    main()
