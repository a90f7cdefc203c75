"""Are arrays that write what numpy.memmap is, however they are opened, and does nothing that was written get lost?"""

import contextlib
import errno
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from native_kit import PAGE, in_child, library
from support import EVERY_DELIVERY, each_user, needs_compiler, over_deliveries, run_child, wait_until

import lazymem as lm
from lazymem.testing import RangeServer

delivery = over_deliveries(EVERY_DELIVERY)
SIZE = 40 * PAGE + 8
MIXED = np.dtype([("a", "<i4"), ("b", ">f8"), ("c", "S5")])


@pytest.fixture
def raw(folder):
    path = folder / "raw"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def change(a, seed):
    """Write to it here and there, the same for the same seed."""
    dice = random.Random(seed)
    flat = a.reshape(-1, order="A")
    assert np.shares_memory(flat, a) or not a.size
    for _ in range(9 if a.size else 0):
        at = dice.randrange(a.size)
        flat[at : at + dice.randrange(1, 5000)] = np.frombuffer(dice.randbytes(a.itemsize), a.dtype)[0]


# ---------------------------------------------------------------------------------------------------------------------------
# As numpy.memmap

GIVEN = [
    {"mode": "r+"}, {"mode": "readwrite", "dtype": "f8"},
    {"mode": "r+", "dtype": ">i2", "offset": 8, "shape": (5, 7), "order": "F"},
    {"mode": "r+", "dtype": MIXED, "shape": (20, -1, 3), "offset": PAGE + 1, "minus": True},
    {"mode": "r+", "shape": SIZE + 12345}, {"mode": "r+", "dtype": "i8", "offset": SIZE + 8, "shape": (3, 4)},
    {"mode": "w+", "dtype": "i8", "shape": (100, 100)}, {"mode": "write", "shape": 3, "offset": 5 * PAGE},
    {"mode": "w+", "dtype": MIXED, "shape": (50, 30), "order": "F", "offset": 3}, {"mode": "w+", "dtype": "f4", "shape": ()},
    {"mode": "c"}, {"mode": "r"},
]  # fmt: skip


