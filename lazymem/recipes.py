"""How does a lazy array travel to another process, or into a file? As a recipe: where its bytes are, not the bytes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lazymem.core import lazyarray as core
from lazymem.core.source import FileSource
from lazymem.errors import PageError, page_error
from lazymem.handle import ProviderRecipe, Recipe
from lazymem.lazyarray import LazyArray
from lazymem.options import writes_back

if TYPE_CHECKING:
    from lazymem.handle import Region


def reduce_array(array: LazyArray, protocol: Any) -> Any:
    """What `__reduce_ex__` answers.

    Raises
    ------
    TypeError
        Its bytes come from where no other process can get them.
    PageError
        Mode "r+", and what was written could not be flushed.
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
    if region.writes_back:
        region.flush(0, region.nbytes)
    if region.mode == "c" and (block := region.changed()) is not None:
        raise ValueError(
            f"array {region.name!r} (mode 'c') cannot be pickled: block {block} has private writes, which its file does "
            "not have. Pickle a copy: numpy.array(a)"
        )
    offset = array.__array_interface__["data"][0] - region.address
    return _rebuild, (_recipe_now(region), array.dtype, array.shape, array.strides, offset)


def _recipe_now(region: Region) -> Recipe | ProviderRecipe:
    """As it is made now: a file that is written to changes, and a forked child's array is none that writes."""
    recipe = region.recipe
    assert not isinstance(recipe, str)
    if recipe.mode != "r" and isinstance(recipe, Recipe):
        recipe = recipe._replace(stamp=cast(FileSource, region.source).stamp)
    return recipe._replace(mode=region.mode) if region.mode == "c" else recipe


def _rebuild(recipe: Recipe | ProviderRecipe, dtype: Any, shape: Any, strides: Any, offset: int) -> LazyArray:
    if isinstance(recipe, ProviderRecipe):
        from lazymem.provided import open_provider

        whole = open_provider(recipe)
    else:
        from lazymem.arrays import open_part

        whole = open_part(recipe)
    return LazyArray.__new__(LazyArray, shape, dtype, whole, offset, strides)


def check_stamp(path: str, fd: int, recipe: Recipe) -> None:
    """Raise PageError when the file is not the one that was pickled. One that is written to may change, not get shorter."""
    s = os.fstat(fd)
    if s.st_size < recipe.stamp[0] if writes_back(recipe.mode) else (s.st_size, s.st_mtime_ns) != recipe.stamp:
        raise stale(path, recipe)


def stale(path: str, recipe: Recipe) -> PageError:
    """The exception for a file that has changed since its array was pickled."""
    return page_error(
        path, "file", 0, 0, recipe.nbytes, errno.ESTALE, "the file was changed after the array was pickled; open it again"
    )
