"""Can the array be handed to system calls and to C, as an ordinary user and as root?

Each test is a child: one program for both deliveries and both users. On an ordinary account a system call on an absent page
would end with EFAULT, so what Python hands over is fetched first.
"""

import os

import numpy as np
import pytest
from support import PAGE, check_child, each_user

PRELUDE = """
import hashlib, io, mmap, os, socket, struct, tempfile, threading, warnings, zlib
import numpy as np, lazymem as lm
from support import PAGE, settled
warnings.simplefilter("error")
plain = np.arange(40 * PAGE // 8 + 5, dtype="f8")
held = plain.tobytes()
def fresh(mode="r", shape=None, **options):
    options = dict(block_nbytes=PAGE, delivery={delivery!r}) | options
    made = lm.from_provider(plain, shape, dtype="f8", mode=mode, **options)
    assert lm.stats(made).blocks == 0
    return made
def refused(a, n=1):
    assert lm.region(a).exports == n, lm.region(a).exports
    try:
        lm.close(a)
    except BufferError as error:
        assert f"{{n}} exported buffer" in str(error), error
    else:
        raise AssertionError("closed under an exported buffer")
folder = tempfile.mkdtemp()
path = os.path.join(folder, "out")
def written():
    with open(path, "rb") as f:
        return f.read()
a = fresh()
"""

