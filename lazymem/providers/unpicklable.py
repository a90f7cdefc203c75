"""Which part of an object is it that cannot be pickled? By trying its parts, the parts of the one that fails, and so on."""

from __future__ import annotations

import copyreg
import functools
import reprlib
import types
from collections.abc import Iterator
from typing import Any

# An error message is worth so much looking, and no more.
_DEPTH = 64
_TRIALS = 10_000
_PATH_LENGTH = 300

# A part: what its path has in front of the whole's path, what after it, and itself.
Part = tuple[str, str, Any]


def find_unpicklable(value: Any, path: str) -> tuple[str, Any]:
    """Find the smallest part that cannot be pickled by itself.

    Parameters
    ----------
    value : object
        What could not be pickled.
    path : str
        What to call it.

    Returns
    -------
    (str, object)
        Where the part is, as an expression ("provider.handler.__closure__['lock']"), and the part.

    Notes
    -----
    It looks at what pickling looks at: attributes, slots, items, arguments of `__reduce__`, what a function closes over and
    its globals, what a class defines. It ends: at a depth, after so many trials, and it enters nothing twice.
    """
    path, part = _Search().find(value, path, 0) or (path, value)
    if len(path) > _PATH_LENGTH:
        path = f"{path[: _PATH_LENGTH // 2]} ... {path[-_PATH_LENGTH // 2 :]}"
    return path, part


class _Nowhere:
    """A file that keeps nothing, so that trying takes no memory."""

    def write(self, piece: Any) -> int:
        return memoryview(piece).nbytes


class _Search:
    def __init__(self) -> None:
        self.entered: dict[int, Any] = {}  # by id; held, so that no id comes twice
        self.trials = _TRIALS

    def find(self, value: Any, path: str, depth: int) -> tuple[str, Any] | None:
        """Find the part of something that fails. None: only parts fail that were entered before, further up or beside."""
        self.entered[id(value)] = value
        failed = False
        for before, after, part in _parts(value) if depth < _DEPTH else ():
            if self.trials <= 0 or self._can_be_pickled(part):
                continue
            failed = True
            if id(part) not in self.entered:
                found = self.find(part, f"{before}{path}{after}", depth + 1)
                if found is not None:
                    return found
        return None if failed else (path, value)

    def _can_be_pickled(self, value: Any) -> bool:
        if type(value) in (int, str, bytes, float, bool, types.NoneType):
            return True
        import cloudpickle

        self.trials -= 1
        try:
            cloudpickle.dump(value, _Nowhere())
        except Exception:
            return False
        return True


def _parts(value: Any) -> list[Part]:
    try:
        return list(_parts_of(value))
    except Exception:  # a __reduce__ that raises: then it is this object
        return []


def _parts_of(value: Any) -> Iterator[Part]:
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        yield "", ".__self__", value.__self__
        yield "", ".__func__", value.__func__
    elif isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        yield "", ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield "", ".func", value.func
        yield from _items("", ".args", value.args)
        yield from (("", f".keywords[{key!r}]", item) for key, item in value.keywords.items())
    elif isinstance(value, (staticmethod, classmethod)):
        yield "", ".__func__", value.__func__
    elif isinstance(value, property):
        yield from (("", f".{name}", getattr(value, name)) for name in ("fget", "fset", "fdel"))
    elif isinstance(value, type):
        yield from (("", f".{name}", part) for name, part in vars(value).items() if not _is_made_by_python(name, part))
        yield from _items("", ".__bases__", value.__bases__)
    else:
        yield from _parts_of_instance(value)


def _is_made_by_python(name: str, part: Any) -> bool:
    return name == "_abc_impl" or isinstance(part, (types.GetSetDescriptorType, types.MemberDescriptorType))


def _parts_of_function(function: types.FunctionType) -> Iterator[Part]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield "", f".__closure__[{name!r}]", cell.cell_contents
        except ValueError:  # nothing was assigned yet
            continue
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield "", f".__globals__[{name!r}]", function.__globals__[name]
    yield from _items("", ".__defaults__", function.__defaults__ or ())
    for attribute in ("__kwdefaults__", "__annotations__", "__dict__"):
        for name, part in (getattr(function, attribute) or {}).items():
            yield "", f".{attribute}[{name!r}]", part


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _parts_of_instance(value: Any) -> Iterator[Part]:
    if isinstance(value, tuple):
        yield from _items("", "", value)
    elif isinstance(value, (set, frozenset)):
        yield from _items("list(", ")", value)
    reducer = copyreg.dispatch_table.get(type(value))
    reduced = reducer(value) if reducer is not None else value.__reduce_ex__(5)
    if isinstance(reduced, str):  # a global: found by its name
        return
    function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    yield from _state(value, state)
    yield from _items("", "", items or ())
    for i, (key, item) in enumerate(pairs or ()):
        yield "", f"[{reprlib.repr(key)}]", item
        yield "list(", f")[{i}]", key
    if getattr(function, "__module__", None) == "copyreg":  # a class, and what it is made from
        yield "type(", ")", type(value)
        arguments = arguments[1:]
    else:
        yield "", ".__reduce__()[0]", function
    if not isinstance(value, (tuple, set, frozenset)):
        yield from _items("", ".__reduce__()[1]", arguments)


def _state(value: Any, state: Any) -> Iterator[Part]:
    attributes: dict[str, Any] = {}
    if isinstance(state, dict):
        attributes = state
    elif isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # with __slots__
        attributes = {**(state[0] or {}), **state[1]}
    elif state is not None:
        yield "", ".__getstate__()", state
    for name, part in attributes.items():
        real = isinstance(name, str) and getattr(value, name, None) is part
        yield "", f".{name}" if real else f".__getstate__()[{reprlib.repr(name)}]", part


def _items(before: str, after: str, items: Any) -> Iterator[Part]:
    for i, item in enumerate(items):
        yield before, f"{after}[{i}]", item
