"""How does one request go over a kept connection and its answer come back, in bounded time and straight into place?

urllib3 resolves names, connects and does TLS; the exchange itself is ours. Through urllib3's pool a block is copied once more
and costs twice the CPU time, and waiting starts anew with every byte: a server that sends one a second would never be late.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection

    from lazymem.providers.http_address import Address

HEAD_MAX_NBYTES = 64 << 10
IDLE_MAX_S = 50.0  # servers close a connection that idles for a minute or so, and some networks forget it without a word
# Names and separators as RFC 9112 has them, and nothing that some would read otherwise: no bare line feeds, no folded lines.
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n\0]*)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*)")
_FIELD = re.compile(rb"([^:\r\n]+):[ \t]*([^\r\n]*)\r\n")


class Answer(NamedTuple):
    """What stood before a body.

    Attributes
    ----------
    status : int
    fields : dict
        By lower-case name; what came twice is joined by ", ".
    keep : bool
        Will the server take another request on this connection?
    public : bool
        Was it the public internet that answered?
    """

    status: int
    fields: dict[str, str]
    keep: bool
    public: bool


# Is shown an answer's head and gives memory as long as its body must be, or None if nobody wants the body; or raises.
Place = Callable[[Answer], "memoryview | None"]


class _Unanswered(Exception):
    """A kept connection ended before the answer's first byte: the server had done with it, and the request can go again."""


def parse(head: bytes, public: bool = True) -> Answer:
    """Read an answer's head, from its first byte to the end of its last field's line.

    Raises
    ------
    OSError
        It is none.
    """
    match = _HEAD.fullmatch(head)
    if match is None:
        raise OSError(errno.EPROTO, "what answered does not speak HTTP/1.1")
    fields: dict[str, str] = {}
    for raw_name, raw_value in _FIELD.findall(match[3]):
        name, value = raw_name.decode("ascii").lower(), raw_value.decode("latin-1").rstrip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    options = {word.strip().lower() for word in fields.get("connection", "").split(",")}
    keep = "close" not in options if match[1] == b"1" else "keep-alive" in options
    return Answer(int(match[2]), fields, keep, public)


def is_public(address: str) -> bool:
    """Is a socket's peer somewhere on the internet, not on this machine or in its private networks?"""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_global


class Connections:
    """Kept connections of one process, taken and given back by any number of threads. Holds none until it is used.

    Parameters
    ----------
    silence_s : float, s
        How long to wait for a connection, and for the next byte.
    ca_certs : str or None
        A file of the certificates to trust; None: the system's.
    """

    def __init__(self, silence_s: float, ca_certs: str | None) -> None:
        self._silence_s = silence_s
        self._ca_certs = ca_certs
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}

    def get(
        self,
        address: Address,
        request: bytes,
        end: float,
        place: Place,
        public_only: bool = False,
    ) -> Answer:
        """Send a request, and have the body of its answer put where `place` says. Blocks; GIL: released while it waits.

        Parameters
        ----------
        address : Address
        request : bytes
            From its first byte to the empty line.
        end : float, s
            On time.monotonic's clock: when to give up.
        place : Place
            What it raises comes out of here.
        public_only : bool
            Do not ask what is not on the internet.

        Raises
        ------
        ConnectionError, TimeoutError, OSError
            No connection, no answer, a body that ends early: another try may do better.
        PermissionError
            A certificate that cannot be verified; or a private address where only public ones are allowed.
        """
        idle = self._idle.setdefault(address.origin, [])
        while True:
            connection = self._take(idle, address)
            try:
                if not connection.connected:
                    connection.connect(address, end)
                if public_only and not connection.public:
                    _fail(errno.EACCES, address, "a redirect from the internet to a private address, which is never followed")
                answer, whole = connection.ask(address, request, end, place)
            except _Unanswered:
                connection.close()
                continue  # the next one that is kept; at last a new one, of which this is never said
            except BaseException as error:
                connection.close()
                if isinstance(error, TimeoutError):  # what else is kept may be as dead: the next try begins anew
                    _close_all(idle)
                raise
            if whole and answer.keep:
                connection.idle_since = _now()
                idle.append(connection)
            else:
                connection.close()
            return answer

    def close(self) -> None:
        """Close what is idle. Blocks: no."""
        for idle in list(self._idle.values()):
            _close_all(idle)

    def _take(self, idle: list[_Connection], address: Address) -> _Connection:
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return _Connection(address, self._silence_s, self._context() if address.scheme == "https" else None)
            if _now() - connection.idle_since < IDLE_MAX_S and not connection.spoiled:
                return connection
            connection.close()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            context = ssl.create_default_context(cafile=self._ca_certs)
            context.set_alpn_protocols(["http/1.1"])
            self._tls = context
        return self._tls


