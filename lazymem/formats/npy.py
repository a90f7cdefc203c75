"""Where in a .npy file does its array begin? numpy's own reader says."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from typing import Any

from numpy.lib import format as npy

from lazymem.formats.layout import Layout, dtype_of, shape_of

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


def _header_end(head: bytes) -> int:
    """Where a header says that it ends, bytes; what is none ends anywhere."""
    if head[len(MAGIC)] == 1:
        return 10 + int.from_bytes(head[8:10], "little")
    return 12 + int.from_bytes(head[8:12], "little")
