"""From where can a provider process be started, again and again, and what does it take along?"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from native_kit import in_child
from odd_providers import PAGE, WORDS, Counting, Odd, Telling, tell
from somebody import as_somebody
from support import each_user, run_child, wait_until

import lazymem as lm
from lazymem.core.provider import Setting, process_ids

BLAS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def told(a, block=0):
    """What the process that serves `a` says of itself now."""
    return json.loads(bytes(a[block * Telling.block_nbytes : (block + 1) * Telling.block_nbytes]))


def kill_processes():
    """SIGKILL, and wait until they are gone."""
    pids = process_ids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids))
    return pids


# ---------------------------------------------------------------------------------------------------------------------------
# What it takes along


@as_somebody
def test_it_inherits_nothing(user, delivery):
    in_child(inherit, delivery, user=user)


def inherit(delivery):
    held = [os.open("/dev/zero", os.O_RDONLY), *os.pipe()]
    for fd in held:
        os.set_inheritable(fd, True)
    os.environb[b"BYTES"] = b"\xff\xfe"
    os.environ["EMPTY"] = ""
    os.umask(0o27)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    sys.path.insert(1, "/nowhere/at all\n\N{SNOWMAN}")
    lm.from_provider(bytes(PAGE), delivery=delivery)[0]  # there is a userfaultfd
    here = tell()
    a = lm.from_provider(Telling(), delivery=delivery)
    for turn in range(2):
        there = told(a, turn)
        fds = there["fds"]
        assert fds["0"] == "/dev/null"
        assert {fds["1"].split(":")[0], fds["2"].split(":")[0]} == {"pipe"}
        assert fds["1"] != fds["2"]
        own = sorted(name for fd, name in fds.items() if int(fd) > 2)
        assert own == sorted([here["cwd"], fds["1"], fds["2"], "anon_inode:[pidfd]", f"/proc/{os.getpid()}/maps"])
        assert not set(fds.values()) & {here["fds"][str(fd)] for fd in held}
        assert all("memfd:lazymem-ring" in name for name in there["mapped"]), there["mapped"]
        assert there["environ"] == {**dict.fromkeys(BLAS, "1"), **here["environ"]}
        assert (there["ppid"], there["sid"], there["pgid"]) == (os.getpid(), there["pid"], there["pid"])
        assert there["ignored"] & 1 << signal.SIGINT - 1
        assert not there["ignored"] & 1 << signal.SIGUSR2 - 1
        assert there["blocked"] == 0
        for same in ("cwd", "affinity", "policy", "umask", "uid"):
            assert there[same] == here[same], same
        assert there["path"] == [path or here["cwd"] for path in here["path"]]
        assert there["flags"]["safe_path"]
        assert there["main"] != here["main"]
        kill_processes()


@as_somebody
def test_blas_threads_are_the_users_to_say(user, delivery):
    in_child(say_blas_threads, delivery, user=user)


def say_blas_threads(delivery):
    os.environ["MKL_NUM_THREADS"] = "3"
    there = told(lm.from_provider(Telling(), delivery=delivery))["environ"]
    assert [there[name] for name in BLAS] == ["1", "3", "1"]
    os.environ["OMP_NUM_THREADS"] = "2"
    there = told(lm.from_provider(Telling(), delivery=delivery))["environ"]
    assert [there.get(name) for name in BLAS] == [None, "3", None]


# ---------------------------------------------------------------------------------------------------------------------------
# From where


def change_directory():
    os.chdir("/proc")


def change_environment():
    os.environ["HOME"] = "/elsewhere"
    os.environ["NEW"] = "1"
    del os.environ["PATH"]


def close_descriptors():
    """All but the userfaultfd, without which no array has any pages; and their numbers are somebody else's at once."""
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            if "userfaultfd" not in os.readlink(f"/proc/self/fd/{fd}"):
                os.close(fd)
    for _ in range(60):
        _, end = os.pipe()
        os.write(end, b"there is something to read")


def only_close_descriptors():
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            if "userfaultfd" not in os.readlink(f"/proc/self/fd/{fd}"):
                os.close(fd)


CHANGES = [change_directory, change_environment, only_close_descriptors]


