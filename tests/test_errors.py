"""Does whoever gives a constructor the wrong thing learn what was wrong, and what to do?"""

import os
import socket

import numpy as np
import pytest
from numpy.lib import format as npy
from support import PAGE, check_child, needs_root

import lazymem as lm


@pytest.fixture
def raw(folder):
    path = folder / "raw.bin"
    np.arange(1000, dtype="u1").tofile(path)
    return path


def _raises(kind, *said):
    """A context: this very kind of exception, whose text has all these words."""
    return pytest.raises(kind, match="".join(f"(?=.*{word})" for word in said))


# --- elements and shapes


@pytest.mark.parametrize("dtype", ["O", [("a", "f4"), ("b", "O")], object])
def test_objects(raw, dtype):
    for make in (
        lambda: lm.memmap(raw, dtype),
        lambda: lm.open(raw, dtype=dtype),
        lambda: lm.from_provider(b"abc", dtype=dtype),
    ):
        with _raises(TypeError, "Python objects", "addresses"):
            make()


def test_npy_of_objects(folder):
    np.save(folder / "o.npy", np.array([{}, None]), allow_pickle=True)
    with _raises(TypeError, "Python objects"):
        lm.open(folder / "o.npy")


@pytest.mark.parametrize("dtype", ["S", "U", "V"])
def test_elements_of_no_size(raw, dtype):
    with _raises(TypeError, "no size"):
        lm.memmap(raw, dtype)


@pytest.mark.parametrize("dtype", ["nonsense", 3.5])
def test_no_dtype(raw, dtype):
    with pytest.raises(TypeError):
        lm.memmap(raw, dtype)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (-2, "0 or more"), ((3, -2), "0 or more"), ((-1, -1), "one may be -1"), ((-1, -1, 2), "one may be -1"),
        ((2**40, 2**40), "address space"), (2**63, "address space"),
        ((0, 2**63), "address space"), ((2**60, 0, 9), "address space"),
        ((2**32, 2**32), "address space"),
        (1001, "1000"), ((7, 143), "1001 bytes"), ((-1, 7), "whole number"), ((-1, 0), "whole number"),
    ],
    ids=str,
)  # fmt: skip
def test_shapes(raw, shape, said):
    with _raises(ValueError, "shape=", said):
        lm.memmap(raw, "u1", shape=shape)
    with _raises(ValueError, "shape=", said):
        lm.from_provider(bytes(1000), shape)


@pytest.mark.parametrize("shape", [1.5, "12", (1.0, 2), object()], ids=lambda s: str(s).partition(" at ")[0])
def test_shapes_of_the_wrong_type(raw, shape):
    with _raises(TypeError, "shape="):
        lm.memmap(raw, shape=shape)


