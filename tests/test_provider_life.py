"""Is a provider process gone when nobody needs it, however its parent ends, and does it take nobody with it?"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from native_kit import in_child
from odd_providers import PAGE, Counting, Odd
from somebody import as_somebody
from support import IS_ROOT, PATIENCE, run_child, wait_until

import lazymem as lm
from lazymem.core.provider import process_ids

MARK = "LAZYMEM_TEST_MARK"


def array_of(provider, **options):
    return lm.from_provider(provider, dtype="i8", **{"block_nbytes": PAGE, **options})


def marked(mark):
    """The provider processes of programs that were started with this mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
            if mark.encode() in words[0] and b"lazymem-provider" in words[1]:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def kill_and_wait(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids))


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------------------------------------------------------------
# When the parent ends

# What the program is doing with the process when it ends
STATES = {
    "just made": "",
    "starting": "lm.prefetch(a)",
    "idle": "assert a[5] == 5",
    "fetching": "lm.prefetch(odd('sleeps')); time.sleep(0.3)",
    "fetching for a thread": """
threading.Thread(target=lm.populate, args=(odd('sleeps'),), daemon=True).start(); time.sleep(0.3)
""",
    "holding its GIL": "lm.prefetch(odd('sleeps_in_c')); time.sleep(0.3)",
    "stopped": "assert a[5] == 5; os.kill(process_ids()[0], signal.SIGSTOP); time.sleep(0.1)",
    "failed": """
try: odd('raises')[0]
except lm.PageError: pass
""",
    "killed": "assert a[5] == 5; os.kill(process_ids()[0], signal.SIGKILL)",
    "printing": "b = odd('prints_for_ever'); assert b[5] == 5; time.sleep(0.1)",
    "touched all the time": """
def touch():
    while True: assert np.asarray(array())[5] == 5
threading.Thread(target=touch, daemon=True).start(); time.sleep(0.2)
""",
    "closed": "assert a[5] == 5; lm.close(a)",
}
# How it ends: code, and the status that everybody sees
ENDS = {
    "its end": ("pass", 0),
    "sys.exit": ("sys.exit(5)", 5),
    "exception": ("raise SystemError('on purpose')", 1),
    "os._exit": ("os._exit(6)", 6),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
}
PROGRAM = """
import os, signal, sys, threading, time
import numpy as np, lazymem as lm
from lazymem.core.provider import process_ids
from odd_providers import Counting, Odd
def array(): return lm.from_provider(Counting(), dtype="i8", delivery={delivery!r})
def odd(act): return lm.from_provider(Odd(act), dtype="i8", delivery={delivery!r})
a = array()
{state}
os.write(3, b"%r" % time.monotonic())
{end}
"""
# Of an end by the interpreter every state is tried; of one that it knows nothing of, some.
CASES = [(s, e) for s in STATES for e in ("its end", "sys.exit", "exception")]
CASES += [(s, e) for s in ("just made", "fetching", "holding its GIL", "stopped") for e in ("os._exit", "SIGKILL", "SIGTERM")]


@pytest.mark.thin
@as_somebody
@pytest.mark.parametrize("state", STATES)
def test_the_program_ends_as_it_says_and_its_process_with_it(state, user, delivery, folder):
    for n, (_, end) in enumerate(case for case in CASES if case[0] == state):
        code, wanted = ENDS[end]
        mark = uuid.uuid4().hex
        said = folder / f"said-{n}"
        program = f"import os\nos.dup2(os.open({str(said)!r}, os.O_CREAT | os.O_WRONLY, 0o666), 3)\n" + PROGRAM.format(
            delivery=delivery, state=STATES[state], end=code
        )
        status, out, err = run_child(program, user=user, env={MARK: mark}, timeout=30)
        took = time.monotonic() - float(said.read_text())
        assert status == wanted, (end, status, out, err)
        assert took < 2 * PATIENCE, (end, took)
        if state != "printing":
            assert out == ""
            noise = err.replace("SystemError: on purpose", "") if end == "exception" else err
            assert noise.count("Traceback") == (end == "exception")
            assert "rror" not in noise, noise
        assert "atal" not in err
        if state == "stopped" and end.startswith(("SIG", "os.")):
            for pid in marked(mark):  # nobody but who stopped it can let it see that it is alone
                os.kill(pid, signal.SIGCONT)
        assert wait_until(lambda mark=mark: not marked(mark), 3), (end, marked(mark))


# ---------------------------------------------------------------------------------------------------------------------------
# Children: ours, and those that are not


@pytest.mark.thin
@as_somebody
@pytest.mark.parametrize("handler", ["none", "reaps all", "ignored", "set late"])
def test_children_are_reaped_by_whoever_made_them(handler, user, delivery):
    in_child(reap, handler, delivery, user=user)


