"""Do arrays that wait for one another end: chains that are too long, cycles, modules that make arrays as they are imported?

In children: a cycle that is not seen would start processes without end.
"""

import errno
import importlib
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from native_kit import PAGE, in_child
from nested_providers import Over, Reporting, fails, family, text_of
from support import each_user, wait_until

import lazymem as lm

WORDS = PAGE // 8
N = 16
IOTA = np.arange(N * WORDS)


# ---------------------------------------------------------------------------------------------------------------------------
# Chains


def test_chains(delivery):
    """Up to 4 arrays may wait for one another; a fifth is refused where it is touched, and all above it fail, at once."""
    in_child(chains, delivery)


def chains(delivery):
    options = {"delivery": delivery, "block_nbytes": PAGE, "timeout": 30}
    a = lm.from_function(lambda i: i, IOTA.shape, "i8", **options)
    want = IOTA
    for depth in range(1, 7):
        if depth > 1:
            a = lm.from_provider(Over(a), dtype="i8", **options)
            want = 2 * want + 1
        if depth <= 4:
            assert np.array_equal(a[: 2 * WORDS], want[: 2 * WORDS])
            assert max(family().values()) == depth
            continue
        error = fails(lambda a=a: a[0])
        assert "more than 4 arrays" in text_of(error)
        began = time.monotonic()
        fails(lambda a=a: a[0])
        assert time.monotonic() - began < 1  # every process is there by now: each touch is refused without a wait
        assert max(family().values()) == 4
    assert len(family()) <= 4 + 3 + 2 + 1


def test_a_chain_over_files_is_no_longer_than_its_providers(delivery, folder):
    IOTA.tofile(folder / "f")
    in_child(a_chain_over_a_file, delivery, str(folder / "f"))


def a_chain_over_a_file(delivery, path):
    a, want = lm.memmap(path, "i8", delivery=delivery, block_nbytes=PAGE), IOTA
    for _ in range(4):
        a, want = lm.from_provider(Over(a), dtype="i8", delivery=delivery, block_nbytes=PAGE), 2 * want + 1
    assert np.array_equal(a, want)


# ---------------------------------------------------------------------------------------------------------------------------
# Cycles: only a module that a provider's process imports can make one

MODULES = {
    "itself": """
        def f(i):
            return A[(i + 1000) % A.size] + 1
        A = B = lm.from_function(f, {n}, "i8", **options)
        """,
    "each other": """
        def f(i):
            return B[i] + 1
        def g(i):
            return A[i] + 1
        A = lm.from_function(f, {n}, "i8", **options)
        B = lm.from_function(g, {n}, "i8", **options)
        """,
    "each other, in operations on all": """
        class Sum:
            nbytes = {n} * 8
            def __init__(self, other):
                self.other = other
            def read_into(self, buffer, offset):
                np.frombuffer(buffer, "i8")[:] = globals()[self.other].sum()
        A = lm.from_provider(Sum("B"), dtype="i8", **options)
        B = lm.from_provider(Sum("A"), dtype="i8", **options)
        """,
    "each other, on threads of their own": """
        from nested_providers import on_a_thread
        def f(i):
            return on_a_thread(lambda: B[i].copy())
        def g(i):
            return on_a_thread(lambda: A[i].copy())
        A = lm.from_function(f, {n}, "i8", **options)
        B = lm.from_function(g, {n}, "i8", **options)
        """,
    "a ring of three": """
        def f(i):
            return B[i] + 1
        def g(i):
            return C[i] + 1
        def h(i):
            return A[i] + 1
        A = lm.from_function(f, {n}, "i8", **options)
        B = lm.from_function(g, {n}, "i8", **options)
        C = lm.from_function(h, {n}, "i8", **options)
        """,
}


def write_module(folder, name, body, delivery):
    """A module that anybody may import; its name."""
    head = f"""
        import numpy as np, lazymem as lm
        options = dict(delivery={delivery!r}, block_nbytes={PAGE}, timeout=20)
        """
    text = textwrap.dedent(head) + textwrap.dedent(body.replace("{n}", str(N * WORDS)))
    (folder / f"{name}.py").write_text(text)
    return name


@each_user
def test_cycles_are_errors(delivery, user, folder):
    names = [write_module(folder, f"cyclic{i}", body, delivery) for i, body in enumerate(MODULES.values())]
    in_child(cycles, str(folder), names, user=user)


def cycles(folder, names):
    sys.path.insert(0, folder)
    for which, name in zip(MODULES, names, strict=True):
        print("at", which, flush=True)
        a_cycle(importlib.import_module(name), "threads" in which)


