"""How do the bytes behind a URL become a provider, and which of a server's answers are believed?

One version of the file is pinned when the provider is made: its length and what identifies it. Every read says which bytes it
wants of that version, and takes exactly those or none.
"""

from __future__ import annotations

import errno
import re
import time
from http import HTTPStatus
from typing import Any

from lazymem.errors import page_error
from lazymem.providers.http_access import Access
from lazymem.providers.http_address import REDIRECTS_MAX, Address, follow, read_url
from lazymem.providers.http_exchange import Answer, Connections, Place

BLOCK_NBYTES = 1 << 20
HEAD_NBYTES = 64 << 10  # of the file, that come with the first answer: enough for most formats' headers
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_NO_RANGES = (
    "the server does not send parts of files (no answer 206 with the Content-Range that was asked for): download the file and "
    "open the copy, or use a server that supports range requests"
)


class HttpProvider:
    """A file behind an http or https URL, read by range requests.

    Making one asks the server once. Reading is for the provider process: connections are kept there, never pickled.

    Parameters
    ----------
    url : str
        With or without `user:password@`; %XX where needed.
    storage_options : dict or None
        headers (dict), auth ((user, password)), timeout (s, for a connection and for each next byte; default 10), deadline
        (s, for one whole read; default 25), ca_certs (path of the certificates to trust instead of the system's). Proxies are
        not used, whatever the environment says.
    redirects : bool
        False: only to the same scheme, host and port. True: to any http or https URL, but never from https to http nor from
        the internet to a private address; another host gets neither headers nor credentials. At most 5 in either case.

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
    Blocks: for one exchange. GIL: released while it waits. No message, repr or log record holds credentials, headers or a
    query; the pickle does hold them: the provider process needs them.

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
        self._access = Access(storage_options, credentials)
        self._redirects = redirects
        self._from_internet = False
        self._etag: str | None = None
        self._modified: str | None = None
        self.nbytes = 0
        self.name = self._first.name
        self.url = self._first.shown
        self.head = b""
        self._connect()
        try:
            # What is asked for at first; a redirect's end is asked from then on.
            self._address = self._pin()
        finally:
            self._connections.close()

    def __repr__(self) -> str:
        return f"HttpProvider({self.url!r}, nbytes={self.nbytes})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_connections"]
        state["head"] = b""
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _connect(self) -> None:
        self._connections = Connections(self._access.silence_s, self._access.ca_certs)

    def stamp(self) -> tuple[int, str | None, str | None]:
        """What identifies the version that is read: length, ETag, Last-Modified. Blocks: no."""
        return self.nbytes, self._etag, self._modified

    def close(self) -> None:
        """Close the kept connections. Blocks: no."""
        self._connections.close()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Some bytes, fewer at the end: from `head` if it has them, else from the server. Blocks as `read_into` does."""
        stop = min(offset + nbytes, self.nbytes)
        if stop <= len(self.head):
            return self.head[offset:stop]
        taken = bytearray(max(0, stop - offset))
        self.read_into(memoryview(taken), offset)
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
        Blocks: at most `deadline` s, a name's resolution excepted. GIL: released while it waits.
        """
        if not len(buffer):
            return

        def place(answer: Answer) -> memoryview | None:
            if answer.status in _REDIRECTS:
                return None
            self._check(answer, offset, offset + len(buffer))
            return buffer

        end = time.monotonic() + self._access.read_s
        stop = offset + len(buffer)
        try:
            self._address = self._ask(self._address, offset, stop, end, place)
        except (FileNotFoundError, PermissionError):
            if self._address == self._first:
                raise
            # Where a redirect led may be an address that was good for some minutes only; the first one knows a new one.
            self._address = self._ask(self._first, offset, stop, end, place)

    def _pin(self) -> Address:
        """Ask for the file's beginning, learn what there is, and return who answered in the end."""
        taken = memoryview(bytearray(HEAD_NBYTES))
        part = taken[:0]

        def place(answer: Answer) -> memoryview | None:
            nonlocal part
            if answer.status in _REDIRECTS:
                return None
            self.nbytes = self._length(answer)
            part = taken[: min(self.nbytes, HEAD_NBYTES)]
            return part if self.nbytes else None

        address = self._ask(self._first, 0, HEAD_NBYTES, time.monotonic() + self._access.read_s, place)
        self.head = bytes(part)
        return address

    def _ask(self, address: Address, start: int, stop: int, end: float, place: Place) -> Address:
        """Ask for a range, by way of the redirects that are allowed; who answered."""
        for _ in range(REDIRECTS_MAX + 1):
            public_only = self._from_internet and address.origin != self._first.origin
            answer = self._connections.get(address, self._request(address, start, stop), end, place, public_only)
            if address == self._first:
                self._from_internet = answer.public
            if answer.status not in _REDIRECTS:
                return address
            address = follow(address, answer.fields.get("location"), self._redirects)
        raise ValueError(f"{self.url}: more than {REDIRECTS_MAX} redirects")

    def _request(self, address: Address, start: int, stop: int) -> bytes:
        lines = [f"GET {address.target} HTTP/1.1", f"Host: {address.netloc}"]
        headers = self._access.headers if address.origin == self._first.origin else Access.DEFAULT_HEADERS
        lines += [f"{name}: {value}" for name, value in headers]
        lines += ["Accept-Encoding: identity", f"Range: bytes={start}-{stop - 1}"]
        if self._strong:
            lines.append(f"If-Range: {self._etag}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    @property
    def _strong(self) -> bool:
        """Is there a strong ETag, one that is another whenever a byte is?"""
        return self._etag is not None and _STRONG_ETAG.fullmatch(self._etag) is not None

    def _length(self, answer: Answer) -> int:
        """The file's length by the first answer; its ETag and modification time are remembered."""
        fields = answer.fields
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
        return length

    def _check(self, answer: Answer, start: int, stop: int) -> None:
        """Is this the head of exactly that range, of exactly the version that was pinned? Raises if not."""
        status, fields = answer.status, answer.fields
        if status < 300:
            # A strong ETag says all; where it is sent as If-Range, Last-Modified may be left out of the answer.
            now = (fields.get("etag"), self._modified if self._strong else fields.get("last-modified"))
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

    def _refuse(self, answer: Answer) -> None:
        """Raise for an answer that says no, and for one whose body would not be the file's bytes."""
        status, fields = answer.status, answer.fields
        if status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, f"the server answered {_status(status)}", self.url)
        if status in (401, 403, 407):
            raise PermissionError(errno.EACCES, f"the server answered {_status(status)}", self.url)
        if status in (408, 504):
            raise TimeoutError(errno.ETIMEDOUT, f"the server answered {_status(status)}", self.url)
        if status >= 300:
            raise OSError(errno.EIO, f"the server answered {_status(status)}", self.url)
        if fields.get("content-type", "").lower().startswith("multipart/"):
            raise ValueError(f"{self.url}: the server answered one range with several parts (multipart)")
        if fields.get("content-encoding", "identity").lower() != "identity":
            raise ValueError(f"{self.url}: the server encodes what it sends (Content-Encoding), although it was asked not to")

    def _check_range(self, answer: Answer, start: int, stop: int, total: int) -> None:
        """Raise unless a 206 is about these bytes, and its body as long as they are."""
        fields = answer.fields
        match = _RANGE.fullmatch(fields.get("content-range", ""))
        if answer.status != 206 or match is None:
            raise ValueError(f"{self.url}: {_NO_RANGES}")
        if match[0][6:] != f"{start}-{stop - 1}/{total}":
            raise ValueError(
                f"{self.url}: asked for bytes {start}-{stop - 1}/{total}, the server answered with {match[0][6:]}"
            )
        if "transfer-encoding" in fields or fields.get("content-length") != str(stop - start):
            raise ValueError(
                f"{self.url}: bytes {start}-{stop - 1} were announced by something else than 'Content-Length: {stop - start}'"
            )

    def _stale(self, start: int, stop: int, cause: str) -> None:
        raise page_error(
            self.name, "url", start // self.block_nbytes, start, stop, errno.ESTALE, f"{self.url}: {cause}", "; open it again"
        )


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
