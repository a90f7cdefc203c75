"""Where is a URL, what of it may be shown, and who may send us on to somewhere else?"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin

REDIRECTS_MAX = 5
_PORTS = {"http": 80, "https": 443}


class Address(NamedTuple):
    """Where to ask, without credentials.

    Attributes
    ----------
    scheme : str
        "http" or "https".
    host : str
        As a resolver takes it: an IPv6 address without brackets.
    port : int
    target : str
        Path and query, percent-encoded: what a request line holds.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials belong to."""
        return self[:3]

    @property
    def netloc(self) -> str:
        """Host and port as a URL holds them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """What messages may hold: a query can be a signature or a token, so it is left out."""
        path, query, _ = self.target.partition("?")
        return f"{self.scheme}://{self.netloc}{path}{'?...' if query else ''}"

    @property
    def name(self) -> str:
        """The last part of the path, or the host."""
        return self.target.partition("?")[0].rpartition("/")[2] or self.host


def read_url(url: Any) -> tuple[Address, tuple[str, str] | None]:
    """Read a URL.

    Returns
    -------
    (Address, (user, password) or None)

    Raises
    ------
    TypeError
        Not text.
    ValueError
        No http or https URL. The message does not hold it: what cannot be read cannot be stripped of its credentials either.
    """
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    if not isinstance(url, str):
        raise TypeError(f"url: give text, not {type(url).__name__}")
    try:
        read = parse_url(url)
    except LocationParseError:
        raise ValueError(
            "the URL cannot be read: give http://host/path or https://host/path; special characters in a user name or "
            "password are written %XX, and a host name that is not ASCII in its xn-- form, unless idna is installed"
        ) from None
    if read.scheme not in _PORTS:
        scheme = re.match("([a-z][a-z0-9+.-]*)://", url, re.IGNORECASE)  # without "//" it may as well be a user's name
        raise ValueError(f"the URL's scheme is {scheme[1] if scheme else 'missing'}: only http and https are fetched")
    if not read.host:
        raise ValueError("the URL names no host")
    port = _PORTS[read.scheme] if read.port is None else read.port
    user, colon, password = (read.auth or "").partition(":")
    credentials = (unquote(user), unquote(password)) if user or colon else None
    return Address(read.scheme, read.host.strip("[]"), port, read.request_uri), credentials


def follow(address: Address, location: str | None, anywhere: bool) -> Address:
    """Where a redirect leads, if we may go there.

    Parameters
    ----------
    address : Address
        Which answered with the redirect.
    location : str or None
        Its Location field, relative or absolute.
    anywhere : bool
        May it lead to another host, port or (from http to https) scheme?

    Raises
    ------
    ValueError
        It may not, or leads nowhere that can be read.
    """
    if location is None:
        raise ValueError(f"{address.shown}: a redirect that does not say where to")
    try:
        there, _ = read_url(urljoin(f"{address.scheme}://{address.netloc}{address.target}", location))
    except ValueError as error:
        raise ValueError(f"{address.shown}: a redirect that is not followed: {error}") from None
    if there.scheme != address.scheme and there.scheme == "http":
        raise ValueError(f"{address.shown}: a redirect from https to http, which is never followed")
    if there.origin != address.origin and not anywhere:
        raise ValueError(
            f"{address.shown}: redirected to {there.shown}, on another host, port or scheme. "
            "Give that URL, or allow it with redirects=True"
        )
    return there
