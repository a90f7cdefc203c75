"""Does the core's UFFDIO_COPY keep the kernel's whole return protocol? Traps 1, 2, 3, 4, 7 at the level of one ioctl."""

import ctypes
import errno
import itertools
import os
import threading
import time

import pytest
from native_kit import PAGE, PROT_NONE, PROT_READ, PROT_WRITE, drop, in_child, libc, must, ours, pages_here, pest, probe
from support import each_user, needs_compiler, wait_until

pytestmark = needs_compiler

EVENT_FEATURES = {"fork": 1 << 1, "remap": 1 << 2, "remove": 1 << 3, "unmap": 1 << 6}
DONTWAKE = 1
ANONYMOUS, NORESERVE = 0x22, 0x4000


class Range:
    """Registered memory of its own userfaultfd that nobody reads, beside ordinary memory to copy from."""

    def __init__(self, npages, wanted=0):
        self.npages = npages
        self.fd, _, self.features = probe().open_uffd(wanted)
        assert self.fd >= 0, os.strerror(-self.fd)
        self.at = must(libc().mmap(None, npages * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS | NORESERVE, -1, 0))
        assert probe().register(self.fd, self.at, npages * PAGE) == 0
        self.source = (ctypes.c_ubyte * (npages * PAGE)).from_buffer(bytearray(self.expected()))
        self.other = (ctypes.c_ubyte * PAGE)(*([0xEE] * PAGE))

    def expected(self):
        return b"".join(bytes([i % 251 + 1]) * PAGE for i in range(self.npages))

    def copy(self, first=0, npages=None):
        npages = self.npages - first if npages is None else npages
        return probe().copy(self.fd, self.at + first * PAGE, ctypes.addressof(self.source) + first * PAGE, npages * PAGE)

    def place(self, page):
        """Somebody else's bytes in one page."""
        assert probe().raw_copy(self.fd, self.at + page * PAGE, ctypes.addressof(self.other), PAGE) == (0, PAGE)

    def read(self, page):
        assert pages_here(self.at + page * PAGE, 1) == [True], "reading it here would hang: nobody reads this descriptor"
        return ctypes.string_at(self.at + page * PAGE, PAGE)

    def close(self):
        must(libc().munmap(self.at, self.npages * PAGE))
        os.close(self.fd)


@pytest.fixture
def pages():
    made = []

    def make(npages, wanted=0):
        made.append(Range(npages, wanted))
        return made[-1]

    yield make
    for r in made:
        r.close()


# ---------------------------------------------------------------------------------------------------------------------------
# 1. Partial copies


@pytest.mark.parametrize("n", [1, 2, 7])
def test_trap_01_partial_copy_goes_on_behind_the_page_that_was_there(pages, n):
    for k in range(n):
        r = pages(n)
        r.place(k)
        assert r.copy() == (0, 1, 1 if k else 0), "one page was there; a copy that got under way before it is cut short once"
        assert [r.read(i) for i in range(n)] == [bytes([0xEE if i == k else i + 1]) * PAGE for i in range(n)]


def test_trap_01_every_set_of_pages_that_were_there(pages):
    n = 5
    for there in itertools.product([False, True], repeat=n):
        r = pages(n)
        for i in range(n):
            if there[i]:
                r.place(i)
        error, eexist, eagain = r.copy()
        assert (error, eexist) == (0, sum(there))
        assert eagain == sum(1 for i in range(1, n) if there[i] and not there[i - 1])
        assert [r.read(i)[0] for i in range(n)] == [0xEE if there[i] else i + 1 for i in range(n)]


def test_trap_01_the_reason_shows_itself_behind_the_pages_that_came(pages):
    r = pages(4)
    hole = must(libc().mmap(None, 4 * PAGE, PROT_READ | PROT_WRITE, ANONYMOUS, -1, 0))
    ctypes.memset(hole, 9, 4 * PAGE)
    must(libc().mprotect(hole + 2 * PAGE, PAGE, PROT_NONE))
    assert probe().copy(r.fd, r.at, hole, 4 * PAGE) == (-errno.EFAULT, 0, 1)
    assert pages_here(r.at, 4) == [True, True, False, False], "what came stays, what lies behind does not come"
    must(libc().munmap(hole, 4 * PAGE))