PROGRAMS = {
    "file.write": """
with open(path, "wb") as f:
    assert f.write(a) == a.nbytes
assert written() == held
""",
    "raw file.write": """
with open(path, "wb", buffering=0) as f:
    assert f.write(a) == a.nbytes
assert written() == held
""",
    "os.write": """
fd = os.open(path, os.O_WRONLY | os.O_CREAT)
assert os.write(fd, a) == a.nbytes
assert os.pwrite(fd, a[1:], 0) == a.nbytes - 8
os.close(fd)
assert written() == held[8:] + held[-8:]
""",
    "os.writev": """
fd = os.open(path, os.O_WRONLY | os.O_CREAT)
assert os.writev(fd, [a, fresh(), b"end"]) == 2 * a.nbytes + 3
os.close(fd)
assert written() == held + held + b"end"
""",
    "sendall": """
left, right = socket.socketpair()
got = bytearray()
def receive():
    while len(got) < a.nbytes:
        got.extend(right.recv(1 << 16))
t = threading.Thread(target=receive)
t.start()
left.sendall(a)
t.join()
assert got == held
left.close(), right.close()
""",
    "tofile": """
a.tofile(path)
assert written() == held
with open(path, "wb") as f:
    f.write(b"before")
    fresh().tofile(f)
    fresh()[::-3].tofile(f)
    fresh(shape=(-1, 1), order="F")[3:9].tofile(f)
assert written() == b"before" + held + plain[::-3].tobytes() + plain[3:9].tobytes()
fresh()[:5].tofile(path, sep=" ", format="%d")
assert written() == b"0 1 2 3 4"
fresh().reshape(-1, 5)[:, ::2].tofile(path)
assert written() == plain.reshape(-1, 5)[:, ::2].tobytes()
fresh()[7:8].reshape(()).tofile(path)
assert written() == plain[7].tobytes()
fresh()[:0].tofile(path)
assert written() == b""
""",
    "tofile in pieces": """
import lazymem.lazyarray
lazymem.lazyarray.PIECE_NBYTES = 3 * PAGE
pieces = []
class Sink:
    def write(self, piece):
        pieces.append(bytes(piece))
a.tofile(Sink())
assert b"".join(pieces) == held
assert [len(p) for p in pieces[:-1]] == [3 * PAGE] * 13, [len(p) for p in pieces]
pieces.clear()
a[::2].tofile(Sink())
assert b"".join(pieces) == plain[::2].tobytes() and len(pieces) > 5
pieces.clear()
b = fresh(shape=(-1, 5))
b.T.tofile(Sink())
assert b"".join(pieces) == plain.reshape(-1, 5).T.tobytes() and len(pieces) > 5
""",
    "np.save": """
np.save(path, a)
assert np.array_equal(np.load(path + ".npy"), plain)
np.save(path, fresh(shape=(5, -1)).T)
assert np.array_equal(np.load(path + ".npy"), plain.reshape(5, -1).T)
b = io.BytesIO()
np.save(b, fresh())
b.seek(0)
assert np.array_equal(np.load(b), plain)
""",
    "np.savez": """
np.savez(path, x=a, y=fresh()[::2])
np.savez_compressed(path + "c", x=fresh())
with np.load(path + ".npz") as z:
    assert np.array_equal(z["x"], plain) and np.array_equal(z["y"], plain[::2])
with np.load(path + "c.npz") as z:
    assert np.array_equal(z["x"], plain)
""",
    "readinto": """
data = plain[::-1].tobytes()
with open(path, "wb") as f:
    f.write(data)
c = fresh("c")
with open(path, "rb") as f:
    assert f.readinto(c) == len(data)
assert np.array_equal(c, plain[::-1])
c = fresh("c")
with open(path, "rb", buffering=0) as f:
    assert f.readinto(c[100:1000]) == 7200  # into the middle: what lies around it is still to come
want = plain.copy()
want[100:1000] = plain[::-1][:900]
assert np.array_equal(c, want)
left, right = socket.socketpair()
left.send(b"x" * 16)
c = fresh("c")
assert right.recv_into(c, 16) == 16 and bytes(c)[:24] == b"x" * 16 + held[16:24]
left.close(), right.close()
with open(path, "rb") as f:
    try:
        f.readinto(a)
    except (TypeError, BufferError) as error:
        print(error)
    else:
        raise AssertionError("read into a read-only array")
""",
    "hashes": """
assert hashlib.sha256(a).digest() == hashlib.sha256(held).digest()
assert zlib.crc32(fresh()) == zlib.crc32(held)
assert zlib.adler32(fresh()[5:]) == zlib.adler32(held[40:])
assert zlib.decompress(zlib.compress(fresh())) == held
import base64, binascii
assert base64.b64encode(fresh()) == base64.b64encode(held)
assert binascii.crc32(fresh()) == zlib.crc32(held)
""",
    "bytes": """
assert bytes(a) == held
assert bytearray(fresh()) == held
assert b"".join([fresh(), b"x", fresh()[:3]]) == held + b"x" + held[:24]
assert struct.unpack_from("d", fresh(), 8 * PAGE)[0] == plain[PAGE]
assert bytes(memoryview(fresh())) == held
assert memoryview(fresh()).tolist() == plain.tolist()
assert int.from_bytes(fresh()[:1]) == int.from_bytes(held[:8])
assert io.BytesIO(fresh()).read() == held
c = fresh("c")
struct.pack_into("d", c, 16, -1.0)
assert c[2] == -1 and c[3] == 3
""",
    "mmap and struct": """
m = mmap.mmap(-1, a.nbytes)
m.write(a)
assert m[:] == held
import array
x = array.array("B")
x.frombytes(fresh().view("u1"))
assert x.tobytes() == held
""",
    "counted and refused": """
m = memoryview(a)
refused(a)
m2 = memoryview(a)
refused(a, 2)
m.release(), m2.release()
b = io.BytesIO()
import ctypes
c = fresh("c")
held_by_ctypes = (ctypes.c_char * c.nbytes).from_buffer(c)
refused(c)
assert held_by_ctypes[:16] == held[:16]
del held_by_ctypes
lm.close(c)
p = ctypes.pythonapi
class Py_buffer(ctypes.Structure):
    _fields_ = [("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("rest", ctypes.c_char * 200)]
simple = Py_buffer()
assert p.PyObject_GetBuffer(ctypes.py_object(a), ctypes.byref(simple), 0) == 0
assert simple.buf == a.ctypes.data
refused(a)
p.PyBuffer_Release(ctypes.byref(simple))
assert lm.region(a).exports == 0
lm.close(a)
""",
    "views are counted too": """
m = memoryview(a[3:9])
assert lm.region(a).exports == 1
try:
    lm.close(a)
except BufferError as error:
    assert "1 view and 1 exported buffer" in str(error), error
m.release()
del m
lm.close(a)
""",
    "a memoryview stays lazy": """
m = memoryview(a)
assert settled(a).blocks == 0
assert m[PAGE] == plain[PAGE]
assert settled(a).blocks == 1
""",
    "what may wait is not fetched": """
with open(os.devnull, "wb", buffering=0) as f:
    f.write(a)  # which reads nothing
    assert settled(a).blocks == (0 if lm.region(a).kernel_faults else 41), lm.stats(a)
""",
    "failing": """
source = tempfile.NamedTemporaryFile()
plain.tofile(source)
b = lm.memmap(source.name, "f8", block_nbytes=PAGE, delivery={delivery!r})
os.truncate(source.name, 20 * PAGE)
for hand_over in (lambda: b.tofile(path), lambda: np.save(path, b)):
    try:
        hand_over()
    except lm.PageError as error:
        print(error)
    else:
        raise AssertionError("written all the same")
try:
    bytes(b)
except lm.PageError as error:
    print(error)
else:
    raise AssertionError("bytes of what is not there")
if not lm.region(b).kernel_faults:  # elsewhere the call itself meets the page: EFAULT, or poison
    for hand_over in (lambda: os.write(1, b), lambda: hashlib.md5(b), lambda: zlib.crc32(b)):
        try:
            hand_over()
        except lm.PageError as error:
            print(error)
        else:
            raise AssertionError("handed over all the same")
""",
}


