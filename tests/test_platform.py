"""What does importing the package do, and what on systems where it cannot work?"""

import functools
import json
import types

import pytest
import support
from support import each_user

import lazymem as lm

check_child = functools.partial(support.check_child, fresh=True)


@pytest.mark.parametrize("platform", ["darwin", "win32", "cygwin", "freebsd14"])
def test_elsewhere(platform):
    """It installs without its extensions there, so none of them may be imported."""
    out = check_child(f"""
    import sys, numpy
    sys.platform = {platform!r}
    sys.modules["lazymem.core"] = None
    import lazymem as lm
    names = set(lm.__all__)
    assert all(hasattr(lm, name) for name in names)
    def refuses(call):
        try:
            call()
        except lm.UnsupportedPlatform as error:
            assert isinstance(error, NotImplementedError)
            assert {platform!r} in str(error) and "Linux" in str(error), error
        else:
            raise AssertionError("worked")
    for call in (
        lambda: lm.open("x.npy"), lambda: lm.memmap("x", "f8", shape=3), lambda: lm.from_provider(b"abc"),
        lambda: lm.CFunction(None, 3), lambda: lm.LazyArray((3,)), lambda: lm.Region(),
        lambda: lm.populate(numpy.zeros(3)), lambda: lm.prefetch(numpy.zeros(3)),
        lambda: lm.region(numpy.zeros(3)), lambda: lm.residency(numpy.zeros(3)), lambda: lm.stats(numpy.zeros(3)),
        lambda: lm.close(numpy.zeros(3)),
    ):
        refuses(call)
    assert lm.is_lazy(numpy.zeros(3)) is False
    assert not isinstance(numpy.zeros(3), lm.LazyArray)
    assert issubclass(lm.PageError, OSError)
    assert not any(name.startswith("lazymem.core.") for name in sys.modules)
    print(sorted(names))
    """)
    assert eval(out) == sorted(lm.__all__)


FACTS = """
import json, os, signal, sys, threading
import numpy
def facts():
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append((fd, os.readlink("/proc/self/fd/" + fd)))
        except OSError:
            pass  # the listing's own
    return {
        "threads": sorted(os.listdir("/proc/self/task")), "python threads": threading.active_count(),
        "caught": status["SigCgt"].strip(), "ignored": status["SigIgn"].strip(), "blocked": status["SigBlk"].strip(),
        "descriptors": sorted(links),
        "handlers": [str(signal.getsignal(s)) for s in sorted(signal.valid_signals())], "hook": str(sys.excepthook),
    }
"""


@each_user
def test_import_does_nothing_yet(user):
    """No thread, no handler, no descriptor; the first array is when they come, which also shows that this would see them.

    With `inline` that thread is the guardian of the descriptor alone."""
    out = check_child(
        FACTS
        + """
before = facts()
import lazymem as lm
after = facts()
assert before == after, (before, after)
bus = 1 << (signal.SIGBUS - 1)
assert not int(after["caught"], 16) & bus
lm.from_provider(b"abc", delivery="inline")[0]
first = facts()
assert int(first["caught"], 16) & bus
assert len(first["descriptors"]) > len(after["descriptors"])
assert len(first["threads"]) == len(after["threads"]) + 1
lm.from_provider(b"abc", delivery="threads")[0]
assert len(facts()["threads"]) > len(first["threads"])
print(json.dumps(after["threads"]))
""",
        user=user,
    )
    assert len(json.loads(out)) >= 1


def test_a_light_import():
    """None of the extras, nor the commands, nor what starts processes."""
    out = check_child("""
    import sys, numpy
    before = set(sys.modules)
    import lazymem
    print(sorted(set(sys.modules) - before))
    """)
    loaded = eval(out)
    for heavy in (
        "scipy",
        "numba",
        "cffi",
        "matplotlib",
        "pandas",
        "torch",
        "hypothesis",
        "multiprocessing",
        "asyncio",
        "subprocess",
        "cloudpickle",
    ):
        assert not any(name == heavy or name.startswith(heavy + ".") for name in loaded), heavy
    assert not any(name.startswith(("lazymem.cli", "lazymem.bench")) for name in loaded)


@each_user
def test_auto_delivery(user):
    """threads where the kernel takes the faults of system calls too, else inline."""
    out = check_child(
        """
        import lazymem as lm
        a = lm.from_provider(b"abc")
        r = lm.region(a)
        print(r.delivery, r.kernel_faults)
        """,
        user=user,
    )
    assert out.split() == ["threads", "True"] if user == "root" else out.split() in (["inline", "False"], ["threads", "True"])


def test_the_logger_is_silent():
    out = check_child("""
    import logging, lazymem
    logger = logging.getLogger("lazymem")
    print([type(h).__name__ for h in logger.handlers], logger.level, logger.propagate)
    """)
    assert out.strip() == "['NullHandler'] 0 True"


def test_every_public_name_says_what_it_is():
    for name in lm.__all__:
        thing = getattr(lm, name)
        if name != "__version__":
            assert thing.__doc__, name
            where = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__
            assert where.partition(".")[0] == "lazymem"
    assert lm.__version__ == __import__("lazymem.version").version.__version__
