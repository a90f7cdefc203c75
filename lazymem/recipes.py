"""How does a lazy array travel to another process, or into a file? As a recipe: where its bytes are, not the bytes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lazymem.core import lazyarray as core
from lazymem.errors import PageError, page_error
from lazymem.handle import ProviderRecipe, Recipe
from lazymem.lazyarray import LazyArray

if TYPE_CHECKING:
    from lazymem.handle import Region


def reduce_array(array: LazyArray, protocol: Any) -> Any:
    """What `__reduce_ex__` answers.

    Raises
    ------
    TypeError
        Its bytes come from where no other process can get them.
    ValueError
        Mode "c", and there are private writes that a recipe would lose; or the array is closed.
    """
    region = cast("Region | None", core.owner(array))
    if region is None:  # ordinary memory
        return np.asarray(array).__reduce_ex__(protocol)
    if region.closed:
        raise ValueError(f"array {region.name!r} is closed")
    if isinstance(region.recipe, str):
        raise TypeError(f"array {region.name!r} cannot be pickled: {region.recipe}. Pickle a copy: numpy.array(a)")
    if region.mode == "c" and (block := region.changed()) is not None:
        raise ValueError(
            f"array {region.name!r} (mode 'c') cannot be pickled: block {block} has private writes, which its file does "
            "not have. Pickle a copy: numpy.array(a)"
        )
    offset = array.__array_interface__["data"][0] - region.address
    return _rebuild, (region.recipe, array.dtype, array.shape, array.strides, offset)


def _rebuild(recipe: Recipe | ProviderRecipe, dtype: Any, shape: Any, strides: Any, offset: int) -> LazyArray:
    if isinstance(recipe, ProviderRecipe):
        from lazymem.provided import open_provider

        whole = open_provider(recipe)
    else:
        from lazymem.arrays import open_part

        whole = open_part(recipe)
    return LazyArray.__new__(LazyArray, shape, dtype, whole, offset, strides)


def check_stamp(path: str, fd: int, recipe: Recipe) -> None:
    """Raise PageError when the file is not the one that was pickled."""
    s = os.fstat(fd)
    if (s.st_size, s.st_mtime_ns) != recipe.stamp:
        raise stale(path, recipe)


def stale(path: str, recipe: Recipe) -> PageError:
    """The exception for a file that has changed since its array was pickled."""
    return page_error(
        path, "file", 0, 0, recipe.nbytes, errno.ESTALE, "the file was changed after the array was pickled; open it again"
    )
