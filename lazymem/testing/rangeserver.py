"""How does a server on loopback send ranges of files, rightly, or wrongly in a way that was ordered?"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import ssl
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

from lazymem.testing.misbehaviour import Misbehaviour

_PIECE_NBYTES = 256 << 10
_WELL = Misbehaviour()


@dataclass
class Request:
    """One request, as it came and as it was answered.

    Attributes
    ----------
    method, path : str
        The path with its query.
    fields : dict
        Header fields by lower-case name.
    connection : int
        Which connection it came on: they are counted from 0.
    status : int
        Of the answer; 0: none yet.
    nbytes : int, bytes
        Sent so far, head included.
    """

    method: str
    path: str
    fields: dict[str, str]
    connection: int
    status: int = 0
    nbytes: int = 0


@dataclass
class _Order:
    how: Misbehaviour
    name: str | None
    after: int
    times: int | None


class _Content:
    """The bytes of one file, and what identifies this version of them."""

    def __init__(self, given: bytes | str | os.PathLike[str]) -> None:
        self._bytes = bytes(given) if isinstance(given, (bytes, bytearray, memoryview)) else None
        self._path = None if self._bytes is not None else os.fspath(given)
        if self._bytes is not None:
            self.nbytes = len(self._bytes)
            self.etag = f'"{self.nbytes:x}-{zlib.crc32(self._bytes):08x}"'
            self.modified = formatdate(0, usegmt=True)
        else:
            found = os.stat(self._path or "")
            self.nbytes = found.st_size
            self.etag = f'"{self.nbytes:x}-{found.st_mtime_ns:x}"'
            self.modified = formatdate(found.st_mtime, usegmt=True)

    def pieces(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        if self._bytes is not None:
            yield memoryview(self._bytes)[start:stop]
            return
        with open(self._path or "", "rb", buffering=0) as file:
            while start < stop:
                piece = os.pread(file.fileno(), min(_PIECE_NBYTES, stop - start), start)
                if not piece:
                    return
                start += len(piece)
                yield piece


class RangeServer:
    """Files on `http://127.0.0.1:PORT/`, with ranges, ETags and kept connections; a context manager.

    It answers each request on a thread of this process, which needs the GIL: code that may hold the GIL while it waits for an
    answer (a touch of a lazy array may) needs a `ServerApart` instead.

    Parameters
    ----------
    files : mapping of str to (bytes or path)
        By name. A path's file is stamped when it is given, and read when it is asked for.
    tls : ssl.SSLContext, optional
        Speak https with it.

    Attributes
    ----------
    url : str
        Ends with a slash.

    Examples
    --------
    >>> import urllib.request
    >>> from lazymem.testing import Misbehaviour, RangeServer
    >>> with RangeServer({"a.bin": bytes(range(100))}) as server:
    ...     server.misbehave(Misbehaviour(status=503), after=1)
    ...     ask = urllib.request.Request(server.url_of("a.bin"), headers={"Range": "bytes=10-12"})
    ...     urllib.request.urlopen(ask).read()
    b'\\n\\x0b\\x0c'
    """

    def __init__(self, files: Mapping[str, bytes | str | os.PathLike[str]], *, tls: ssl.SSLContext | None = None) -> None:
        self._files = {name: _Content(given) for name, given in files.items()}
        self._orders: list[_Order] = []
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Server(self, tls)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="range server", daemon=True)
        self._thread.start()

    def __enter__(self) -> RangeServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Break off what is being answered, close every connection, and stop. Blocks: until its threads have ended."""
        self._server.stop()
        self._thread.join()

    def url_of(self, name: str) -> str:
        """Where a file is."""
        return self.url + quote(name)

    def put(self, name: str, content: bytes | str | os.PathLike[str]) -> None:
        """Give a file other bytes, and with them another ETag; or add one."""
        with self._lock:
            self._files[name] = _Content(content)

    def misbehave(self, how: Misbehaviour, *, name: str | None = None, after: int = 0, times: int | None = None) -> None:
        """Order a misbehaviour. Each request gets the first order that is for it, and counts for no other.

        Parameters
        ----------
        how : Misbehaviour
        name : str, optional
            Only for this file, existing or not.
        after : int
            Requests that this order lets pass first.
        times : int, optional
            Requests that it is for; None: all.
        """
        with self._lock:
            self._orders.append(_Order(how, name, after, times))

    def behave(self) -> None:
        """Forget all orders."""
        with self._lock:
            self._orders.clear()

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order in which they came."""
        with self._lock:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return self._server.accepted

    def _begin(self, request: Request, name: str) -> tuple[Misbehaviour, _Content | None]:
        """Note a request; how to answer it, and with what."""
        with self._lock:
            self._requests.append(request)
            return self._how(name), self._files.get(name)

    def _how(self, name: str) -> Misbehaviour:
        for order in self._orders:
            if order.name not in (None, name) or order.times == 0:
                continue
            if order.after:
                order.after -= 1
                continue
            if order.times is not None:
                order.times -= 1
            return order.how
        return _WELL


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, owner: RangeServer, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner
        self.tls = tls
        self.stopping = threading.Event()
        self.accepted = 0
        self._open: dict[int, socket.socket] = {}
        self._changed = threading.Condition()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            number = self.accepted
            self.accepted += 1
            self._open[number] = request
        super().process_request(request, (*client_address[:2], number))

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            if self.tls is not None:
                # The handshake comes with the first read, when `stop` knows what to shut down.
                request = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                self._open[client_address[2]] = request
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                del self._open[client_address[2]]
                self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError) and not self.stopping.is_set():  # a client that goes away is no fault
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._changed:
            for connection in self._open.values():
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not TLS's own: its thread is using that
            self._changed.wait_for(lambda: not self._open)


class _Broken(OSError):
    """The connection was broken off, as ordered."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    client_address: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `RangeServer.requests` has it all."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        fields = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, fields, self.client_address[2])
        how, content = self.server.owner._begin(request, unquote(self.path.partition("?")[0])[1:])
        if how.delay_s:
            self.server.stopping.wait(how.delay_s)
        if how.instead is not None:
            self.close_connection = True
            answer: Iterator[bytes | memoryview] = iter([how.instead])
        else:
            answer = self._answer(request, how, content)
        with contextlib.suppress(_Broken):
            self._send(answer, request, how)

    def _answer(self, request: Request, how: Misbehaviour, content: _Content | None) -> Iterator[bytes | memoryview]:
        """Head and body, as far as they are sent."""
        fields: dict[str, str] = {"Date": formatdate(usegmt=True), "Server": "lazymem.testing"}
        status, start, stop, total = how.status or 404, 0, 0, 0
        if how.status is None and content is not None:
            status, start, stop = self._range(request, how, content)
            fields |= {
                "Accept-Ranges": "bytes" if how.ranges else "none",
                "ETag": content.etag,
                "Last-Modified": content.modified,
            }
            total = content.nbytes + how.total_error_nbytes
            if status == 206 and how.multipart:
                fields["Content-Type"] = "multipart/byteranges; boundary=next"
            elif status == 206:
                fields["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
            elif status == 416:
                fields["Content-Range"] = f"bytes */{total}"
        before, after = b"", b""
        if status == 206 and how.multipart:
            before = f"--next\r\nContent-Range: bytes {start}-{stop - 1}/{total}\r\n\r\n".encode()
            after = b"\r\n--next--\r\n"
        nbytes = len(before) + stop - start + len(after)
        if how.chunk_nbytes is None:
            fields["Content-Length"] = str(nbytes + how.length_error_nbytes)
        else:
            fields["Transfer-Encoding"] = "chunked"
        for name, value in how.fields.items():
            fields = {known: said for known, said in fields.items() if known.lower() != name.lower()}
            if value is not None:
                fields[name] = value
        if how.padding_nbytes:
            fields["X-Padding"] = "x" * how.padding_nbytes
        request.status = status
        lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        yield how.before + "\r\n".join(lines).encode("latin-1")
        if self.command == "HEAD":
            return
        if how.extra_nbytes < 0 or how.length_error_nbytes > 0 or not {"Content-Length", "Transfer-Encoding"} & fields.keys():
            self.close_connection = True  # nothing else ends the body
        inside = () if content is None else content.pieces(start, stop + min(0, how.extra_nbytes))
        body = itertools.chain([before], inside, [after, bytes(max(0, how.extra_nbytes))])
        yield from body if how.chunk_nbytes is None else _in_chunks(b"".join(body), how.chunk_nbytes)

    @staticmethod
    def _range(request: Request, how: Misbehaviour, content: _Content) -> tuple[int, int, int]:
        """Status, and which bytes to send."""
        whole = (200, 0, content.nbytes)
        asked = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", request.fields.get("range", ""))
        if asked is None or not (asked[1] or asked[2]) or not how.ranges:
            return whole
        if request.fields.get("if-range") not in (None, content.etag, content.modified):
            return whole
        if asked[1]:
            start = int(asked[1])
            stop = min(int(asked[2]) + 1 if asked[2] else content.nbytes, content.nbytes)
        else:
            start, stop = max(0, content.nbytes - int(asked[2])), content.nbytes
        if start >= stop:
            return 416, 0, 0
        start = min(start + how.shift_nbytes, content.nbytes - 1)
        return 206, start, max(start + 1, min(stop + how.shift_nbytes, content.nbytes))

    def _send(self, answer: Iterator[bytes | memoryview], request: Request, how: Misbehaviour) -> None:
        """Send, as fast as ordered and as far as ordered."""
        ends = [nbytes for nbytes in (how.stall_after, how.reset_after) if nbytes is not None]
        end = min(ends, default=None)
        begun = time.monotonic()
        if end == 0:
            self._break_off(how)
        for piece in answer:
            view = memoryview(piece)
            while view:
                n = len(view) if how.bytes_per_s is None else max(1, int(how.bytes_per_s / 50))
                n = min(n, len(view) if end is None else end - request.nbytes)
                self.connection.sendall(view[:n])
                view = view[n:]
                request.nbytes += n
                if request.nbytes == end:
                    self._break_off(how)
                if how.bytes_per_s is not None:
                    self._wait(begun + request.nbytes / how.bytes_per_s - time.monotonic())

    def _break_off(self, how: Misbehaviour) -> None:
        self.close_connection = True
        if how.stall_after is not None and (how.reset_after is None or how.stall_after <= how.reset_after):
            self._wait(None)
        else:
            # Closed with nothing to linger for, a connection ends by a reset; shutting it down first would end it in peace.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        raise _Broken

    def _wait(self, seconds: float | None) -> None:
        if (seconds is None or seconds > 0) and self.server.stopping.wait(seconds):
            raise _Broken


def _in_chunks(body: bytes, nbytes: int) -> Iterator[bytes]:
    for i in range(0, len(body), nbytes):
        chunk = body[i : i + nbytes]
        yield b"%x\r\n%b\r\n" % (len(chunk), chunk)
    yield b"0\r\n\r\n"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
