"""Where in a .npy file does its array begin, and how is one made? numpy's own reader and writer say."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.lib import format as npy

from lazymem.formats.layout import Layout, count, dtype_of, lengthen, shape_of

SUFFIX = ".npy"
MAGIC = b"\x93NUMPY"
# A header is some hundred bytes; a structured dtype of ten thousand fields is still below this.
_HEADER_MAX_NBYTES = 1 << 20
_HEADER_NBYTES = 64 << 10  # what is read at first: nearly all are shorter
_READERS: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_layout(fd: int, file_nbytes: int, name: str) -> Layout:
    """Read the header.

    Parameters
    ----------
    fd : int
        Read by pread(2): its position does not matter and does not move.
    file_nbytes : int, bytes
    name : str
        For errors.

    Raises
    ------
    ValueError
        No .npy file, a damaged one, or one that ends before its array does.
    TypeError
        Its elements are Python objects.
    """
    return read_layout_from(lambda offset, nbytes: os.pread(fd, nbytes, offset), file_nbytes, name)


def read_layout_from(read: Callable[[int, int], bytes], file_nbytes: int, name: str) -> Layout:
    """Read the header of what is no local file.

    Parameters
    ----------
    read : callable
        `read(offset, nbytes)` gives bytes, fewer at the end. Asked once for 64 KiB, and once more if the header is longer.
    file_nbytes : int, bytes
    name : str
        For errors.

    Raises
    ------
    As `read_layout`; and what `read` raises.
    """
    first = read(0, _HEADER_NBYTES)
    if len(first) == _HEADER_NBYTES and _header_end(first) > _HEADER_NBYTES:
        first = read(0, _HEADER_MAX_NBYTES)
    head = io.BytesIO(first)
    try:
        version = npy.read_magic(head)
        if version == (3, 0):
            # 2.0 with UTF-8 field names, which numpy's public readers do not know: given to them as Python's escapes.
            (nbytes,) = struct.unpack("<I", head.read(4))
            text = head.read(nbytes).decode().encode("ascii", "backslashreplace")
            start = head.tell()
            shape, fortran, dtype = _READERS[2, 0](io.BytesIO(struct.pack("<I", len(text)) + text), _HEADER_MAX_NBYTES)
        elif version in _READERS:
            shape, fortran, dtype = _READERS[version](head, _HEADER_MAX_NBYTES)
            start = head.tell()
        else:
            raise ValueError(f"format version {version[0]}.{version[1]} is not known")
    except Exception as error:
        raise ValueError(f"{name}: not a readable .npy file: {error}") from error
    dtype = dtype_of(dtype)
    if any(n < 0 for n in shape):
        raise ValueError(f"{name}: not a readable .npy file: its shape is {shape}")
    layout = Layout(start, dtype, shape_of(shape, dtype, None, name), "F" if fortran else "C")
    if layout.start + layout.nbytes > file_nbytes:
        raise ValueError(
            f"{name}: its header promises {layout.nbytes} bytes of data (shape {shape}, {dtype}), "
            f"but {max(0, file_nbytes - layout.start)} follow it: the file was cut short"
        )
    return layout


class Header(NamedTuple):
    """What a new file begins with, and how long all of it is.

    Attributes
    ----------
    text : bytes
    nbytes : int, bytes
        Of the file.
    """

    text: bytes
    nbytes: int


def header_of(dtype: Any, shape: tuple[int, ...], order: str) -> Header:
    """The header of a new file, of the oldest version of the format that can say it.

    Raises
    ------
    TypeError
        Elements that are Python objects.
    ValueError
        Names of fields that the format cannot hold; more than a file can.
    """
    kind = dtype_of(dtype)
    described = {"descr": npy.dtype_to_descr(kind), "fortran_order": order == "F", "shape": shape}
    text = _written(npy.write_array_header_1_0, described) or _written(npy.write_array_header_2_0, described)
    if text is None:
        raise ValueError(f"{kind}: names of fields that no latin-1 text can hold")
    nbytes = len(text) + count(shape) * kind.itemsize
    if nbytes >= 1 << 63:
        raise ValueError(f"shape={shape!r} of {kind}: more than a file can hold")
    return Header(text, nbytes)


def _written(write: Callable[[Any, Any], None], described: dict[str, Any]) -> bytes | None:
    out = io.BytesIO()
    try:
        write(out, described)
    except ValueError:  # too long for its version, or not to be encoded
        return None
    return out.getvalue()


def write_empty(fd: int, header: Header, name: str) -> None:
    """Write a header into an empty file, and make it as long as it says.

    Whoever meets the file in between, or after a crash in between, finds it cut short, and is told so by `read_layout`: it is
    of full length only when its header is whole.

    Raises
    ------
    OSError
        The disk is full; the file may not be so long.
    """
    done = 0
    while done < len(header.text):
        done += os.pwrite(fd, header.text[done:], done)
    lengthen(fd, header.nbytes, name)


def _header_end(head: bytes) -> int:
    """Where a header says that it ends, bytes; what is none ends anywhere."""
    if head[len(MAGIC)] == 1:
        return 10 + int.from_bytes(head[8:10], "little")
    return 12 + int.from_bytes(head[8:12], "little")
