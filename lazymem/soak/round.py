"""What happens in one round? This process is it: everybody acts until the time is over, then it ends, in one way or another.

It takes BOARD SEED SECONDS FILE WORDS URL SPOIL (lazymem.soak.command).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import warnings
from types import ModuleType

from lazymem.soak import spoil
from lazymem.soak.actor import Actor
from lazymem.soak.actors import everybody
from lazymem.soak.board import COUNTS, FORKED_ROWS, ROWS, Board
from lazymem.soak.field import Field
from lazymem.soak.leaks import left_since, possessions
from lazymem.soak.sources import Place, deliveries_here

# Of eight rounds so many end with arrays open and threads in the midst of touches: by sys.exit, by SIGTERM.
_ENDS = ("closed", "closed", "closed", "exit", "closed", "closed", "term", "closed")


def counts_of(actors: list[ModuleType]) -> tuple[str, ...]:
    """What a round with these actors counts."""
    return (*COUNTS, *(name for actor in actors for name in getattr(actor, "COUNTS", ())))


def end_of(seed: int) -> str:
    """How the round of a seed ends: "closed", "exit" or "term"."""
    return _ENDS[seed // 2 % len(_ENDS)]


def can_move(seed: int) -> bool:
    """May memory be moved in the round of a seed? In every second not: with guards and without, however it ends."""
    return (seed + seed // 2) % 2 == 0


def _run(module: ModuleType, me: Actor, until: float) -> None:
    pause_s = getattr(module, "PAUSE_S", 0.0)
    while not me.stop.is_set() and time.monotonic() < until:
        me.step(module.act)
        if pause_s:
            me.stop.wait(pause_s)


class Round:
    """One round.

    Parameters
    ----------
    board : Board
    seed : int
    place : Place
    """

    def __init__(self, board: Board, seed: int, place: Place) -> None:
        self.board, self.seed, self.place = board, seed, place
        self.stop = threading.Event()
        self.field = Field(place)
        self.modules = [m for m in everybody() if not hasattr(m, "plays") or m.plays(seed)]
        self.rows = 0

    def actor(self, name: str, field: Field | None = None) -> Actor:
        """Somebody with a row of his own."""
        self.rows += 1
        if self.rows > ROWS - FORKED_ROWS:
            raise ValueError(f"more than {ROWS - FORKED_ROWS} threads of actors: board.ROWS")
        return Actor(name, self.seed, field or self.field, self.board, self.rows - 1, self.stop)

    def warm_up(self) -> None:
        """Every kind of array once, so that what stays for good is there before anything is counted as left over."""
        field = Field(self.place)
        me = self.actor("warm up", field)
        for delivery in self.place.deliveries:
            for number in range(len(field.kinds)):
                field.open(me, number)
                with field.use_all() as helds:
                    for held in helds:
                        first = 0 if not held.bad[0] else held.block_words * int(held.bad.argmin())
                        with me.within(30.0, f"warm up, {held.name}"):
                            me.same(held.array[first : first + 1], held.expected[first : first + 1], delivery)
                    del helds, held
                field.close(me, number)

    def play(self, seconds: float) -> None:
        """Everybody, for so long."""
        until = time.monotonic() + seconds
        threads, on_main = [], []
        for module in self.modules:
            name = module.__name__.rpartition(".")[2]
            number = getattr(module, "THREADS", 1)
            for actor in [self.actor(f"{name} {i}") for i in range(max(1, number))]:
                if hasattr(module, "start"):
                    module.start(actor)
                if number == 0:  # Python's signals are the main thread's
                    on_main.append((module, actor))
                else:
                    threads.append(threading.Thread(target=_run, args=(module, actor, until), name=actor.name, daemon=True))
        for thread in threads:
            thread.start()
        for module, actor in on_main:
            _run(module, actor, until)
        for module, actor in on_main:
            if hasattr(module, "end"):
                module.end(actor)
        me = self.actor("closing")
        if end_of(self.seed) != "closed":
            self.field.count_open(me)
            return
        self.stop.set()
        for thread in threads:
            thread.join()
        self.field.close_all(me)


def main(argv: list[str]) -> int:
    """Play one round; the exit status says nothing of what was found, the board does."""
    path, seed, seconds, file, file_words, url, spoiled = argv
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads: that is what is tried here
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    sys.setswitchinterval(0.0005)  # threads of Python meet more often
    modules = everybody()
    board = Board(path, counts_of(modules))
    place = Place(file, url or None, int(seed), int(file_words), deliveries_here())
    round_ = Round(board, int(seed), place)
    round_.warm_up()
    before = possessions()
    if spoiled:
        spoil.act(round_.actor("spoil"), spoiled)
    round_.play(float(seconds))
    end = end_of(int(seed))
    if end == "exit":
        sys.exit(0)
    if end == "term":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    me = round_.actor("leaks")
    left = left_since(before)
    for what, names in left.items():
        me.count(f"leaked_{what}", names.total())
        if names:
            me.say(f"{what} that were not there before: {dict(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
