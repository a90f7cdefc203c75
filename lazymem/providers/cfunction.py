"""How do C functions written for anybody become a source?"""

from __future__ import annotations

import ctypes
import re
from typing import Any

SIGNATURE = "int (void *, void *, uint64_t, uint64_t)"
_ARGUMENTS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)


_C_FUNCTION_POINTER: Any = ctypes.CFUNCTYPE(None).__mro__[1]


class CFunction:
    """A C function as the source of an array: `int fetch(void *ctx, void *dst, uint64_t offset, uint64_t nbytes)`.

    It writes exactly `nbytes` of the array from byte `offset` on to `dst` and returns 0 or -errno. It may run on any thread,
    inside a signal handler, several at once: `lazymem.h` (in `lazymem.get_include()`) says what it must not do.

    Parameters
    ----------
    fn : object
        A function of a ctypes or cffi library, a numba `@cfunc`, a `scipy.LowLevelCallable`, or a PyCapsule named
        "int (void *, void *, uint64_t, uint64_t)". Python callbacks of ctypes and cffi are refused: they need the GIL, which
        the touching thread may hold.
    nbytes : int, bytes
        How long the array's memory is.
    user_data : int, ctypes pointer, cffi pointer, buffer or None
        What it gets as `ctx`; kept alive as long as the array. A `LowLevelCallable` brings its own.
    store : object, optional
        As `fn`, for mode "r+": `int store(void *ctx, const void *src, uint64_t offset, uint64_t nbytes)` takes `nbytes` that
        were changed, from byte `offset` on, and returns 0 or -errno. It gets the same `ctx`.

    Raises
    ------
    TypeError
        Not a C function, one of another type, or a Python callback.
    ValueError
        nbytes is negative.
    """

    def __init__(self, fn: Any, nbytes: int, user_data: Any = None, store: Any = None) -> None:
        if isinstance(nbytes, bool) or not hasattr(nbytes, "__index__"):
            raise TypeError(f"nbytes={nbytes!r}: give an int")
        self.nbytes = int(nbytes.__index__())
        if not 0 <= self.nbytes < 1 << 63:
            raise ValueError(f"nbytes={nbytes!r}: give 0 to 2**63 - 1")
        self.name = getattr(fn, "__name__", None) or "C function"
        self.address, own_data = _address(fn)
        if not self.address:
            raise TypeError(f"{fn!r} is a null pointer")
        if own_data is not None and user_data is not None:
            raise TypeError("a LowLevelCallable with user_data was given user_data again")
        self.user_data, kept = (own_data, None) if own_data is not None else _pointer(user_data)
        self.store = 0
        if store is not None:
            self.store, _ = _address(store)
            if not self.store:
                raise TypeError(f"{store!r} is a null pointer")
        self._keep = (fn, user_data, kept, store)

    def __repr__(self) -> str:
        return f"CFunction({self.name}, nbytes={self.nbytes})"


def _wrong_type(fn: Any, what: str) -> TypeError:
    return TypeError(f"{fn!r} is {what}; a source is {SIGNATURE} (lazymem.h)")


def _address(fn: Any) -> tuple[int, int | None]:
    """The function's address, and the user_data that it brings."""
    kind = type(fn)
    if kind.__name__ == "PyCapsule":
        return _capsule(fn)
    if isinstance(fn, _C_FUNCTION_POINTER):
        return _ctypes_address(fn), None
    if kind.__module__ == "_cffi_backend":
        return _cffi_address(fn), None
    if isinstance(fn, tuple) and hasattr(fn, "function") and hasattr(fn, "signature"):  # scipy.LowLevelCallable
        if not isinstance(fn.function, (int, type(None))) and type(fn.function).__name__ != "PyCapsule":
            _address(fn.function)  # the checks for what is inside
        return _capsule(tuple.__getitem__(fn, 0))  # which it keeps to itself
    if type(getattr(fn, "__self__", None)).__module__ == "_cffi_backend":  # lib.function of a compiled cffi module
        import _cffi_backend

        return _cffi_address(_cffi_backend.FFI().addressof(fn.__self__, fn.__name__)), None
    if hasattr(fn, "address") and hasattr(fn, "native_name"):  # numba @cfunc
        return _numba_address(fn), None
    raise _wrong_type(fn, f"a {kind.__name__}")


