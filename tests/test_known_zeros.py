"""Do blocks that are known to be zeros cost nothing: no fetch, no copy, and no memory where nobody can write?"""

import os
import pickle

import numpy as np
import pytest
from native_kit import in_child
from support import EVERY_DELIVERY, PAGE, each_user, over_deliveries, settled

import lazymem as lm
from lazymem.providers import Provider
from lazymem.providers.base import check_provider
from lazymem.testing import ProviderContract

delivery = over_deliveries(EVERY_DELIVERY)


def sparse(path, nbytes, parts):
    """A file with bytes here and there, and nothing elsewhere. Which pages of it are holes?"""
    rng = np.random.default_rng(7)
    with open(path, "wb") as file:
        file.truncate(nbytes)
        for start, stop in parts:
            file.seek(start)
            file.write(rng.integers(1, 256, stop - start, "u1").tobytes())
    with open(path, "rb", buffering=0) as file:
        holes = []
        for start in range(0, nbytes, PAGE):
            try:
                holes.append(os.lseek(file.fileno(), start, os.SEEK_DATA) >= min(start + PAGE, nbytes))
            except OSError:  # ENXIO: none to the end
                holes.append(True)
    if not any(holes):
        pytest.skip("this file system keeps no holes")
    return np.array(holes)


def reads():
    """How many system calls have read so far; asking takes one itself."""
    with open("/proc/self/io", "rb", buffering=0) as file:
        return int(file.read(4096).split(b"syscr:")[1].split()[0])


def rss_nbytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


# Holes before, between, behind; bytes that begin and end within a page, or a block; a short last page.
PARTS = [(5 * PAGE + 7, 5 * PAGE + 8), (16 * PAGE - 3, 17 * PAGE + 1), (40 * PAGE, 48 * PAGE), (63 * PAGE, 63 * PAGE + 9)]
NBYTES = 99 * PAGE + 24


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("mode", ["r", "c"])
def test_holes_are_zeros_that_nobody_reads(folder, delivery, mode, user):
    in_child(holes_are_zeros, str(folder / "sparse"), delivery, mode, user=user)


