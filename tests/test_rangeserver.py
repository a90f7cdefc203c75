"""Does the range server serve rightly, misbehave exactly as ordered, and end?"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from http_kit import BODY
from support import check_child, wait_until

from lazymem.testing import Misbehaviour, RangeServer, ServerApart


@pytest.fixture
def server(folder):
    (folder / "file.bin").write_bytes(BODY)
    with RangeServer({"a.bin": BODY, "file.bin": folder / "file.bin", "empty.bin": b""}) as made:
        yield made


def ask(server, name, fields=None, method="GET"):
    """Status, fields and body, on a connection of its own; what came of the body if it was cut short."""
    connection = http.client.HTTPConnection(server.url.split("/")[2], timeout=10)
    try:
        connection.request(method, "/" + name, headers=fields or {})
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as error:
            body = error.partial
        return answer.status, dict(answer.getheaders()), body
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["a.bin", "file.bin"])
@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-0", 206, 0, 1), ("bytes=5-9", 206, 5, 10), ("bytes=299999-", 206, 299_999, 300_000),
        ("bytes=-7", 206, 299_993, 300_000),
        ("bytes=5-999999", 206, 5, 300_000), ("bytes=-999999", 206, 0, 300_000), (None, 200, 0, 300_000),
        ("bytes=0-1,5-6", 200, 0, 300_000), ("lines=0-1", 200, 0, 300_000), ("bytes=-", 200, 0, 300_000),
    ],
)  # fmt: skip
def test_ranges(server, name, asked, status, start, stop):
    got = ask(server, name, {} if asked is None else {"Range": asked})
    assert (got[0], got[2]) == (status, BODY[start:stop])
    assert got[1]["Content-Length"] == str(stop - start)
    assert got[1].get("Content-Range") == (f"bytes {start}-{stop - 1}/300000" if status == 206 else None)
    assert ask(server, name, {} if asked is None else {"Range": asked}, "HEAD")[::2] == (status, b"")


@pytest.mark.parametrize(("name", "asked"), [("a.bin", "bytes=300000-"), ("a.bin", "bytes=9-5"), ("empty.bin", "bytes=0-0")])
def test_what_cannot_be_had(server, name, asked):
    status, fields, body = ask(server, name, {"Range": asked})
    assert (status, body, fields["Content-Range"]) == (416, b"", f"bytes */{0 if name == 'empty.bin' else 300000}")
    assert ask(server, "no.bin")[0] == 404


def test_if_range_and_other_bytes(server):
    _, fields, _ = ask(server, "a.bin")
    for known in (fields["ETag"], fields["Last-Modified"]):
        assert ask(server, "a.bin", {"Range": "bytes=0-4", "If-Range": known})[::2] == (206, BODY[:5])
    server.put("a.bin", BODY[::-1])
    assert ask(server, "a.bin", {"Range": "bytes=0-4", "If-Range": fields["ETag"]})[::2] == (200, BODY[::-1])


def test_orders_are_for_whom_they_are_for(server):
    server.misbehave(Misbehaviour(status=503), times=2, name="a.bin")
    server.misbehave(Misbehaviour(status=500), after=1, times=1)
    server.misbehave(Misbehaviour(status=418), name="other.bin")
    seen = [ask(server, name)[0] for name in ("file.bin", "a.bin", "file.bin", "a.bin", "a.bin", "file.bin", "other.bin")]
    assert seen == [200, 503, 500, 503, 200, 200, 418]
    server.behave()
    assert ask(server, "other.bin")[0] == 404
    assert [request.status for request in server.requests] == [*seen, 404]


@pytest.mark.parametrize(
    ("how", "status", "body", "fields"),
    [
        (Misbehaviour(ranges=False), 200, BODY, {"Accept-Ranges": "none"}),
        (Misbehaviour(shift_nbytes=2), 206, BODY[12:22], {"Content-Range": "bytes 12-21/300000"}),
        (Misbehaviour(total_error_nbytes=-1), 206, BODY[10:20], {"Content-Range": "bytes 10-19/299999"}),
        (Misbehaviour(length_error_nbytes=5), 206, BODY[10:20], {"Content-Length": "15"}),
        (Misbehaviour(length_error_nbytes=-5), 206, BODY[10:15], {"Content-Length": "5"}),
        (Misbehaviour(extra_nbytes=-3), 206, BODY[10:17], {"Content-Length": "10"}),
        (Misbehaviour(fields={"etag": '"x"', "X-New": "y", "Last-Modified": None}), 206, BODY[10:20],
         {"etag": '"x"', "X-New": "y", "ETag": None, "Last-Modified": None}),
        (Misbehaviour(chunk_nbytes=3), 206, BODY[10:20], {"Transfer-Encoding": "chunked", "Content-Length": None}),
        (Misbehaviour(fields={"Content-Length": None}), 206, BODY[10:20], {"Content-Length": None}),
        (Misbehaviour(padding_nbytes=5000), 206, BODY[10:20], {"X-Padding": "x" * 5000}),
        (Misbehaviour(before=b"HTTP/1.1 100 Continue\r\n\r\n"), 206, BODY[10:20], {}),
        (Misbehaviour(multipart=True), 206,
         b"--next\r\nContent-Range: bytes 10-19/300000\r\n\r\n" + BODY[10:20] + b"\r\n--next--\r\n", {"Content-Range": None}),
        (Misbehaviour.redirect("/b", 307), 307, b"", {"Location": "/b"}),
    ],
)  # fmt: skip
def test_misbehaviours(server, how, status, body, fields):
    server.misbehave(how)
    got = ask(server, "a.bin", {"Range": "bytes=10-19"})
    assert got[0] == status
    assert got[2] == body
    assert {name: got[1].get(name) for name in fields} == fields


def raw(server, nbytes=1 << 20):
    """What comes back over a bare socket, and how it ended."""
    host, port = server.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(b"GET /a.bin HTTP/1.1\r\nRange: bytes=0-99\r\n\r\n")
        got = b""
        try:
            while len(got) < nbytes and (piece := link.recv(1 << 16)):
                got += piece
        except ConnectionResetError:
            return got, "reset"
        return got, "closed" if len(got) < nbytes else "open"


@pytest.mark.parametrize("n", [0, 1, 50, 300])
def test_reset_and_stall_after_so_many_bytes(server, n):
    server.misbehave(Misbehaviour(reset_after=n))
    got, end = raw(server)
    assert (len(got), end) == (n, "reset")
    server.behave()
    server.misbehave(Misbehaviour(stall_after=n))
    if n:
        got, end = raw(server, n)
        assert (len(got), end) == (n, "open")
    assert wait_until(lambda: server.requests[-1].nbytes == n)


def test_noise_instead(server):
    server.misbehave(Misbehaviour(instead=b"\0noise"))
    assert raw(server) == (b"\0noise", "closed")


def test_late_and_slow(server):
    for how in (Misbehaviour(delay_s=0.3), Misbehaviour(bytes_per_s=1100)):
        server.behave()
        server.misbehave(how)
        begun = time.monotonic()
        assert ask(server, "a.bin", {"Range": "bytes=0-99"})[2] == BODY[:100]
        assert 0.25 < time.monotonic() - begun < 5


def test_closing_breaks_everything_off():
    """Stalls, delays, slow answers, kept connections: nothing holds it up, and no thread is left."""
    before = threading.active_count()
    server = RangeServer({"a.bin": BODY})
    host, port = server.url.split("/")[2].split(":")
    links = []
    for how in (
        Misbehaviour(stall_after=0),
        Misbehaviour(delay_s=60),
        Misbehaviour(bytes_per_s=1),
        Misbehaviour(),
        Misbehaviour(),
    ):
        server.behave()
        server.misbehave(how)
        links.append(socket.create_connection((host, int(port))))
        if len(links) < 5:
            links[-1].sendall(b"GET /a.bin HTTP/1.1\r\n\r\n")
            assert wait_until(lambda: len(server.requests) == len(links))
    assert wait_until(lambda: server.connections == 5)
    begun = time.monotonic()
    server.close()
    assert time.monotonic() - begun < 5
    assert wait_until(lambda: threading.active_count() == before)
    for link in links:
        link.close()
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=1)


def test_apart(folder):
    (folder / "a b.bin").write_bytes(BODY)
    with ServerApart({"a b.bin": folder / "a b.bin"}) as server:
        asked = urllib.request.Request(server.url_of("a b.bin"), headers={"Range": "bytes=1-10"})
        with urllib.request.urlopen(asked) as answer:
            assert answer.read() == BODY[1:11]
        counts = server.counts()
        assert (counts["requests"], counts["connections"]) == (1, 1)
        assert counts["nbytes"] > 10
        pid = server._process.pid
    assert not os.path.exists(f"/proc/{pid}")


def test_apart_serves_whoever_holds_the_gil(folder):
    """ctypes.PyDLL keeps the GIL: a server on a thread of the same process could not answer."""
    (folder / "a.bin").write_bytes(BODY)
    check_child(f"""
        import ctypes, socket
        from lazymem.testing import ServerApart
        with ServerApart({{"a.bin": {str(folder / "a.bin")!r}}}) as server:
            host, port = server.url.split("/")[2].split(":")
            with socket.create_connection((host, int(port))) as link:
                link.sendall(b"GET /a.bin HTTP/1.1\\r\\nRange: bytes=0-9\\r\\n\\r\\n")
                link.setblocking(True)
                taken = ctypes.create_string_buffer(4096)
                assert ctypes.PyDLL(None).recv(link.fileno(), taken, 4096, 0) > 100
                assert taken.raw.startswith(b"HTTP/1.1 206")
    """)


def test_apart_ends_with_its_parent(folder):
    (folder / "a.bin").write_bytes(BODY)
    program = f"""
import os, signal, sys
from lazymem.testing import ServerApart
server = ServerApart({{"a.bin": {str(folder / "a.bin")!r}}})
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    pid = int(ended.stdout)
    assert wait_until(lambda: _has_ended(pid))


def _has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_apart_that_does_not_start(folder, capfd):
    with pytest.raises(OSError, match="has ended"):
        ServerApart({"a.bin": folder / "no.bin"})
    assert "FileNotFoundError" in capfd.readouterr().err
