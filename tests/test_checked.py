"""Does Checked find every wrong bit before it is filled, and is a block that was wrong for a time right in the end?"""

import errno
import hashlib
import re

import pytest
from native_kit import in_child
from support import DELIVERIES, PAGE, USERS
from wrong_providers import RIGHT

import lazymem as lm
from lazymem.providers import Checked, ChecksumError, Provider, checksums_of
from lazymem.testing import Failure, FaultyProvider, SlowProvider

BLOCKS = 6  # of RIGHT, the last one short
# Each user, and each delivery; not each with each.
as_somebody = pytest.mark.parametrize(("user", "delivery"), list(zip(USERS, DELIVERIES, strict=False)))


def array_of(provider, delivery, **options):
    """An array of small blocks."""
    return lm.from_provider(provider, **{"block_nbytes": PAGE, "delivery": delivery, **options})


class Flipped(Provider):
    """RIGHT, with one bit of it that is not."""

    nbytes, bit = len(RIGHT), None

    def read_into(self, buffer, offset):
        buffer[:] = RIGHT[offset : offset + len(buffer)]
        if self.bit is not None:
            byte = self.bit // 8 - offset
            if 0 <= byte < len(buffer):
                buffer[byte] ^= 1 << self.bit % 8


@pytest.mark.parametrize("algorithm", ["crc32", "blake2b"])
def test_trap_50_every_flipped_bit_is_found(algorithm):
    """Of a whole block and of the short one at the end; others are none the worse."""
    flipped = Flipped()
    checked = Checked(flipped, checksums_of(flipped, PAGE, algorithm), block_nbytes=PAGE, algorithm=algorithm)
    detected = 0
    for block in (1, BLOCKS - 1):
        start, stop = block * PAGE, min((block + 1) * PAGE, len(RIGHT))
        buffer = memoryview(bytearray(stop - start))
        for bit in range(8 * start, 8 * stop):
            flipped.bit = bit
            with pytest.raises(ChecksumError) as caught:
                checked.read_into(buffer, start)
            detected += caught.value.block == block
    assert detected == 8 * (PAGE + 1000)
    checked.read_into(memoryview(bytearray(PAGE)), 0)


def test_part_of_a_block_is_compared_too():
    flipped = Flipped()
    checked = Checked(flipped, checksums_of(flipped, 3000), block_nbytes=3000)
    flipped.bit = 8 * 5999  # the last byte of block 1
    for offset, nbytes in ((3000, 1), (2999, 2), (5999, 1), (5000, 4000), (0, len(RIGHT)), (3100, 100)):
        with pytest.raises(ChecksumError, match=r"block 1 \(bytes 3000\.\.6000\)"):
            checked.read_into(memoryview(bytearray(nbytes)), offset)
    for offset, nbytes in ((0, 3000), (6000, 1), (2999, 1), (6000, len(RIGHT) - 6000), (3100, 0)):
        buffer = bytearray(nbytes)
        checked.read_into(memoryview(buffer), offset)
        assert buffer == RIGHT[offset : offset + nbytes]


@as_somebody
def test_trap_50_a_wrong_block_is_never_filled(user, delivery):
    in_child(check_what_is_filled, delivery, user=user)


def check_what_is_filled(delivery):
    sums = [hashlib.blake2b(RIGHT[i : i + PAGE]).hexdigest() for i in range(0, len(RIGHT), PAGE)]
    assert sums == checksums_of(SlowProvider(RIGHT), PAGE)

    for_a_time = FaultyProvider(RIGHT, [Failure("wrong", at=PAGE, times=2), Failure("wrong", at=5 * PAGE, times=1)])
    a = array_of(Checked(for_a_time, sums, block_nbytes=PAGE), delivery)
    assert a.tobytes() == RIGHT
    assert for_a_time.counts()["wrong"] == 3
    assert for_a_time.counts()["reads"] == BLOCKS + 3

    for_good = FaultyProvider(RIGHT, [Failure("wrong", at=PAGE)])
    b = array_of(Checked(for_good, sums, block_nbytes=PAGE), delivery, retries=2)
    with pytest.raises(lm.PageError) as caught:
        b[PAGE + 1]
    assert (caught.value.errno, caught.value.block) == (errno.EREMOTEIO, 1)
    said = re.search(
        rf"ChecksumError: .*block 1 \(bytes {PAGE}\.\.{2 * PAGE}\) has the blake2b checksum (\w+), and should have (\w+)",
        str(caught.value.__cause__),
    )
    assert said[2] == sums[1] != said[1]
    assert for_good.counts()["wrong"] == 3
    assert lm.residency(b).tolist() == [False] * BLOCKS
    assert b[2 * PAGE :].tobytes() == RIGHT[2 * PAGE :]


def test_what_a_wrapped_provider_does_wrong_is_told():
    short = FaultyProvider(RIGHT, [Failure("short")])
    checked = Checked(short, checksums_of(SlowProvider(RIGHT), PAGE), block_nbytes=PAGE)
    checked.open()
    with pytest.raises(ValueError, match=rf"FaultyProvider\.read_into\(buffer, 0\) returned {PAGE - 1}: it must fill"):
        checked.read_into(memoryview(bytearray(PAGE)), 0)
    checked.close()


def test_what_a_wrapper_says_is_what_the_other_says():
    class Shy(Flipped):
        block_nbytes, concurrent, processes_max = 3 * PAGE, False, 1

        def stamp(self):
            return "a stamp"

    for wrapper in (SlowProvider(Shy()), FaultyProvider(Shy())):
        assert (wrapper.nbytes, wrapper.block_nbytes, wrapper.concurrent) == (len(RIGHT), 3 * PAGE, False)
        assert (wrapper.processes_max, wrapper.stamp()) == (1, "a stamp")
    sums = ["00000000"] * 3
    assert Checked(Shy(), sums, block_nbytes=2 * PAGE, algorithm="crc32").block_nbytes == 4 * PAGE


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"checksums": ["00"] * 6}, ValueError, "1 bytes, '00': those of crc32 have 4"),
        ({"checksums": ["00000000"] * 5}, ValueError, "5 checksums for 6 blocks"),
        ({"checksums": ["00000000"] * 7}, ValueError, "7 checksums for 6 blocks"),
        ({"checksums": [1, 2, 3, 4, 5, 6]}, TypeError, "a checksum is 1"),
        ({"algorithm": "crc33"}, ValueError, "algorithm='crc33'"),
        ({"algorithm": "shake_128"}, ValueError, "fixed length"),
        ({"block_nbytes": 0}, ValueError, "block_nbytes=0"),
        ({"block_nbytes": "4 XB"}, ValueError, "block_nbytes"),
        ({"provider": 5}, TypeError, "no provider"),
    ],
)
def test_checked_says_what_it_wants(given, kind, text):
    usual = {"provider": Flipped(), "checksums": ["00000000"] * 6, "block_nbytes": PAGE, "algorithm": "crc32"}
    usual |= given
    with pytest.raises(kind, match=text):
        Checked(usual.pop("provider"), usual.pop("checksums"), **usual)
