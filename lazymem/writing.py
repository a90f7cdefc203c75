"""What becomes of changes that nobody has flushed when the interpreter ends?"""

from __future__ import annotations

import atexit
import weakref

from lazymem.core.reaper import store_left_behind
from lazymem.handle import Region

_regions: weakref.WeakSet[Region] = weakref.WeakSet()


def flush_at_exit(region: Region) -> None:
    """Have a region flushed as the interpreter ends, if it is still there. Blocks: no. GIL: kept."""
    atexit.unregister(flush_all)  # the latest to be registered is the first to run: providers can be asked, and heard, then
    atexit.register(flush_all)
    _regions.add(region)


def flush_all() -> None:
    """Flush every array that writes back, whatever becomes of the others.

    Raises
    ------
    PageError
        One could not be written back; it is named.
    ExceptionGroup
        Several could not.

    Notes
    -----
    Blocks: as long as their sources take. GIL: released meanwhile. In a forked child there are none but its own.
    """
    errors: list[Exception] = []
    for region in list(_regions):
        if region.writes_back and not region.closed:
            try:
                region.flush(0, region.nbytes)
            except Exception as error:
                errors.append(error)
    try:
        store_left_behind()
    except OSError as error:
        errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        told = "; ".join(map(str, errors))  # those that print it may print its own text alone
        raise ExceptionGroup(f"what was written to these arrays since they were last flushed is lost: {told}", errors)