def holes_are_zeros(path, delivery, mode):
    holes = sparse(path, NBYTES, PARTS)
    want = np.memmap(path, "u1", "r")
    for npages in (1, 4):
        for offset in (0, 3 * PAGE + 5):
            a = lm.memmap(path, "u1", mode, offset, block_nbytes=npages * PAGE, delivery=delivery)
            starts = range(offset, NBYTES, npages * PAGE)
            zeros = [holes[s // PAGE : -(-min(s + npages * PAGE, NBYTES) // PAGE)].all() for s in starts]
            assert 3 < sum(zeros) < len(zeros), "this would prove nothing"
            assert a[-1:].tobytes() == want[-1:].tobytes()
            before = reads()
            for start, known in zip(starts, zeros, strict=True):
                if known:
                    assert not a[start - offset : start - offset + npages * PAGE].any()
            if delivery != "threads" and mode == "r":  # messages are read too, and, for what takes memory, how much there is
                assert reads() - before == 1, "the call that counts, and no other"
            assert lm.stats(a).nbytes_asked == 0
            assert np.array_equal(a, want[offset:])
            s = settled(a)
            assert (s.blocks, s.zeroed, s.failed) == (len(zeros), sum(zeros), 0)
            asked = sum(min(st + npages * PAGE, NBYTES) - st for st, known in zip(starts, zeros, strict=True) if not known)
            assert (s.nbytes_asked, s.nbytes_used) == (asked, asked)
            if mode == "c":
                a[:] = 7
                assert (np.asarray(a) == 7).all()
                assert np.array_equal(np.fromfile(path, "u1"), want), "private"
            lm.close(a)


@each_user
def test_a_scan_over_a_hole_takes_no_memory(folder, delivery, user):
    in_child(a_scan_takes_no_memory, str(folder / "hole"), delivery, user=user)


def a_scan_takes_no_memory(path, delivery):
    nbytes = 1 << 30
    sparse(path, nbytes, [(nbytes - 8, nbytes)])
    a = lm.memmap(path, "f8", block_nbytes=1 << 20, delivery=delivery)
    assert a[-1] != 0
    before = rss_nbytes()
    assert not np.asarray(a[:-1]).any()
    s = settled(a)
    assert (s.blocks, s.zeroed, s.resident_blocks, s.nbytes_asked) == (1024, 1023, 1024, 1 << 20)
    assert rss_nbytes() - before < 4 << 20
    lm.populate(a)  # (which also makes huge pages of what is there, and must not of this)
    assert rss_nbytes() - before < 4 << 20


@each_user
def test_in_mode_c_zeros_count_as_memory(folder, delivery, user):
    in_child(zeros_count_as_memory, str(folder / "hole"), delivery, user=user)


def zeros_count_as_memory(path, delivery):
    """They become memory when they are written to, and nobody could refuse it then."""
    nbytes = 64 << 20
    sparse(path, nbytes, [(0, 8)])
    a = lm.memmap(path, "u1", "c", block_nbytes=1 << 20, delivery=delivery)
    r = lm.memmap(path, "u1", "r", block_nbytes=1 << 20, delivery=delivery)
    assert r[0] == a[0]
    lm.populate(r)
    assert lm.stats(r).held_nbytes == 1 << 20
    lm.populate(a)
    assert lm.stats(a).held_nbytes == 64 << 20
    assert lm.stats(a).zeroed == 63


@pytest.mark.parametrize("how", ["write", "mmap", "truncate"])
def test_a_hole_that_is_filled_after_opening_fails(folder, delivery, how):
    path = folder / "sparse"
    sparse(path, NBYTES, PARTS)
    a = lm.memmap(path, block_nbytes=PAGE, delivery=delivery, retries=0)
    assert a[30 * PAGE] == 0
    if how == "mmap":
        np.memmap(path, "u1", "r+")[31 * PAGE] = 1
    else:
        with open(path, "r+b") as file:
            if how == "truncate":
                file.truncate(31 * PAGE)
            else:
                file.seek(31 * PAGE)
                file.write(b"\1")
    for block in (31, 60):  # one that was filled, and one that is a hole still, or gone
        with pytest.raises(lm.PageError):
            a[block * PAGE]
    assert a[30 * PAGE] == 0, "what is there stays"


def test_the_position_of_the_users_file_stays(folder, delivery):
    path = folder / "sparse"
    holes = sparse(path, NBYTES, PARTS)
    with open(path, "rb", buffering=0) as file:
        file.seek(123)
        a = lm.memmap(file, block_nbytes=PAGE, delivery=delivery)
        os.unlink(path)
        assert not a[20 * PAGE : 39 * PAGE].any()
        assert settled(a).zeroed == holes[20:39].sum() == 19
        assert file.tell() == 123


def test_a_dense_file_is_not_asked_about(folder):
    path = folder / "dense"
    np.zeros(16 * PAGE, "u1").tofile(path)
    before = len(os.listdir("/proc/self/fd"))
    a = lm.memmap(path, block_nbytes=PAGE)
    lm.close(lm.memmap(path, block_nbytes=PAGE))
    assert not a.any()
    assert (lm.stats(a).zeroed, lm.stats(a).nbytes_asked) == (0, 16 * PAGE)
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # its own, and, of the first array ever, the userfaultfd


def test_descriptors_go_with_the_array(folder, delivery):
    path = folder / "sparse"
    sparse(path, NBYTES, PARTS)
    lm.close(lm.memmap(path, delivery=delivery))
    before = sorted(os.listdir("/proc/self/fd"))
    a = lm.memmap(path, delivery=delivery)
    b = lm.memmap(path, delivery=delivery)
    assert len(os.listdir("/proc/self/fd")) >= len(before) + 4
    lm.close(a)
    del b
    assert sorted(os.listdir("/proc/self/fd")) == before


@each_user
def test_a_descriptor_that_somebody_closed(folder, delivery, user):
    in_child(a_descriptor_is_closed, str(folder / "sparse"), delivery, user=user)


def a_descriptor_is_closed(path, delivery):
    """Then nothing is known, and everything is read; a stranger's file at that number keeps its position."""
    holes = sparse(path, NBYTES, PARTS)
    want = np.fromfile(path, "u1")
    lm.close(lm.memmap(path, delivery=delivery))
    a = lm.memmap(path, block_nbytes=PAGE, delivery=delivery)
    of_file = [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == path]
    assert len(of_file) == 2
    assert a[20 * PAGE] == 0
    for fd in of_file:
        with open(__file__, "rb", buffering=0) as stranger:
            stranger.seek(17)
            os.dup2(stranger.fileno(), fd)
    assert np.array_equal(a, want)
    assert settled(a).zeroed in (1, holes.sum())  # all, should the file that is read from be the one of the holes again
    for fd in of_file:
        if os.path.samestat(os.fstat(fd), os.stat(__file__)):
            assert os.lseek(fd, 0, 1) == 17


def test_many_short_holes_use_up_no_mappings(folder):
    """Without a userfaultfd each stretch of zeros without memory takes mappings, and a process may have 65530."""
    in_child(many_short_holes, str(folder / "sparse"))


def many_short_holes(path):
    n = 40000
    holes = sparse(path, n * PAGE, [(i * PAGE, i * PAGE + 1) for i in range(0, n, 2)])
    a = lm.memmap(path, block_nbytes=PAGE, delivery="mprotect")
    want = np.memmap(path, "u1", "r")
    for _ in range(2):
        for start in range(0, a.size, 8 << 20):
            assert np.array_equal(a[start : start + (8 << 20)], want[start : start + (8 << 20)])
    assert settled(a).zeroed == holes.sum() == n // 2
    with open("/proc/self/maps") as file:
        assert len(file.readlines()) < 40000
    lm.close(a)


# ---------------------------------------------------------------------------------------------------------------------------
# Providers


class Parts(Provider):
    """Bytes here and there."""

    def __init__(self, nbytes, parts, fill_value=0):
        self.nbytes, self.parts, self.fill_value = nbytes, parts, fill_value

    @property
    def stored_ranges(self):
        return [(start, start + len(part)) for start, part in reversed(self.parts.items())]

    def read_into(self, buffer, offset):
        element = np.asarray(self.fill_value).tobytes()
        buffer[:] = (element * (len(buffer) // len(element) + 2))[offset % len(element) :][: len(buffer)]
        for start, part in self.parts.items():
            low, high = max(start, offset), min(start + len(part), offset + len(buffer))
            if low < high:
                buffer[low - offset : high - offset] = part[low - start : high - start]


STORED = {5 * PAGE - 1: b"ab", 9 * PAGE: b"\1" * PAGE, 10 * PAGE: b"\2", 17 * PAGE + 100: b"end"}


class TestParts(ProviderContract):
    def make_provider(self):
        return Parts(17 * PAGE + 103, STORED)

    def expected_bytes(self):
        return whole(self.make_provider()).tobytes()


def whole(provider):
    made = np.zeros(provider.nbytes, "u1")
    for start, part in provider.parts.items():
        made[start : start + len(part)] = np.frombuffer(part, "u1")
    return made


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("mode", ["r", "c"])
def test_a_provider_is_not_asked_for_what_it_does_not_store(delivery, mode, user):
    in_child(a_provider_is_not_asked, delivery, mode, user=user)


def a_provider_is_not_asked(delivery, mode):
    provider = Parts(17 * PAGE + 103, STORED)
    want = whole(provider)
    for npages, stored in ((1, {4, 5, 9, 10, 17}), (2, {2, 4, 5, 8}), (32, {0})):
        a = lm.from_provider(provider, block_nbytes=npages * PAGE, delivery=delivery, mode=mode)
        assert np.array_equal(a, want)
        s = settled(a)
        assert (s.zeroed, s.blocks) == (s.nblocks - len(stored), s.nblocks)
        assert lm.region(a).source.attempts == len(stored)
        b = pickle.loads(pickle.dumps(a))
        assert np.array_equal(b, want)
        assert settled(b).zeroed == s.zeroed, "a copy knows as much"


@pytest.mark.parametrize("fill", [0, False, 0.0, 0j, np.float32(0), np.datetime64(0, "s"), b"\0\0", np.zeros(3)])
def test_zeros_of_any_type(fill):
    assert check_provider(Parts(100, {}, fill)).stored == b""


@pytest.mark.parametrize("fill", [1, -0.0, np.nan, None, "0", b"\0\1", np.timedelta64("NaT"), object()])
def test_other_values_are_asked_for(fill):
    assert check_provider(Parts(100, {}, fill)).stored is None


def test_another_fill_value_is_the_providers_own_to_write(delivery):
    provider = Parts(8 * PAGE, {PAGE: b"\0" * 8}, np.float64(np.nan))
    a = lm.from_provider(provider, dtype="f8", block_nbytes=PAGE, delivery=delivery)
    assert np.isnan(np.asarray(a)).sum() == a.size - 1
    assert settled(a).zeroed == 0


class Says(Provider):
    nbytes = 100

    def __init__(self, ranges):
        self.stored_ranges = ranges

    def read_into(self, buffer, offset):
        raise NotImplementedError


def test_ranges_are_put_in_order():
    ranges = [(50, 60), (0, 0), (10, 20), (58, 70), (20, 21), (12, 13), (100, 100), (99, 100)]
    for given in (ranges, iter(ranges), np.array(ranges, "u4")):
        stored = check_provider(Says(given)).stored
        assert np.frombuffer(stored, "u8").tolist() == [10, 21, 50, 70, 99, 100]
    assert check_provider(Says(None)).stored is None
    assert check_provider(Says([])).stored == b""


@pytest.mark.parametrize(
    ("ranges", "error", "what"),
    [
        ([(0, 101)], ValueError, "stop of 0 is 101: it must be 0 to 100"),
        ([(-1, 5)], ValueError, "start is -1"),
        ([(5, 4)], ValueError, "stop of 5 is 4: it must be 5 to 100"),
        ([5], TypeError, "has 5: give pairs"),
        ([(1, 2, 3)], TypeError, "give pairs"),
        ([(0.5, 2)], TypeError, "start is 0.5, not an int"),
        (7, TypeError, "make it an attribute or a property"),
        (lambda: [], TypeError, "make it an attribute or a property"),
    ],
    ids=["past the end", "before the start", "backwards", "no pair", "three", "float", "int", "method"],
)
def test_ranges_that_are_none(ranges, error, what):
    with pytest.raises(error, match=f"Says.stored_ranges.*{what}"):
        check_provider(Says(ranges))
