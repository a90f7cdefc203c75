"""Is every .npy file opened as numpy reads it, by whatever name it goes?"""

import io
import os
import pathlib

import numpy as np
import pytest
from numpy.lib import format as npy
from support import PAGE, check_child, settled

import lazymem as lm

RECORD = np.dtype([("id", ">u2"), ("place", "f4", (3,)), ("name", "S5"), ("flag", "?")])
ARRAYS = {
    "C": np.arange(24.0).reshape(2, 3, 4),
    "F": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "1-D": np.arange(5000, dtype="i2"),
    "0-d": np.array(3.5),
    "empty": np.zeros((3, 0, 2), "f4"),
    "empty 1-D": np.zeros(0),
    "one": np.ones((1, 1, 1), "i8"),
    "big-endian": np.arange(3000, dtype=">i4"),
    "bool": np.arange(100) % 3 == 0,
    "datetime64": np.arange("2020-01-01", "2021-01-01", dtype="M8[D]"),
    "timedelta64": np.arange(50).astype("m8[ns]"),
    "complex": np.arange(60).reshape(3, 20) * (1 + 2j),
    "float16": np.arange(99, dtype="f2"),
    "longdouble": np.arange(99, dtype=np.longdouble),
    "bytes": np.array([b"ab", b"cde", b""] * 40),
    "strings": np.array(["grün", "x", ""] * 40),
    "void": np.frombuffer(bytes(range(240)), "V12"),
    "structured": np.frombuffer(np.random.default_rng(0).integers(0, 2, 200 * RECORD.itemsize, "u1").tobytes(), RECORD),
    "aligned": np.zeros(100, np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "F structured": np.asfortranarray(np.zeros((30, 7), RECORD)),
    "uint64": np.array([0, 2**64 - 1], "u8"),
}


def _same(got, want):
    assert isinstance(got, lm.LazyArray)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.strides == want.strides or want.size == 0
    assert got.flags.c_contiguous == want.flags.c_contiguous
    assert got.flags.f_contiguous == want.flags.f_contiguous
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ARRAYS)
def test_npy(folder, delivery, name):
    path = folder / "a.npy"
    np.save(path, ARRAYS[name])
    want = np.load(path)
    a = lm.open(path, delivery=delivery, block_nbytes=PAGE)
    assert lm.stats(a).blocks == 0
    _same(a, want)
    blocks = settled(a).blocks
    assert blocks == -(-want.nbytes // PAGE)
    assert not a.flags.writeable
    assert a.filename == str(path)
    assert a.offset == os.path.getsize(path) - want.nbytes
    c = lm.open(path, "c", delivery=delivery)
    _same(c, want)
    assert c.flags.writeable


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_header_versions(folder, version):
    want = np.arange(2000.0).reshape(20, 100)
    if version == (3, 0):
        want = np.zeros(500, [("größe", "f4"), ("名", "i2")])
        want["größe"] = np.arange(500)
    with open(folder / "a.npy", "wb") as f:
        npy.write_array(f, want, version)
    with open(folder / "a.npy", "rb") as f:
        assert f.read(8) == b"\x93NUMPY" + bytes(version)
    a = lm.open(folder / "a.npy")
    _same(a, want)
    assert a.dtype.names == want.dtype.names


def test_a_header_of_many_fields(folder):
    want = np.zeros(3, [(f"a_rather_long_name_of_field_{i}", "u1") for i in range(5000)])
    with open(folder / "a.npy", "wb") as f:
        npy.write_array(f, want, (2, 0))
    assert os.path.getsize(folder / "a.npy") > 100000
    _same(lm.open(folder / "a.npy"), want)


def test_a_file_that_is_longer_than_its_array(folder):
    np.save(folder / "a.npy", np.arange(10.0))
    with open(folder / "a.npy", "ab") as f:
        f.write(b"more")
    _same(lm.open(folder / "a.npy"), np.arange(10.0))


@pytest.mark.parametrize("suffix", [".npy", ".bin", ""])
def test_npy_is_known_by_its_first_bytes(folder, suffix):
    with open(folder / f"a{suffix}", "wb") as f:
        np.save(f, np.arange(10.0))
    _same(lm.open(folder / f"a{suffix}"), np.arange(10.0))


@pytest.mark.parametrize("kind", [str, bytes, pathlib.Path, "PathLike", "relative", "file", "raw file", "fdopen"])
def test_ways_to_name_a_file(folder, monkeypatch, kind):
    path = folder / "näme.npy"
    want = np.arange(3000.0)
    np.save(path, want)

    class Like:
        def __fspath__(self):
            return str(path)

    opened = None
    if kind == "PathLike":
        a = lm.open(Like())
    elif kind == "relative":
        monkeypatch.chdir(folder)
        a = lm.open("näme.npy")
        monkeypatch.chdir("/")
    elif kind == "file":
        opened = open(path, "rb")  # noqa: SIM115
        opened.read(5)  # where it stands does not matter
        a = lm.open(opened)
        assert opened.tell() == 5
    elif kind == "raw file":
        opened = open(path, "rb", buffering=0)  # noqa: SIM115
        a = lm.open(opened)
    elif kind == "fdopen":
        opened = os.fdopen(os.open(path, os.O_RDONLY), "rb")
        a = lm.open(opened)
    else:
        a = lm.open(os.fsencode(path) if kind is bytes else kind(path))
    if opened is not None:
        opened.close()
    os.unlink(path) if kind == "fdopen" else None
    if kind != "fdopen":  # which does not know its path
        assert a.filename == str(path)
    _same(a, want)


def test_tilde(folder):
    np.save(folder / "home.npy", np.arange(5.0))
    check_child(
        f"import lazymem as lm; a = lm.open('~/home.npy'); assert (a.sum(), a.filename) == (10, {str(folder / 'home.npy')!r})",
        env={"HOME": str(folder)},
    )


def test_names_that_look_like_others(folder):
    for name in ("a b.npy", "%41.npy", "-a.npy", "a:b.npy", "#.npy", "\n.npy"):
        np.save(folder / name, np.arange(5.0))
        assert lm.open(folder / name).sum() == 10


def test_raw(folder):
    want = np.arange(6000, dtype="u2")
    want.tofile(folder / "a.raw")
    _same(lm.open(folder / "a.raw", dtype="u2"), want)
    _same(lm.open(folder / "a.raw", dtype="<u2", shape=(60, -1)), want.reshape(60, 100))
    _same(lm.open(folder / "a.raw", dtype="u2", shape=(60, -1), order="F"), want.reshape(60, 100, order="F"))
    _same(lm.open(folder / "a.raw", dtype=">u4", offset=4, shape=7), np.fromfile(folder / "a.raw", ">u4", 7, offset=4))
    np.save(folder / "a.npy", want)
    _same(lm.open(folder / "a.npy", dtype="u1"), np.fromfile(folder / "a.npy", "u1"))  # as told: its header too


def test_large_and_sparse(folder):
    """A file larger than memory: only what is touched is read."""
    shape = (1 << 20, 1 << 17)  # 1 TiB
    with open(folder / "a.npy", "wb") as f:
        npy.write_array_header_1_0(f, {"descr": "<f8", "fortran_order": False, "shape": shape})
        start = f.tell()
        try:
            f.truncate(start + 8 * shape[0] * shape[1])
        except OSError:
            pytest.skip("this file system has no files of 1 TiB")
        f.seek(start + 8 * (123456 * shape[1] + 78910))
        f.write(np.array([2.5]).tobytes())
    a = lm.open(folder / "a.npy", block_nbytes=PAGE)
    assert a.shape == shape
    assert a[123456, 78910] == 2.5
    assert a[-1, -1] == 0
    assert settled(a).blocks == 2


def test_an_open_file_goes_on_living(folder):
    np.save(folder / "a.npy", np.arange(9.0))
    with open(folder / "a.npy", "rb") as f:
        a = lm.open(f)
        lm.close(a)
        assert f.read(6) == b"\x93NUMPY"  # its descriptor is its own


def test_bytesio_is_refused():
    with pytest.raises(TypeError, match="from_provider"):
        lm.open(io.BytesIO(b"\x93NUMPY"))
