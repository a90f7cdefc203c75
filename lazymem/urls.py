"""What gives the bytes behind a URL, and how is an array laid over them?"""

from __future__ import annotations

from typing import Any

import numpy as np

from lazymem.core import lazyarray as core
from lazymem.formats import npy
from lazymem.formats.layout import Layout, dtype_of, offset_of, order_of, shape_of
from lazymem.handle import Region
from lazymem.lazyarray import LazyArray
from lazymem.making import make_array
from lazymem.provided import lay_out, make_region_over
from lazymem.providers.base import check_provider

ENTRY_POINTS = "lazymem.providers"


def provider_of(url: str, storage_options: Any, redirects: bool) -> Any:
    """Make the provider that its scheme has: `http` and `https`, and what is installed under the entry points
    `lazymem.providers`.

    An entry point's name is a scheme; it is called with the URL and, if they were given, `storage_options=`.

    Raises
    ------
    ValueError
        No such scheme; those that there are are named.
    ImportError
        What it needs is not installed.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        from lazymem.providers.http import HttpProvider

        return HttpProvider(url, storage_options=storage_options, redirects=redirects)
    from importlib.metadata import entry_points

    found = entry_points(group=ENTRY_POINTS)
    for entry in found:
        if entry.name.lower() == scheme:
            return entry.load()(url, **({} if storage_options is None else {"storage_options": storage_options}))
    known = ", ".join(sorted({"http", "https", *(e.name for e in found)}))
    raise ValueError(
        f"no provider for URLs that begin with {scheme}://; there are: {known}. Packages add schemes by entry points named "
        f"{ENTRY_POINTS!r}; a provider of your own goes through lazymem.from_provider"
    )


def open_url(
    url: str,
    what: str,
    *,
    mode: str,
    dtype: Any,
    shape: Any,
    offset: Any,
    order: str,
    storage_options: Any,
    redirects: bool,
    options: dict[str, Any],
) -> LazyArray:
    """Open a URL as `lazymem.open` (dtype None: a format that says its own) and `lazymem.memmap` do.

    Notes
    -----
    Blocks: for the provider's first exchange with its server; for a header that lies beyond it. GIL: released meanwhile.
    """
    provider = provider_of(url, storage_options, redirects)
    traits = check_provider(provider)
    name = str(getattr(provider, "name", None) or url.partition("?")[0].rpartition("/")[2] or what)
    region = None
    if dtype is None:
        if shape is not None or offset or order != "C":
            raise ValueError(f"{name}: a .npy file says its own shape, offset and order; pass dtype too to read raw bytes")
        read = getattr(provider, "read", None)
        if read is None:
            region = make_region_over(provider, traits, name, mode, options)
            read = _reader(region)
        if read(0, len(npy.MAGIC)) != npy.MAGIC and not name.endswith(npy.SUFFIX):
            raise ValueError(
                f"{name}: cannot tell what it holds: known are {npy.SUFFIX} files. For raw elements pass dtype= "
                "(and shape=, offset=), or use lazymem.memmap"
            )
        layout = npy.read_layout_from(read, traits.nbytes, name)
    else:
        kind = dtype_of(dtype)
        start = offset_of(offset, traits.nbytes, name)
        layout = Layout(start, kind, shape_of(shape, kind, traits.nbytes - start, name), order_of(order))
    array = lay_out(region or make_region_over(provider, traits, name, mode, options), layout)
    owner = core.owner(array)
    assert isinstance(owner, Region)
    owner.filename = str(getattr(provider, "url", None) or url.partition("?")[0])
    return array


def _reader(region: Region) -> Any:
    """`read(offset, nbytes)` of a provider that has none: through its processes, as any touch."""
    root = make_array(region, np.dtype("u1"), (region.nbytes,), "C")

    def read(offset: int, nbytes: int) -> bytes:
        stop = min(offset + nbytes, region.nbytes)
        region.populate(offset, stop)
        return bytes(root[offset:stop].tobytes())

    return read
