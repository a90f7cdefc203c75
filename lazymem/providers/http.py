"""How do the bytes behind a URL become a provider, and which of a server's answers are believed?

One version of the file is pinned when the provider is made: its length and what identifies it. Every read says which bytes it
wants of that version, and takes exactly those or none.
"""

from __future__ import annotations

import contextlib
import errno
import random
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from lazymem.errors import PageError, page_error
from lazymem.providers.http_access import Access
from lazymem.providers.http_address import REDIRECTS_MAX, Address, follow, read_url

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

BLOCK_NBYTES = 1 << 20
HEAD_NBYTES = 64 << 10  # of the file, that come with the first answer: enough for most formats' headers
PAUSES_S = (0.1, 0.4)  # at most, before a second and a third try where nobody else tries again
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_NO_RANGES = (
    "the server does not send parts of files (no answer 206 with the Content-Range that was asked for): download the file and "
    "open the copy, or use a server that supports range requests"
)


class HttpProvider:
    """A file behind an http or https URL, read by range requests.

    Making one asks the server, again up to twice where that may help. Reading is for the provider process: connections are
    kept there, never pickled.

    Parameters
    ----------
    url : str
        With or without `user:password@`; %XX where needed.
    storage_options : dict or None
        headers (dict), auth ((user, password)), timeout (s, for a connection and for each next byte; default 10), deadline
        (s, for one whole read; default 20), ca_certs (path of the certificates to trust instead of the system's). Proxies are
        not used, whatever the environment says.
    redirects : bool
        False: only to the same scheme, host and port. True: the server is trusted to choose: it may send this machine to any
        http or https URL, those in a private network included; but never from https to http, and another host gets neither
        headers nor credentials. At most 5 in either case.

    Attributes
    ----------
    nbytes : int, bytes
        Of the file.
    block_nbytes : int, bytes
        What to ask for at once: 1 MiB.
    name : str
        The last part of the URL's path.
    url : str
        For messages: without credentials, query and fragment.
    head : bytes
        The file's first 64 KiB, or all of it; where the provider was made, not where it was unpickled.

    Raises
    ------
    ImportError
        urllib3 is not installed.
    FileNotFoundError, PermissionError
        404 or 410; 401 or 403, or a certificate that cannot be verified.
    ValueError
        No URL; a server that does not send ranges, or encodes them; a redirect that may not be followed.
    TypeError
        An unknown option, or a value of the wrong type.
    OSError
        No connection, no answer in time, or an answer that says the request failed.

    Notes
    -----
    Blocks: for one exchange; for three, within `deadline`, where that may help. GIL: released while it waits. No message, repr
    or log record holds credentials, headers or a query; the pickle does hold them: the provider process needs them.

    A server that sends neither ETag nor Last-Modified gives nothing but the file's length to tell that it was changed.
    """

    block_nbytes = BLOCK_NBYTES

    def __init__(self, url: str, *, storage_options: Any = None, redirects: bool = False) -> None:
        try:
            import urllib3  # noqa: F401
        except ImportError:
            raise ImportError("reading URLs needs urllib3: pip install 'lazymem[http]'") from None
        if not isinstance(redirects, bool):
            raise TypeError(f"redirects={redirects!r}: give True or False")
        self._first, credentials = read_url(url)
        self._address = self._first  # then where its redirects end
        self._access = Access(storage_options, credentials)
        self._redirects = redirects
        self._etag: str | None = None
        self._modified: str | None = None
        self._if_range: str | None = None  # the ETag, if it is a strong one: another whenever a byte is
        self.nbytes = 0
        self.name = self._first.name
        self.url = self._first.shown
        self.head = b""
        self._connect()
        try:
            self._patiently(self._pin)
        finally:
            self._exchange.close()

    def __repr__(self) -> str:
        return f"HttpProvider({self.url!r}, nbytes={self.nbytes})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_exchange"]
        state["head"] = b""
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _connect(self) -> None:
        from lazymem.providers.http_exchange import Exchange

        self._exchange = Exchange(self._access.silence_s, self._access.ca_certs)

    def stamp(self) -> tuple[int, str | None, str | None]:
        """What identifies the version that is read: length, ETag, Last-Modified. Blocks: no."""
        return self.nbytes, self._etag, self._modified

    def close(self) -> None:
        """Close the kept connections. Blocks: no."""
        self._exchange.close()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Some bytes, fewer at the end: from `head`, or from the server, as persistently as when one is made."""
        stop = min(offset + nbytes, self.nbytes)
        if stop <= len(self.head):
            return self.head[offset:stop]
        taken = bytearray(max(0, stop - offset))
        self._patiently(lambda end: self._read(memoryview(taken), offset, end))
        return bytes(taken)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Read the pinned version's bytes from `offset` on into all of `buffer`, from any number of threads at once.

        Parameters
        ----------
        buffer : memoryview
            Of bytes, writable. After an error it may be filled in part.
        offset : int, bytes

        Raises
        ------
        PageError
            ESTALE: the file has been changed. Asking again will not help.
        FileNotFoundError, PermissionError, ValueError
            The file is gone or forbidden; the answer is not what was asked for. Asking again will not help either.
        OSError
            Also ConnectionError and TimeoutError: asking again may help.

        Notes
        -----
        Blocks: until `deadline`, then `timeout` for the last byte that was waited for. A name's resolution, and an answer's
        head that comes byte by byte, can take longer. GIL: released while it waits.
        """
        self._read(buffer, offset, time.monotonic() + self._access.read_s)

    def _read(self, buffer: memoryview, offset: int, end: float) -> None:
        if not len(buffer):
            return
        try:
            self._fetch(self._address, buffer, offset, end)
        except (FileNotFoundError, PermissionError):
            if self._address == self._first:
                raise
            # Where a redirect led may be an address that was good for some minutes only; the first one knows a new one.
            self._fetch(self._first, buffer, offset, end)

    def _fetch(self, address: Address, buffer: memoryview, offset: int, end: float) -> None:
        stop = offset + len(buffer)
        answer, address = self._ask(address, offset, stop, end)
        with contextlib.closing(answer):
            self._check(answer, offset, stop)
            self._exchange.read(answer, address, buffer, end)
        self._address = address

    def _pin(self, end: float) -> None:
        """Ask for the file's beginning, and learn what there is and who answers in the end."""
        self._if_range = None  # of an attempt before
        answer, address = self._ask(self._first, 0, HEAD_NBYTES, end)
        with contextlib.closing(answer):
            self.nbytes = self._length(answer)
            taken = bytearray(min(self.nbytes, HEAD_NBYTES))
            if taken:
                self._exchange.read(answer, address, memoryview(taken), end)
        self.head = bytes(taken)
        self._address = address

    def _patiently(self, attempt: Callable[[float], None]) -> None:
        """For constructors, which nobody asks again: up to three attempts, within the time for one read."""
        end = time.monotonic() + self._access.read_s
        for pause_s in PAUSES_S:
            try:
                return attempt(end)
            except OSError as error:
                if isinstance(error, (FileNotFoundError, PermissionError, PageError)) or time.monotonic() + pause_s >= end:
                    raise
            time.sleep(pause_s * random.uniform(0.5, 1))
        return attempt(end)

    def _ask(self, address: Address, start: int, stop: int, end: float) -> tuple[BaseHTTPResponse, Address]:
        """Ask for a range, by way of the redirects that are allowed; the answer, to be closed, and who gave it."""
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._exchange.ask(address, self._headers(address, start, stop), end)
            if answer.status not in _REDIRECTS:
                return answer, address
            answer.close()
            address = follow(address, answer.headers.get("location"), self._redirects)
        raise ValueError(f"{self.url}: more than {REDIRECTS_MAX} redirects")

    def _headers(self, address: Address, start: int, stop: int) -> dict[str, str]:
        ours = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        if self._if_range is not None:
            ours["If-Range"] = self._if_range
        theirs = self._access.headers if address.origin == self._first.origin else Access.DEFAULT_HEADERS
        return dict(theirs) | ours

    def _length(self, answer: BaseHTTPResponse) -> int:
        """The file's length by the first answer; its ETag and modification time are remembered."""
        fields = answer.headers
        if answer.status == 200 and fields.get("content-length") == "0":
            length = 0
        elif answer.status == 416 and fields.get("content-range", "").lower() == "bytes */0":
            length = 0  # nginx says that no byte of an empty file can be had
        elif answer.status in (200, 416):
            raise ValueError(f"{self.url}: {_NO_RANGES}")
        else:
            self._refuse(answer)
            match = _RANGE.fullmatch(fields.get("content-range", ""))
            if match is None:
                raise ValueError(f"{self.url}: {_NO_RANGES}")
            if match[3] == "*":
                raise ValueError(f"{self.url}: the server does not say how long the file is. Download it and open the copy")
            length = int(match[3])
            if not 0 < length < 1 << 63:
                raise ValueError(f"{self.url}: the server says that the file has {length} bytes")
            self._check_range(answer, 0, min(length, HEAD_NBYTES), length)
        self._etag, self._modified = fields.get("etag"), fields.get("last-modified")
        if self._etag is not None and _STRONG_ETAG.fullmatch(self._etag):
            self._if_range = self._etag
        return length

    def _check(self, answer: BaseHTTPResponse, start: int, stop: int) -> None:
        """Is this the head of exactly that range, of exactly the version that was pinned? Raises if not."""
        status, fields = answer.status, answer.headers
        if 200 <= status < 300:
            # A strong ETag says all; where it is sent as If-Range, Last-Modified may be left out of the answer.
            now = (fields.get("etag"), self._modified if self._if_range else fields.get("last-modified"))
            if now != (self._etag, self._modified):
                self._stale(start, stop, "it is another version of the file that the server has now")
        if status in (412, 416):
            self._stale(start, stop, f"the file has no such bytes any more, says the server ({_status(status)})")
        self._refuse(answer)
        if status != 206:
            raise ValueError(f"{self.url}: {_NO_RANGES}")
        match = _RANGE.fullmatch(fields.get("content-range", ""))
        if match is not None and match[3] != str(self.nbytes):
            self._stale(start, stop, f"the file had {self.nbytes} bytes and now has {match[3]}")
        self._check_range(answer, start, stop, self.nbytes)

    def _refuse(self, answer: BaseHTTPResponse) -> None:
        """Raise for an answer that says no, and for one whose body would not be the file's bytes."""
        status, fields = answer.status, answer.headers
        if status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, f"the server answered {_status(status)}", self.url)
        if status in (401, 403, 407):
            raise PermissionError(errno.EACCES, f"the server answered {_status(status)}", self.url)
        if status in (408, 504):
            raise TimeoutError(errno.ETIMEDOUT, f"the server answered {_status(status)}", self.url)
        if not 200 <= status < 300:
            raise OSError(errno.EIO, f"the server answered {_status(status)}", self.url)
        if fields.get("content-type", "").lower().startswith("multipart/"):
            raise ValueError(f"{self.url}: the server answered one range with several parts (multipart)")
        for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
            if fields.get(name, plain).lower() != plain:
                raise ValueError(f"{self.url}: the server encodes what it sends ({name}), although it was asked not to")

    def _check_range(self, answer: BaseHTTPResponse, start: int, stop: int, total: int) -> None:
        """Raise unless a 206 is about these bytes, and its body as long as they are."""
        fields = answer.headers
        match = _RANGE.fullmatch(fields.get("content-range", ""))
        if answer.status != 206 or match is None:
            raise ValueError(f"{self.url}: {_NO_RANGES}")
        if match[0][6:] != f"{start}-{stop - 1}/{total}":
            raise ValueError(
                f"{self.url}: asked for bytes {start}-{stop - 1}/{total}, the server answered with {match[0][6:]}"
            )
        length = fields.get("content-length", str(stop - start))
        if length != str(stop - start):
            raise ValueError(f"{self.url}: bytes {start}-{stop - 1} were announced as 'Content-Length: {length}'")

    def _stale(self, start: int, stop: int, cause: str) -> None:
        block = start // self.block_nbytes
        raise page_error(
            self.name, "provider", block, start, stop, errno.ESTALE, f"{self.url}: {cause}", "; open it again"
        )  # fmt: skip


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
