"""Is a provider checked when its array is made, pickled once, and what cannot be pickled found?"""

import collections
import functools
import re
import sys
import threading
import types
import warnings

import cloudpickle
import numpy as np
import pytest
from provider_kit import read_all
from support import check_child

from lazymem.options import BLOCK_MAX_NBYTES
from lazymem.providers.base import Provider, Traits, check_provider
from lazymem.providers.functions import FillProvider, FunctionProvider
from lazymem.providers.generator import GeneratorProvider
from lazymem.providers.pickled import LARGE_NBYTES, identity_of, pickle_provider
from lazymem.providers.unpicklable import find_unpicklable


def repr_of(value):
    """A test's name: the same in every process, so without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


class Zeros(Provider):
    nbytes = 100

    def read_into(self, buffer, offset):
        buffer[:] = bytes(len(buffer))


class Alike:
    """No Provider, but like one."""

    nbytes = np.int64(7)
    block_nbytes = 4096
    concurrent = False

    def read_into(self, buffer, offset):
        return len(buffer)


def made(**attributes):
    provider = Alike()
    vars(provider).update(attributes)
    return provider


def test_what_resembles_a_provider_is_one():
    assert check_provider(Zeros()) == Traits(100, None, True, None)
    assert check_provider(Alike()) == Traits(7, 4096, False, None)
    assert check_provider(made(processes_max=2, nbytes=0, block_nbytes=None)) == Traits(0, None, False, 2)
    assert check_provider(made(read_into=lambda *given, **more: None))
    assert check_provider(made(read_into=functools.partial(lambda x, buffer, offset: None, 1)))
    module = types.ModuleType("provider")
    module.nbytes, module.read_into = 5, bytearray().__init__  # one in C, which does not say what it takes
    assert check_provider(module).nbytes == 5


class Unfinished(Provider):
    nbytes = 5


class Unmeasured:
    def read_into(self, buffer, offset):
        pass


class Measuring(Alike):
    def nbytes(self):
        return 5


class Backwards(Alike):
    def read_into(self, offset):
        pass


class Awaited(Alike):
    async def read_into(self, buffer, offset):
        pass


@pytest.mark.parametrize(
    ("provider", "error", "message"),
    [
        (Zeros, TypeError, r"Zeros is a class: give an instance, Zeros\(\.\.\.\)"),
        (object(), TypeError, r"object is no provider: it has no read_into\(buffer, offset\)"),
        (None, TypeError, "NoneType is no provider"),
        (Unfinished(), TypeError, "Unfinished is no provider: it has no read_into"),
        (made(read_into=5), TypeError, "Alike.read_into is of type int: make it a method"),
        (Backwards(), TypeError, r"Backwards.read_into\(offset\) cannot be called as .*read_into\(buffer, offset\)"),
        (Awaited(), TypeError, "Awaited.read_into.* is async"),
        (Unmeasured(), TypeError, "Unmeasured has no nbytes"),
        (Measuring(), TypeError, "Measuring.nbytes is .*, not an int: it is a method"),
        (made(nbytes=True), TypeError, "nbytes is True, not an int"),
        (made(nbytes=2.0), TypeError, "nbytes is 2.0, not an int"),
        (made(nbytes="5"), TypeError, "nbytes is '5', not an int"),
        (made(nbytes=None), TypeError, "nbytes is None, not an int"),
        (made(nbytes=-1), ValueError, "nbytes is -1: it must be 0 to"),
        (made(nbytes=1 << 63), ValueError, f"nbytes is {1 << 63}"),
        (made(block_nbytes=0), ValueError, "block_nbytes is 0: it must be 1 to"),
        (made(block_nbytes=BLOCK_MAX_NBYTES + 1), ValueError, "block_nbytes"),
        (made(block_nbytes="64 KiB"), TypeError, "block_nbytes is '64 KiB', not an int"),
        (made(block_nbytes=False), TypeError, "block_nbytes is False"),
        (made(concurrent=1), TypeError, "concurrent is 1: True or False"),
        (made(processes_max=0), ValueError, "processes_max is 0"),
        (made(processes_max=1.5), TypeError, "processes_max is 1.5"),
        (made(open=True), TypeError, "Alike.open is of type bool: make it a method, or leave it out"),
        (made(stamp="v1"), TypeError, "Alike.stamp is of type str"),
        (made(close=0), TypeError, "Alike.close is of type int"),
        (made(write_from=0), TypeError, "Alike.write_from is of type int"),
    ],
    ids=repr_of,
)
def test_what_is_wrong_with_a_provider_is_said(provider, error, message):
    with pytest.raises(error, match=message):
        check_provider(provider)


def test_the_protocols_defaults():
    class Bare(Provider):
        nbytes = 3

    bare = Bare()
    assert (bare.open(), bare.close(), bare.stamp(), bare.block_nbytes, bare.concurrent) == (None, None, None, None, True)
    with pytest.raises(NotImplementedError, match=r"Bare\.read_into"):
        bare.read_into(memoryview(bytearray(3)), 0)


def test_what_travels_is_the_provider():
    scale = 3

    class Local(Provider):
        nbytes = 10_000

        def __init__(self, by):
            self.by = by

        def read_into(self, buffer, offset):
            buffer[:] = bytes((k * scale * self.by) % 256 for k in range(offset, offset + len(buffer)))

    want = (np.arange(10_000) * 6 % 256).astype("u1")
    assert np.array_equal(read_all(cloudpickle.loads(pickle_provider(Local(2)))), want)
    function = FunctionProvider(lambda i: i * scale, 1000, "i4")
    copy = cloudpickle.loads(pickle_provider(function))
    assert np.array_equal(read_all(copy).view("i4"), np.arange(1000) * 3)


# What cannot be pickled, in every place where it could hide.
LOCK = threading.Lock()


def uses_global():
    """As in a notebook: a function of __main__ that uses a global."""
    space = {"__name__": "__main__", "lock": LOCK}
    exec("def f(i):\n    def inner():\n        return lock\n    return inner() and i", space)
    return space["f"]


def notebook_class():
    space = {"__name__": "__main__", "lock": LOCK}
    exec(
        "class Notebook:\n    nbytes = 5\n    def read_into(self, buffer, offset):\n        with lock: pass\n",
        space,
    )
    return space["Notebook"]()


def closing_over(value):
    return lambda i: value


class Slots:
    __slots__ = ("__dict__", "empty", "handle")

    def __init__(self):
        self.fine = 1
        self.handle = LOCK


class Leaves:
    """Its lock is left out of the pickle, its other thing is not."""

    def __init__(self, other):
        self.lock = LOCK
        self.other = other

    def __getstate__(self):
        return {"given": self.other}


class Reduces:
    def __init__(self, what):
        self.what = what

    def __reduce__(self):
        return Reduces, (1, self.what)


class Refuses:
    def __reduce__(self):
        raise RuntimeError("not me")


class Method:
    def __init__(self):
        self.lock = LOCK

    def call(self, i):
        return i


class Keyed(dict):
    pass


class Circle:
    def __init__(self, name):
        self.name = name


def circle():
    a, b = Circle("a"), Circle("b")
    a.next, b.next = b, a
    a.values = [1, a, b, {"x": (b, a), "lock": LOCK}]
    return a


def decorated():
    def method(self):
        return self

    made = types.new_class("Made", (), {}, lambda space: space.update(lazy=property(closing_over(LOCK)), method=method))
    made.__module__ = "__main__"
    return made()


def defaults():
    def f(i, lock=LOCK, *, again=None):
        return i

    return f


def attribute_of_function():
    def f(i):
        return i

    f.lock = LOCK
    return f


def deep():
    made = LOCK
    for _ in range(2000):
        made = [made]
    return made


def ordered():
    return collections.OrderedDict(fine=1, lock=LOCK)


PLACES = {
    "provider.f": LOCK,
    "provider.f.__closure__['value']": closing_over(LOCK),
    "provider.f.__closure__['value']['a'][1]": closing_over({"b": 1, "a": (2, LOCK)}),
    "provider.f.__globals__['lock']": uses_global(),
    "type(provider.f).read_into.__globals__['lock']": notebook_class(),
    "provider.f.__defaults__[0]": defaults(),
    "provider.f.__dict__['lock']": attribute_of_function(),
    "provider.f.func.__closure__['value']": functools.partial(closing_over(LOCK), 1),
    "provider.f.args[1]": functools.partial(max, 1, LOCK),
    "provider.f.keywords['key']": functools.partial(max, 1, key=LOCK),
    "provider.f.__self__.lock": Method().call,
    "provider.f.__self__": LOCK.acquire,
    "provider.f.handle": Slots(),
    "provider.f.__getstate__()['given']": Leaves(LOCK),
    "provider.f.__reduce__()[1][1]": Reduces(LOCK),
    "provider.f[1]": [1, LOCK],
    "provider.f[0]": collections.deque([LOCK]),
    "list(provider.f)[0]": {LOCK},
    "list(provider.f)[0][1]": frozenset([(1, LOCK)]),
    "provider.f['lock']": ordered(),
    "provider.f[2][3]": Keyed({2: {3: LOCK}}),
    "list(provider.f)[1]": {0: 0, LOCK: 1},
    "provider.f.values[3]['lock']": circle(),
    "type(provider.f).lazy.fget.__closure__['value']": decorated(),
}


class Holder(Alike):
    def __init__(self, f):
        self.fine = [1, 2]
        self.f = f


@pytest.mark.parametrize("where", PLACES)
def test_what_cannot_be_pickled_is_named_by_where_it_is(where):
    message = rf"Holder cannot be pickled: {re.escape(where)}.* is a _thread\.lock\. "
    with pytest.raises(TypeError, match=message) as caught:
        pickle_provider(Holder(PLACES[where]))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "value", ["other", closing_over(2), Leaves(3), circle, np.arange(3), Slots, {LOCK.__class__: 1}], ids=repr_of
)
def test_what_can_be_pickled_beside_it_is_not_named(value):
    with pytest.raises(TypeError, match=r": provider\.last is a generator\. "):
        pickle_provider(made(first=value, last=(x for x in "")))


def test_other_things_that_cannot_be_pickled(tmp_path):
    with pytest.raises(TypeError, match=r"provider\.refuses is a test_provider_pickling\.Refuses\.") as caught:
        pickle_provider(made(refuses=Refuses()))
    assert str(caught.value.__cause__) == "not me"
    with open(tmp_path / "file", "wb") as file, pytest.raises(TypeError, match=r"provider\.f is a _io\.BufferedWriter"):
        pickle_provider(made(f=file))
    array = np.array([1, LOCK], object)
    with pytest.raises(TypeError, match=r"provider\.array.* is a _thread\.lock"):
        pickle_provider(made(array=array))
    with pytest.raises(TypeError, match=r"FunctionProvider cannot be pickled: provider\.f\.__closure__\['value'\] is a"):
        pickle_provider(FunctionProvider(closing_over(LOCK), 5))
    with pytest.raises(TypeError, match=r"FillProvider cannot be pickled: provider\.fill\.__defaults__\[0\] is a"):
        pickle_provider(FillProvider(lambda out, start, lock=LOCK: None, 5))
    running = (x for x in "ab")
    with pytest.raises(TypeError, match=r"GeneratorProvider cannot.* provider\.make\.__closure__\['running'\] is a generator"):
        pickle_provider(GeneratorProvider(lambda: running, 5))


def test_looking_ends():
    with pytest.raises(TypeError, match=r"provider\.f\[0\].*\[0\] is a list") as caught:
        pickle_provider(made(f=deep()))
    assert len(str(caught.value)) < 700
    chain = LOCK
    for k in range(300):
        chain = Circle(k), chain
        chain[0].next = chain
    path, _ = find_unpicklable(chain, "chain")
    assert path.startswith("chain")
    wide = [[LOCK.acquire, k] for k in range(3)] + [list(range(50)) for _ in range(20_000)]
    assert find_unpicklable(wide, "wide")[0] == "wide[0][0].__self__"
    assert find_unpicklable(wide[::-1], "wide")[0] == "wide"  # too many before it: as near as it came


def test_what_is_not_there_is_not_found():
    assert find_unpicklable(5, "x") == ("x", 5)


def test_a_large_one_warns_once_where_the_user_is():
    large = made(table=np.ones(LARGE_NBYTES // 8 + 1000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pickled = pickle_provider(large)
    assert len(pickled) > LARGE_NBYTES
    (warning,) = caught
    assert warning.category is UserWarning
    assert re.search(r"Alike is 16\.0 MiB when it is pickled.*each process", str(warning.message))
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle_provider(made(table=np.ones(LARGE_NBYTES // 8 - 1000)))


def test_identities():
    pickled = pickle_provider(Zeros())
    one = identity_of(pickled, 100)
    assert 0 < one < 1 << 64
    assert one == identity_of(bytes(pickled), 100)
    assert len({one, identity_of(pickled, 101), identity_of(pickled + b"x", 100), identity_of(b"", 0)}) == 4
    assert identity_of(b"the same in any process", 5) == 0x64C7727D26948C66


def test_an_identity_is_never_0(monkeypatch):
    class Digest:
        def update(self, pickled):
            pass

        def digest(self):
            return bytes(8)

    monkeypatch.setattr("hashlib.blake2b", lambda *given, **options: Digest())
    assert identity_of(b"", 0) == 1


def test_nothing_is_imported_before_it_is_needed():
    check_child(
        """
        import sys
        import lazymem.providers.pickled, lazymem.providers.base
        assert "cloudpickle" not in sys.modules
        assert "lazymem.providers.unpicklable" not in sys.modules
        """,
        fresh=True,
    )


def test_near_the_limit_of_recursion():
    def down(n):
        if n:
            return down(n - 1)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle_provider(made(f=LOCK))
        return None

    down(sys.getrecursionlimit() - len([*iter_frames()]) - 150)


def iter_frames():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
