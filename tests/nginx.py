"""How does a test get an nginx of its own: its folder, its port, its user, gone afterwards?"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import IS_ROOT, PATIENCE, wait_until

# Ordinary users often have no sbin in their PATH.
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")

# The master's user is the worker's, so that both may read the folder; only root is asked to name it.
_CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log combined;
    client_body_temp_path {folder}/temp-body;
    proxy_temp_path {folder}/temp-proxy;
    fastcgi_temp_path {folder}/temp-fastcgi;
    uwsgi_temp_path {folder}/temp-uwsgi;
    scgi_temp_path {folder}/temp-scgi;
    default_type application/octet-stream;
    sendfile on;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/files;
        keepalive_requests 1000000;
        {more}
    }}
}}
"""


class Nginx:
    """A running nginx.

    Attributes
    ----------
    files : Path
        What it serves is in here.
    url : str
        Ends with a slash.
    """

    def __init__(self, folder: Path, more: str) -> None:
        self._folder = folder
        self._more = more
        self.files = folder / "files"
        self.files.mkdir()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def log(self) -> list[str]:
        """The access log's lines."""
        return (self._folder / "access.log").read_text().splitlines()

    def start(self) -> None:
        """Start it; again on the same port."""
        for _ in range(20):  # a port that is free now may be taken a moment later
            port = self.port or _free_port()
            text = _CONFIGURATION.format(
                folder=self._folder, port=port, more=self._more, user="user root;" if IS_ROOT else ""
            )  # fmt: skip
            configuration = self._folder / "nginx.conf"
            configuration.write_text(text)
            assert NGINX is not None
            command = [NGINX, "-p", str(self._folder), "-c", str(configuration), "-e", str(self._folder / "error.log")]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            if (
                wait_until(lambda port=port: self._process.poll() is not None or _answers(port))
                and self._process.poll() is None
            ):
                self.port = port
                return
            self.stop()
        pytest.fail(f"nginx does not start: {(self._folder / 'error.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop it at once, connections and all."""
        self._process.terminate()
        try:
            self._process.wait(10 * PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def run_nginx(more: str = "") -> Iterator[Nginx]:
    """Run nginx on loopback; `more` goes into its server block."""
    folder = Path(tempfile.mkdtemp(prefix="lazymem-nginx-"))
    try:
        folder.chmod(0o755)
        server = Nginx(folder, more)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        time.sleep(0.01)
        return False
