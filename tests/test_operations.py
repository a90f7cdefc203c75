"""Do 30 common operations give on a lazy array what they give on an ordinary one, for whoever runs them?"""

import pytest
from support import check_child, each_user

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

CHILD = """
import hashlib, mmap, os, sys, tempfile, zlib
import numpy as np, lazymem as lm
from support import settled
OPERATIONS, SOME = {operations!r}, {some!r}
PAGE = mmap.PAGESIZE
plain = np.arange(64 * PAGE // 8, dtype="f8")
plain[::7] *= -1
idx = np.arange(0, plain.size, PAGE // 8); mask = np.zeros(plain.size, bool); mask[::PAGE // 8] = True
backing = tempfile.NamedTemporaryFile()
plain.tofile(backing); backing.flush()

def fresh():
    options = dict(mode="c", block_nbytes=PAGE, delivery={delivery!r})
    if {source!r} == "file":
        return lm.memmap(backing.name, "f8", **options)
    return lm.from_provider(plain, dtype="f8", **options)

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


@each_user
@pytest.mark.parametrize("source", ["memory", "file"])
def test_operations(delivery, source, user):
    code = CHILD.format(operations=OPERATIONS, some=SOME, delivery=delivery, source=source)
    assert "wrong: []" in check_child(code, timeout=60, user=user)
