"""What does serve.pyx offer to type checkers?"""

from collections.abc import Callable
from typing import Any

THREADS_MAX: int
AGAIN: int
FAILED: int
CYCLE: int

class Server:
    def __init__(
        self,
        fd: int,
        load: Callable[[bytes], tuple[Any, Any, Any]],
        explain: Callable[[BaseException], tuple[int, bytes]],
        grow: Callable[[], None],
        tidy: Callable[[], Any] | None,
        forget: Callable[[Any], None],
    ) -> None: ...
    def ready(self) -> None: ...
    def serve(self) -> None: ...
    def finish(self) -> None: ...
