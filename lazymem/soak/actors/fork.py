"""Do forked children read what was there at the fork, while everything goes on here? And multiprocessing's, and theirs?"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import time
import traceback

import numpy as np

import lazymem
from lazymem.soak.actor import Actor
from lazymem.soak.actors.write import write
from lazymem.soak.board import ROWS
from lazymem.soak.field import count_faults
from lazymem.soak.held import Held

COUNTS = ("forks", "spawns")
PAUSE_S = 0.1
_CHILD_S = 30.0


def act(me: Actor) -> None:
    """Fork under load; each child looks at some arrays, has parts of them evicted, and writes to those that may be written."""
    chance = me.rng.random()
    if chance < 0.1:
        with me.within(_CHILD_S, "run a program"):
            subprocess.run(["true"], check=True)
        me.count("spawns")
        return
    # What a child did not get, it fetches; of an array of mode "r+" from where its parent writes: nobody may until it is gone.
    with me.field.use_all() as helds, contextlib.ExitStack() as stack, contextlib.ExitStack() as whole:
        n = min(3, len(helds))
        drawn = [helds[int(i)] for i in me.rng.choice(len(helds), n, replace=False)]
        chosen = [held for held in drawn if (whole if held.kept else stack).enter_context(held.still(0, len(held.expected)))]
        seed = int(me.rng.integers(1 << 31))
        with me.within(_CHILD_S, "fork"):
            if chance < 0.3:
                process = multiprocessing.get_context("fork").Process(target=_child, args=(me, chosen, seed, os.getpid()))
                process.start()
                stack.close()
                process.join()
                code = process.exitcode
            else:
                code = _forked(me, chosen, seed, stack)
        me.count("forks")
        if code:
            me.unexpected(f"a forked child ended with {code}")


def _forked(me: Actor, chosen: list[Held], seed: int, stack: contextlib.ExitStack) -> int:
    here = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            _child(me, chosen, seed, here)
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    stack.close()  # others may write again
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def _child(parent: Actor, chosen: list[Held], seed: int, forked_by: int, generation: int = 1) -> None:
    """The child's life. It takes none of the parent's locks: whoever held them is not here."""
    me = Actor(f"child {generation} of a fork", parent.seed, parent.field, parent.board, ROWS - generation, parent.stop)
    me.rng = np.random.default_rng(seed)
    for held in chosen:
        for _ in range(4):
            if os.getppid() != forked_by:  # which took the sources of some arrays with it
                return
            _look(me, held)
    if generation == 1 and me.rng.random() < 0.3:
        here = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                _child(me, chosen, seed + 1, here, 2)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
                os._exit(9)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        me.count("forks")
        if code:
            me.unexpected(f"a child of a forked child ended with {code}")
        for held in chosen:
            _look(me, held)
    for held in chosen:
        count_faults(me, held)


def _look(me: Actor, held: Held) -> None:
    start, stop = held.part(me.rng, 4 * held.block_words if held.mortal else 1 << 14)
    bad = held.bad_in(start, stop)
    if not bad and not held.mortal:
        what = f"touch [{start}:{stop}], {held.name}"
        with me.within(held.limit_s(start, stop), what):
            me.same(np.asarray(held.array)[start:stop], held.expected[start:stop], what)
    if me.rng.random() < 0.3:
        with me.within(held.limit_s(start, stop), f"evict, {held.name}"):
            lazymem.evict(np.asarray(held.array)[start:stop])
        me.count("evicts")
    if held.written and not bad:
        write(me, held, start, np.full(stop - start, 7, "u8"))  # this process's alone; `expected` is too
    with me.looking(held, start, stop, "read"):
        me.same(held.array[start:stop] + np.uint64(0), held.expected[start:stop], f"read, {held.name}")