def reap(handler, delivery):
    reaped = []

    def reap_all(*_):
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                reaped.append((pid, os.waitstatus_to_exitcode(status)))
        except ChildProcessError:
            pass

    handlers = {"none": signal.SIG_DFL, "reaps all": reap_all, "ignored": signal.SIG_IGN}
    if handler in handlers:
        signal.signal(signal.SIGCHLD, handlers[handler])
    a = array_of(Counting(), delivery=delivery)
    assert a[0] == 0
    if handler == "set late":
        signal.signal(signal.SIGCHLD, reap_all)
    mine = [subprocess.Popen(["sh", "-c", f"exit {n}"]) for n in range(3)]
    seen = set()
    for turn in range(3):
        pids = process_ids()
        seen.update(pids)
        kill_and_wait(pids)
        assert np.array_equal(array_of(Counting(shift=turn), delivery=delivery), Counting(shift=turn).right())
    assert len(seen) == 3
    assert wait_until(lambda: not any(map(is_zombie, seen))), "none of ours is left as a zombie"
    if handler == "none":
        time.sleep(0.2)
        assert all(is_zombie(p.pid) for p in mine), "the program's are the program's"
        assert [p.wait() for p in mine] == [0, 1, 2]
    elif handler != "ignored":
        assert wait_until(lambda: {(p.pid, n) for n, p in enumerate(mine)} <= set(reaped))
    assert np.array_equal(a, Counting().right())


@pytest.mark.skipif(not IS_ROOT, reason="only root may choose the number of the next process")
def test_a_number_that_is_another_processes_now(delivery):
    in_child(number_again, delivery)


def number_again(delivery):
    a = array_of(Counting(), delivery=delivery)
    assert a[0] == 0
    [pid] = process_ids()
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[0] == pid  # by the program, not by us
    for _ in range(100):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        child = subprocess.Popen(["sleep", "60"])
        if child.pid == pid:
            break
        child.kill()
        child.wait()
    else:
        pytest.skip("the number is not to be had")
    assert np.array_equal(a, Counting().right())
    time.sleep(0.3)
    assert child.poll() is None, "a child of the program's own was killed"
    child.kill()
    time.sleep(0.3)
    assert is_zombie(pid), "or reaped"
    assert child.wait() == -signal.SIGKILL


# ---------------------------------------------------------------------------------------------------------------------------
# A forked child


@as_somebody
def test_a_forked_child_has_processes_of_its_own(user, delivery):
    in_child(fork, delivery, user=user)


def fork(delivery):
    a = array_of(Counting(), delivery=delivery)
    assert a[0] == 0
    [ours] = process_ids()
    children = []
    for how in ("makes", "makes and exits at once", "makes none", "forks again"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                in_the_child(how, ours, delivery)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert process_ids() == [ours]
    assert np.array_equal(a, Counting().right())
    assert not is_zombie(ours)


def in_the_child(how, ours, delivery):
    assert process_ids() == []
    if how == "makes none":
        return
    b = array_of(Counting(shift=1), delivery=delivery)
    if how == "makes and exits at once":
        return
    if how == "forks again":
        pid = os.fork()
        if pid == 0:
            os._exit(not np.array_equal(array_of(Counting(shift=2), delivery=delivery), Counting(shift=2).right()))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(b, Counting(shift=1).right())
    [own] = process_ids()
    assert own != ours
    kill_and_wait([own])
    assert np.array_equal(array_of(Counting(shift=3), delivery=delivery), Counting(shift=3).right())
    assert wait_until(lambda: not is_zombie(own))


@pytest.mark.slow
@as_somebody
def test_forks_while_processes_start(user, delivery):
    in_child(fork_while_starting, delivery, user=user)


def fork_while_starting(delivery):
    """What a thread of the parent held when it forked is held by nobody in the child."""
    stop = threading.Event()

    def start():
        while not stop.is_set():
            assert array_of(Counting(), delivery=delivery, retries=16)[7] == 7
            for pid in process_ids():
                os.kill(pid, signal.SIGKILL)

    assert array_of(Counting(), delivery=delivery)[7] == 7  # no thread is importing anything any more
    starting = [threading.Thread(target=start) for _ in range(2)]
    for thread in starting:
        thread.start()
    for turn in range(12):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(int(array_of(Counting(shift=turn), delivery=delivery)[1]) != turn + 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, turn
    stop.set()
    for thread in starting:
        thread.join()


def test_a_program_that_closed_its_output():
    code = textwrap.dedent("""
        import os, sys, lazymem as lm
        from odd_providers import Odd
        sys.stdout.close()
        os.close(2)
        assert lm.from_provider(Odd("prints"), dtype="i8")[3] == 3
    """)
    assert run_child([sys.executable, "-c", code])[0] == 0


@as_somebody
def test_one_that_is_stopped_before_it_is_ready_is_not_waited_for(user, delivery):
    in_child(stopped_before_it_is_ready, delivery, user=user)


def stopped_before_it_is_ready(delivery):
    """Its array, which has processes of its own since it hung in one, is closed: it has nothing to bring to an end."""
    a = array_of(Odd("sleeps"), delivery=delivery, timeout=1, retries=3)
    (shared,) = process_ids()
    lm.prefetch(a[:1])
    own = []
    assert wait_until(lambda: own.extend(pid for pid in process_ids() if pid != shared) or own)
    os.kill(own[0], signal.SIGSTOP)
    lm.close(a)
    assert wait_until(lambda: not os.path.exists(f"/proc/{own[0]}")), "it is there still"
    assert wait_until(lambda: own[0] not in process_ids())
