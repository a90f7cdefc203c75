"""What if arrays come and go while others are touched, at the same addresses as those before them?"""

from __future__ import annotations

from lazymem.soak.actor import Actor

PAUSE_S = 0.03


def start(me: Actor) -> None:
    """The first arrays."""
    for number in range(len(me.field.kinds)):
        me.field.open(me, number)


def act(me: Actor) -> None:
    """Close one of the arrays, and open another in its place. Those of processes stay longer."""
    number = int(me.rng.integers(len(me.field.kinds)))
    if number >= 6 and me.rng.random() < 0.8:
        return
    if me.field.close(me, number):
        me.field.open(me, number)
