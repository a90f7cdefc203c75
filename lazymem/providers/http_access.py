"""What may a user say about how a URL is fetched, and which of it does a server get to see?"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from lazymem.version import __version__

SILENCE_S = 10.0
READ_S = 20.0  # and a last silence: the 30 s after which an array ends the attempt by ending the process
_KNOWN = ("headers", "auth", "timeout", "deadline", "ca_certs")
# These frame the exchange, or decide which bytes come back.
_OURS = frozenset((
    "accept-encoding", "connection", "content-length", "host", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "range", "te", "transfer-encoding", "upgrade",
))  # fmt: skip


class Access:
    """Headers and limits, read from `storage_options`. Its repr shows no header: any of them may be a secret.

    Parameters
    ----------
    storage_options : mapping or None
        headers (dict of str), auth ((user, password)), timeout (s, for a connection and for each next byte; default 10),
        deadline (s, for one whole read; default 20), ca_certs (path of the certificates to trust instead of the system's).
    credentials : (str, str) or None
        From the URL.

    Raises
    ------
    TypeError
        An unknown option, or a value of the wrong type.
    ValueError
        A value out of range, a header that is ours to send, credentials given twice.
    FileNotFoundError
        No file of certificates.
    """

    DEFAULT_HEADERS: ClassVar = (("User-Agent", f"lazymem/{__version__}"), ("Accept", "*/*"))

    def __init__(self, storage_options: Any, credentials: tuple[str, str] | None) -> None:
        given = {} if storage_options is None else storage_options
        if not isinstance(given, Mapping):
            raise TypeError(f"storage_options: give a dict, not {type(given).__name__}")
        for name in given:
            if name not in _KNOWN:
                import difflib

                close = difflib.get_close_matches(str(name), _KNOWN, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise TypeError(f"unknown storage option {name!r}: {hint}The options are {', '.join(_KNOWN)}.")
        self.silence_s = _seconds(given, "timeout", SILENCE_S)
        self.read_s = _seconds(given, "deadline", READ_S)
        self.ca_certs = _certificates(given.get("ca_certs"))
        self.headers = _headers(given.get("headers"))
        auth = _auth(given.get("auth"))
        names = {name.lower() for name, _ in self.headers}
        if (auth is not None) + (credentials is not None) + ("authorization" in names) > 1:
            raise ValueError("credentials were given more than once: in the URL, as auth, or as a header Authorization")
        if auth or credentials:
            encoded = base64.b64encode(":".join(auth or credentials or ()).encode()).decode()
            self.headers = (*self.headers, ("Authorization", f"Basic {encoded}"))
        self.headers += tuple((name, value) for name, value in self.DEFAULT_HEADERS if name.lower() not in names)

    def __repr__(self) -> str:
        return f"Access(timeout={self.silence_s:g}, deadline={self.read_s:g}, {len(self.headers)} headers)"


def _seconds(given: Mapping[str, Any], name: str, default: float) -> float:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"storage_options[{name!r}]: give seconds, not {type(value).__name__}")
    if not 0 < value <= 86400:
        raise ValueError(f"storage_options[{name!r}]={value!r}: give seconds, more than 0 and at most a day")
    return float(value)


def _certificates(path: Any) -> str | None:
    if path is None:
        return None
    name = os.path.abspath(os.path.expanduser(os.fsdecode(os.fspath(path))))  # another process will open it
    import ssl

    try:
        ssl.create_default_context(cafile=name)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "storage_options['ca_certs']: no such file", name) from None
    except ssl.SSLError:
        raise ValueError(f"storage_options['ca_certs']: no certificates in {name}") from None
    return name


def _headers(given: Any) -> tuple[tuple[str, str], ...]:
    """Read headers; no message holds a value."""
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise TypeError(f"storage_options['headers']: give a dict, not {type(given).__name__}")
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("storage_options['headers']: names and values are text")
        if re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is None:
            raise ValueError("storage_options['headers']: a name that is none")
        if name.lower() in _OURS:
            raise ValueError(f"storage_options['headers']: {name} is what lazymem itself sends")
        if re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value) is None:
            raise ValueError(f"storage_options['headers']: the value of {name} has characters that no header may have")
    return tuple(given.items())


def _auth(given: Any) -> tuple[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(part, str) for part in given):
        raise TypeError("storage_options['auth']: give (user, password)")
    user, password = given
    if ":" in user:
        raise ValueError("storage_options['auth']: a user name has no colon")
    return user, password