@pytest.mark.parametrize("new", [False, True], ids=["", "new"])
@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_it_is_as_numpys(raw, given, new):
    ours, theirs = raw.with_name("ours"), raw.with_name("theirs")
    given = dict(given)
    if given.pop("minus", False):  # numpy knows no -1
        theirs_shape = (20, (SIZE - given["offset"]) // MIXED.itemsize // 60, 3)
        raw.write_bytes(raw.read_bytes()[: given["offset"] + np.prod(theirs_shape) * MIXED.itemsize])
    else:
        theirs_shape = given.get("shape")
    if not new:
        for path in (ours, theirs):
            path.write_bytes(raw.read_bytes())
    elif not given["mode"].startswith("w"):
        with pytest.raises(FileNotFoundError):
            lm.memmap(ours, **given)
        return
    b = np.memmap(theirs, **{**given, **({"shape": theirs_shape} if theirs_shape is not None else {})})
    a = lm.memmap(ours, **given)
    assert (a.shape, a.dtype, a.strides, a.mode, a.offset) == (b.shape, b.dtype, b.strides, b.mode, b.offset)
    assert a.flags.writeable == b.flags.writeable
    assert os.fspath(a.filename) == os.fspath(ours)
    assert a.tobytes() == b.tobytes()
    if a.flags.writeable:
        change(a, 3)
        change(b, 3)
        assert a.tobytes() == b.tobytes()
    a.flush()
    b.flush()
    assert ours.read_bytes() == theirs.read_bytes()
    lm.close(a)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("how", ["r+b", "w+b", "a+b"])
@pytest.mark.parametrize("mode", ["r+", "w+"])
@pytest.mark.parametrize("buffering", [0, -1])
def test_open_files_are_written_to_as_numpy_does(raw, how, mode, buffering):
    """An open file is not emptied, wherever its position is; what the program wrote to it before is in the array."""
    files = []
    for name in ("ours", "theirs"):
        raw.with_name(name).write_bytes(raw.read_bytes())
        files.append(open(raw.with_name(name), how, buffering))  # noqa: SIM115
        files[-1].write(b"before")
    shape = (3, PAGE) if how == "a+b" else (3, 5 * PAGE)  # numpy cannot lengthen what is open for appending
    a = lm.memmap(files[0], "i4", mode, shape=shape)
    b = np.memmap(files[1], "i4", mode, shape=shape)
    assert a.tobytes() == b.tobytes()
    for x in (a, b):
        change(x, 5)
        x.flush()
    assert raw.with_name("ours").read_bytes() == raw.with_name("theirs").read_bytes()
    for file in files:
        file.close()
    lm.close(a)


def test_every_delivery_writes(raw, delivery):
    expected = np.fromfile(raw, "u1")
    with lm.memmap(raw, mode="r+", delivery=delivery, block_nbytes=4 * PAGE) as a:
        for seed in range(5):
            change(a, seed)
            change(expected, seed)
            a.flush()
            assert np.array_equal(np.fromfile(raw, "u1"), expected)
        change(a, 9)
        change(expected, 9)
        np.add(a[::7], 1, out=a[::7])
        expected[::7] += 1
        assert np.array_equal(a, expected)
    assert np.array_equal(np.fromfile(raw, "u1"), expected)


# ---------------------------------------------------------------------------------------------------------------------------
# .npy files

MANY_FIELDS = np.dtype([(f"a_field_with_a_long_name_{i}", "u1") for i in range(3000)])  # a header of format 2.0


@pytest.mark.filterwarnings("ignore:Stored array in format 2.0")
@pytest.mark.parametrize("existing", [False, True], ids=["", "existing"])
@pytest.mark.parametrize(
    ("dtype", "shape", "order"),
    [("f4", (30, 50), "C"), (">i8", (30, 500), "F"), (MIXED, 7, "C"), ("?", (), "C"), ("f8", (0, 3), "F"),
     (MANY_FIELDS, 3, "C")],
    ids=["f4", "i8", "mixed", "scalar", "empty", "fields"],
)
def test_a_new_npy_file_is_numpys(folder, dtype, shape, order, existing):
    ours, theirs = folder / "ours.npy", folder / "theirs.npy"
    if existing:
        ours.write_bytes(b"x" * 10**6)
    b = np.lib.format.open_memmap(theirs, "w+", dtype, np.empty(shape, "?").shape, order == "F")
    a = lm.open(ours, "w+", dtype=dtype, shape=shape, order=order)
    assert (a.shape, a.dtype, a.strides, a.mode) == (b.shape, b.dtype, b.strides, b.mode)
    change(a, 1)
    change(b, 1)
    lm.close(a)
    b.flush()
    nbytes = b.offset + b.nbytes  # numpy makes a file of no elements a byte longer
    assert ours.read_bytes() == theirs.read_bytes()[:nbytes]
    again = np.load(ours, max_header_size=1 << 20)
    assert again.tobytes("A") == np.asarray(b).tobytes("A")
    with lm.open(ours, "r+") as c:
        change(c, 2)
        again = np.array(c)
    assert np.array_equal(np.load(ours, max_header_size=1 << 20), again)


def test_a_new_file_of_another_name_is_raw(folder):
    with lm.open(folder / "new.bin", "w+", dtype="i4", shape=10) as a:
        a[:] = 7
        assert a.mode == "w+"
    assert np.array_equal(np.fromfile(folder / "new.bin", "i4"), np.full(10, 7))


def test_a_new_file_takes_no_space_until_it_is_written_to(folder):
    with lm.open(folder / "new.npy", "w+", dtype="f8", shape=10**10) as a:
        a[10**9] = 1
    assert os.stat(folder / "new.npy").st_size > 8 * 10**10
    assert os.stat(folder / "new.npy").st_blocks * 512 < 1 << 20
    assert float(lm.open(folder / "new.npy")[10**9]) == 1


def _interrupted_making():
    """Each step of making a file fails: what is left is no array that anybody could take for one."""
    import tempfile

    path = Path(tempfile.mkdtemp(), "new.npy")
    real = os.pwrite, os.ftruncate

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    def half(fd, text, offset):
        if offset:
            full()
        return real[0](fd, text[: len(text) // 2], offset)

    for pwrite, ftruncate in ((full, real[1]), (half, real[1]), (real[0], full)):
        path.write_bytes(b"x" * 1000)
        os.pwrite, os.ftruncate = pwrite, ftruncate
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="full"):
            lm.open(path, "w+", dtype="f8", shape=100)
        assert len(os.listdir("/proc/self/fd")) == before
        os.pwrite, os.ftruncate = real
        for read in (lm.open, np.load):
            with pytest.raises((ValueError, EOFError)):
                read(path)


def test_a_file_half_made_is_no_array():
    in_child(_interrupted_making)


# ---------------------------------------------------------------------------------------------------------------------------
# What is refused, and that it has changed nothing

REFUSED = [
    (lambda p: lm.open(p, "w+", shape=3), ValueError, "dtype="),
    (lambda p: lm.open(p, "w+", dtype="f8"), ValueError, "shape="),
    (lambda p: lm.memmap(p, "f8", "w+"), ValueError, "shape="),
    (lambda p: lm.open(p, "w+", dtype="f8", shape=(3, -1)), ValueError, "every length"),
    (lambda p: lm.open(p, "w+", dtype="f8", shape=-2), ValueError, "lengths are 0 or more"),
    (lambda p: lm.open(p, "w+", dtype=object, shape=3), TypeError, "Python objects"),
    (lambda p: lm.open(p, "w+", dtype="f8", shape=3, order="K"), ValueError, "order="),
    (lambda p: lm.memmap(p, "f8", "w+", shape=3, order="K"), ValueError, "order="),
    (lambda p: lm.open(p, "w+", dtype="f8", shape=3, offset=-1), ValueError, "offset="),
    (lambda p: lm.memmap(p, "f8", "w+", offset=-1, shape=3), ValueError, "offset="),
    (lambda p: lm.open(p, "w+", dtype="f8", shape=3, block="4 KiB"), TypeError, "did you mean"),
    (lambda p: lm.open(p, "w+", dtype="f8", shape=1 << 60), ValueError, "more than"),
    (lambda p: lm.memmap(p, "f8", "r+", offset=SIZE + 1), ValueError, "offset="),
    (lambda p: lm.memmap(p, "f8", "r+", offset=2**63 - 9, shape=2), ValueError, "more than a file"),
    (lambda p: lm.memmap(p, "f8", "r+", shape=(-1, SIZE)), ValueError, "whole number"),
    (lambda p: lm.memmap(p, mode="rw+"), ValueError, "mode="),
    (lambda p: lm.open(f"https://localhost/{p.name}", "w+", dtype="f8", shape=3), ValueError, "a URL"),
    (lambda p: lm.memmap(f"https://localhost/{p.name}", "f8", "w+", shape=3), ValueError, "a URL"),
    (lambda p: lm.open(p.parent, "r+"), IsADirectoryError, "directory"),
    (lambda p: lm.open(p.parent, "w+", dtype="f8", shape=3), IsADirectoryError, "directory"),
    (lambda p: lm.open(p.parent / "no" / "such.npy", "w+", dtype="f8", shape=3), FileNotFoundError, "such"),
    (lambda p: lm.open(open(p, "rb"), "r+", dtype="u1"), PermissionError, "for reading only"),  # noqa: SIM115
    (lambda p: lm.open(open(p, "ab"), "r+", dtype="u1"), ValueError, "for writing only"),  # noqa: SIM115
    (lambda p: lm.from_provider(bytes(9), mode="r+"), ValueError, "read-only"),
    (lambda p: lm.from_provider(np.zeros(9)[::2], mode="r+"), (ValueError, BufferError), "contiguous"),
    (lambda p: lm.from_provider(bytearray(9), mode="w+"), ValueError, "makes a file"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_is_refused_has_changed_nothing(folder, case):
    make, error, message = REFUSED[case]
    path = folder / "raw.npy"
    content = random.Random(2).randbytes(SIZE)
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        make(path)
    assert path.read_bytes() == content
    assert os.listdir(folder) == ["raw.npy"]


def test_appending_only_is_opened_for_writing_too(folder):
    """`ab` cannot be read by its own descriptor: refused; a FIFO has no places."""
    os.mkfifo(folder / "fifo")
    for mode in ("r+", "w+"):
        with pytest.raises(ValueError, match="not a regular file"):
            lm.memmap(folder / "fifo", "u1", mode, shape=3)


def test_a_server_takes_nothing_back():
    with RangeServer({"a.bin": bytes(1000)}) as server, pytest.raises(ValueError, match="HttpProvider has no write_from"):
        lm.open(server.url_of("a.bin"), "r+", dtype="u1")


def test_a_file_that_may_not_be_written(folder):
    path = folder / "raw"
    path.write_bytes(bytes(100))
    os.chmod(path, 0o444)
    status, _, err = run_child(f"lazymem.memmap({str(path)!r}, mode='r')[0]; lazymem.memmap({str(path)!r}, mode='r+')".replace(
        "lazymem.", "__import__('lazymem')."), user="nobody")  # fmt: skip
    assert status == 1
    assert "PermissionError: [Errno 13] lazymem.memmap: Permission denied" in err


# ---------------------------------------------------------------------------------------------------------------------------
# Flushing and closing


def test_a_view_is_flushed_by_itself(raw):
    before = np.fromfile(raw, "u1")
    a = lm.memmap(raw, mode="r+", block_nbytes=PAGE)
    a[:] = 5
    lm.flush(np.asarray(a)[7 * PAGE + 5 : 9 * PAGE - 5])
    a[PAGE + 1 : PAGE + 5 : 2].flush()
    expected = before.copy()
    expected[7 * PAGE : 9 * PAGE] = 5
    expected[PAGE : 2 * PAGE] = 5
    assert np.array_equal(np.fromfile(raw, "u1"), expected)
    a[:0].flush()
    with pytest.raises(ValueError, match="does not lie in a lazy array"):
        lm.flush(np.zeros(3))
    lm.close(a, discard=True)
    assert np.array_equal(np.fromfile(raw, "u1"), expected)
    with pytest.raises(ValueError, match="closed"):
        a[0]


@needs_compiler
def test_a_flush_reaches_the_disk():
    library("inject.c")
    in_child(_synced)


def _synced():
    import tempfile

    from injection_kit import Injector

    path = Path(tempfile.mkdtemp(), "raw")
    path.write_bytes(bytes(SIZE))
    made = {mode: lm.memmap(path, mode=mode) for mode in ("r", "c", "r+")}
    injector = Injector()
    injector.install()
    for mode, fsyncs in (("r", 0), ("c", 0), ("r+", 1)):
        made[mode][5]
        if mode != "r":
            made[mode][5] = 1
        injector.count_only()
        lm.flush(made[mode])
        counts = injector.counts()
        assert (counts["fsync"], counts["pwrite"] > 0) == (fsyncs, fsyncs > 0), (mode, counts)
    # What could not be made safe is told, and is written again.
    made["r+"][5] = 2
    injector.arm("fsync", errno.EIO, 1, False)
    with pytest.raises(lm.PageError, match="written back"):
        lm.flush(made["r+"])
    injector.count_only()
    lm.flush(made["r+"])
    assert injector.counts()["pwrite"] > 0
    assert injector.counts()["fsync"] == 1
    injector.disarm()


@each_user
def test_what_does_not_fit_stays_and_closing_says_so(user):
    in_child(_too_large, user=user)


def _too_large():
    """Past a limit the file may not grow: an array that cannot be flushed stays open until somebody gives up what it holds."""
    import tempfile

    path = Path(tempfile.mkdtemp(), "big.npy")
    a = lm.open(path, "w+", dtype="u1", shape=20 * PAGE, block_nbytes=PAGE)
    start = a.offset
    a[:] = 1
    lm.flush(a)
    soft = start + 10 * PAGE
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
    a[5 * PAGE] = 2
    a[15 * PAGE] = 2
    for _ in range(2):
        with pytest.raises(lm.PageError, match=r"big\.npy.*EFBIG.*stays open: lazymem\.close\(a, discard=True\)") as caught:
            lm.close(a)
        assert caught.value.errno == errno.EFBIG
        assert a[15 * PAGE] == 2
    with pytest.raises(lm.PageError, match="EFBIG"), a:
        a[3] = 3
    with pytest.raises(lm.PageError, match="EFBIG"):
        pickle.dumps(a)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    lm.close(a)
    expected = np.ones(20 * PAGE, "u1")
    expected[[3, 5 * PAGE, 15 * PAGE]] = 3, 2, 2
    assert np.array_equal(np.load(path), expected)
    b = lm.open(path, "r+")
    b[15 * PAGE] = 9
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
    lm.close(b, discard=True)
    assert lm.region(lm.open(path)).closed is False
    assert np.array_equal(np.load(path), expected)


def test_a_view_keeps_it_open_and_flushed(raw):
    a = lm.memmap(raw, mode="r+")
    view = np.asarray(a)[3:5]
    view[:] = 77
    with pytest.raises(BufferError, match="1 view"):
        lm.close(a)
    assert np.fromfile(raw, "u1")[3] == 77
    del view
    a.close()


# ---------------------------------------------------------------------------------------------------------------------------
# The end of the process

ENDS = {"falls off": "", "exits": "import sys; sys.exit(0)", "raises": "raise KeyError('the end')"}


@each_user
@pytest.mark.parametrize("how", ENDS)
def test_what_was_not_flushed_is_at_exit(raw, user, how):
    os.chmod(raw, 0o666)
    _, _, err = run_child(
        f"""
        import lazymem as lm, numpy as np
        a = lm.memmap({str(raw)!r}, "u1", "r+")
        b = np.asarray(lm.open({str(raw.parent / "new.npy")!r}, "w+", dtype="i8", shape=1000))
        a[::100] = 200
        b[:] = 3
        c = lm.memmap({str(raw)!r}, "u1", "c")
        c[1] = 9
        {ENDS[how]}
        """,
        user=user, fresh=True,
    )  # fmt: skip
    assert ("the end" in err) == (how == "raises")
    expected = np.frombuffer(random.Random(1).randbytes(SIZE), "u1").copy()
    expected[::100] = 200
    assert np.array_equal(np.fromfile(raw, "u1"), expected)
    assert np.array_equal(np.load(raw.parent / "new.npy"), np.full(1000, 3))


def test_what_cannot_be_flushed_at_exit_is_named(folder):
    """And does not keep the others from being."""
    status, _, err = run_child(
        f"""
        import lazymem as lm, resource
        a = lm.memmap({str(folder / "large")!r}, "u1", "w+", shape={20 * PAGE})
        b = lm.memmap({str(folder / "small")!r}, "u1", "w+", shape={PAGE})
        c = lm.memmap({str(folder / "larger")!r}, "u1", "w+", shape={20 * PAGE})
        a[-1] = b[-1] = c[-1] = 1
        resource.setrlimit(resource.RLIMIT_FSIZE, ({PAGE}, resource.RLIM_INFINITY))
        """,
        fresh=True,
    )
    assert status == 0
    assert "large'" in err
    assert "larger'" in err
    assert "EFBIG" in err
    assert "Exception ignored in" in err
    assert np.fromfile(folder / "small", "u1")[-1] == 1


def test_a_provider_is_still_there_at_exit(folder):
    """It takes what was not flushed, and what it prints is heard."""
    (folder / "shelf").write_bytes(bytes(SIZE))
    status, out, err = run_child(
        f"""
        import lazymem as lm
        from writing_providers import Shelf
        class Loud(Shelf):
            def flush(self):
                print("flushed", self.path)
        files = lm.memmap({str(folder / "other")!r}, "u1", "w+", shape=3)
        a = lm.from_provider(Loud({str(folder / "shelf")!r}), mode="r+")
        a[7] = 7
        """,
        fresh=True,
    )
    assert (status, err) == (0, "")
    assert "flushed" in out
    assert np.fromfile(folder / "shelf", "u1")[7] == 7


@pytest.mark.parametrize("seed", range(3))
def test_what_was_flushed_survives_a_kill(folder, seed):
    """kill -9 at any time: every page is wholly of a generation that was flushed, or of the one after."""
    path = folder / "raw"
    child = subprocess.Popen(
        [sys.executable, "-c", f"""if True:
        import lazymem as lm
        a = lm.memmap({str(path)!r}, "u4", "w+", shape={64 * PAGE // 4}, block_nbytes={4 * PAGE})
        for generation in range(1, 1 << 30):
            a[:] = generation
            lm.flush(a)
            print(generation, flush=True)
        """],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        said = [child.stdout.readline() for _ in range(3)]
        time.sleep(random.Random(seed).uniform(0, 0.2))
    finally:
        child.kill()
    acknowledged = int([*said, *child.stdout.read().splitlines(keepends=True)][-1])
    child.stdout.close()
    child.wait()
    pages = np.fromfile(path, "u4").reshape(64, -1)
    assert (pages == pages[:, :1]).all()
    assert set(pages[:, 0].tolist()) <= {acknowledged, acknowledged + 1}
    assert acknowledged >= 3


def test_an_array_that_is_dropped_is_flushed_in_the_background(raw):
    a = lm.memmap(raw, mode="r+")
    old = int(a[5])
    a[5] = old ^ 255
    del a
    assert wait_until(lambda: np.fromfile(raw, "u1")[5] == old ^ 255, 2)


# ---------------------------------------------------------------------------------------------------------------------------
# Pickling and forks


def test_pickling_flushes_first(raw, folder):
    for a in (lm.memmap(raw, "u1", "r+"), lm.memmap(folder / "new", "u1", "w+", shape=SIZE), lm.open(
            folder / "new.npy", "w+", dtype="u1", shape=SIZE)):  # fmt: skip
        a[5] = 99
        pickled = pickle.dumps(a[3:9])
        b = pickle.loads(pickled)
        assert np.array_equal(a[3:9], b)
        assert b.mode == "r+"
        b[1] = 44
        b.flush()
        assert int(np.fromfile(a.filename, "u1")[a.offset + 4]) == 44
        # It was written to since, and may be again: it is the same file as long as it is not shorter.
        with pickle.loads(pickled) as c:
            assert c[1] == 44
        os.truncate(a.filename, SIZE // 2)
        with pytest.raises(lm.PageError, match="changed after the array was pickled"):
            pickle.loads(pickled)
        lm.close(a, discard=True)


def test_a_c_array_of_what_is_pickled_refuses(raw):
    a = lm.memmap(raw, mode="c")
    a[0] += 1
    with pytest.raises(ValueError, match="private writes"):
        pickle.dumps(a)


def _double(a):
    a[:] *= 2
    a.flush()


def test_another_process_writes_by_a_pickled_array(folder):
    a = lm.open(folder / "new.npy", "w+", dtype="i8", shape=10_000)
    a[:] = np.arange(10_000)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.map(_double, [a[:5000], a[5000:]], chunksize=2)
    lm.close(a, discard=True)
    assert np.array_equal(np.load(folder / "new.npy"), 2 * np.arange(10_000))


def test_a_forked_child_writes_for_itself(raw):
    in_child(_forked, str(raw))


def _forked(path):
    before = np.fromfile(path, "u1")
    a = lm.memmap(path, mode="r+")
    b = lm.memmap(path + "2", "u1", "w+", shape=100)
    a[0] = before[0] ^ 1
    lm.flush(a)
    before[0] ^= 1
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            assert (a.mode, b.mode, a.flags.writeable) == ("c", "c", True)
            a[PAGE] = before[PAGE] ^ 1
            assert a[0] == before[0]
            lm.flush(a)
            assert np.array_equal(np.fromfile(path, "u1"), before)
            with pytest.raises(ValueError, match="private writes"):
                pickle.dumps(a)
            assert pickle.loads(pickle.dumps(b)).mode == "c"
            lm.close(a)
            assert np.array_equal(np.fromfile(path, "u1"), before)
            import atexit

            b[3] = 3
            atexit._run_exitfuncs()
            assert np.fromfile(path + "2", "u1")[3] == 0
            os._exit(0)
        import traceback

        traceback.print_exc()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (a.mode, b.mode) == ("r+", "w+")
    a[2 * PAGE] = before[2 * PAGE] = 7
    lm.flush(a)
    assert np.array_equal(np.fromfile(path, "u1"), before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---------------------------------------------------------------------------------------------------------------------------
# Memory and C functions


def test_memory_is_written_back(delivery):
    memory = np.arange(10 * PAGE, dtype="i4")
    expected = memory.copy()
    with lm.from_provider(memory, dtype="i4", mode="r+", delivery=delivery, block_nbytes=PAGE) as a:
        change(a, 1)
        change(expected, 1)
        assert np.array_equal(a, expected)
    assert np.array_equal(memory, expected)