class _Connection:
    """One connection, used by one thread at a time."""

    def __init__(self, address: Address, silence_s: float, tls: ssl.SSLContext | None) -> None:
        from urllib3.connection import HTTPConnection, HTTPSConnection

        self._silence_s = silence_s
        self._link: HTTPConnection
        if tls is None:
            self._link = HTTPConnection(address.host, address.port)
        else:
            self._link = HTTPSConnection(address.host, address.port, ssl_context=tls)
        self._head = bytearray(HEAD_MAX_NBYTES)
        self._view = memoryview(self._head)
        self._received = 0  # bytes of the present answer's head, and what came with it
        self._used = False
        self.public = False
        self.idle_since = 0.0

    def connect(self, address: Address, end: float) -> None:
        """Resolve, connect, and with TLS agree on keys and verify the certificate. Raises what `Connections.get` does."""
        from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError

        self._link.timeout = max(0.001, min(self._silence_s, end - time.monotonic()))
        # urllib3's words may hold what ours must not, so none of them is passed on.
        try:
            self._link.connect()
            self.public = is_public(self._link.sock.getpeername()[0])
        except NameResolutionError:
            _fail(errno.EHOSTUNREACH, address, "the host's name cannot be resolved")
        except NewConnectionError as error:  # derived from ConnectTimeoutError, which it is not
            code = getattr(error.__cause__, "errno", None) or errno.ECONNREFUSED
            _fail(code, address, f"no connection: {os.strerror(code)}")
        except (ConnectTimeoutError, TimeoutError):
            _fail(errno.ETIMEDOUT, address, f"no connection within {self._link.timeout:.3g} s")
        except ssl.SSLCertVerificationError as error:
            _fail(
                errno.EACCES, address,
                f"its certificate cannot be verified: {error.verify_message}. "
                "A private authority's is named by storage_options={'ca_certs': path}",
            )  # fmt: skip
        except ssl.SSLError as error:
            _fail(errno.ECONNABORTED, address, f"no TLS connection: {error.reason}")
        except (HTTPError, OSError, UnicodeError) as error:
            _fail(getattr(error, "errno", None) or errno.ECONNABORTED, address, "no connection")

    def close(self) -> None:
        self._link.close()

    @property
    def connected(self) -> bool:
        return self._link.sock is not None

    @property
    def spoiled(self) -> bool:
        """Is there something to read before anything was asked: an end, or bytes that belong to no answer?"""
        from urllib3.util.connection import is_connection_dropped

        return is_connection_dropped(self._link)

    def ask(self, address: Address, request: bytes, end: float, place: Place) -> tuple[Answer, bool]:
        """Send, receive; the answer, and whether its body was read to its end."""
        try:
            answer, begun = self._answer(request, end)
        except OSError as error:
            if self._used and not self._received and not isinstance(error, TimeoutError):
                raise _Unanswered from None
            self._explain(address, error, end, "before its answer")
        self._used = True
        body = place(answer)
        if body is None:
            return answer, False
        got, wanted = len(begun), len(body)
        if got > wanted:
            _fail(errno.EPROTO, address, f"more than the {wanted} bytes it announced")
        body[:got] = begun
        try:
            while got < wanted:
                got += self._receive(body[got:], end)
        except OSError as error:
            self._explain(address, error, end, f"after {got} of {wanted} bytes")
        return answer, True

    def _answer(self, request: bytes, end: float) -> tuple[Answer, memoryview]:
        """Send; the answer's head, and what of its body came with it."""
        self._received = 0
        self._link.sock.settimeout(self._silence_s)
        self._link.sock.sendall(request)
        looked = 0
        while True:
            stop = self._head.find(b"\r\n\r\n", looked, self._received)
            if stop < 0:
                if self._received == HEAD_MAX_NBYTES:
                    raise OSError(errno.EPROTO, f"an answer whose head is longer than {HEAD_MAX_NBYTES >> 10} KiB")
                looked = max(0, self._received - 3)
                self._received += self._receive(self._view[self._received :], end)
                continue
            answer = parse(bytes(self._view[: stop + 2]), self.public)
            rest = self._view[stop + 4 : self._received]
            if answer.status >= 200:
                return answer, rest
            # 1xx: a word before the answer
            looked, self._received = 0, len(rest)
            self._view[: len(rest)] = bytes(rest)

    def _receive(self, place: memoryview, end: float) -> int:
        """Receive what there is; at least one byte."""
        sock = self._link.sock
        left = end - time.monotonic()
        if left < self._silence_s:
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
        n: int = sock.recv_into(place)
        if not n:
            raise OSError(errno.ECONNRESET, "it closed the connection")
        return n

    def _explain(self, address: Address, error: OSError, end: float, when: str) -> NoReturn:
        if isinstance(error, TimeoutError):
            late = time.monotonic() >= end
            what = "the time for one read is over" if late else f"silent for {self._silence_s:.3g} s"
            _fail(errno.ETIMEDOUT, address, f"{what}, {when}")
        if isinstance(error, ssl.SSLError):
            _fail(errno.ECONNABORTED, address, f"the TLS connection broke ({error.reason}), {when}")
        code = error.errno or errno.ECONNRESET
        _fail(code, address, f"{error.strerror or os.strerror(code)}, {when}")


def _now() -> float:
    """Seconds, those included that a laptop slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _close_all(idle: list[_Connection]) -> None:
    while True:
        try:
            idle.pop().close()
        except IndexError:  # other threads take from it too
            return


def _fail(code: int, address: Address, text: str) -> NoReturn:
    raise OSError(code, f"{address.shown}: {text}") from None  # of the subclass that belongs to the code