@as_somebody
@pytest.mark.parametrize("change", [f.__name__ for f in CHANGES])
def test_what_changes_after_construction_changes_nothing(change, user, delivery):
    in_child(change_after_construction, change, delivery, user=user)


def change_after_construction(change, delivery):
    os.chdir("/usr")
    a = lm.from_provider(Telling(), delivery=delivery)
    first = told(a) if change == "only_close_descriptors" else None
    globals()[change]()
    pids = set()
    for block in range(1, 4):
        there = told(a, block)
        assert there["cwd"] == "/usr"
        assert there["environ"]["HOME"] != "/elsewhere"
        assert "NEW" not in there["environ"]
        assert "PATH" in there["environ"]
        pids.add(there["pid"])
        kill_processes()
    assert len(pids) == 3
    assert first is None or first["environ"] == there["environ"]
    os.chdir("/")
    now = told(lm.from_provider(Telling(), delivery=delivery))  # and one that is made now is as things are now
    assert now["cwd"] == "/"
    assert now["environ"] == {**now["environ"], **dict(os.environ)}


@pytest.mark.thin
@as_somebody
@pytest.mark.parametrize(
    ("change", "when"), [("close_descriptors", "before"), ("close_descriptors", "after"), ("only_close_descriptors", "after")]
)
def test_descriptors_that_somebody_closed(change, when, user, delivery):
    in_child(closed_descriptors, change, when, delivery, user=user)


def closed_descriptors(change, when, delivery):
    old = lm.from_provider(Counting(), dtype="i8", block_nbytes=PAGE, delivery=delivery, retries=1)
    if when == "after":
        assert old[0] == 0
    globals()[change]()
    assert old[WORDS] == WORDS  # the process is there, whatever became of its descriptors here
    new = lm.from_provider(Counting(shift=1), dtype="i8", block_nbytes=PAGE, delivery=delivery, retries=1)
    assert np.array_equal(new, Counting(shift=1).right())
    kill_processes()
    if change == "only_close_descriptors":
        assert np.array_equal(old, Counting().right())
    else:
        with contextlib.suppress(lm.PageError):  # the number that it was prepared with is taken; nobody is harmed
            assert np.array_equal(old, Counting().right())
    assert np.array_equal(lm.from_provider(Counting(shift=2), dtype="i8", delivery=delivery), Counting(shift=2).right())
    for _ in range(3):
        kill_processes()
        a = lm.from_provider(Counting(shift=3), dtype="i8", block_nbytes=PAGE, delivery=delivery, timeout=1, retries=0)
        assert a[5] == 8
    hung = lm.from_provider(Odd("sleeps"), dtype="i8", block_nbytes=PAGE, delivery=delivery, timeout=0.2, retries=0)
    with pytest.raises(lm.PageError):
        hung[0]
    for begin in range(3, 256):  # nothing was taken out of a pipe that is not ours
        with contextlib.suppress(OSError):
            if "pipe" in os.readlink(f"/proc/self/fd/{begin}") and change == "close_descriptors" and os.get_blocking(begin):
                os.set_blocking(begin, False)
                assert os.read(begin, 100) == b"there is something to read"


@as_somebody
def test_from_a_thread_that_blocks_signals_and_is_pinned(user, delivery):
    in_child(strange_thread, delivery, user=user)


