"""Are private writes kept in scratch files what was written last, in each of the processes that a fork makes of one?"""

import errno
import os
import random
import resource
import threading
import time

import pytest
from native_kit import _command, in_child, probe
from support import PAGE, check_child, each_user, needs_compiler

pytestmark = needs_compiler

NBLOCKS = 300
LAYERS = 8


@pytest.fixture
def folder(tmp_path):
    return os.fsencode(tmp_path)


def _folder():
    """For children: one that everybody may write to, and more than memory."""
    return b"/var/tmp"


def _bytes(rng, nbytes=PAGE):
    return rng.randbytes(8) * (nbytes // 8)


def _agrees(s, oracle, nblocks=NBLOCKS):
    for block in range(nblocks):
        assert s.has(block) == (block in oracle), block
        assert s.read(block) == oracle.get(block, -errno.ENODATA), block
    assert s.any() == bool(oracle)
    assert s.nbytes() == len(oracle) * PAGE


def _act(s, oracle, rng, times, nblocks=NBLOCKS):
    for _ in range(times):
        block = rng.randrange(nblocks)
        if rng.random() < 0.7:
            oracle[block] = _bytes(rng)
            assert s.write(block, oracle[block]) == 0
        else:
            oracle.pop(block, None)
            assert s.forget(block) == 0
        block = rng.randrange(nblocks)
        assert s.read(block) == oracle.get(block, -errno.ENODATA)


def _fork(s, then):
    """Fork as the core does; the child runs `then` and must end well. Its number."""
    s.before_fork()
    child = os.fork()
    if child:
        s.after_fork()
        return child
    status = 1
    try:
        s.in_child()
        then()
        status = 0
    finally:
        if status:
            import traceback

            traceback.print_exc()
        os._exit(status)


def _ended_well(child):
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_made_before_the_first_write(folder):
    before = set(os.listdir("/proc/self/fd"))
    s = probe().Scratches(folder, 1 << 30, 65536)  # 64 TiB
    assert (s.any(), s.nbytes(), s.has(5), s.read(5), s.forget(5)) == (False, 0, False, -errno.ENODATA, 0)
    s.before_fork()
    s.after_fork()
    assert s.layers() == ([], False)
    assert set(os.listdir("/proc/self/fd")) == before
    assert s.write(1 << 25, b"x" * 65536) == 0  # 2 TiB in
    assert s.read(1 << 25) == b"x" * 65536
    ((fd, _, _),), _ = s.layers()
    assert fd >= 48, "out of the way of those who name descriptors"
    assert not os.get_inheritable(fd)
    st = os.fstat(fd)
    assert (st.st_nlink, st.st_mode & 0o777) == (0, 0o600)
    assert st.st_blocks * 512 < 1 << 20, "sparse"
    assert os.listdir(folder) == []
    s.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_random_writes_and_forgets(folder):
    s, oracle, rng = probe().Scratches(folder, NBLOCKS, PAGE), {}, random.Random(1)
    _act(s, oracle, rng, 3000)
    _agrees(s, oracle)
    s.close()


def test_what_is_forgotten_leaves_the_disk(folder):
    s = probe().Scratches(folder, NBLOCKS, PAGE)
    for block in range(NBLOCKS):
        assert s.write(block, b"a" * PAGE) == 0
    ((fd, _, _),), _ = s.layers()
    os.fsync(fd)
    full = os.fstat(fd).st_blocks
    for block in range(NBLOCKS):
        assert s.forget(block) == 0
    os.fsync(fd)
    assert os.fstat(fd).st_blocks <= full // 10
    s.close()


def test_a_last_block_that_is_short(folder):
    s = probe().Scratches(folder, 3, 4 * PAGE)
    assert s.write(2, b"z" * (PAGE + 7)) == 0
    assert (s.read(2, PAGE + 7), s.nbytes()) == (b"z" * (PAGE + 7), PAGE + 7)
    assert s.write(0, b"y" * 4 * PAGE) == 0
    assert s.nbytes() == 5 * PAGE + 7
    for i in range(3 * LAYERS):  # and through merges
        s.before_fork()
        s.after_fork()
        assert s.write(1, bytes([i]) * 4 * PAGE) == 0
    assert (s.read(2, PAGE + 7), s.read(1), s.nbytes()) == (b"z" * (PAGE + 7), bytes([i]) * 4 * PAGE, 9 * PAGE + 7)
    s.close()


@pytest.mark.parametrize("act_between", [0, 1, 40, 600])
def test_layers_of_many_forks(folder, act_between):
    """The same without children: sealed again and again, with as many acts between as there are."""
    before = set(os.listdir("/proc/self/fd"))
    s, oracle, rng = probe().Scratches(folder, NBLOCKS, PAGE), {}, random.Random(act_between)
    deepest = 0
    _act(s, oracle, rng, 500)
    for _ in range(40):
        s.before_fork()
        s.after_fork()
        assert not s.layers()[1]
        _act(s, oracle, rng, act_between)
        deepest = max(deepest, len(s.layers()[0]))
        _agrees(s, oracle)
    assert deepest <= LAYERS
    if act_between == 1:
        assert deepest > 2
    if act_between:  # until it is merged, a file stays for each fork: not for ever
        _act(s, oracle, rng, 3000)
        assert len(s.layers()[0]) <= 5
    _agrees(s, oracle)
    s.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_forgotten_while_its_grave_is_being_merged(folder):
    s = probe().Scratches(folder, NBLOCKS, PAGE)

    def layer(*blocks):
        for block in blocks:
            assert s.write(block, b"n" * PAGE) == 0

    def fork():
        s.before_fork()
        s.after_fork()

    layer(*range(NBLOCKS))
    fork()
    layer(1)
    assert s.forget(0) == 0
    fork()
    layer(2, 70)
    fork()
    layer(*range(100, 200))
    fork()
    layer(0)  # and the first step of merging the two that hold least
    assert (len(s.layers()[0]), s.slots()) == (5, 6)
    assert s.forget(0) == 0
    layer(250, 251, 252)
    assert len(s.layers()[0]) == 4
    assert (s.has(0), s.read(0), s.nbytes()) == (False, -errno.ENODATA, (NBLOCKS - 1) * PAGE)
    s.close()


def _generations(s, oracle, rng, depth):
    """Parent and child go on apart, both fork again."""
    children = []
    for i in range(3 if depth else 0):
        _act(s, oracle, rng, rng.choice([0, 3, 200]))

        seed, held = rng.random(), dict(oracle)

        def go_on(seed=seed, mine=held):
            _agrees(s, mine)
            own = random.Random(seed)
            _act(s, mine, own, 150)
            _agrees(s, mine)
            _generations(s, mine, own, depth - 1)
            _agrees(s, mine)

        children.append(_fork(s, go_on))
        _act(s, oracle, rng, 150)
        _agrees(s, oracle)
        assert i < 3
    for child in children:
        _ended_well(child)
    _agrees(s, oracle)


def generations(seed):
    s, oracle, rng = probe().Scratches(_folder(), NBLOCKS, PAGE), {}, random.Random(seed)
    _generations(s, oracle, rng, 3)
    s.close()


@each_user
def test_parent_and_child_go_on_apart(user):
    in_child(generations, 7, user=user)


def a_line_of_descendants():
    s, oracle, rng = probe().Scratches(_folder(), NBLOCKS, PAGE), {}, random.Random(3)
    _act(s, oracle, rng, 400)

    def descend(left):
        _agrees(s, oracle)
        _act(s, oracle, rng, 20)
        if left:
            held = dict(oracle)
            _ended_well(_fork(s, lambda: descend(left - 1)))
            _agrees(s, held)
        assert len(s.layers()[0]) <= LAYERS

    descend(2 * LAYERS)


@each_user
def test_many_generations_in_a_line(user):
    in_child(a_line_of_descendants, user=user)


def written_as_a_fork_happens():
    """What other threads try between the fork's beginning and its end, and do right after it."""
    s = probe().Scratches(_folder(), NBLOCKS, PAGE)
    for block in range(4):
        assert s.write(block, b"0" * PAGE) == 0
    s.before_fork()
    assert s.write(1, b"1" * PAGE) == s.write(9, b"1" * PAGE) == s.forget(2) == -errno.EBUSY
    assert s.forget(9) == 0
    assert s.read(1) == b"0" * PAGE
    tell, told = os.pipe()
    child = os.fork()
    if child == 0:
        s.in_child()
        os.read(tell, 1)  # by now the parent has written more
        assert [s.read(block)[:1] for block in range(4)] == [b"0"] * 4
        assert not s.has(9)
        assert s.write(3, b"4" * PAGE) == 0
        os._exit(0)
    assert s.write(0, b"2" * PAGE) == -errno.EBUSY
    s.after_fork()
    for block in (0, 1):
        assert s.write(block, b"3" * PAGE) == 0
        assert s.forget(block) == 0
    assert s.write(9, b"3" * PAGE) == s.forget(3) == 0
    assert s.write(0, b"5" * PAGE) == 0
    os.write(told, b"x")
    _ended_well(child)
    assert [s.read(block) for block in range(4)] == [b"5" * PAGE, -errno.ENODATA, b"0" * PAGE, -errno.ENODATA]


def test_written_as_a_fork_happens():
    in_child(written_as_a_fork_happens)


def threads_and_forks():
    """Each thread has blocks of its own, and forks go on beside them."""
    nthreads, each = 4, 60
    s = probe().Scratches(_folder(), nthreads * each, PAGE)
    oracles = [{} for _ in range(nthreads)]
    wrong, end = [], threading.Event()

    def done(what, *arguments):
        while (answer := what(*arguments)) == -errno.EBUSY:
            time.sleep(0.0001)
        return answer

    def act(me):
        rng, n = random.Random(me), 0
        try:
            while n < 300 or not end.is_set():
                n += 1
                block = me * each + rng.randrange(each)
                if rng.random() < 0.75:
                    oracles[me][block] = _bytes(rng)
                    assert done(s.write, block, oracles[me][block]) == 0
                else:
                    oracles[me].pop(block, None)
                    assert done(s.forget, block) == 0
                block = me * each + rng.randrange(each)
                assert s.read(block) == oracles[me].get(block, -errno.ENODATA), (me, block)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=act, args=(me,)) for me in range(nthreads)]
    for thread in threads:
        thread.start()

    def as_of_the_fork():
        """The parent goes on meanwhile."""
        first = [s.read(block) for block in range(nthreads * each)]
        assert all(f == -errno.ENODATA or f == f[:8] * (PAGE // 8) for f in first)
        # Of each thread at most one act had not come to its answer.
        expected = [oracles[b // each].get(b, -errno.ENODATA) for b in range(nthreads * each)]
        assert sum(f != x for f, x in zip(first, expected, strict=True)) <= nthreads
        for block in range(0, nthreads * each, 3):
            assert s.write(block, b"c" * PAGE) == 0
        second = [s.read(block) for block in range(nthreads * each)]
        assert second == [first[b] if b % 3 else b"c" * PAGE for b in range(nthreads * each)]

    for _ in range(25):
        _ended_well(_fork(s, as_of_the_fork))
    end.set()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]
    _agrees(s, {k: v for oracle in oracles for k, v in oracle.items()}, nthreads * each)
    assert s.slots() - len(s.layers()[0]) in (0, 1)  # a merge may be under way
    s.close()


@each_user
def test_threads_while_there_are_forks(user):
    in_child(threads_and_forks, user=user)


def closed_by_somebody(how):
    s, oracle, rng = probe().Scratches(_folder(), NBLOCKS, PAGE), {}, random.Random(5)
    other, path = os.pipe()[0], f"/var/tmp/lazymem-test-{os.getpid()}"
    stranger = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    os.write(stranger, b"s" * PAGE * NBLOCKS)
    for i in range(2 * LAYERS):
        _act(s, oracle, rng, 100)
        layers, _ = s.layers()
        if how == "top":
            os.close(layers[0][0])
        elif how == "all":
            os.closerange(48, 256)
        elif how == "file":
            os.dup2(stranger, layers[0][0])
        else:
            os.dup2(other, layers[0][0])
        _agrees(s, oracle)
        if i % 3 == 0:
            held = dict(oracle)

            def look(mine=held):
                _agrees(s, mine)
                _act(s, mine, random.Random(1), 50)
                _agrees(s, mine)

            _ended_well(_fork(s, look))
        _act(s, oracle, rng, 100)
        _agrees(s, oracle)
    assert os.pread(stranger, PAGE * NBLOCKS, 0) == b"s" * PAGE * NBLOCKS, "somebody else's file"
    held = [fd for fd, _, _ in s.layers()[0]]
    os.closerange(48, 256)
    mine = [os.dup2(stranger, fd) for fd in held if fd >= 0]
    s.close()
    for fd in mine:
        os.fstat(fd)  # not closed by us


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("how", ["top", "all", "file", "pipe"])
def test_descriptors_that_somebody_closes(how, user):
    in_child(closed_by_somebody, how, user=user)


def no_room():
    """RLIMIT_FSIZE, with the signal at its default: it would end the process."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    s = probe().Scratches(_folder(), 8, PAGE)
    assert s.write(1, b"a" * PAGE) == 0
    assert s.write(5, b"a" * PAGE) == 0
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * PAGE, hard))
    assert s.write(5, b"b" * PAGE) == -errno.EFBIG
    assert s.write(6, b"b" * PAGE) == -errno.EFBIG
    assert s.write(3, b"b" * PAGE) == 0
    assert [s.read(block) for block in (1, 3, 5, 6)] == [b"a" * PAGE, b"b" * PAGE, -errno.ENODATA, -errno.ENODATA]
    assert s.nbytes() == 2 * PAGE
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert s.write(5, b"c" * PAGE) == 0
    assert s.read(5) == b"c" * PAGE
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    s.before_fork()
    s.after_fork()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
    assert s.write(2, b"d" * PAGE) == -errno.EMFILE
    assert s.forget(1) == -errno.EMFILE
    assert s.read(1) == b"a" * PAGE
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert (s.write(2, b"d" * PAGE), s.forget(1), s.read(1)) == (0, 0, -errno.ENODATA)


def test_no_room():
    in_child(no_room)


def test_folders_that_will_not_do(tmp_path):
    from lazymem.core.scratch import check_folder

    assert check_folder(os.fsencode(tmp_path)) == 0
    assert os.listdir(tmp_path) == []
    assert check_folder(os.fsencode(tmp_path / "none")) == -errno.ENOENT
    (tmp_path / "file").write_bytes(b"x")
    assert check_folder(os.fsencode(tmp_path / "file")) == -errno.ENOTDIR
    assert check_folder(b"/proc") < 0
    if os.path.ismount("/dev/shm"):
        assert check_folder(b"/dev/shm") == -errno.EOPNOTSUPP
        assert probe().Scratches(b"/dev/shm", 4, PAGE).write(0, b"x" * PAGE) == -errno.EOPNOTSUPP
    with pytest.raises(OSError, match="scratch_open"):
        probe().Scratches(b"x" * (1 << 15), 4, PAGE)


# A file system that has no O_TMPFILE, as a filter can play it.
_NO_TMPFILE = """
import ctypes, os, platform, struct
openat = {"x86_64": 257, "aarch64": 56}[platform.machine()]
def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
program = b"".join([op(0x20, 0, 0, 0), op(0x15, 0, 3, openat), op(0x20, 0, 0, 32), op(0x45, 0, 1, 0x400000),
                    op(0x06, 0, 0, 0x00050000 | 95), op(0x06, 0, 0, 0x7FFF0000)])
class Program(ctypes.Structure):
    _fields_ = [("n", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(6, program)), 0, 0) == 0
try:
    os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    raise SystemExit("the filter does not work")
except OSError as error:
    assert error.errno == 95, error
"""


def without_tmpfile():
    s = probe().Scratches(_folder(), 4, PAGE)
    before = set(os.listdir(_folder()))
    assert s.write(3, b"f" * PAGE) == 0
    assert s.read(3) == b"f" * PAGE
    ((fd, _, _),), _ = s.layers()
    st = os.fstat(fd)
    assert (st.st_nlink, st.st_mode & 0o777) == (0, 0o600)
    assert not any(name.startswith(b".lazymem") for name in set(os.listdir(_folder())) - before)


@each_user
def test_a_file_system_without_nameless_files(user):
    code, env = _command(without_tmpfile, ())
    check_child(_NO_TMPFILE + code, user=user, env=env)


@each_user
def test_a_scratch_dir_that_will_not_do(user):
    check_child(
        """
        import os, tempfile
        import lazymem as lm
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            here = os.path.join(folder, "here")
            shut = os.path.join(folder, "shut")
            file = os.path.join(folder, "file")
            os.mkdir(here)
            os.mkdir(shut, 0o500)
            open(file, "w").close()
            wrong = {"/dev/shm": ValueError, os.path.join(folder, "none"): FileNotFoundError, file: NotADirectoryError}
            if os.geteuid():
                wrong[shut] = PermissionError
            for path, kind in wrong.items():
                if path == "/dev/shm" and not os.path.ismount(path):
                    continue
                lm.from_provider(b"abc", mode="r", scratch_dir=path)
                try:
                    lm.from_provider(b"abc", mode="c", scratch_dir=path)
                except kind as error:
                    assert "scratch_dir" in str(error) and path in str(error), error
                else:
                    raise AssertionError(path)
            a = lm.from_provider(b"abc", mode="c", scratch_dir=here)
            assert bytes(a) == b"abc" and os.listdir(here) == []
            os.environ["TMPDIR"] = "/dev/shm/nowhere"
            assert bytes(lm.from_provider(b"abc", mode="c")) == b"abc"
            lm.close(a)
        """,
        user=user,
    )
