"""In which ways can a server answer wrongly, late, or not at all?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Misbehaviour:
    """How one request is answered. Everything may be combined; what is not given is done right.

    Attributes
    ----------
    status : int or None
        Answer with this status and no part of the file.
    fields : mapping of str to str or None
        Header fields to add or replace; None leaves one out. So a server gets another ETag, a Content-Encoding, a Location.
    ranges : bool
        False: send the whole file with status 200, whatever was asked for.
    multipart : bool
        Send the range as multipart/byteranges.
    shift_nbytes : int, bytes
        Send, and announce, a range that begins so much later.
    total_error_nbytes : int, bytes
        Say that the file is so much longer.
    length_error_nbytes : int, bytes
        Announce so much more in Content-Length than the range has.
    extra_nbytes : int, bytes
        Send so much more than Content-Length announces; negative: less, and close the connection.
    chunk_nbytes : int or None, bytes
        Send the body in chunks of so many bytes (Transfer-Encoding: chunked), without Content-Length. This is no misbehaviour.
    padding_nbytes : int, bytes
        Make the head so much longer.
    before : bytes
        Send this first: a 1xx answer, or noise.
    instead : bytes or None
        Send this, and nothing that is HTTP.
    delay_s : float, s
        Wait before the answer.
    bytes_per_s : float or None
        Send the answer so slowly.
    stall_after : int or None, bytes
        Send so much of the answer, head included; then nothing until the server is closed.
    reset_after : int or None, bytes
        Send so much of the answer, head included; then reset the connection.
    """

    status: int | None = None
    fields: Mapping[str, str | None] = field(default_factory=dict)
    ranges: bool = True
    multipart: bool = False
    shift_nbytes: int = 0
    total_error_nbytes: int = 0
    length_error_nbytes: int = 0
    extra_nbytes: int = 0
    chunk_nbytes: int | None = None
    padding_nbytes: int = 0
    before: bytes = b""
    instead: bytes | None = None
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    stall_after: int | None = None
    reset_after: int | None = None

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Misbehaviour:
        """Send whoever asks to somewhere else."""
        return cls(status=status, fields={"Location": location})
