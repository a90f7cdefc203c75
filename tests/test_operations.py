"""Do 30 common operations give on a lazy array what they give on an ordinary one, for whoever runs them?"""

import pytest
from support import EVERY_DELIVERY, check_child, each_user, over_deliveries

delivery = over_deliveries(EVERY_DELIVERY)

# From the experiment that showed which of them hold the GIL while they touch, and which hand the array to the kernel.
OPERATIONS = {
    "a[0]": "a[0]", "a.sum": "a.sum()", "a.copy": "a.copy()", "a+1": "a+1", "astype": 'a.astype("f4")',
    "tobytes": "a.tobytes()", "tolist": "a.tolist()", "a[idx]": "a[idx]", "a[mask]": "a[mask]",
    "sort": "np.sort(a)", "max": "a.max()", "a@a": "a@a", "any": "(a==1).any()", "tofile": "a.tofile(tmp)",
    "np.save": "np.save(tmp, a)", "repr": "repr(a)", "concatenate": "np.concatenate([a,a])", "mean": "a.mean()",
    "unique": "np.unique(a)", "bytes": "bytes(memoryview(a))", "md5": "hashlib.md5(a).digest()",
    "crc32": "zlib.crc32(a)", "file.write": "tmp.write(a)", "argmax": "a.argmax()",
    "dot": 'np.dot(a.view("i8"),a.view("i8"))', "store": "a.__setitem__(slice(None),1)", "iterate": "[x for x in a[:10]]",
    "a.T.copy": "a.reshape(64,-1).T.copy()", "einsum": 'np.einsum("i,i->",a,a)', "cumsum": "a.cumsum()",
}  # fmt: skip

# What they must fetch of 64 blocks; the others need every one.
SOME = {"a[0]": 1, "iterate": 1, "repr": 2}

# Each makes an array of the same values: element i is i, but every seventh -i.
SOURCES = {
    "memory": "lm.from_provider(plain, dtype='f8', **options)",
    "file": "lm.memmap(backing.name, 'f8', **options)",
    "function": "lm.from_function(value, plain.shape, **options)",
    "fill": "lm.from_fill(fill, plain.shape, **options)",
    "provider": "lm.from_provider(Values(), dtype='f8', **options)",
    "http": "lm.memmap(server.url_of('values'), 'f8', **options)",
}

PRELUDE = """
import hashlib, mmap, os, sys, tempfile, threading, zlib
import numpy as np, lazymem as lm
from support import settled
PAGE = mmap.PAGESIZE
plain = np.arange({npages} * PAGE // 8, dtype="f8")
plain[1::7] *= -1
backing = tempfile.NamedTemporaryFile()
plain.tofile(backing); backing.flush()
options = dict(mode="c", block_nbytes=PAGE, delivery={delivery!r})

def value(i):
    return np.where(i % 7 == 1, -i, i)

def fill(out, start):
    out[:] = value(np.arange(start, start + out.size))

class Values:
    nbytes = {npages} * PAGE
    def read_into(self, buffer, offset):
        fill(np.frombuffer(buffer, "f8"), offset // 8)

{server}
def fresh():
    return {source}
"""

CHILD = """
OPERATIONS, SOME = {operations!r}, {some!r}
idx = np.arange(0, plain.size, PAGE // 8); mask = np.zeros(plain.size, bool); mask[::PAGE // 8] = True
wrong = []
for name, expression in OPERATIONS.items():
    print("at", name, flush=True)
    outcomes = []
    lazy = fresh()
    assert lazy.shape == plain.shape and lm.stats(lazy).blocks == 0, "fetched before it was touched"
    for a in (lazy, plain.copy()):
        with tempfile.TemporaryFile(buffering=0) as tmp:
            got = eval(expression)
            tmp.seek(0)
            outcomes.append((got, tmp.read(), np.asarray(a)))
    blocks = settled(lazy).blocks  # which also checks that every fault is accounted for
    (got, wrote, left), (want, wanted, rest) = outcomes
    if isinstance(want, str):  # repr says the name of the type
        got, want = (" ".join(s.replace("LazyArray(", "array(").split()) for s in (got, want))
    same = got == want if isinstance(want, (bytes, str, int, list, type(None))) else np.array_equal(got, want)
    if not same or type(got) is not type(want):
        wrong.append((name, type(got), type(want)))
    if wrote != wanted or (expression.find("tmp") >= 0) != bool(wanted) or not np.array_equal(left, rest):
        wrong.append((name, "what it wrote"))
    if blocks != SOME.get(name, 64):
        wrong.append((name, "blocks", blocks))
print("wrong:", wrong)
assert not wrong and len(OPERATIONS) == 30
"""

# In a process of its own: who asks may hold the GIL of this one.
SERVER = """
from lazymem.testing import ServerApart
server = ServerApart({"values": backing.name})
"""


def prelude(source, npages, delivery):
    if source == "http":
        pytest.importorskip("urllib3")
    server = SERVER if source == "http" else ""
    return PRELUDE.format(npages=npages, delivery=delivery, source=SOURCES[source], server=server)


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("source", SOURCES)
def test_operations(delivery, source, user):
    code = prelude(source, 64, delivery) + CHILD.format(operations=OPERATIONS, some=SOME)
    assert "wrong: []" in check_child(code, timeout=60, user=user)


# BLAS touches its operands from threads of its own, which Python has never seen, while the one that asked holds the GIL or a
# lock of BLAS. Small numbers: every sum is exact, in whatever order it is made.
ON_BLAS_THREADS = """
blas_threads = len(os.listdir("/proc/self/task"))
assert blas_threads >= min(4, os.cpu_count()), f"BLAS runs on {blas_threads} threads here"
plain %= 1000
n = 256
want = plain.reshape(n, n) @ plain.reshape(n, n)

def value(i):
    return np.where(i % 7 == 1, -i, i) % 1000

def product(apart=False):
    a = fresh().reshape(n, n)
    b = fresh().reshape(n, n) if apart else a
    got = a @ b
    assert np.array_equal(got, want) and type(got) is np.ndarray
    blocks = [settled(x).blocks for x in (a, b)]
    assert blocks == [n * n * 8 // PAGE] * 2, blocks
    assert lm.stats(a).nbytes_asked == a.nbytes  # nobody fetched twice

product()
product(apart=True)
a = fresh().reshape(n, n)
assert np.array_equal(np.asarray(a) @ plain[:n], plain.reshape(n, n) @ plain[:n])
a = fresh()
assert a @ a == plain @ plain
failed = []
def several():
    try:
        product(apart=True)
    except BaseException as error:
        failed.append(repr(error))
at_once = [threading.Thread(target=several) for _ in range(3)]
[t.start() for t in at_once]; [t.join() for t in at_once]
assert not failed, failed
print("right")
"""


@pytest.mark.thin
@each_user
@pytest.mark.parametrize("source", ["function", "provider"])
def test_products_on_several_blas_threads(delivery, source, user):
    code = prelude(source, 128, delivery) + ON_BLAS_THREADS
    env = {"OPENBLAS_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    assert "right" in check_child(code, timeout=60, user=user, env=env, fresh=True)