def strange_thread(delivery):
    everywhere = sorted(os.sched_getaffinity(0))
    found = []

    def run():
        # Where SIGBUS is blocked, an inline touch ends the process, whatever is behind the array.
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGBUS, signal.SIGSEGV})
        os.sched_setaffinity(0, {everywhere[-1]})  # this thread alone
        a = lm.from_provider(Telling(), delivery=delivery)
        for block in range(3):
            found.append(told(a, block))
            kill_processes()
        found.append(np.array_equal(lm.from_provider(Counting(), dtype="i8", delivery=delivery), Counting().right()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(found) == 4
    assert found.pop() is True
    for there in found:
        assert there["blocked"] == 0
        assert there["affinity"] == everywhere
    if len(everywhere) > 1:  # one that is made by a pinned process is pinned
        os.sched_setaffinity(0, {everywhere[0]})
        assert told(lm.from_provider(Telling(), delivery=delivery))["affinity"] == everywhere[:1]


# ---------------------------------------------------------------------------------------------------------------------------
# From which program

PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np, lazymem as lm
import helper_of_mine

SCALE = 3
def scaled(i, j):
    return helper_of_mine.twice(i) * SCALE + j
class Mine:
    nbytes = 8000
    def __init__(self, more): self.more = more
    def read_into(self, buffer, offset):
        np.frombuffer(buffer, "i8")[:] = np.arange(offset // 8, (offset + len(buffer)) // 8) + self.more()
def outer(k):
    return lambda i: i + k + SCALE
print("once")
a = lm.from_function(scaled, (50, 40), "i8")
b = lm.from_provider(Mine(lambda: SCALE), dtype="i8")
c = lm.from_function(outer(5), 1000, "i8")
d = lm.from_provider(helper_of_mine.Provider(), dtype="i8")
assert np.array_equal(a, np.fromfunction(lambda i, j: 6 * i + j, (50, 40), dtype="i8"))
assert np.array_equal(b, np.arange(1000) + 3) and np.array_equal(c, np.arange(1000) + 8)
assert np.array_equal(d, np.arange(1000) * 2)
print("right")
"""
HELPER = """
import numpy as np
def twice(x): return 2 * x
class Provider:
    nbytes = 8000
    def read_into(self, buffer, offset):
        np.frombuffer(buffer, "i8")[:] = twice(np.arange(offset // 8, (offset + len(buffer)) // 8))
"""
NOTEBOOK = """
import __main__, sys
source = open(sys.argv[1]).read()
__main__.__dict__.pop("__file__", None)
__main__.__dict__.update(In=[], Out={}, get_ipython=lambda: None)
head, tail = source.split("SCALE = 3")
for n, cell in enumerate((head, "SCALE = 3" + tail)):
    exec(compile(cell, f"<ipython-input-{n}-abc>", "exec"), __main__.__dict__)
"""


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("how", ["script", "-c", "REPL", "REPL -i", "notebook", "-m", "stdin"])
def test_from_any_program(how, user, folder):
    text = PROGRAM.format(folder=str(folder))
    script = folder / "program.py"
    script.write_text(text)
    (folder / "helper_of_mine.py").write_text(HELPER)
    (folder / "notebook.py").write_text(NOTEBOOK)
    python = sys.executable
    typed = folder / "typed"  # an interactive interpreter wants an empty line behind a definition
    ends = ("    return", "        np.")
    typed.write_text("\n".join(line + "\n" if line.startswith(ends) else line for line in text.split("\n")))
    command = {
        "script": [python, str(script)],
        "-c": [python, "-c", text],
        "REPL": ["sh", "-c", f"{python} -i - < {typed}"],
        "REPL -i": ["sh", "-c", f"{python} -i < {typed}"],
        "notebook": [python, str(folder / "notebook.py"), str(script)],
        "-m": ["sh", "-c", f"cd {folder} && {python} -m program"],
        "stdin": ["sh", "-c", f"{python} < {script}"],
    }[how]
    status, out, err = run_child(command, user=user)
    assert (status, out.split()) == (0, ["once", "right"]), (status, out, err)
    assert "Traceback" not in err


FLAGS = ["-O", "-OO", "-B", "-Xutf8", "-Xdev", "-Werror", "-Wignore::UserWarning", "-s"]


@pytest.mark.parametrize("flags", [FLAGS[i : i + 3] for i in range(0, len(FLAGS), 3)])
def test_interpreter_flags_go_along(flags):
    code = textwrap.dedent("""
        import json, sys
        import lazymem as lm
        from odd_providers import Telling, tell
        here, there = tell(), json.loads(bytes(lm.from_provider(Telling())[: Telling.block_nbytes]))
        assert there["flags"] == {**here["flags"], "safe_path": True}, (here, there)
        for same in ("warnings", "xoptions", "executable"):
            assert there[same] == here[same], (same, here[same], there[same])
        print(here["flags"], here["warnings"], here["xoptions"])
    """)
    status, out, err = run_child([sys.executable, *flags, "-c", code])
    assert status == 0, err
    assert out.count("'safe_path': False") == 1


def test_a_child_forked_in_the_midst_of_it_can_start_its_own():
    in_child(forks_in_the_midst)


def forks_in_the_midst():
    """Another thread's ring stands at the reserved number meanwhile, and stays there in the child."""
    endings = []
    argv = [b"/bin/true", *[b"long to copy" * 10_000] * 8]
    for turn in range(30):
        setting = Setting(argv, [], 1 << 20, 0)
        about = threading.Event()
        thread = threading.Thread(target=lambda s=setting, e=about: (e.set(), s.start(1)))
        thread.start()
        about.wait()
        until = time.perf_counter() + turn % 20 * 1e-4
        while time.perf_counter() < until:
            pass
        pid = os.fork()
        if pid == 0:
            whole = setting.whole
            try:
                setting.start(1)
                os._exit(0 if whole else 1)
            except OSError:
                os._exit(2)
        endings.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        thread.join()
    assert set(endings) == {0, 1}, "some were in the midst of it; each could"


# ---------------------------------------------------------------------------------------------------------------------------
# No interpreter


@pytest.mark.parametrize("executable", [None, "", "/usr/bin/env", "/no/such/python"])
def test_no_interpreter_is_said_at_construction(executable):
    in_child(no_interpreter, executable)


def no_interpreter(executable):
    real, sys.executable = sys.executable, executable
    for make in (lambda: lm.from_provider(Counting()), lambda: lm.from_function(lambda i: i, 10)):
        with pytest.raises(RuntimeError, match=r"lazymem\.set_executable"):
            make()
    with pytest.raises(FileNotFoundError, match="set_executable"):
        lm.set_executable("/no/such/python")
    with pytest.raises(PermissionError, match="set_executable"):
        lm.set_executable("/etc/passwd")
    with pytest.raises(PermissionError, match="set_executable"):
        lm.set_executable("/usr")
    lm.set_executable(real)
    assert lm.from_provider(Counting(), dtype="i8")[3] == 3
    sys.executable, sys.frozen = real, True
    assert lm.from_provider(Counting(), dtype="i8")[4] == 4


@as_somebody
def test_an_interpreter_that_does_not_start(user, delivery, folder):
    broken = folder / "python-broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    in_child(does_not_start, str(broken), delivery, user=user)


def does_not_start(broken, delivery):
    lm.set_executable(broken)
    a = lm.from_provider(Counting(), dtype="i8", delivery=delivery, retries=1)
    with pytest.raises(lm.PageError, match=r"ended before it was ready.*lazymem\.set_executable"):
        a[0]
    lm.set_executable(sys.executable)
    path, sys.path[:] = list(sys.path), [p for p in sys.path if "python3" in p and "site-packages" not in p]
    a = lm.from_provider(Counting(), dtype="i8", delivery=delivery, retries=1)
    sys.path[:] = path
    with pytest.raises(lm.PageError) as caught:
        a[0]
    assert "ModuleNotFoundError: No module named" in str(caught.value.__cause__), caught.value.__cause__
    assert lm.from_provider(Counting(), dtype="i8", delivery=delivery)[6] == 6


# ---------------------------------------------------------------------------------------------------------------------------
# How long it takes


def test_construction_waits_for_nothing():
    """Figures, with a limit that any machine keeps."""
    print(in_child(construct))


def construct():
    began = time.perf_counter()
    a = lm.from_provider(Counting(), dtype="i8")
    first = time.perf_counter() - began
    assert a[1] == 1
    value = time.perf_counter() - began
    times = []
    for i in range(50):
        began = time.perf_counter()
        lm.from_provider(Counting(shift=i), dtype="i8")
        times.append(time.perf_counter() - began)
    print(f"first {first * 1e3:.1f} ms, first value {value * 1e3:.0f} ms, then {statistics.median(times) * 1e3:.2f} ms each")
    assert first < 0.5
    assert value < 2
    assert statistics.median(times) < 2e-3
    assert len(process_ids()) == 1


def test_a_process_takes_little_memory():
    print(in_child(memory))


def memory():
    a = lm.from_provider(Telling())
    with open(f"/proc/{told(a)['pid']}/status") as f:
        resident = next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
    print(f"{resident / 1024:.1f} MiB resident")
    assert resident < 80 << 10
    assert subprocess.run(["true"], check=True).returncode == 0