@each_user
@pytest.mark.parametrize("name", PROGRAMS)
def test_exports(delivery, name, user):
    check_child(PRELUDE.format(delivery=delivery) + PROGRAMS[name].replace("{delivery!r}", repr(delivery)), user=user)


@pytest.mark.parametrize("user", ["nobody"])
def test_a_large_buffer_is_handed_out_lazily_with_one_warning(delivery, user):
    check_child(
        PRELUDE.format(delivery=delivery)
        + """
from lazymem.core import lazyarray
lazyarray.largest_export_nbytes = 8 * PAGE
assert not lm.region(a).kernel_faults
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    a = fresh()
    assert hashlib.md5(a).digest() == hashlib.md5(held).digest()  # user mode: the pages come as they are read
    assert hashlib.md5(fresh()).digest() == hashlib.md5(held).digest()
    with open(os.devnull, "wb", buffering=0) as f:
        b = fresh()
        f.write(b)
        assert settled(b).blocks == 0
        c = fresh()
        f.write(c[: 7 * PAGE // 8])  # small enough
        assert settled(c).blocks == 7
    fresh().tofile(path)
assert written() == held
assert [w.category for w in caught] == [RuntimeWarning], [str(w.message) for w in caught]
assert "pin" in str(caught[0].message) and "slices" in str(caught[0].message)
""",
        user=user,
    )


# Trap 21: system calls on pages that are absent. What Python's own interfaces hand over is fetched; a plain view is not.
@each_user
def test_a_plain_view_in_a_system_call(delivery, user):
    """EFAULT where the kernel may not wait for us, and never wrong bytes; the right ones where it may."""
    out = check_child(
        PRELUDE.format(delivery=delivery)
        + """
import errno
def attempt(call):
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]
def fd_of(data):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(fd, data)
    os.lseek(fd, 0, 0)
    return fd
results = []
fd = fd_of(b"")
got = attempt(lambda: os.write(fd, np.asarray(a)))
results.append(("write", got == a.nbytes and written() == held or got))
left, right = socket.socketpair()
got = attempt(lambda: left.send(np.asarray(fresh())[:10]))
results.append(("send", got == 80 and right.recv(99) == held[:80] or got))
c = fresh("c")
got = attempt(lambda: os.readv(fd_of(b"y" * 100), [np.asarray(c)]))
results.append(("readv", got == 100 and bytes(c[:13]) == b"y" * 100 + held[100:104] or got))
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
name = np.zeros(PAGE, "u1")
name[: len(path)] = list(path.encode())
d = lm.from_provider(name, block_nbytes=PAGE, delivery={delivery!r})
status = libc.open(ctypes.c_void_p(d.ctypes.data), os.O_RDONLY)
results.append(("open", True if status >= 0 else errno.errorcode[ctypes.get_errno()]))
lm.populate(np.asarray(b := fresh()))
fd = fd_of(b"")
results.append(("write populated", attempt(lambda: os.write(fd, np.asarray(b))) == a.nbytes and written() == held))
print(lm.region(a).kernel_faults, results)
""".replace("{delivery!r}", repr(delivery)),
        user=user,
    )
    may_wait = delivery == "threads" and user == "root"
    outcome = True if may_wait else "EFAULT"
    want = [(name, outcome) for name in ("write", "send", "readv", "open")] + [("write populated", True)]
    kernel_faults, _, results = out.strip().splitlines()[-1].partition(" ")
    assert eval(kernel_faults) is may_wait
    assert eval(results) == want


def test_an_array_that_is_written_is_what_is_read_back(folder, delivery):
    import lazymem as lm

    plain = np.random.default_rng(0).random((37, 53))
    for order in "CF":
        a = lm.from_provider(
            np.asarray(plain, order=order).tobytes(order="A"), plain.shape, "f8", order=order, delivery=delivery
        )
        assert np.array_equal(a, plain)
        np.save(folder / "a.npy", a)
        assert os.path.getsize(folder / "a.npy") == 128 + plain.nbytes
        b = lm.open(folder / "a.npy", delivery=delivery, block_nbytes=PAGE)
        assert np.array_equal(b, plain)
        assert b.flags.f_contiguous is (order == "F")
