"""What if a thousand signals a second come in between?

To the main thread, which reads too, and, while it blocks them, to any other. Python's handler is run for fewer: those that
come while one waits to be heard are one.
"""

from __future__ import annotations

import signal

from lazymem.soak.actor import Actor
from lazymem.soak.actors import touch

THREADS = 0
COUNTS = ("signals",)
_PERIOD_S = 0.001


def start(me: Actor) -> None:
    """A signal each millisecond from here on."""

    def heard(number: int, frame: object) -> None:
        me.count("signals")

    signal.signal(signal.SIGALRM, heard)
    signal.setitimer(signal.ITIMER_REAL, _PERIOD_S, _PERIOD_S)


def act(me: Actor) -> None:
    """Read; now and then not as the one that gets the signals."""
    if me.rng.random() < 0.1:
        signal.pthread_sigmask(signal.SIG_BLOCK if me.rng.random() < 0.5 else signal.SIG_UNBLOCK, [signal.SIGALRM])
    touch.act(me)


def end(me: Actor) -> None:
    """No more signals."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