@pytest.mark.parametrize(
    ("offset", "kind"), [(-1, ValueError), (1001, ValueError), (2**70, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_offsets(raw, offset, kind):
    with _raises(kind, "offset="):
        lm.memmap(raw, offset=offset)
    with _raises(kind, "offset="):
        lm.from_provider(bytes(1000), offset=offset)


def test_bytes_that_are_no_whole_elements(raw):
    with _raises(ValueError, "1000 bytes", "whole number", "3 bytes"):
        lm.memmap(raw, "V3")


@pytest.mark.parametrize("order", ["K", "A", None, "c", 1])
def test_orders(raw, order):
    with _raises(ValueError, "order=", "'C'", "'F'"):
        lm.memmap(raw, order=order)


# --- files


def test_a_missing_file(folder):
    for path in (folder / "nowhere.npy", str(folder / "no" / "where.npy")):
        with _raises(FileNotFoundError, "nowhere|where"):
            lm.open(path)
        with pytest.raises(FileNotFoundError) as caught:
            lm.memmap(path)
        assert caught.value.filename == str(path)
        assert caught.value.errno == 2


def test_a_directory(folder):
    for make in (lm.open, lm.memmap):
        with _raises(IsADirectoryError, folder.name, "directory"):
            make(folder)


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_not_a_regular_file(kind):
    """In a child: opening a FIFO could wait for its other end."""
    out = check_child(
        f"""
        import os, socket, tempfile, lazymem as lm
        path = os.path.join(tempfile.mkdtemp(), "odd")
        if {kind!r} == "fifo":
            os.mkfifo(path)
        elif {kind!r} == "device":
            path = "/dev/zero"
        else:
            s = socket.socket(socket.AF_UNIX); s.bind(path)
        for make in (lambda: lm.memmap(path), lambda: lm.open(path, dtype="u1"), lambda: lm.open(path)):
            try:
                make()
            except (ValueError, OSError) as error:
                print(type(error).__name__, error)
            else:
                raise AssertionError("opened")
        """,
        timeout=20,
    )
    assert out.count("regular") == 3 or kind == "socket"


def test_pipes_and_sockets_by_descriptor():
    a, b = socket.socketpair()
    with a, b, _raises(ValueError, "regular file"):
        lm.memmap(a)


def test_written_only(raw):
    with open(raw, "ab") as f, _raises(ValueError, "writing only"):
        lm.memmap(f)


@needs_root
def test_no_permission(folder):
    check_child(
        f"""
        import os, lazymem as lm
        path = {str(folder / "secret")!r}
        open(path, "wb").close()
        os.chmod(path, 0)
        os.setgid(65534), os.setuid(65534)
        try:
            lm.memmap(path)
        except PermissionError as error:
            assert error.filename == path
        """
    )


@pytest.mark.parametrize("url", ["s3://bucket/a.npy", "file:///tmp/a.npy", "nosuch://x"])
def test_urls_of_unknown_schemes(url):
    for make in (lm.open, lm.memmap):
        with _raises(ValueError, url.partition("://")[0] + "://", "http, https", "lazymem.providers"):
            make(url)


def test_options_of_urls_for_files(folder):
    np.save(folder / "a.npy", np.zeros(3))
    for given in ({"storage_options": {}}, {"redirects": True}):
        for make in (lm.open, lm.memmap):
            with _raises(TypeError, "for URLs"):
                make(folder / "a.npy", **given)


@pytest.mark.parametrize("thing", [3.5, None, b"", object(), np.zeros(3), [1], ""], ids=lambda t: type(t).__name__)
def test_no_file_at_all(thing):
    with pytest.raises((TypeError, FileNotFoundError)):
        lm.open(thing)


def test_unknown_files_say_what_is_known(folder):
    (folder / "a.tiff").write_bytes(bytes(100))
    with _raises(ValueError, "a.tiff", r"\.npy", "dtype="):
        lm.open(folder / "a.tiff")


@pytest.mark.parametrize("option", [{"shape": 3}, {"offset": 8}, {"order": "F"}])
def test_a_npy_file_says_its_own_layout(folder, option):
    np.save(folder / "a.npy", np.zeros(9))
    with _raises(ValueError, "dtype"):
        lm.open(folder / "a.npy", **option)


def _npy(**changed):
    return {"descr": "<f8", "fortran_order": False, "shape": (3, 4)} | changed


def _header(text, length=None, version=b"\x01\x00"):
    text = text.encode() if isinstance(text, str) else text
    size = (len(text) if length is None else length).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + text


DAMAGED = {
    "empty": b"",
    "garbage": b"garbage that is no array at all",
    "magic only": b"\x93NUMPY",
    "half a header": _header(repr(_npy()), 5000),
    "unknown version": _header(repr(_npy()) + "\n", version=b"\x09\x00"),
    "no dictionary": _header("[1, 2, 3]\n"),
    "syntax": _header("{'descr': \n"),
    "code": _header("__import__('os').system('false')\n"),
    "missing key": _header("{'descr': '<f8', 'shape': (1,)}\n"),
    "extra key": _header(repr(_npy(more=1)) + "\n"),
    "shape is text": _header(repr(_npy(shape="3")) + "\n"),
    "shape of floats": _header(repr(_npy(shape=(1.0,))) + "\n"),
    "dtype is nonsense": _header(repr(_npy(descr="<q77")) + "\n"),
    "order is text": _header(repr(_npy(fortran_order="no")) + "\n"),
    "not UTF-8": _header(b"\xff\xfe\xfd{", version=b"\x03\x00"),
    "negative shape": _header(repr(_npy(shape=(-3, 4))) + "\n") + bytes(1000),
    "two negative lengths": _header(repr(_npy(shape=(-3, -4))) + "\n") + bytes(1000),
    "overflowing shape": _header(repr(_npy(shape=(2**40, 2**40))) + "\n") + bytes(1000),
    "minus one": _header(repr(_npy(shape=(-1, 4))) + "\n") + bytes(1000),
    "empty but overflowing": _header(repr(_npy(shape=(0, 2**70))) + "\n") + bytes(1000),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_npy(folder, name):
    (folder / "bad.npy").write_bytes(DAMAGED[name])
    with _raises(ValueError, "bad.npy"):
        lm.open(folder / "bad.npy")


@pytest.mark.parametrize("missing", [1, 8, PAGE, 8 * 5000 - 1, 8 * 5000])
def test_npy_that_was_cut_short(folder, missing):
    np.save(folder / "short.npy", np.zeros(5000))
    os.truncate(folder / "short.npy", os.path.getsize(folder / "short.npy") - missing)
    with _raises(ValueError, "short.npy", "40000 bytes", str(40000 - missing), "cut short"):
        lm.open(folder / "short.npy")


def test_every_way_to_cut_a_header(folder):
    with open(folder / "a.npy", "wb") as f:
        npy.write_array(f, np.arange(4.0))
    whole = (folder / "a.npy").read_bytes()
    for n in range(len(whole)):
        (folder / "cut.npy").write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"cut\.npy"):
            lm.open(folder / "cut.npy")


# --- options


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("block_bytes", "block_nbytes"), ("blocknbytes", "block_nbytes"), ("delivry", "delivery"), ("time_out", "timeout"),
        ("retry", "retries"), ("thread", "threads"),
    ],
)  # fmt: skip
def test_unknown_option(raw, wrong, right):
    for make in (
        lambda o: lm.open(raw, dtype="u1", **o),
        lambda o: lm.memmap(raw, **o),
        lambda o: lm.from_provider(b"abc", **o),
    ):
        with _raises(TypeError, f"unknown option '{wrong}'", f"did you mean '{right}'"):
            make({wrong: 1})


def test_an_option_like_no_other_lists_them(raw):
    with _raises(TypeError, "zzz", "block_nbytes, delivery, threads, timeout, retries"):
        lm.memmap(raw, zzz=1)


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ({"block_nbytes": 0}, ValueError), ({"block_nbytes": -1}, ValueError), ({"block_nbytes": 2**40}, ValueError),
        ({"block_nbytes": True}, TypeError), ({"block_nbytes": 4096.0}, TypeError), ({"block_nbytes": "64 KX"}, ValueError),
        ({"block_nbytes": "KiB"}, ValueError), ({"block_nbytes": "-4 KiB"}, ValueError), ({"block_nbytes": ""}, ValueError),
        ({"block_nbytes": "0 MiB"}, ValueError), ({"block_nbytes": b"4096"}, TypeError),
        ({"block_nbytes": "64 kilo"}, ValueError),
        ({"delivery": "thread"}, ValueError), ({"delivery": None}, ValueError), ({"delivery": 1}, ValueError),
        ({"threads": 0}, ValueError), ({"threads": -1}, ValueError), ({"threads": 10**9}, ValueError),
        ({"threads": 2.0}, TypeError), ({"threads": True}, TypeError),
        ({"timeout": 0}, ValueError), ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": "30 s"}, ValueError), ({"retries": -1}, ValueError), ({"retries": 1.5}, TypeError),
        ({"scratch_dir": 3}, TypeError), ({"scratch_dir": ""}, ValueError), ({"scratch_dir": "a\0b"}, ValueError),
    ],
    ids=str,
)  # fmt: skip
def test_values_of_options(raw, option, kind):
    (name,) = option
    with _raises(kind, f"{name}=", "give"):
        lm.memmap(raw, **option)


