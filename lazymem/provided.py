"""How is an array laid over a Python provider?"""

from __future__ import annotations

from typing import Any

import numpy as np

from lazymem.core.provider import ProviderSource
from lazymem.formats.layout import Layout, dtype_of, offset_of, order_of, shape_of
from lazymem.handle import ProviderRecipe, Region
from lazymem.lazyarray import LazyArray
from lazymem.making import make_array, make_region, settle
from lazymem.options import Options, mode_of, nothing_to_create, read_options, writes_back
from lazymem.providers.base import Traits, check_provider, takes_back
from lazymem.providers.pickled import identity_of, pickle_provider
from lazymem.providers.processes import setting_for

BLOCK_NBYTES = 256 << 10


def lay_over(
    provider: Any,
    shape: Any,
    dtype: Any,
    *,
    name: str,
    mode: str = "r",
    offset: Any = 0,
    order: str = "C",
    options: dict[str, Any],
) -> LazyArray:
    """Lay an array over a Python provider.

    Parameters
    ----------
    provider : object
        What resembles `lazymem.providers.Provider`.
    shape, dtype, offset, order, mode
        As `lazymem.from_provider` takes them.
    name : str
        For messages.
    options : dict
        As the constructor was given them.

    Raises
    ------
    TypeError, ValueError
        No provider, one that cannot be pickled, or bad arguments.

    Notes
    -----
    Blocks: to pickle it; some ms where a process is to be started. GIL: kept.
    """
    traits = check_provider(provider)
    kind = dtype_of(dtype)
    start = offset_of(offset, traits.nbytes, name)
    layout = Layout(start, kind, shape_of(shape, kind, traits.nbytes - start, name), order_of(order))
    return lay_out(make_region_over(provider, traits, name, mode, options), layout)


def lay_out(region: Region, layout: Layout) -> LazyArray:
    """Lay an array over a region that has none yet."""
    region.offset = layout.start
    return make_array(region, layout.dtype, layout.shape, layout.order, layout.start)


def make_region_over(provider: Any, traits: Traits, name: str, mode: str, options: dict[str, Any]) -> Region:
    """A region of all of a provider's bytes; its processes have been started.

    Parameters
    ----------
    traits : Traits
        As `check_provider` answered.
    name, mode, options
        As `lay_over` takes them.

    Raises
    ------
    ValueError
        A mode that writes, and the provider takes nothing back.
    """
    read = read_options(options, traits.block_nbytes or BLOCK_NBYTES)
    mode = mode_of(mode)
    nothing_to_create(mode, type(provider).__name__)
    if writes_back(mode) and not takes_back(provider):
        raise ValueError(
            f"mode={mode!r}: {type(provider).__name__} has no write_from(buffer, offset), so nothing can be written to it; "
            "'c' keeps what is written private"
        )
    pickled = pickle_provider(provider)
    processes = min(read.processes, traits.processes_max or read.processes)
    recipe = ProviderRecipe(
        pickled, traits.nbytes, identity_of(pickled, traits.nbytes), name, mode, options, processes, read.block_nbytes,
        traits.stored,
    )  # fmt: skip
    region = _make(recipe, read)
    region.alive = provider  # what it has on this side (a folder, a spool) lives as long
    return region


def _make(recipe: ProviderRecipe, options: Options) -> Region:
    options = settle(options._replace(block_nbytes=recipe.block_nbytes), recipe.nbytes)
    deadline_ns = 2 * options.timeout_ns
    setting = setting_for(options.block_nbytes, recipe.processes)
    source = ProviderSource(
        setting, recipe.pickled, recipe.nbytes, recipe.identity, recipe.processes, options.timeout_ns, deadline_ns,
        options.retries, None if writes_back(recipe.mode) else recipe.stored, writes_back(recipe.mode),
    )  # fmt: skip
    # Another thread's fetch of a block may take as long as all its attempts may.
    return make_region(source, recipe.mode, options._replace(timeout_ns=deadline_ns), recipe.name, recipe)


def open_provider(recipe: ProviderRecipe) -> np.ndarray[Any, Any]:
    """Make what a pickled recipe names: the root of a new region, uint8, (nbytes,); for recipes.py."""
    options = read_options(recipe.options, recipe.block_nbytes)
    region = _make(recipe, options)
    return make_array(region, np.dtype("u1"), (recipe.nbytes,), "C")