def test_a_copy_longer_than_one_ioctl(pages):
    r = pages((4 << 20) // PAGE + 3)
    assert r.copy() == (0, 0, 0)
    assert ctypes.string_at(r.at, r.npages * PAGE) == r.expected()


# ---------------------------------------------------------------------------------------------------------------------------
# 2. EAGAIN, the mapping is changing


@each_user
def test_trap_02_no_event_is_ever_asked_for(user):
    in_child(no_event_is_ever_asked_for, user=user)


def no_event_is_ever_asked_for():
    import lazymem as lm

    arrays = [lm.from_provider(bytes(PAGE), delivery=d) for d in ("inline", "threads")]
    found = ours()
    assert len(found) == 2, found
    for fd, features in found.items():
        assert not [name for name, bit in EVENT_FEATURES.items() if features & bit], (fd, hex(features))
    assert [int(a[0]) for a in arrays] == [0, 0]


def test_trap_02_waiting_for_a_mapping_that_changes_is_bounded():
    in_child(waiting_for_a_mapping_that_changes_is_bounded)


def waiting_for_a_mapping_that_changes_is_bounded():
    r = Range(4, EVENT_FEATURES["remove"])
    r.place(3)
    dropping = threading.Thread(target=drop, args=(r.at + 3 * PAGE, PAGE))  # sleeps until its event is read
    dropping.start()
    # Asked with the page that is there already: before the event this is EEXIST and changes nothing.
    there = r.at + 3 * PAGE
    assert wait_until(lambda: probe().raw_copy(r.fd, there, ctypes.addressof(r.other), PAGE) == (errno.EAGAIN, -errno.EAGAIN))
    began = time.monotonic()
    error, eexist, eagain = r.copy()
    took = time.monotonic() - began
    assert (error, eexist) == (-errno.EAGAIN, 0)
    assert 0.5 < took < 10
    assert 5 < eagain < 5000, "it pauses, and longer each time, instead of spinning"
    assert probe().read_message(r.fd)[:2] == (1, 0x15), "the event that it waited for"
    dropping.join()
    assert r.copy()[0] == 0
    assert [r.read(i)[0] for i in range(4)] == [1, 2, 3, 4]


# ---------------------------------------------------------------------------------------------------------------------------
# 3. EEXIST


def test_trap_03_two_threads_fill_the_same_page(pages):
    rounds = 100_000
    r = pages(1)
    args = (r.fd, r.at, ctypes.addressof(r.source), PAGE, rounds)
    probe().race_copies_reset()
    answers = []
    other = threading.Thread(target=lambda: answers.append(probe().race_copies(*args, False)))
    other.start()
    answers.append(probe().race_copies(*args, True))
    other.join()
    assert [a[0] for a in answers] == [0, 0], "losing is success"
    assert [a[2] for a in answers] == [0, 0], "whoever comes back from it finds the page there"
    assert sum(a[1] for a in answers) == rounds, "of two copies to an absent page exactly one finds it there"


def test_trap_03_the_loser_wakes_who_sleeps():
    in_child(the_loser_wakes_who_sleeps)


def the_loser_wakes_who_sleeps():
    r = Range(1)
    read = []
    sleeper = threading.Thread(target=lambda: read.append(pest().touch_one(r.at)))
    sleeper.start()
    assert probe().read_message(r.fd)[:3] == (1, 0x12, r.at)
    # Somebody puts the page in place and wakes nobody.
    assert probe().raw_copy(r.fd, r.at, ctypes.addressof(r.source), PAGE, DONTWAKE) == (0, PAGE)
    sleeper.join(0.2)
    assert sleeper.is_alive(), "the kernel wakes nobody by itself"
    assert r.copy() == (0, 1, 0)
    sleeper.join(10)
    assert read == [0x0101010101010101]


# ---------------------------------------------------------------------------------------------------------------------------
# 4. ENOENT


@pytest.mark.parametrize("split", ["mprotect", "madvise", "mlock"])
def test_trap_04_a_mapping_in_pieces_is_filled_page_by_page(pages, split):
    r = pages(9)
    middle, nbytes = r.at + 3 * PAGE, 2 * PAGE
    if split == "mprotect":
        must(libc().mprotect(middle, nbytes, PROT_READ))
    elif split == "madvise":
        must(libc().madvise(middle, nbytes, 1))
    elif os.geteuid() == 0:
        pytest.skip("mlock of missing pages waits for them; here nobody answers")
    else:
        assert libc().mlock(middle, nbytes) == -1  # ENOMEM for the missing pages; the mapping is split all the same
    assert probe().raw_copy(r.fd, r.at, ctypes.addressof(r.source), 9 * PAGE) == (errno.ENOENT, -errno.ENOENT)
    assert r.copy() == (0, 0, 0)
    assert [r.read(i)[0] for i in range(9)] == list(range(1, 10))


def test_trap_04_a_mapping_that_is_gone_is_said_to_be(pages):
    r = pages(3)
    must(libc().munmap(r.at + PAGE, PAGE))
    assert r.copy()[0] == -errno.ENOENT
    assert pages_here(r.at, 1) == [True]


# ---------------------------------------------------------------------------------------------------------------------------
# 7. A field that the kernel leaves alone


@pytest.mark.parametrize(
    ("dst", "nbytes", "mode"), [(1, PAGE, 0), (0, 1, 0), (0, 0, 0), (0, PAGE, 1 << 20), (1 << 63, PAGE, 0)]
)
def test_trap_07_the_answer_is_not_looked_for_where_the_kernel_wrote_none(pages, dst, nbytes, mode):
    r = pages(1)
    preset = 3 * PAGE
    where = r.at + dst
    assert probe().raw_copy(r.fd, where, ctypes.addressof(r.source), nbytes, mode, preset) == (errno.EINVAL, preset), (
        "the kernel leaves what was there before: an old value would look like pages copied"
    )
    if nbytes and not mode:
        assert probe().copy(r.fd, where, ctypes.addressof(r.source), nbytes) == (-errno.EINVAL, 0, 0)
    assert pages_here(r.at, 1) == [False]


# ---------------------------------------------------------------------------------------------------------------------------
# The others


def test_wake_where_nothing_is_mapped(pages):
    r = pages(1)
    gone = must(libc().mmap(None, PAGE, PROT_NONE, ANONYMOUS, -1, 0))
    must(libc().munmap(gone, PAGE))
    assert probe().wake(r.fd, gone, PAGE) == 0


def test_poison_is_healed_by_a_copy(pages):
    r = pages(3)
    r.place(2)
    if probe().poison(r.fd, r.at, PAGE) == -errno.EINVAL:
        pytest.skip("this kernel has no UFFDIO_POISON")
    assert probe().poison(r.fd, r.at + 2 * PAGE, PAGE) == -errno.EEXIST
    assert probe().absent(r.at)
    assert probe().zero(r.fd, r.at, PAGE) == -errno.EEXIST
    error, eexist, _ = r.copy()
    assert (error, eexist) == (0, 1)
    assert [r.read(i)[0] for i in range(3)] == [1, 2, 0xEE]


def test_zero_fills_around_nothing_else(pages):
    r = pages(4)
    assert probe().zero(r.fd, r.at, 2 * PAGE) == 0
    assert pages_here(r.at, 4) == [True, True, False, False]
    assert probe().zero(r.fd, r.at + PAGE, 2 * PAGE) == -errno.EEXIST


def test_a_descriptor_that_is_not_one():
    assert probe().read_message(-1)[0] == -errno.EBADF
    inside, outside = os.pipe()
    os.write(outside, b"short")
    assert probe().read_message(inside)[0] == -errno.EBADF, "a short read is no message: the number is somebody else's now"
    assert probe().copy(inside, 0, 0, PAGE)[0] == -errno.ENOTTY
    os.close(inside)
    os.close(outside)


def test_the_descriptor_is_out_of_the_way_and_closed_by_exec():
    fd, _, _ = probe().open_uffd(0)
    assert fd >= 32, "programs close and reuse the low numbers"
    assert not os.get_inheritable(fd)
    os.close(fd)
