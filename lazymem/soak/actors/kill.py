"""What if provider processes are killed, or stand still until they are?"""

from __future__ import annotations

import contextlib
import os
import signal

from lazymem.core.provider import process_ids
from lazymem.soak.actor import Actor

COUNTS = ("kills", "stops")
PAUSE_S = 2.0  # a process that is started again has some time to serve


def _is_ours(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1]) == os.getpid()
    except OSError:
        return False


def act(me: Actor) -> None:
    """End one; or stop one, as a hang would: it is killed at its timeout."""
    pids = [pid for pid in process_ids() if _is_ours(pid)]
    if not pids:
        return
    stops = me.rng.random() < 0.1
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(me.rng.choice(pids)), signal.SIGSTOP if stops else signal.SIGKILL)
        me.count("stops" if stops else "kills")
