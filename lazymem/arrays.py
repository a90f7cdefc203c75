"""How are lazy arrays made? The door."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

import numpy as np

from lazymem.core.source import FileSource, FunctionSource, MemorySource, NativeSource
from lazymem.formats.layout import Layout, dtype_of, lengthen, offset_of, order_of, shape_of
from lazymem.handle import Recipe
from lazymem.lazyarray import LazyArray
from lazymem.making import make_array, make_region
from lazymem.options import Options, mode_of, nothing_to_create, read_options, writes_back

NATIVE_BLOCK_NBYTES = 64 << 10
_FILE_MAX_NBYTES = (1 << 63) - 1
_IN_SCHEMES = str.maketrans("", "", "+-.")  # besides letters and digits


def is_url(file: Any) -> bool:
    """Is it text that begins with a scheme? A path that holds "://" further on is a path."""
    return isinstance(file, str) and "://" in file and file.partition("://")[0].translate(_IN_SCHEMES).isalnum()


def _no_url_options(what: str, storage_options: Any, redirects: bool) -> None:
    if storage_options is not None or redirects:
        raise TypeError(f"{what}: storage_options= and redirects= are for URLs, and this is none")


def _constructor_options(given: dict[str, Any]) -> Options:
    return read_options(given, NATIVE_BLOCK_NBYTES)


_HOW = {"r": os.O_RDONLY, "c": os.O_RDONLY, "r+": os.O_RDWR, "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC}


def _open_file(file: Any, what: str, mode: str) -> tuple[int, str, str | None]:
    """A descriptor of our own, a name for messages, and the path if there is one. As numpy does it, "w+" empties a file that
    is named, and not one that is open."""
    path: str | None
    if isinstance(file, (str, bytes, os.PathLike)):
        path = os.path.expanduser(os.fsdecode(os.fspath(file)))
        try:
            fd = os.open(path, _HOW[mode] | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)  # a FIFO must not wait for its writer
        except OSError as error:
            raise type(error)(error.errno, f"{what}: {os.strerror(error.errno or 0)}", path) from None
        name = os.path.basename(path)
        path = os.path.abspath(path)
    else:
        try:
            number = file.fileno()
        except (AttributeError, io.UnsupportedOperation):
            raise TypeError(
                f"{what}({file!r}): give a path or an open file with a descriptor; "
                "bytes in memory go through lazymem.from_provider"
            ) from None
        fd = _own_descriptor(file, number, what) if writes_back(mode) else os.dup(number)
        os.set_inheritable(fd, False)
        given = getattr(file, "name", None)
        name = os.path.basename(os.fsdecode(given)) if isinstance(given, (str, bytes)) else f"descriptor {number}"
        path = os.path.abspath(os.fsdecode(given)) if isinstance(given, (str, bytes)) else None
        if path is not None:
            try:
                here = os.stat(path)
                if not os.path.samestat(here, os.fstat(fd)):
                    path = None
            except OSError:
                path = None
    try:
        _check_regular(fd, name, what, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd, name, path


def _own_descriptor(file: Any, number: int, what: str) -> int:
    """A descriptor to write by, at places that we choose: what is open for appending is opened once more."""
    import fcntl

    flush = getattr(file, "flush", None)
    if flush is not None:
        flush()  # what the program has written is to lie in the file before we read and write there
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    if not flags & os.O_APPEND or flags & os.O_ACCMODE != os.O_RDWR:
        return os.dup(number)
    try:
        return os.open(f"/proc/self/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise type(error)(error.errno, f"{what}: open for appending, and not to be opened otherwise", str(file)) from error


def _check_regular(fd: int, name: str, what: str, mode: str) -> None:
    import fcntl
    import stat

    kind = os.fstat(fd).st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(21, f"{what}: a directory, not a file", name)
    if not stat.S_ISREG(kind):
        raise ValueError(f"{what}({name!r}): not a regular file, so its bytes have no places to be fetched from")
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if access == os.O_WRONLY:
        raise ValueError(f"{what}({name!r}): opened for writing only")
    if access == os.O_RDONLY and writes_back(mode):
        raise PermissionError(errno.EACCES, f"{what}: mode={mode!r}, and it was opened for reading only", name)


def _file_array(
    fd: int, name: str, path: str | None, layout: Layout, mode: str, options: Options, given: dict[str, Any]
) -> LazyArray:
    """An array over part of a file; the descriptor is used up, whatever happens."""
    try:
        source = FileSource(fd, layout.start, layout.nbytes, writes_back(mode))
    except BaseException:
        os.close(fd)
        raise
    recipe: Recipe | str = "it was opened from a descriptor whose path is not known"
    if path is not None:
        recipe = Recipe(path, layout.start, layout.nbytes, source.stamp, "r+" if mode == "w+" else mode, given)
    region = make_region(source, mode, options, name, recipe)
    region.filename = path
    region.offset = layout.start
    return make_array(region, layout.dtype, layout.shape, layout.order)


def open(
    file: Any,
    mode: str = "r",
    *,
    dtype: Any = None,
    shape: Any = None,
    offset: int = 0,
    order: str = "C",
    storage_options: Any = None,
    redirects: bool = False,
    **options: Any,
) -> LazyArray:
    """Open an array file, or make one; nothing is read but its header.

    Parameters
    ----------
    file : str, bytes, os.PathLike, or open file
        A `.npy` file, by name or by its first bytes; or, with `dtype`, a file of raw elements. `~` is expanded. An open file
        may be closed afterwards. Or a URL, `https://...` (with the extra `http`), or of a scheme that a package adds.
    mode : {"r", "c", "r+", "w+"}
        "r": read-only, also to C code. "c": private copy-on-write, changes are written nowhere. "r+": changes are written to
        the file, some time, and by `flush` and `close` (`lazymem.flush` says what is safe when). "w+": make the file, or empty
        it if it is there, and write to it: `.npy`, if its name ends so, else raw. numpy's long names too.
    dtype, shape, offset, order
        Of a raw file, as `lazymem.memmap` takes them. A `.npy` file says its own. For "w+" dtype and shape must be given.
    storage_options : dict, optional
        Of a URL: headers, auth, timeout, ... (`lazymem.providers.http.HttpProvider`). Never shown.
    redirects : bool
        Of a URL: may the server send us on to another host?
    **options
        block_nbytes (int, or text such as "64 KiB"; default 64 KiB, for URLs 1 MiB), delivery ("auto", "threads", "inline",
        "mprotect"), threads, timeout (s), retries, processes, budget_nbytes (how much of it may be in memory; default: as
        much as `lazymem.set_budget` leaves it), memory ("private", or "shared": a file of memory that only this process has;
        Linux 5.14), fill ("auto", "copy", "zero"; "move" in private memory, "continue" in shared: how bytes get into place),
        scratch_dir (for mode "c": a folder on a disk, where changed blocks are kept that are evicted; default $TMPDIR, else
        /var/tmp). delivery "auto" takes "threads" where system calls may wait for pages, else "inline", and "mprotect" where
        there is no userfaultfd: there blocks are larger (up to 4 MiB, unless block_nbytes is given), system calls on absent
        pages get EFAULT, and a fork copies what is resident of mode "c", as in shared memory.

    Returns
    -------
    LazyArray
        Of the file's shape and dtype.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError, OSError
        The file cannot be opened; the delivery that was asked for cannot be had; no memory file can be made (memfd_create).
    ValueError
        No array file that is known, a damaged one, one that is shorter than its header says; "r+" where nothing can be
        written, "w+" without dtype and shape.
    TypeError
        Elements that are Python objects; an unknown option.
    ImportError
        A URL, and urllib3 is not installed.

    Notes
    -----
    Blocks: to read the header. GIL: kept, and released when blocks are fetched. The file must not change afterwards: a block
    fetched from a changed file is a PageError. In modes "r+" and "w+" it may, but not get shorter: blocks that are in memory
    do not follow, and what is written back takes the place of whatever is there, whole blocks of it.

    Examples
    --------
    >>> import lazymem as lm, numpy as np, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "a.npy")
    >>> np.save(path, np.arange(10.0))
    >>> a = lm.open(path)
    >>> float(a[3])
    3.0
    >>> with lm.open(path, "w+", dtype="f4", shape=(2, 3)) as b:
    ...     b[1] = 7
    >>> np.load(path).tolist()
    [[0.0, 0.0, 0.0], [7.0, 7.0, 7.0]]
    """
    read = _constructor_options(options)
    mode = mode_of(mode)
    if is_url(file):
        nothing_to_create(mode, "a URL")
        from lazymem.urls import open_url

        return open_url(
            file, "lazymem.open", mode=mode, dtype=dtype, shape=shape, offset=offset, order=order,
            storage_options=storage_options, redirects=redirects, options=options,
        )  # fmt: skip
    _no_url_options("lazymem.open", storage_options, redirects)
    from lazymem.formats import npy

    if mode == "w+" and dtype is None:
        raise ValueError("lazymem.open: mode='w+' makes an array: give its dtype= and shape=")
    if mode == "w+" and not _is_npy_path(file):
        if str(getattr(file, "name", "")).endswith(npy.SUFFIX):
            raise ValueError("lazymem.open: mode='w+' makes a .npy file anew: give its path, not an open file")
        return memmap(file, dtype, mode, offset, shape, order, **options)
    if mode == "w+":
        if offset:
            raise ValueError(f"offset={offset!r}: in a .npy file the array begins behind its header")
        header = npy.header_of(dtype, _shape_to_make(shape, dtype, "lazymem.open"), order_of(order))
        fd, name, path = _open_file(file, "lazymem.open", mode)
        try:
            npy.write_empty(fd, header, name)
        except BaseException:
            os.close(fd)
            raise
        dtype, shape, order, mode = None, None, "C", "r+"
    else:
        fd, name, path = _open_file(file, "lazymem.open", mode)
    try:
        head = os.pread(fd, len(npy.MAGIC), 0)
        if dtype is None and (name.endswith(npy.SUFFIX) or head == npy.MAGIC):
            if shape is not None or offset or order != "C":
                raise ValueError(
                    f"{name}: a .npy file says its own shape, offset and order; pass dtype too to read it as raw bytes"
                )
            layout = npy.read_layout(fd, os.fstat(fd).st_size, name)
        elif dtype is None:
            raise ValueError(
                f"{name}: cannot tell what it holds: known are {npy.SUFFIX} files. For raw elements pass dtype= "
                "(and shape=, offset=), or use lazymem.memmap"
            )
        else:
            layout = _raw_layout(fd, name, dtype, shape, offset, order, mode)
    except BaseException:
        os.close(fd)
        raise
    return _file_array(fd, name, path, layout, mode, read, options)


def _is_npy_path(file: Any) -> bool:
    from lazymem.formats import npy

    return isinstance(file, (str, bytes, os.PathLike)) and os.fsdecode(os.fspath(file)).endswith(npy.SUFFIX)


def _shape_to_make(shape: Any, dtype: Any, what: str) -> tuple[int, ...]:
    """What is to be written to must be checked before a file is emptied for it."""
    if shape is None:
        raise ValueError(f"{what}: mode='w+' makes an array: give its shape=")
    return shape_of(shape, dtype_of(dtype), None, "a new file")


def memmap(
    filename: Any,
    dtype: Any = "u1",
    mode: str = "r",
    offset: int = 0,
    shape: Any = None,
    order: str = "C",
    *,
    storage_options: Any = None,
    redirects: bool = False,
    **options: Any,
) -> LazyArray:
    """numpy.memmap's arguments, for a lazy array; the mode defaults to "r".

    Parameters
    ----------
    filename : str, bytes, os.PathLike, or open file
        Or a URL.
    dtype : dtype
    mode : {"r", "c", "r+", "w+"}, or numpy's long names
        As `lazymem.open` takes them; "w+" writes no header. As numpy does, "w+" empties a file that is named, not one that is
        open, and both lengthen a file, by zeros, that is too short for the shape.
    offset : int, bytes
        Of the first element; any, aligned to nothing.
    shape : int, sequence of int, or None
        None: as many elements as the file holds. One length may be -1. For "w+" it must be given, whole.
    order : {"C", "F"}
    storage_options, redirects, **options
        As `lazymem.open` takes them.

    Returns
    -------
    LazyArray

    Raises
    ------
    As `lazymem.open`; ValueError for an offset past the end, a shape the file is too short for, elements that do not fill it.

    Notes
    -----
    Blocks: to open the file. GIL: kept. Unlike numpy's, an array of no elements leaves a file as long as it is.
    """
    read = _constructor_options(options)
    mode = mode_of(mode)
    if is_url(filename):
        nothing_to_create(mode, "a URL")
        from lazymem.urls import open_url

        return open_url(
            filename, "lazymem.memmap", mode=mode, dtype=dtype, shape=shape, offset=offset, order=order,
            storage_options=storage_options, redirects=redirects, options=options,
        )  # fmt: skip
    _no_url_options("lazymem.memmap", storage_options, redirects)
    if mode == "w+":
        _shape_to_make(shape, dtype, "lazymem.memmap")
        offset_of(offset, _FILE_MAX_NBYTES, "a file")
        order_of(order)
    fd, name, path = _open_file(filename, "lazymem.memmap", mode)
    try:
        layout = _raw_layout(fd, name, dtype, shape, offset, order, mode)
    except BaseException:
        os.close(fd)
        raise
    return _file_array(fd, name, path, layout, mode, read, options)


def _raw_layout(fd: int, name: str, dtype: Any, shape: Any, offset: Any, order: Any, mode: str) -> Layout:
    """Where raw elements lie. A file that is written to and too short for the shape becomes long enough, by zeros."""
    kind = dtype_of(dtype)
    size = os.fstat(fd).st_size
    if not writes_back(mode) or shape is None or -1 in (shape if np.iterable(shape) else (shape,)):
        start = offset_of(offset, size, name)
        return Layout(start, kind, shape_of(shape, kind, size - start, name), order_of(order))
    start = offset_of(offset, _FILE_MAX_NBYTES, name)
    layout = Layout(start, kind, shape_of(shape, kind, None, name), order_of(order))
    if layout.nbytes > _FILE_MAX_NBYTES - start:
        raise ValueError(f"offset={offset!r}, shape={shape!r} of {kind}: more than a file can hold")
    if layout.nbytes and start + layout.nbytes > size:
        lengthen(fd, start + layout.nbytes, name)
    return layout


def from_provider(
    provider: Any, shape: Any = None, dtype: Any = "u1", *, offset: int = 0, order: str = "C", mode: str = "r", **options: Any
) -> LazyArray:
    """Lay an array over what gives bytes: a provider in Python, a C function, or memory.

    Parameters
    ----------
    provider : object
        What has `nbytes` and `read_into(buffer, offset)`, as `lazymem.providers.Provider` says: it is pickled now, and runs
        in other processes, so that a touch never needs the GIL of this one; what it changes of itself stays there. Or a
        `CFunction`. Or an object with a contiguous buffer: memory is copied block by block, when it is touched; what changes
        there afterwards is seen by blocks fetched later.
    shape : int, sequence of int, or None
        None: all its bytes, 1-D. One length may be -1.
    dtype : dtype
    offset : int, bytes
        Of the first element.
    order : {"C", "F"}
    mode : {"r", "c", "r+"}
        "r+": what is written goes back through the provider's `write_from`, the C function's `store`, or to the memory.
    **options
        As `lazymem.open` takes them.

    Returns
    -------
    LazyArray

    Raises
    ------
    TypeError
        No provider, or one that cannot be pickled (the attribute is named); a dtype of objects; an unknown option.
    ValueError
        The shape asks for more than there is; memory that belongs to a lazy array; "r+" where nothing can be written.
    RuntimeError
        A provider in Python, and no interpreter to run it with: `lazymem.set_executable`.
    BufferError
        Memory that is not contiguous.

    Notes
    -----
    Blocks: no; for a provider in Python about a millisecond, where a process is to be started. GIL: kept; never needed by a
    touch. An array of a provider in Python pickles with the provider; one of a C function or of memory cannot be pickled.
    """
    made = sys.modules.get("lazymem.providers.cfunction")  # whoever has a CFunction has imported it
    is_native = made is not None and isinstance(provider, made.CFunction)
    if not is_native and hasattr(provider, "read_into"):
        from lazymem.provided import lay_over

        name = type(provider).__name__
        return lay_over(
            provider, shape, dtype, name=name, mode=mode, offset=offset, order=order, options=options
        )  # fmt: skip
    read = _constructor_options(options)
    mode = mode_of(mode)
    nothing_to_create(mode, "a C function" if is_native else "memory")
    kind = dtype_of(dtype)
    source: NativeSource
    if is_native:
        start = offset_of(offset, provider.nbytes, "the C function")
        lengths = shape_of(shape, kind, provider.nbytes - start, "the C function")
        if writes_back(mode) and not provider.store:
            raise ValueError(f"mode={mode!r}: {provider!r} has no store=, so nothing can be written to it")
        source = FunctionSource(provider.address, provider.nbytes, provider.user_data, provider, provider.store)
        name, recipe = provider.name, "its bytes come from a C function of this process"
    else:
        try:
            source = _memory_source(provider, mode)
        except TypeError:
            raise TypeError(
                f"{provider!r} is no provider: give an object with nbytes and read_into(buffer, offset) "
                "(lazymem.providers.Provider), a lazymem.CFunction, or an object with a contiguous buffer (bytes, an array). "
                "Files go through lazymem.open and lazymem.memmap"
            ) from None
        start = offset_of(offset, source.nbytes, "the memory")
        lengths = shape_of(shape, kind, source.nbytes - start, "the memory")
        name, recipe = f"{type(provider).__name__} memory", "its bytes come from memory of this process"
    region = make_region(source, mode, read, name, recipe)
    return make_array(region, kind, lengths, order_of(order), start)


def _memory_source(memory: Any, mode: str) -> MemorySource:
    try:
        return MemorySource(memory, writes_back(mode))
    except (BufferError, ValueError) as error:
        if writes_back(mode):
            MemorySource(memory)  # it may be of another shape than we can take at all
            raise ValueError(
                f"mode={mode!r}: {type(memory).__name__} memory that is read-only; 'c' keeps changes private"
            ) from error
        raise


def open_part(recipe: Recipe) -> np.ndarray[Any, Any]:
    """Open what a pickled recipe names: the root of a new region, uint8, (nbytes,); for recipes.py.

    Raises
    ------
    PageError
        The file was changed after the array was pickled.
    """
    from lazymem.recipes import check_stamp

    fd, name, path = _open_file(recipe.path, "a pickled lazy array", recipe.mode)
    try:
        check_stamp(recipe.path, fd, recipe)
    except BaseException:
        os.close(fd)
        raise
    layout = Layout(recipe.start, np.dtype("u1"), (recipe.nbytes,), "C")
    return _file_array(fd, name, path, layout, recipe.mode, _constructor_options(recipe.options), recipe.options)


def get_include() -> str:
    """The folder of `lazymem.h`, for C sources."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "core")
