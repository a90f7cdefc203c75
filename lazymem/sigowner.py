"""Who else wants SIGBUS?

faulthandler does, and switches it on or off at any time: switched on after us it would call the next touch fatal, switched
off it would put the default back and take us with it. So its two switches are wrapped, when the first array is made: they do
what they did, then we step in front again. A handler that anybody else installs is found when the next array is made.
"""

from __future__ import annotations

import faulthandler
import functools
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


def own_sigbus() -> None:
    """Be the first to get SIGBUS, and stay it. Blocks: no. GIL: kept."""
    global _followed
    from lazymem.core.inline import take_signals

    take_signals()
    if not _followed:
        _followed = True
        faulthandler.enable = _then_step_in_front(faulthandler.enable)
        faulthandler.disable = _then_step_in_front(faulthandler.disable)
