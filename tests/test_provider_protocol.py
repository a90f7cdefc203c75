"""Is a provider asked as its protocol says: which blocks, how long, how often, by how many threads, in which processes?"""

import contextlib
import ctypes
import os
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from native_kit import PAGE
from support import settled, wait_until

import lazymem as lm
from lazymem.providers import Provider

BLOCK = 4 * PAGE


def recording(log, nbytes, **traits):
    """A provider whose byte i is i * 7 modulo 251; it writes down each call, a line each, with its process and thread."""

    class Recording:
        def _say(self, *words):
            line = " ".join(map(str, (*words, os.getpid(), threading.get_ident()))) + "\n"
            with contextlib.suppress(FileNotFoundError):  # it may be closed after its test, which takes the folder along
                out = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                os.write(out, line.encode())  # at once: lines of several processes do not mix
                os.close(out)

        def open(self):
            self._say("open", 0, 0)

        def close(self):
            self._say("close", 0, 0)

        def read_into(self, buffer, offset):
            self._say("read", offset, len(buffer))
            np.frombuffer(buffer, "u1")[:] = np.resize(np.arange(offset, offset + 251) * 7 % 251, len(buffer))

    made = Recording()
    vars(made).update(log=str(log), nbytes=nbytes, **traits)
    return made


def right(nbytes):
    return np.resize((np.arange(251) * 7 % 251).astype("u1"), nbytes)


def calls(log):
    """[(what, offset, length, process, thread)], as they were written down."""
    if not os.path.exists(log):
        return []
    return [(what, *map(int, rest)) for what, *rest in map(str.split, Path(log).read_text().splitlines())]


def reads(log):
    """The (offset, length) of all reads, in order of offset."""
    return sorted(call[1:3] for call in calls(log) if call[0] == "read")


def blocks_of(nbytes, block_nbytes):
    return [(start, min(block_nbytes, nbytes - start)) for start in range(0, nbytes, block_nbytes)]


@pytest.fixture
def log(folder):
    return folder / "log"


# ---------------------------------------------------------------------------------------------------------------------------
# Blocks


@pytest.mark.parametrize(
    ("own", "users", "block_nbytes"),
    [
        (None, None, 256 << 10), (1, None, PAGE), (PAGE, None, PAGE), (PAGE + 1, None, 2 * PAGE), (10 * PAGE, None, 10 * PAGE),
        (10 * PAGE, PAGE, PAGE), (PAGE, "64 KiB", 64 << 10), (None, 3 * PAGE - 5, 3 * PAGE), (PAGE, 1 << 20, 1 << 20),
    ],
)  # fmt: skip
def test_the_providers_block_and_the_users(delivery, log, own, users, block_nbytes):
    nbytes = 40 * PAGE + 123
    options = {} if users is None else {"block_nbytes": users}
    a = lm.from_provider(recording(log, nbytes, block_nbytes=own), delivery=delivery, **options)
    assert lm.region(a).block_nbytes == block_nbytes
    assert np.array_equal(a, right(nbytes))
    assert reads(log) == blocks_of(nbytes, block_nbytes)


@pytest.mark.parametrize(
    "nbytes", [0, 1, 7, PAGE - 1, PAGE, PAGE + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - PAGE, 3 * BLOCK + 9]
)
def test_lengths(delivery, log, nbytes):
    a = lm.from_provider(recording(log, nbytes, block_nbytes=BLOCK), delivery=delivery)
    assert a.shape == (nbytes,)
    assert np.array_equal(a, right(nbytes))
    assert np.asarray(a).tobytes() == right(nbytes).tobytes()
    assert reads(log) == blocks_of(nbytes, BLOCK)
    s = settled(a)
    assert (s.blocks, s.nblocks, s.nbytes_asked, s.nbytes_used) == (len(reads(log)), len(reads(log)), nbytes, nbytes)
    lm.populate(a)
    assert lm.residency(a).tolist() == [True] * s.nblocks


