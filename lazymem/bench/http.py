"""How fast does an array of a file behind a URL fill, against urllib3 alone?

nginx on loopback, blocks of 1 MiB, as many connections on both sides: `populate`, and threads of one process that read ranges
through a pool of urllib3 straight into one array. In turns, each into fresh memory, each connection's first request apart.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import lazymem as lm
from lazymem.bench.parts import grouped_spread

BLOCK_NBYTES = 1 << 20
CONNECTIONS = 8
LEAST = 0.8

_CONFIGURATION = """
{user}daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    keepalive_requests 1000000;
    server {{ listen 127.0.0.1:{port}; root {folder}/files; }}
}}
"""


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def _nginx(program: str, content: np.ndarray[Any, Any]) -> Iterator[int]:
    """The port at which nginx serves a file, as /blocks."""
    with tempfile.TemporaryDirectory(prefix="lazymem-bench-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        os.mkdir(os.path.join(folder, "files"))
        content.tofile(os.path.join(folder, "files", "blocks"))
        configuration = os.path.join(folder, "nginx.conf")
        with open(configuration, "w") as f:
            f.write(_CONFIGURATION.format(folder=folder, port=port, user="user root;\n" if os.geteuid() == 0 else ""))
        server = subprocess.Popen([program, "-p", folder, "-c", configuration, "-e", os.path.join(folder, "error.log")])
        try:
            deadline = time.monotonic() + 20
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("nginx does not start")
                time.sleep(0.02)
            yield port
        finally:
            server.terminate()
            server.wait(20)


def _lazily(port: int, content: np.ndarray[Any, Any]) -> int:
    """By `populate`; ns. The first block is there already: the process has started."""
    with lm.memmap(f"http://127.0.0.1:{port}/blocks", block_nbytes=BLOCK_NBYTES, threads=CONNECTIONS) as array:
        array[0]
        began = time.perf_counter_ns()
        lm.populate(array)
        spent = time.perf_counter_ns() - began
        assert np.array_equal(array[:: BLOCK_NBYTES - 1], content[:: BLOCK_NBYTES - 1])
    return spent


def _alone(port: int, content: np.ndarray[Any, Any]) -> int:
    """By urllib3; ns."""
    import urllib3

    array = np.empty_like(content)
    todo = iter(range(0, array.nbytes, BLOCK_NBYTES))
    pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=CONNECTIONS)

    def fetch(start: int) -> None:
        into = array.data[start : start + BLOCK_NBYTES]
        headers = {"Range": f"bytes={start}-{start + len(into) - 1}", "Accept-Encoding": "identity"}
        answer = pool.request("GET", "/blocks", headers=headers, preload_content=False)
        assert answer.status == 206
        done = 0
        while done < len(into):
            n = answer.readinto(into[done:])
            assert n
            done += n
        answer.release_conn()

    def fetch_all() -> None:
        for start in todo:
            fetch(start)

    fetch(next(todo))
    threads = [threading.Thread(target=fetch_all) for _ in range(CONNECTIONS)]
    began = time.perf_counter_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter_ns() - began
    pool.close()
    assert np.array_equal(array[:: BLOCK_NBYTES - 1], content[:: BLOCK_NBYTES - 1])
    return spent


def http(quick: bool) -> Iterator[dict[str, Any]]:
    """The row, or none: then it is said what is missing."""
    program = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    try:
        import urllib3  # noqa: F401
    except ImportError:
        program = None
    if program is None:
        missing = "nginx (Debian: nginx-light), or urllib3 (the extra `http`)"
        print(f"bench provider: http: skipped: there is no {missing}", file=sys.stderr)
        return
    nbytes, pairs = (8 << 20, 2) if quick else (256 << 20, 15)
    content = np.random.default_rng(4).integers(0, 256, nbytes, np.uint8)
    with _nginx(program, content) as port:
        _lazily(port, content), _alone(port, content)
        taken = []
        for i in range(pairs):
            if i % 2:
                lazy_ns = _lazily(port, content)
                plain_ns = _alone(port, content)
            else:
                plain_ns = _alone(port, content)
                lazy_ns = _lazily(port, content)
            taken.append((lazy_ns, plain_ns))
    ratios = [plain / lazy for lazy, plain in taken]
    lazy, plain = (round(statistics.median(each[i] for each in taken)) for i in range(2))
    of = f"throughput of populate, {nbytes >> 20} MiB from nginx on loopback, {CONNECTIONS} connections, against urllib3 alone"
    row = {"case": "http", "of": of, "value": round(statistics.median(ratios), 4), "unit": "ratio", "least": LEAST}
    row |= {"lazy_ns": lazy, "plain_ns": plain, "block_nbytes": BLOCK_NBYTES}
    yield row | {"spread": grouped_spread(ratios), "n": pairs}
