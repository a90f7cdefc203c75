"""Are the bytes that a provider gives those that it should give? Their checksums are compared before anybody sees them."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

from lazymem.options import BLOCK_MAX_NBYTES
from lazymem.options import nbytes as nbytes_of
from lazymem.providers.base import check_provider
from lazymem.providers.wrapper import Wrapper, call_if_there, fill

# Blocks of fewer bytes than this are fetched several at once, where the provider has no wish of its own.
_FETCH_NBYTES = 256 << 10


class ChecksumError(OSError):
    """A block has another checksum than it should. An OSError, so the block is fetched again: the fault may have passed.

    Attributes
    ----------
    block : int
        Its number, counted in the blocks of the checksums.
    expected, found : str
        Both checksums, hexadecimal.
    """

    block: int
    expected: str
    found: str


class Checked(Wrapper):
    """A provider whose bytes are compared with checksums, in its process, before they are handed over.

    A block that is not what it should be is fetched again, as often as the array's `retries` say, and is a PageError then:
    its cause names the block and both checksums. No wrong byte gets into the array.

    Parameters
    ----------
    provider : object
        What resembles `lazymem.providers.Provider`.
    checksums : iterable of str or bytes
        Of each block, hexadecimal or raw; of the first first. The last block may be short.
    block_nbytes : int, bytes, or str
        How much each checksum is of. A fetch of part of such a block reads all of it.
    algorithm : str
        "crc32", or what hashlib knows by this name and gives a checksum of fixed length: "blake2b", "sha256", "md5", ...

    Raises
    ------
    TypeError
        No provider; a checksum that is neither text nor bytes.
    ValueError
        Too many checksums or too few; one of another length than the algorithm's; an unknown algorithm.

    Notes
    -----
    The provider is asked for whole blocks of `block_nbytes`. Where that is no whole number of pages, what it writes into
    begins anywhere, not on a page. Checksums are pickled with it: 64 bytes a block for blake2b, 4 for crc32.

    Examples
    --------
    >>> import lazymem as lm
    >>> class Zeros(lm.providers.Provider):
    ...     nbytes = 10**6
    ...     def read_into(self, buffer, offset):
    ...         buffer[:] = bytes(len(buffer))
    >>> sums = lm.providers.checksums_of(Zeros(), "64 KiB", "crc32")
    >>> sums[0], len(sums)
    ('d7978eeb', 16)
    >>> a = lm.from_provider(lm.providers.Checked(Zeros(), sums, block_nbytes="64 KiB", algorithm="crc32"))
    >>> int(a.sum())
    0
    """

    def __init__(
        self, provider: Any, checksums: Iterable[str | bytes], *, block_nbytes: int | str, algorithm: str = "blake2b"
    ) -> None:
        super().__init__(provider)
        self._step = step = _step_of(block_nbytes)
        self._algorithm = algorithm
        self._length = length = _length_of(algorithm)
        packed = [_raw(checksum, length, algorithm) for checksum in checksums]
        wanted = -(-self.nbytes // step)
        if len(packed) != wanted:
            raise ValueError(f"{len(packed)} checksums for {wanted} blocks ({self.nbytes} bytes, {step} a block)")
        self._checksums = b"".join(packed)
        self.block_nbytes = min(-(-(self.block_nbytes or _FETCH_NBYTES) // step) * step, BLOCK_MAX_NBYTES)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        step, stop = self._step, offset + len(buffer)
        # Whole blocks lie in `buffer` where they are compared; of a block that begins or ends elsewhere a part is copied.
        first, last = -(-offset // step) * step, stop if stop == self.nbytes else stop // step * step
        if first > last:
            first = last = stop  # all of it lies in one block
        if first < last:
            self._read(buffer[first - offset : last - offset], first)
        for start, end in ((offset, first), (last, stop)):
            if start < end:
                self._read_part(buffer[start - offset : end - offset], start)

    def _read_part(self, part: memoryview, offset: int) -> None:
        import mmap

        start = offset // self._step * self._step
        length = min(self._step, self.nbytes - start)
        whole = memoryview(mmap.mmap(-1, length))  # begins on a page
        self._read(whole, start)
        part[:] = whole[offset - start : offset - start + len(part)]

    def _read(self, blocks: memoryview, offset: int) -> None:
        """Read and compare blocks that follow one another. What was read stays there if it is wrong; nobody looks at it."""
        fill(self.provider, blocks, offset)
        for place in range(0, len(blocks), self._step):
            part = blocks[place : place + self._step]
            number = (offset + place) // self._step
            found = _digest(self._algorithm, part)
            expected = self._checksums[number * self._length : (number + 1) * self._length]
            if found != expected:
                raise self._error(number, offset + place, len(part), expected.hex(), found.hex())

    def _error(self, block: int, offset: int, length: int, expected: str, found: str) -> ChecksumError:
        error = ChecksumError(
            errno.EBADMSG,
            f"block {block} (bytes {offset}..{offset + length}) has the {self._algorithm} checksum {found}, and should have "
            f"{expected}",
        )
        error.block, error.expected, error.found = block, expected, found
        return error


def checksums_of(provider: Any, block_nbytes: int | str, algorithm: str = "blake2b") -> list[str]:
    """Read all of a provider, and compute what `Checked` compares with.

    Parameters
    ----------
    provider : object
        A copy is read, pickled and opened as its process would do it, but in this process.
    block_nbytes : int, bytes, or str
    algorithm : str
        As `Checked` takes it.

    Returns
    -------
    list of str
        Of each block, hexadecimal.

    Raises
    ------
    TypeError, ValueError
        No provider, or one that cannot be pickled; an unknown algorithm.
    Exception
        What the provider raises.

    Notes
    -----
    Blocks: as long as the provider takes. GIL: as the provider has it.
    """
    import mmap

    import cloudpickle

    from lazymem.providers.pickled import pickle_provider

    step = _step_of(block_nbytes)
    _length_of(algorithm)
    nbytes = check_provider(provider).nbytes
    copy = cloudpickle.loads(pickle_provider(provider))
    memory = memoryview(mmap.mmap(-1, step))
    made = []
    call_if_there(copy, "open")
    try:
        for offset in range(0, nbytes, step):
            part = memory[: min(step, nbytes - offset)]
            fill(copy, part, offset)
            made.append(_digest(algorithm, part).hex())
    finally:
        call_if_there(copy, "close")
    return made


def _step_of(block_nbytes: int | str) -> int:
    step = nbytes_of(block_nbytes, "block_nbytes")
    if not 1 <= step <= BLOCK_MAX_NBYTES:
        raise ValueError(f"block_nbytes={block_nbytes!r}: give 1 byte to 1 GiB")
    return step


def _length_of(algorithm: str) -> int:
    """How many bytes a checksum has."""
    try:
        return len(_digest(algorithm, memoryview(b"")))
    except (TypeError, ValueError):
        raise ValueError(
            f'algorithm={algorithm!r}: give "crc32", or what hashlib knows and gives checksums of fixed length, "blake2b" say'
        ) from None


def _digest(algorithm: str, part: memoryview) -> bytes:
    # Not with `import lazymem`, which is to be light.
    if algorithm == "crc32":
        import zlib

        return zlib.crc32(part).to_bytes(4, "big")
    import hashlib

    return hashlib.new(algorithm, part, usedforsecurity=False).digest()


def _raw(checksum: Any, length: int, algorithm: str) -> bytes:
    if not isinstance(checksum, (str, bytes)):
        raise TypeError(f"a checksum is {checksum!r}: give hexadecimal text, or bytes")
    raw = bytes.fromhex(checksum) if isinstance(checksum, str) else checksum
    if len(raw) != length:
        raise ValueError(f"a checksum has {len(raw)} bytes, {checksum!r}: those of {algorithm} have {length}")
    return raw
