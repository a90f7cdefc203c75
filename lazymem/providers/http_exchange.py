"""How does urllib3 ask for us: in bounded time, straight into place, with no secret in errors and logs?"""

from __future__ import annotations

import errno
import http.client
import logging
import os
import ssl
import threading
import time
from collections.abc import Mapping
from functools import cached_property

from urllib3 import BaseHTTPResponse, PoolManager, Timeout, exceptions

from lazymem.providers.http_address import Address

PIECE_NBYTES = 256 << 10  # of a body, between two looks at the clock
CONNECTIONS_MAX = 64  # kept per server: more than a provider process has threads
IDLE_MAX_S = 50.0  # servers close a connection that idles for a minute or so, and some networks forget it without a word
_asking = threading.local()


def _not_ours(record: logging.LogRecord) -> bool:
    """A filter for what urllib3 logs: it names what is asked for, and a query may be a token."""
    return not getattr(_asking, "now", False)


for _name in ("urllib3.connection", "urllib3.connectionpool", "urllib3.response"):
    logging.getLogger(_name).addFilter(_not_ours)


class Exchange:
    """One process's requests, from any number of threads, over connections that are kept. Holds none until it is used.

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
        self._pools = PoolManager(maxsize=CONNECTIONS_MAX)
        self._asked_at = 0.0

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._ca_certs)

    def close(self) -> None:
        """Close the connections that are idle; none that is in use is kept. Blocks: no."""
        self._pools.clear()

    def ask(self, address: Address, headers: Mapping[str, str], end: float, again: bool = True) -> BaseHTTPResponse:
        """Send a request; the head of its answer, which the caller closes. Raises what `HttpProvider.read_into` does.

        Blocks: until `end` (s, on time.monotonic's clock), if the head comes at once; GIL: released while it waits.
        """
        now = time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while a laptop sleeps
        if now - self._asked_at > IDLE_MAX_S:
            self.close()
        self._asked_at = now
        wait_s = max(0.001, min(self._silence_s, end - time.monotonic()))
        tls = {"ssl_context": self._tls} if address.scheme == "https" else {}
        _asking.now = True
        try:
            return self._pools.connection_from_host(address.host, address.port, address.scheme, tls).urlopen(
                "GET", address.target, headers=headers, timeout=Timeout(connect=wait_s, read=wait_s), retries=False,
                redirect=False, assert_same_host=False, preload_content=False, decode_content=False,
            )  # fmt: skip
        except exceptions.HTTPError as error:
            self.close()  # what else is kept may be as dead
            lost = isinstance(error, exceptions.ProtocolError) and isinstance(_inner(error), ConnectionError)
            if not (lost and again):
                raise self._explain(error, address, end, ", before its answer") from None
        finally:
            _asking.now = False
        return self.ask(address, headers, end, again=False)  # a kept connection may end just when it is used

    def read(self, answer: BaseHTTPResponse, address: Address, body: memoryview, end: float) -> None:
        """Receive a body that must be as long as `body`. Raises, blocks and waits as `ask`, and longer for the last byte."""
        got, wanted = 0, len(body)
        try:
            while got < wanted:
                if time.monotonic() >= end:
                    raise exceptions.TimeoutError
                piece = answer.read1(min(wanted - got, PIECE_NBYTES))
                if not piece:
                    raise exceptions.IncompleteRead(got, wanted - got)
                body[got : got + len(piece)] = piece
                got += len(piece)
            if answer.read1(1):
                raise OSError(errno.EPROTO, f"{address.shown}: more than the {wanted} bytes that it announced")
        except exceptions.HTTPError as error:
            self.close()
            raise self._explain(error, address, end, f", after {got} of {wanted} bytes") from None

    def _explain(self, error: exceptions.HTTPError, address: Address, end: float, when: str) -> OSError:
        """The same in our own words: urllib3's may hold what was asked for."""
        inner = _inner(error)
        if isinstance(error, (exceptions.NameResolutionError, exceptions.LocationValueError)):
            code, text, when = errno.EHOSTUNREACH, "the host's name cannot be resolved", ""
        elif isinstance(error, exceptions.NewConnectionError):
            code, when = getattr(inner, "errno", None) or errno.ECONNREFUSED, ""
            text = f"no connection: {os.strerror(code)}"
        elif isinstance(error, exceptions.TimeoutError):
            late = time.monotonic() >= end
            code, text = errno.ETIMEDOUT, "the time for one read is over" if late else f"silent for {self._silence_s:.3g} s"
        elif isinstance(inner, ssl.SSLCertVerificationError):
            code, text = errno.EACCES, f"its certificate cannot be verified: {inner.verify_message}"
            when = ". A private authority's is named by storage_options={'ca_certs': path}"
        elif isinstance(inner, ssl.SSLError):
            code, text = errno.ECONNABORTED, f"no TLS connection: {inner.reason}"
        elif isinstance(inner, (http.client.IncompleteRead, http.client.RemoteDisconnected)):
            code, text = errno.ECONNRESET, "it closed the connection"
        elif isinstance(inner, OSError):
            text = os.strerror(code := inner.errno or errno.ECONNRESET)
        else:
            code, text = errno.EPROTO, "what answered does not speak HTTP/1.1"
        return OSError(code, f"{address.shown}: {text}{when}")  # of the subclass that belongs to the code


def _inner(error: exceptions.HTTPError) -> BaseException:
    """What urllib3 made its error of, or itself."""
    return next((inner for inner in (*error.args, error.__cause__) if isinstance(inner, BaseException)), error)
