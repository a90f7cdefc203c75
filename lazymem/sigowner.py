"""Who else wants SIGBUS, SIGSEGV and SIGINT?

faulthandler does, and switches it on or off at any time: switched on after us it would call the next touch fatal, switched
off it would put the default back and take us with it. So its two switches are wrapped, when the first array is made: they do
what they did, then we step in front again. A handler that anybody else installs is found when the next array is made.

SIGINT stays whose it is. But whether it is Python's default handler's decides what a touch that waits does with it
(core/interrupt.pyx), and only `signal.signal` knows; so that is wrapped too, and tells.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import faulthandler
import functools
import signal
from collections.abc import Callable
from typing import Any

_followed = False


def _then_step_in_front(switch: Callable[..., Any]) -> Callable[..., Any]:
    from lazymem.core.inline import take_signals

    @functools.wraps(switch)
    def switched(*args: Any, **kwargs: Any) -> Any:
        result = switch(*args, **kwargs)
        take_signals()
        return result

    return switched


def _then_tell_whose(assign: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(assign)
    def assigned(signalnum: Any, handler: Any) -> Any:
        before = assign(signalnum, handler)
        if signalnum == signal.SIGINT:
            _tell_whose()
        return before

    return assigned


def _tell_whose() -> None:
    from lazymem.core.interrupt import set_default

    set_default(signal.getsignal(signal.SIGINT) is signal.default_int_handler)


def own_signals(segv: bool) -> None:
    """Be the first to get SIGBUS, and SIGSEGV if it is wanted, and stay it. Blocks: no. GIL: kept."""
    global _followed
    from lazymem.core.inline import take_signals

    take_signals(segv)
    if not _followed:
        _followed = True
        faulthandler.enable = _then_step_in_front(faulthandler.enable)
        faulthandler.disable = _then_step_in_front(faulthandler.disable)
        _signal.signal = _then_tell_whose(_signal.signal)  # what signal.signal calls, and whoever imported that before us
        _tell_whose()
