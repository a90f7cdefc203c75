"""How are arrays made of Python functions?"""

from __future__ import annotations

from typing import Any

from lazymem.lazyarray import LazyArray


def from_function(f: Any, shape: Any, dtype: Any = float, *, mode: str = "r", **options: Any) -> LazyArray:
    """An array whose values a function computes, block by block, when they are first touched.

    numpy.fromfunction's meaning: `f` is given the coordinates of elements, and returns their values.

    Parameters
    ----------
    f : callable
        `f(i, j, ...)`, an int64 array for each axis, all of one length: the coordinates of one block's elements, in C order.
        Returns as many values, or one for all. It is pickled now, and runs in other processes (`lazymem.providers.Provider`):
        what it changes of itself stays there.
    shape : int or sequence of int
    dtype : dtype
        Values are cast to it as numpy's `astype` does; complex values for a real dtype are an error.
    mode : {"r", "c"}
    **options
        block_nbytes (default 256 KiB), delivery, threads, timeout (s, of an attempt at a block; all attempts: twice that),
        retries, processes (how many may compute blocks at the same time).

    Returns
    -------
    LazyArray
        Of `shape` and `dtype`, C order.

    Raises
    ------
    TypeError
        `f` cannot be called so, or cannot be pickled: the attribute is named. Elements that are objects.
    ValueError
        A bad shape; an option out of range.
    RuntimeError
        There is no Python interpreter to run it with: `lazymem.set_executable`.

    Notes
    -----
    What `f` raises is shown by the PageError of whoever touches the block. Blocks: to pickle `f`; about a millisecond where a
    process is to be started, which becomes ready in the background. GIL: kept; never needed by a touch.

    Examples
    --------
    >>> import lazymem as lm
    >>> a = lm.from_function(lambda i, j: i * j, (10**6, 10**6), "i8")
    >>> int(a[1000, 12345])
    12345000
    """
    from lazymem.provided import lay_over
    from lazymem.providers.functions import FunctionProvider

    provider = FunctionProvider(f, shape, dtype)
    return lay_over(provider, provider.shape, provider.dtype, name=provider.name, mode=mode, options=options)


def from_fill(fill: Any, shape: Any, dtype: Any = float, *, mode: str = "r", **options: Any) -> LazyArray:
    """An array that a function writes, block by block, when it is first touched.

    Parameters
    ----------
    fill : callable
        `fill(out, start)`: write elements `start`, `start + 1`, ... (in C order) into `out`, a 1-D array of `dtype`; return
        None. Pickled now, run in other processes.
    shape, dtype, mode, **options
        As `lazymem.from_function` takes them.

    Returns
    -------
    LazyArray

    Raises
    ------
    As `lazymem.from_function`. A `fill` that returns anything but None fails the block with a TypeError.

    Notes
    -----
    As `lazymem.from_function`.

    Examples
    --------
    >>> import lazymem as lm, numpy as np
    >>> def fill(out, start):
    ...     out[:] = np.arange(start, start + out.size)
    >>> a = lm.from_fill(fill, 10**12, "i8")
    >>> int(a[10**11])
    100000000000
    """
    from lazymem.provided import lay_over
    from lazymem.providers.functions import FillProvider

    provider = FillProvider(fill, shape, dtype)
    return lay_over(provider, provider.shape, provider.dtype, name=provider.name, mode=mode, options=options)


def from_generator(make: Any, shape: Any, dtype: Any = float, *, mode: str = "r", **options: Any) -> LazyArray:
    """An array whose bytes an iterator yields, from the first to the last.

    The provider process advances it as far as the block that is touched, and keeps what it passed in a file without a name,
    so that going back is a read.

    Parameters
    ----------
    make : callable
        `make()` returns an iterator of bytes or arrays. Called again if the process has to be: then it must yield the same. A
        generator itself is refused: it cannot be started again.
    shape, dtype, mode, **options
        As `lazymem.from_function` takes them; one process serves it, whatever `processes` says.

    Returns
    -------
    LazyArray

    Raises
    ------
    As `lazymem.from_function`.

    Notes
    -----
    As `lazymem.from_function`. Touching the end first runs the whole iterator within the array's `timeout`.

    Examples
    --------
    >>> import lazymem as lm, numpy as np
    >>> def make():
    ...     for i in range(1000):
    ...         yield np.full(1000, i, "i4")
    >>> a = lm.from_generator(make, (1000, 1000), "i4")
    >>> int(a[500, 3])
    500
    """
    from lazymem.provided import lay_over
    from lazymem.providers.generator import GeneratorProvider

    provider = GeneratorProvider(make, shape, dtype)
    return lay_over(provider, provider.shape, provider.dtype, name=provider.name, mode=mode, options=options)
