"""What does provider.pyx offer to type checkers?"""

from collections.abc import Callable

from lazymem.core.source import NativeSource

LAST_WORDS_AT: int
LAST_WORDS_NBYTES: int
PROCESSES_LIMIT: int

class Setting:
    block_nbytes: int
    spin_ns: int
    def __init__(self, argv: list[bytes], envp: list[bytes], block_nbytes: int, spin_ns: int) -> None: ...
    @property
    def whole(self) -> bool: ...
    def start(self, processes: int) -> None: ...

class ProviderSource(NativeSource):
    setting: Setting
    pickled: bytes
    stored: bytes | None
    identity: int
    processes: int
    attempts: int
    has_own: bool
    def __init__(
        self,
        setting: Setting,
        pickled: bytes,
        nbytes: int,
        identity: int,
        processes: int,
        timeout_ns: int,
        deadline_ns: int,
        retries: int,
        stored: bytes | None,
        writable: bool = False,
    ) -> None: ...

def process_ids() -> list[int]: ...
def in_provider_process() -> bool: ...
def attend(write: Callable[[int, bytes], None]) -> None: ...
def flush(timeout_ns: int) -> None: ...
def drain(write: Callable[[int, bytes], None]) -> None: ...