@pytest.mark.parametrize(
    ("value", "nbytes"),
    [(1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE), ("64 KiB", 65536), ("64KiB", 65536), ("1 mib", 1 << 20),
     ("0.5 MiB", 1 << 19), ("1 MB", -(-(10**6) // PAGE) * PAGE), (np.int64(1 << 16), 1 << 16),
     (" 128 kib ", 1 << 17), ("1 GiB", 1 << 30)],
)  # fmt: skip
def test_units(value, nbytes):
    assert lm.region(lm.from_provider(b"abc", block_nbytes=value)).block_nbytes == nbytes


@pytest.mark.parametrize("mode", ["rw", "R", "", None, 0, "w", "a", "rb"])
def test_modes(raw, mode):
    with _raises(ValueError, "mode=", "'r'", "'c'"):
        lm.memmap(raw, mode=mode)


# --- memory


@pytest.mark.parametrize("thing", [3, None, "text", [1, 2], lambda: 1, object()], ids=lambda t: type(t).__name__)
def test_no_provider(thing):
    with _raises(TypeError, "no provider", "CFunction", "buffer"):
        lm.from_provider(thing)


def test_memory_that_is_not_contiguous():
    with pytest.raises((BufferError, ValueError), match="contiguous"):
        lm.from_provider(np.arange(100)[::2])


@pytest.mark.parametrize("part", [lambda a: a, lambda a: np.asarray(a)[PAGE:], lambda a: memoryview(a)])
def test_lazy_memory_is_no_source_of_another(part, delivery):
    a = lm.from_provider(np.arange(8 * PAGE, dtype="u1"), block_nbytes=PAGE, delivery=delivery)
    with _raises(ValueError, "lazy array", "copy"):
        lm.from_provider(part(a))


def test_address_space():
    check_child(
        """
        import resource, lazymem as lm, ctypes, tempfile
        f = tempfile.NamedTemporaryFile()
        f.truncate(1 << 40)
        lm.memmap(f.name, shape=10)
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        try:
            lm.memmap(f.name)
        except MemoryError as error:
            assert "RLIMIT_AS" in str(error), error
        else:
            raise AssertionError("made")
        """
    )


# --- who gets the question wrong


@pytest.mark.parametrize("ask", [lm.region, lm.populate, lm.prefetch, lm.residency, lm.stats])
def test_ordinary_memory_is_not_lazy(ask):
    for x in (np.zeros(3), np.float64(3), b"abc"):
        with _raises(ValueError, "lazy array"):
            ask(x)
    for x in (3, None, "text"):
        with pytest.raises(TypeError):
            ask(x)


def test_nothing_is_left_open_by_a_constructor_that_raised(raw):
    before = set(os.listdir("/proc/self/fd"))
    for given in ({"dtype": "O"}, {"shape": 2000}, {"offset": 2000}, {"order": "K"}, {"dtype": "V3"}):
        with pytest.raises((TypeError, ValueError)):
            lm.memmap(raw, **given)
    with pytest.raises(ValueError):
        lm.open(raw)
    assert set(os.listdir("/proc/self/fd")) == before