def test_the_buffer(delivery):
    class Looking:
        nbytes = 3 * PAGE - 100

        def read_into(self, buffer, offset):
            kept = np.frombuffer(buffer, "u1")
            facts = {
                "type": type(buffer) is memoryview, "writable": not buffer.readonly, "format": buffer.format == "B",
                "itemsize": buffer.itemsize == 1, "1-D": buffer.ndim == 1 and buffer.contiguous,
                "on a page": kept.__array_interface__["data"][0] % PAGE == 0,
                "in the provider": offset + len(buffer) <= self.nbytes, "offset": type(offset) is int,
                "length": len(buffer) == min(PAGE, self.nbytes - offset),
                "numpy": np.frombuffer(buffer, "u1").flags.writeable, "cast": len(buffer[:8].cast("d")) == 1,
                "bytes": bytes(buffer[:0]) == b"", "ctypes": (ctypes.c_char * 8).from_buffer(buffer).raw is not None,
            }  # fmt: skip
            del kept
            wrong = [name for name, holds in facts.items() if not holds]
            if wrong:
                raise AssertionError(wrong)
            if hasattr(self, "last"):
                try:
                    len(self.last)
                    raise AssertionError("the last buffer was not released")
                except ValueError:
                    pass
            self.last = buffer  # a memoryview that is released does not count as kept
            buffer[:] = b"A" * len(buffer)

    a = lm.from_provider(Looking(), delivery=delivery, block_nbytes=PAGE, threads=1)
    for at in (0, PAGE, 2 * PAGE):
        assert a[at] == 65
    assert a.tobytes() == b"A" * a.nbytes


