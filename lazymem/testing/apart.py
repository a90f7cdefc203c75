"""How does a range server serve code that may hold the GIL while it waits? From a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any, cast
from urllib.parse import quote

from lazymem.testing.rangeserver import RangeServer

_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from lazymem.testing import apart; apart.serve()"
_END_S = 10.0


class ServerApart:
    """A well-behaved `RangeServer` in another process; a context manager. It ends with this process, however that ends.

    Parameters
    ----------
    files : mapping of str to path
        By name.

    Attributes
    ----------
    url : str
        Ends with a slash.

    Raises
    ------
    OSError
        The process did not start; what it had to say is on standard error.
    """

    def __init__(self, files: Mapping[str, str | os.PathLike[str]]) -> None:
        paths = {name: os.path.abspath(os.fspath(path)) for name, path in files.items()}
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, root],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True,
        )  # fmt: skip
        try:
            self.url: str = self._ask(paths)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ServerApart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def url_of(self, name: str) -> str:
        """Where a file is."""
        return self.url + quote(name)

    def counts(self) -> dict[str, int]:
        """How many requests and connections there were, and how many bytes were sent. Blocks: briefly."""
        found: dict[str, int] = self._ask("counts")
        return found

    def close(self) -> None:
        """Stop the process. Blocks: until it has ended."""
        try:
            self._process.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _ask(self, what: Any) -> Any:
        asked, answered = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        try:
            asked.write(json.dumps(what) + "\n")
            asked.flush()
            line = answered.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise OSError("the range server's process has ended")
        return json.loads(line)


def serve() -> None:
    """Be that process: the files come as the first line of standard input, and its end is ours."""
    with RangeServer(json.loads(sys.stdin.readline())) as server:
        print(json.dumps(server.url), flush=True)
        for _ in sys.stdin:
            requests = server.requests
            found = {
                "requests": len(requests), "connections": server.connections, "nbytes": sum(r.nbytes for r in requests)
            }  # fmt: skip
            print(json.dumps(found), flush=True)