def a_cycle(module, on_threads):
    error = fails(lambda: module.A[0])
    assert "waits for it" in text_of(error)
    assert error.errno == errno.EDEADLK
    began = time.monotonic()
    assert fails(lambda: module.A[1]).errno == errno.EDEADLK
    assert time.monotonic() - began < 2
    # Both at once: the provider of each waits for the other. For which of them a provider's own thread works nobody knows, so
    # such a cycle may be seen only by how deep it is.
    errors = []

    def touch(array):
        errors.append(fails(lambda: array[WORDS + 5]).errno)

    threads = [threading.Thread(target=touch, args=(array,)) for array in (module.A, module.B) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(errors) == 4
    assert set(errors) <= {errno.EDEADLK, *([errno.EREMOTEIO] if on_threads else [])}
    assert len(family()) <= 5


# ---------------------------------------------------------------------------------------------------------------------------
# A module that makes its arrays as it is imported, by its own provider's process too


def test_a_module_imported_by_its_own_provider_does_not_breed(delivery, folder):
    body = """
        import os
        def f(i):
            return i * 2
        def g(i):
            return A[i] + 1
        A = lm.from_function(f, {n}, "i8", **options)
        B = lm.from_function(g, {n}, "i8", **options)
        C = [lm.from_function(f, {n} + k, "i8", **options) for k in range(20)]
        """
    write_module(folder, "made_at_import", body, delivery)
    in_child(a_module_that_makes_arrays, str(folder))


def a_module_that_makes_arrays(folder):
    sys.path.insert(0, folder)
    module = importlib.import_module("made_at_import")
    assert len(family()) == 1
    assert np.array_equal(module.A, 2 * IOTA)
    assert list(family().values()) == [1]  # it has made 22 arrays itself, and started nothing for them
    assert np.array_equal(module.B, 2 * IOTA + 1)
    assert sorted(family().values()) == [1, 2]
    for k, a in enumerate(module.C):
        assert a[-1] == 2 * (a.size - 1) == 2 * (IOTA.size + k - 1)
    time.sleep(0.3)
    assert sorted(family().values()) == [1, 2]


@pytest.mark.parametrize("kept", [False, True])
def test_a_module_that_touches_as_it_is_imported(delivery, kept, folder):
    """Its provider's process touches the array that it is imported for: an error, unless the module can do without."""
    body = """
        def f(i):
            return i * 2
        A = lm.from_function(f, {n}, "i8", **options)
        FIRST = A[7]
        """
    if kept:
        body = body.replace(
            "FIRST = A[7]", "try:\n            FIRST = A[7]\n        except lm.PageError as e:\n            FIRST = -1"
        )
    write_module(folder, "touched_at_import", body, delivery)
    in_child(a_module_that_touches, str(folder), kept)


def a_module_that_touches(folder, kept):
    sys.path.insert(0, folder)
    if kept:
        module = importlib.import_module("touched_at_import")
        assert module.FIRST == 14
        assert np.array_equal(module.A, 2 * IOTA)
    else:
        for _ in range(2):
            error = fails(lambda: importlib.import_module("touched_at_import"))
            assert error.errno == errno.EDEADLK
            assert "waits for it" in text_of(error)
            assert "touched_at_import.py" in text_of(error)
    assert list(family().values()) == [1]


def test_constructing_inside_starts_nothing(delivery, folder):
    in_child(constructing_inside_starts_nothing, delivery, str(folder / "log"))


def constructing_inside_starts_nothing(delivery, log):
    options = {"delivery": delivery, "block_nbytes": PAGE}

    class Making(Reporting):
        def open(self):
            self.more = [lm.from_function(lambda i, k=k: i + k, 100, "i8", **options) for k in range(10)]
            super().open()

    inner = lm.from_function(lambda i: i, IOTA.shape, "i8", **options)
    a = lm.from_provider(Making(inner, log), dtype="i8", **options)
    assert a[0] == 1
    assert np.array_equal(a, 2 * IOTA + 1)
    lines = [line.split() for line in Path(log).read_text().splitlines()]
    (process,) = {pid for _, pid, _ in lines}
    assert [(name, n) for name, _, n in lines][:3] == [("open", "0"), ("before", "0"), ("after", "1")]
    assert {n for _, _, n in lines[3:]} == {"1"}
    assert sorted(family().values()) == [1, 2]
    assert family()[int(process)] == 1


def test_below_a_process_that_goes(delivery, folder):
    """With a process go those that it has started; and with their user all of them."""
    in_child(with_a_process_go_those_below, delivery, str(folder / "log"))


def with_a_process_go_those_below(delivery, log):
    options = {"delivery": delivery, "block_nbytes": PAGE}
    inner = lm.from_function(lambda i: i, IOTA.shape, "i8", **options)
    a = lm.from_provider(Reporting(inner, log), dtype="i8", **options)
    assert a[0] == 1
    first = family()
    assert sorted(first.values()) == [1, 2]
    os.kill(min(first, key=first.get), signal.SIGKILL)
    assert np.array_equal(a, 2 * IOTA + 1)
    assert wait_until(lambda: not set(first) & set(family()) and all(not alive(pid) for pid in first))
    assert sorted(family().values()) == [1, 2]
    ours = family()
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    assert set(family()) == set(ours)
    del a, inner


def alive(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
