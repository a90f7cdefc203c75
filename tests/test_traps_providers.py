"""Traps of the kernel's and of Python's that a slow provider steps into: what becomes of them?"""

import os

import pytest
from support import check_child, each_user, needs_root, run_child

SLOW = """
    import os, signal, threading, time
    import numpy as np
    import lazymem as lm

    class Slow(lm.providers.Provider):
        nbytes = 1 << 20
        def __init__(self, seconds):
            self.seconds = seconds
        def read_into(self, buffer, offset):
            time.sleep(self.seconds)
            buffer[:] = bytes([offset // 65536 + 1]) * len(buffer)
"""


@needs_root
@pytest.mark.slow
def test_signals_pending_while_a_system_call_waits_for_a_page():
    """Trap 13: the kernel restarts such a fault at once, so the wait costs a core; it ends, and the bytes are right."""
    out = check_child(
        SLOW
        + """
    a = lm.from_provider(Slow(0.3), block_nbytes=65536, delivery="threads")
    signal.signal(signal.SIGALRM, lambda *given: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    view = np.asarray(a)
    null = os.open("/dev/null", os.O_WRONLY)
    file = os.memfd_create("written")
    done = 0
    while done < 3 * 65536:
        try:
            done += os.write(file, view[done : 3 * 65536])
        except InterruptedError:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.lseek(file, 0, 0)
    assert os.read(file, 3 * 65536) == b"".join(bytes([i]) * 65536 for i in (1, 2, 3))
    used = os.times()
    print("cpu", used.user + used.system)
    """,
        timeout=60,
    )
    assert out.startswith("cpu ")


@each_user
def test_signals_at_a_kilohertz_while_a_touch_waits(delivery, user):
    """The toucher's handlers run while its page is missing; it fetches each block once."""
    check_child(
        SLOW
        + f"""
    a = lm.from_provider(Slow(0.05), block_nbytes=65536, delivery={delivery!r})
    came = 0
    def handler(*given):
        global came
        came += 1
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    view = np.asarray(a)
    for block in range(8):
        assert view[block * 65536 + 5] == block + 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert came > 5
    assert lm.stats(a).blocks == 8
    """,
        user=user,
    )


@each_user
def test_a_black_hole_is_an_error_in_time(delivery, user):
    """Traps 17 and 51: something that takes connections and never answers."""
    status, out, err = run_child(
        f"""
    import socket, time
    import lazymem as lm
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    start = time.monotonic()
    try:
        lm.open(f"http://127.0.0.1:{{listening.getsockname()[1]}}/a.npy", delivery={delivery!r},
                storage_options={{"timeout": 0.3, "deadline": 0.6}})
    except OSError as error:
        print(type(error).__name__, time.monotonic() - start)
    """,
        timeout=60,
        user=user,
    )
    if "lazymem[http]" in err:
        pytest.skip("urllib3 is not installed")
    assert status == 0, err
    name, took_s = out.split()
    assert name in ("TimeoutError", "ConnectionError", "OSError")
    assert float(took_s) < 10


def test_many_slow_touchers_leave_readers_for_others():
    """Trap 16, mildly: more threads than there are handlers wait for one provider, and others are served meanwhile."""
    delivery = "inline" if os.geteuid() and not os.access("/dev/userfaultfd", os.R_OK) else "threads"
    check_child(
        SLOW
        + f"""
    slow = lm.from_provider(Slow(1.5), block_nbytes=65536, delivery={delivery!r}, threads=2)
    other = lm.from_provider(bytes(range(256)) * 256, delivery={delivery!r})
    view = np.asarray(slow)
    threads = [threading.Thread(target=lambda i=i: view[i * 65536]) for i in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    start = time.monotonic()
    assert np.asarray(other)[300] == 44
    took_s = time.monotonic() - start
    for thread in threads:
        thread.join()
    assert took_s < 0.5, took_s
    assert [int(view[i * 65536]) for i in range(6)] == list(range(1, 7))
    """
    )
