from collections.abc import Callable
from typing import Any

import numpy as np

from lazymem.core.memory import Memory

class LazyBase(np.ndarray[Any, Any]): ...

largest_export_nbytes: int

def owner(x: LazyBase) -> Memory | None: ...
def bounds(x: np.ndarray[Any, Any]) -> tuple[int, int]: ...
def run_plain(
    method: Callable[..., Any], self: LazyBase, args: tuple[Any, ...], kwargs: dict[str, Any], reads_all: bool = False
) -> Any: ...
def run_view(method: Callable[..., Any], self: LazyBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...