def _ctypes_address(fn: Any) -> int:
    if any("Thunk" in type(o).__name__ for o in (getattr(fn, "_objects", None) or {}).values()):
        raise TypeError(
            f"{fn!r} is a Python callback: a fault may hold the GIL that it needs. Compile it (numba.cfunc, C), "
            "or compute the values beforehand"
        )
    if fn.argtypes is not None:
        wanted = [(ctypes.sizeof(t), issubclass(t, ctypes.c_void_p) or hasattr(t, "contents")) for t in _ARGUMENTS]
        given = []
        for t in fn.argtypes:
            pointer = issubclass(t, (ctypes.c_void_p, ctypes.c_char_p)) or hasattr(t, "contents")
            given.append((ctypes.sizeof(t), pointer))
        if given != wanted:
            raise _wrong_type(fn, f"declared with the arguments {[t.__name__ for t in fn.argtypes]}")
    if fn.restype is not ctypes.c_int and fn.restype is not ctypes.c_int32:
        raise _wrong_type(fn, f"declared to return {getattr(fn.restype, '__name__', fn.restype)}")
    return ctypes.cast(fn, ctypes.c_void_p).value or 0


def _cffi_address(fn: Any) -> int:
    import _cffi_backend

    ffi = _cffi_backend.FFI()
    if "calling" in repr(fn):
        raise TypeError(f"{fn!r} is a Python callback: a fault may hold the GIL that it needs. Compile it")
    declared = ffi.typeof(fn)
    if declared.kind != "function":
        raise _wrong_type(fn, f"of type {declared.cname}")
    kinds = [a.kind for a in declared.args]
    sizes = [ffi.sizeof(a) for a in declared.args]
    if kinds != ["pointer", "pointer", "primitive", "primitive"] or sizes != [8] * 4 or declared.result.cname not in (
        "int", "int32_t",
    ):  # fmt: skip
        raise _wrong_type(fn, f"of type {declared.cname}")
    return int(ffi.cast("uintptr_t", fn))


def _numba_address(fn: Any) -> int:
    from numba import types as _types

    types: Any = _types

    signature = fn._sig
    arguments = signature.args
    pointer = (types.voidptr, types.CPointer, types.RawPointer)
    fine = (
        len(arguments) == 4
        and all(a == types.voidptr or isinstance(a, pointer[1:]) for a in arguments[:2])
        and all(isinstance(a, types.Integer) and a.bitwidth == 64 for a in arguments[2:])
        and isinstance(signature.return_type, types.Integer)
        and signature.return_type.bitwidth == 32
    )
    if not fine:
        raise _wrong_type(fn, f"a numba cfunc {signature}")
    return int(fn.address)


def _capsule(capsule: Any) -> tuple[int, int | None]:
    api = ctypes.pythonapi
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))
    context_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyCapsule_GetContext", api))
    name = name_of(capsule)
    said = " ".join((name or b"").decode(errors="replace").replace("*", " * ").split())
    said = re.sub(r"\b(unsigned long|ulong|size_t)\b", "uint64_t", said)  # as cffi and scipy call it
    said = said.replace("const ", "")  # which a store's second argument may be
    if said != " ".join(SIGNATURE.replace("*", " * ").split()):
        raise TypeError(f"a PyCapsule named {(name or b'').decode(errors='replace')!r}; a source's is named {SIGNATURE!r}")
    return int(pointer_of(capsule, name) or 0), context_of(capsule) or None


def _pointer(user_data: Any) -> tuple[int, Any]:
    """The address that `ctx` will be, and what must be kept for it."""
    if user_data is None:
        return 0, None
    if isinstance(user_data, int) and not isinstance(user_data, bool):
        return user_data, None
    if type(user_data).__module__ == "_cffi_backend":
        import _cffi_backend

        return int(_cffi_backend.FFI().cast("uintptr_t", user_data)), None
    if isinstance(user_data, (ctypes.c_void_p, ctypes._Pointer)):
        return ctypes.cast(user_data, ctypes.c_void_p).value or 0, None
    if isinstance(user_data, (ctypes.Structure, ctypes.Array, ctypes.Union, ctypes._SimpleCData)):
        return ctypes.addressof(user_data), None
    try:
        import numpy as np

        held = np.frombuffer(user_data, dtype="u1")
    except (TypeError, ValueError, BufferError):
        raise TypeError(
            f"user_data={user_data!r}: give an address, a ctypes or cffi pointer, or an object with a buffer"
        ) from None
    return int(held.ctypes.data), held