@pytest.mark.parametrize("how", ["populate", "prefetch", "touches", "native touches", "operations"])
def test_each_block_is_read_once(delivery, log, how):
    """Whoever fetches, however many at once."""
    nbytes, n = 32 * PAGE + 5, 33
    a = lm.from_provider(recording(log, nbytes), delivery=delivery, block_nbytes=PAGE, processes=2)
    assert lm.residency(a).tolist() == [False] * n
    if how == "populate":
        lm.populate(a[5 * PAGE : 9 * PAGE])
        assert lm.residency(a).tolist() == [5 <= i < 9 for i in range(n)]
        assert reads(log) == blocks_of(nbytes, PAGE)[5:9]
        lm.populate(a[:: 4 * PAGE])
        assert lm.residency(a).nonzero()[0].tolist() == [0, 4, 5, 6, 7, 8, 12, 16, 20, 24, 28, 32]
        at_once = [lambda: lm.populate(a)] * 4
    elif how == "prefetch":
        assert lm.prefetch(a[: 20 * PAGE])
        at_once = [
            lambda: wait_until(lambda: lm.residency(a[: 20 * PAGE]).all()),
            lambda: lm.prefetch(a),
            lambda: lm.populate(a),
        ]
    elif how == "touches":
        at_once = [lambda: [int(np.asarray(a)[i]) for i in range(0, nbytes, PAGE // 2)]] * 4
    elif how == "native touches":
        at_once = [lambda: np.asarray(a).max()] * 4
    else:
        at_once = [lambda: a.sum(), lambda: np.sort(a), a.tobytes, lambda: a + a]
    threads = [threading.Thread(target=f) for f in at_once]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert np.array_equal(a, right(nbytes))
    assert reads(log) == blocks_of(nbytes, PAGE)
    s = settled(a)
    assert (s.blocks, s.resident_blocks, s.failed, s.nbytes_asked, s.nbytes_used) == (n, n, 0, nbytes, nbytes)


def test_what_is_dropped_is_read_again(delivery, log):
    from native_kit import address_of, drop

    a = lm.from_provider(recording(log, 8 * PAGE), delivery=delivery, block_nbytes=2 * PAGE)
    assert np.array_equal(a, right(8 * PAGE))
    drop(address_of(a) + 2 * PAGE, 2 * PAGE)
    assert np.array_equal(np.asarray(a), right(8 * PAGE))
    assert reads(log) == sorted([*blocks_of(8 * PAGE, 2 * PAGE), (2 * PAGE, 2 * PAGE)])


@pytest.mark.parametrize("block_nbytes", [1 << 20, 3 << 20, 4 << 20, pytest.param(64 << 20, marks=pytest.mark.slow)])
def test_large_blocks_get_a_ring_with_room(delivery, log, block_nbytes):
    nbytes = block_nbytes + (block_nbytes >> 2) + 77
    small = lm.from_provider(recording(log, 100), delivery=delivery)
    a = lm.from_provider(recording(log, nbytes), delivery=delivery, block_nbytes=block_nbytes)
    room = {lm.region(x).source.setting.block_nbytes for x in (small, a)}
    assert room == {1 << 20, 1 << (block_nbytes - 1).bit_length()}
    assert a[nbytes - 1] == (nbytes - 1) * 7 % 251
    assert a[block_nbytes - 1] == (block_nbytes - 1) * 7 % 251
    assert np.array_equal(a, right(nbytes))
    assert reads(log) == sorted(blocks_of(nbytes, block_nbytes))
    a.close()
    assert np.array_equal(small, right(100))


def test_the_largest_block(delivery, log):
    """Address space, of which nothing is used that is not asked for."""
    a = lm.from_provider(recording(log, 10), delivery=delivery, block_nbytes="1 GiB")
    assert np.array_equal(a, right(10))
    with pytest.raises(ValueError, match="1 GiB"):
        lm.from_provider(recording(log, 10), block_nbytes=(1 << 30) + 1)


# ---------------------------------------------------------------------------------------------------------------------------
# Threads and processes


def meeting(folder, seconds, number=0, **traits):
    """A provider each of whose reads waits for another one to be there, up to `seconds`, and leaves word whether one was."""

    class Meeting:
        nbytes = 8 * PAGE

        def read_into(self, buffer, offset):
            me = f"{self.folder}/{offset + self.number}-{os.getpid()}"
            Path(f"{me}-in").touch()
            end, met = time.monotonic() + self.seconds, False
            while not met and time.monotonic() < end:
                names = os.listdir(self.folder)
                inside = {n[:-3] for n in names if n.endswith("-in")} - {n[:-4] for n in names if n.endswith("-out")}
                met = len(inside) > 1 or any(n.endswith("-met") for n in names)
                time.sleep(0.002)
            if met:
                Path(f"{me}-met").touch()
            Path(f"{me}-out").touch()
            buffer[:] = b"A" * len(buffer)

    made = Meeting()
    vars(made).update(folder=str(folder), seconds=seconds, number=number, **traits)
    return made


def populate_on_threads(a, n=4):
    """Each of n threads fetches a part of its own, block after block."""

    def fetch(i):
        size = a.size // n
        for start in range(i * size, (i + 1) * size, PAGE):
            lm.populate(a[start : start + PAGE])

    threads = [threading.Thread(target=fetch, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("concurrent", [True, False])
def test_concurrent(delivery, folder, concurrent, processes):
    """False: one thread at a time in a process. Two processes are two."""
    together = concurrent or processes == 2
    provider = meeting(folder, 10 if together else 0.03, concurrent=concurrent)
    a = lm.from_provider(provider, delivery=delivery, block_nbytes=PAGE, processes=processes, timeout=60)
    populate_on_threads(a)
    assert a.tobytes() == b"A" * a.nbytes
    names = os.listdir(folder)
    assert len([n for n in names if n.endswith("-out")]) == 8
    assert any(n.endswith("-met") for n in names) is together
    inside = {n.split("-")[1] for n in names}
    assert len(inside) == processes


def test_concurrent_is_for_each_provider(delivery, folder):
    """Two that are not concurrent, in one process, still run at the same time."""
    arrays = [
        lm.from_provider(meeting(folder, 10, concurrent=False, number=i), delivery=delivery, block_nbytes=8 * PAGE, timeout=60)
        for i in range(2)
    ]
    threads = [threading.Thread(target=a.max) for a in arrays]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    names = os.listdir(folder)
    assert any(n.endswith("-met") for n in names)
    assert len({n.split("-")[1] for n in names}) == 1


@pytest.mark.parametrize(("asked", "most", "used"), [(1, None, 1), (3, None, 3), (3, 2, 2), (2, 5, 2), (16, 1, 1)])
def test_processes(delivery, log, asked, most, used):
    """So many at once, and no more than the provider allows; each opens it once, before it reads."""
    provider = recording(log, 64 * PAGE, processes_max=most)
    a = lm.from_provider(slowly(provider), delivery=delivery, block_nbytes=PAGE, processes=asked)
    lm.populate(a[: 16 * PAGE])
    populate_on_threads(a, 8)
    assert np.array_equal(a, right(a.nbytes))
    found = calls(log)
    assert reads(log) == blocks_of(a.nbytes, PAGE)
    by_process = {process: [what for what, *_, who, _ in found if who == process] for _, _, _, process, _ in found}
    assert len(by_process) == used
    assert all(whats[0] == "open" and whats.count("open") == 1 for whats in by_process.values())
    a.close()
    assert wait_until(lambda: Counter(call[0] for call in calls(log))["close"] == used)
    assert [whats[-1] for whats in by_process.values()] == ["read"] * used


def slowly(provider):
    """The same, and each read takes a while: long enough for another process to be worth asking."""
    quick = type(provider).read_into

    class Slowly(type(provider)):
        def read_into(self, buffer, offset):
            time.sleep(0.003)
            quick(self, buffer, offset)

    provider.__class__ = Slowly
    return provider


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_threads(delivery, folder, threads):
    """How many blocks a populate asks for at once."""
    together = threads > 1
    a = lm.from_provider(
        meeting(folder, 10 if together else 0.03), delivery=delivery, block_nbytes=PAGE, threads=threads, timeout=60
    )
    lm.populate(a)
    assert any(n.endswith("-met") for n in os.listdir(folder)) is together


def test_it_is_closed_with_its_array(delivery, log):
    """Whether the array is closed or dropped; and opened anew for the next one."""
    provider = recording(log, 4 * PAGE)
    for i in range(1, 7):
        a = lm.from_provider(provider, delivery=delivery, block_nbytes=PAGE)
        assert a[PAGE] == PAGE * 7 % 251
        if i % 2:
            a.close()
        elif i % 3:
            del a
        else:
            with a:
                pass
        assert wait_until(lambda i=i: Counter(call[0] for call in calls(log)) == {"open": i, "read": i, "close": i})
    assert len({process for *_, process, _ in calls(log)}) == 1


def test_whatever_resembles_the_protocol(delivery):
    class Heir(Provider):
        nbytes = 3 * PAGE
        block_nbytes = 2 * PAGE

        def read_into(self, buffer, offset):
            buffer[:] = b"H" * len(buffer)
            return len(buffer)

    class Delegating:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(self.inner, name)

        def __reduce__(self):
            return type(self), (self.inner,)

    class Slotted:
        __slots__ = ("nbytes", "read_into")

        def __init__(self):
            self.nbytes = np.int64(3 * PAGE)  # not quite an int
            self.read_into = fill_with_s

    def fill_with_s(buffer, offset):
        np.frombuffer(buffer, "S1")[:] = b"S"
        return np.int64(len(buffer))

    for provider, letter in [(Heir(), "H"), (Delegating(Heir()), "H"), (Slotted(), "S")]:
        a = lm.from_provider(provider, delivery=delivery)
        assert a.tobytes() == letter.encode() * 3 * PAGE
        assert lm.region(a).block_nbytes == (2 * PAGE if letter == "H" else 256 << 10)


# ---------------------------------------------------------------------------------------------------------------------------
# What array lies over the bytes

NBYTES = 9 * PAGE + 77
LAYOUTS = [
    ("u1", None, 0, "C"), ("u1", -1, 5, "C"), ("<i2", None, 77 + PAGE, "C"), (">u4", 1000, 3, "C"), ("f8", (10, 30), 13, "C"),
    ("f8", (10, -1), 77 + 9 * PAGE - 800, "F"), ("V3", (7, 11, 13), 1, "F"), ("S7", None, NBYTES % 7, "C"),
    ("c16", (), 1, "C"), ("M8[s]", (3, 1, 5), 9, "F"), ([("a", "u1"), ("b", ">u4")], (100, 3), 2, "C"),
    ("u1", (4, 0, 5), 3, "C"), ("?", 100, 0, "C"), ("u1", None, NBYTES, "C"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "shape", "offset", "order"), LAYOUTS, ids=str)
def test_layouts(delivery, log, dtype, shape, offset, order):
    plain = right(NBYTES)
    n = (NBYTES - offset) // np.dtype(dtype).itemsize
    lengths = (n,) if shape is None else np.atleast_1d(shape) if shape != () else ()
    known = abs(int(np.prod(lengths)))
    want = np.ndarray([n // known if i == -1 else i for i in lengths], dtype, plain, offset, order=order)
    a = lm.from_provider(
        recording(log, NBYTES), shape, dtype, offset=offset, order=order, delivery=delivery, block_nbytes=PAGE
    )
    assert (a.shape, a.dtype, a.strides) == (want.shape, want.dtype, want.strides)
    assert not a.flags.writeable
    if a.size:
        assert a[(-1,) * a.ndim].tobytes() == want[(-1,) * a.ndim].tobytes()
    assert a.tobytes() == want.tobytes()
    first, stop = offset // PAGE, -(-(offset + want.nbytes) // PAGE)
    assert reads(log) == (blocks_of(NBYTES, PAGE)[first:stop] if want.nbytes else [])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": NBYTES + 1}, ValueError, "needs 36942 bytes, but Recording has 36941"),
        ({"dtype": "f8"}, ValueError, "no whole number of 8 bytes"),
        ({"shape": (-1, 3), "dtype": "f8"}, ValueError, "no whole number of 24 bytes"),
        ({"offset": NBYTES + 1}, ValueError, "offset"),
        ({"offset": -1}, ValueError, "offset"),
        ({"order": "K"}, ValueError, "order"),
        ({"dtype": object}, TypeError, "object"),
        ({"mode": "r+"}, ValueError, r"mode='r\+': Recording has no write_from\(buffer, offset\)"),
        ({"mode": "w+"}, ValueError, "mode='w\\+' makes a file"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"processes": 0}, ValueError, "processes"),
        ({"processes": 17}, ValueError, "processes"),
        ({"process": 2}, TypeError, "did you mean 'processes'"),
    ],
    ids=str,
)
def test_bad_arguments(log, arguments, error, message):
    with pytest.raises(error, match=message):
        lm.from_provider(recording(log, NBYTES), **arguments)
