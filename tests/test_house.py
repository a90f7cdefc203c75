"""Is the house built as it says: imports point down, kernel words in one place, no page size spelled out?"""

import itertools
import re
from pathlib import Path

from support import covering

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lazymem"
# Floor of each module; a module imports from floors below it, or from the named neighbours.
FLOORS = {
    "lazymem.errors": 0, "lazymem.version": 0, "lazymem.executable": 0, "lazymem.log": 0,
    "lazymem.core.abi": 1, "lazymem.core.native": 1, "lazymem.core.parking": 1,
    "lazymem.core.uffd": 2, "lazymem.core.table": 2, "lazymem.core.thread": 2, "lazymem.core.samples": 2,
    "lazymem.core.scratch": 2,
    "lazymem.core.ring": 3, "lazymem.core.source": 3, "lazymem.core.pool": 3, "lazymem.core.frames": 3,
    "lazymem.core.failure": 3, "lazymem.core.limit": 3, "lazymem.core.interrupt": 3,
    "lazymem.core.mprotect": 3, "lazymem.core.shared": 3.5,
    "lazymem.core.region": 4, "lazymem.core.process": 4,
    "lazymem.core.place": 5, "lazymem.core.stop": 5, "lazymem.core.provider": 5,
    "lazymem.core.standin": 6,
    "lazymem.core.writes": 7, "lazymem.core.fetch": 7, "lazymem.core.evict": 8, "lazymem.core.units": 9,
    "lazymem.core.fill": 9.5, "lazymem.core.ahead": 10, "lazymem.core.measure": 10, "lazymem.core.moves": 10,
    "lazymem.core.inline": 11, "lazymem.core.threads": 11, "lazymem.core.jobs": 11, "lazymem.core.pins": 10,
    "lazymem.core.reaper": 12, "lazymem.core.memory": 13,
    "lazymem.core.operation": 14, "lazymem.core.told": 14, "lazymem.core.registered": 14,
    "lazymem.core.lazyarray": 15, "lazymem.core.serve": 15, "lazymem.core.guards": 15,
    "lazymem.core.fork": 16,
    "lazymem.system": 16, "lazymem.options": 16, "lazymem.counters": 16, "lazymem.sigowner": 16,
    "lazymem.guards": 16,
    "lazymem.formats": 17, "lazymem.handle": 17,
    "lazymem.providers": 18, "lazymem.lazyarray": 18, "lazymem.writing": 18,
    "lazymem.recipes": 19, "lazymem.making": 19,
    "lazymem.asking": 20,
    "lazymem.provided": 20, "lazymem.urls": 21,
    "lazymem.arrays": 22, "lazymem.functions": 22, "lazymem.elsewhere": 22,
    "lazymem": 23,
    "lazymem.testing": 24, "lazymem.bench": 24, "lazymem.soak": 25, "lazymem.cli": 26, "lazymem.__main__": 27,
}  # fmt: skip
# recipes.py is loaded by LazyArray only to pickle, and opens arrays only to unpickle: inside functions, both.
UPWARD_IN_FUNCTIONS = {("lazymem.lazyarray", "lazymem.recipes"), ("lazymem.recipes", "lazymem.arrays"),
                       ("lazymem.recipes", "lazymem.provided")}


def sources():
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".pyx", ".pxd"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path.read_text(), path


def unit(name):
    """The longest prefix that has a floor: a format is "lazymem.formats"."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in FLOORS:
            return ".".join(parts[:n])
    raise KeyError(name)


def imports(text):
    """(module, is it inside a function or for types only?)."""
    for indent, module, names in re.findall(
        r"^([ \t]*)(?:from|cimport|import) (lazymem[\w.]*)(?: c?import (\([^)]*\)|[^\n]*))?", text, re.MULTILINE
    ):
        found = [module]
        for name in re.findall(r"\w+", names.split("#")[0]):
            if f"{module}.{name}" in FLOORS:
                found.append(f"{module}.{name}")
        yield from ((f, bool(indent)) for f in (found[1:] or found))


def test_every_module_has_a_floor():
    assert {unit(name) for name, _, _ in sources()} | {"lazymem.core"} >= {
        name for name, _, _ in sources() if name.count(".") < 2 and name not in ("lazymem.core",)
    }
    for name, _, _ in sources():
        if name.startswith("lazymem.core."):
            assert name in FLOORS, f"{name}: on which floor is it?"


def test_imports_point_down():
    wrong = []
    checked = 0
    for name, text, path in sources():
        for module, inside in imports(text):
            here, there = unit(name), unit(module)
            if there in (here, "lazymem"):
                continue
            checked += 1
            if FLOORS[there] >= FLOORS[here] and not (inside and (here, there) in UPWARD_IN_FUNCTIONS):
                # What is imported for types alone is no dependency.
                typed = text.split("if TYPE_CHECKING:")[-1] if "if TYPE_CHECKING:" in text else ""
                if not (inside and path.suffix == ".py" and f"from {module} import" in typed.split("\n\n\n")[0]):
                    wrong.append((name, module))
    assert not wrong
    assert checked > 100


def test_kernel_words_are_in_one_place():
    naming = {name for name, text, _ in sources() if re.search(r"\bUFFDIO_", text)}
    assert naming == {"lazymem.core.abi", "lazymem.core.uffd"}


def test_no_page_size_is_spelled_out():
    assert [name for name, text, _ in sources() if re.search(r"\b4096\b", text)] == []


def test_outside_core_all_is_python():
    assert {path.parent for _, _, path in sources() if path.suffix in (".pyx", ".pxd")} == {PACKAGE / "core"}


def test_native_functions_say_what_they_do_with_the_gil():
    """Every function that other files may call says so in its docstring."""
    silent = []
    for name, text, path in sources():
        if path.suffix != ".pyx":
            continue
        declared = path.with_suffix(".pxd")
        names = declared.read_text() if declared.exists() else ""
        for function in re.findall(r"^cdef (?!class|inline)[\w *]+?[ *](\w+)\(", names, re.MULTILINE):
            body = re.search(rf"^cdef [\w *]+?[ *]{function}\([^:]*?:\n(.*?)(?=^\S)", text + "\nx", re.MULTILINE | re.DOTALL)
            if body is None or '"""' not in body[1].split("\n")[0] or "GIL" not in body[1]:
                silent.append(f"{name}.{function}")
    assert not silent


def test_a_thinned_product_still_shows_everything():
    """Cases that are quick, of a test marked `thin`: in each number of parameters together, and not simply all of them."""
    axes = {"delivery": ("inline", "threads", "mprotect"), "user": ("root", "nobody"), "mode": ("r", "c"), "way": (1, 2, 3, 4)}
    cases = [[*zip(axes, values, strict=True)] for values in itertools.product(*axes.values())]
    for together, most in ((1, 4), (2, 15)):
        shown = {some for i in covering(cases, together) for some in itertools.combinations(cases[i], together)}
        assert shown == {some for case in cases for some in itertools.combinations(case, together)}
        assert len(covering(cases, together)) <= most
