"""What has happened to an array so far?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazymem.core.memory import Memory


@dataclass(frozen=True, repr=False)
class Stats:
    """Counters of one region, as they stood when asked.

    Attributes
    ----------
    name : str
        Of the array.
    delivery : str
        "threads", "inline" or "mprotect".
    faults : int
        Touches of absent pages that reached us; faults = filled + joins + failed.
    filled, joins, failed : int
        Faults that fetched their block; found another thread at it, or done; could not be served.
    blocks : int
        Blocks put into place, by touches, populate and prefetch alike.
    zeroed : int
        Of them, blocks that were known to be zeros, and not asked for; in mode "r" they take no memory.
    refilled : int
        Of them, blocks that had been in place and were dropped by somebody's madvise.
    reexposed : int
        Blocks in place that had been protected again to spare mappings, and were let through once more (delivery "mprotect").
    nblocks, resident_blocks : int
        How many blocks there are, and are in memory.
    block_nbytes, nbytes : int, bytes
        Of a block; of the whole array's source.
    nbytes_asked, nbytes_used : int, bytes
        Asked of the source; of them put into place.
    errors : int
        Fetches that have failed, whoever asked and whether or not they were told (`lazymem.check`).
    moved, refused : int
        Fills by MOVE; fills, evictions and rescues that MOVE did not do, and COPY did, or nobody.
    units : int
        Units of 2 MiB that a sequential stream was fetched in.
    evicted, rescued, recycled : int
        Frames (blocks, or units) that were moved out of the array; of them, those that were wanted again before their memory
        was; and those whose memory went to another fetch, or back to the system.
    pinned_skips : int
        Evictions that did not take place, since something held the memory: `lazymem.pin`, a device, a lock.
    stored, stored_nbytes, store_errors : int
        Blocks written back, or into the scratch file; their bytes; how often that failed.
    budget_nbytes, held_nbytes, waiting_nbytes : int, bytes
        How much of the array may be in memory (0: as much as the process may have); is; and of that, waits to be recycled.
    eexist, eagain : int
        Pages found already there, and copies that had to go on, while filling.
    latency_ns : tuple of (int, int, int)
        Histogram of the time from a fault's arrival to its page being in place: low bound and high bound in ns, count.
    """

    name: str
    delivery: str
    faults: int
    filled: int
    joins: int
    failed: int
    blocks: int
    zeroed: int
    refilled: int
    reexposed: int
    nblocks: int
    resident_blocks: int
    block_nbytes: int
    nbytes: int
    nbytes_asked: int
    nbytes_used: int
    errors: int
    moved: int
    refused: int
    units: int
    evicted: int
    rescued: int
    recycled: int
    pinned_skips: int
    stored: int
    stored_nbytes: int
    store_errors: int
    budget_nbytes: int
    held_nbytes: int
    waiting_nbytes: int
    eexist: int
    eagain: int
    latency_ns: tuple[tuple[int, int, int], ...]

    def quantile_ns(self, share: float) -> int:
        """The latency that this share of the faults stayed under: the high bound of its bucket, a power of two.

        Parameters
        ----------
        share : float
            0 to 1.

        Returns
        -------
        int, ns
            0 when there was no fault.
        """
        total = sum(count for _, _, count in self.latency_ns)
        seen = 0
        for _, high, count in self.latency_ns:
            seen += count
            if seen >= share * total:
                return high
        return 0

    def __repr__(self) -> str:
        lines = [
            f"Stats of {self.name!r} ({self.delivery})",
            f"  faults    {self.faults:,} (filled {self.filled:,}, joined {self.joins:,}, failed {self.failed:,})",
            f"  blocks    {self.blocks:,} of {human(self.block_nbytes)} put in place; "
            f"{self.resident_blocks:,} of {self.nblocks:,} resident",
            f"  bytes     {human(self.nbytes_asked)} asked, {human(self.nbytes_used)} used, of {human(self.nbytes)}",
        ]
        if self.evicted:
            lines.append(
                f"  memory    {human(self.held_nbytes)} held" +
                (f" of {human(self.budget_nbytes)}" if self.budget_nbytes else "") +
                f"; {self.evicted:,} evicted, {self.rescued:,} rescued, {self.recycled:,} recycled"
            )  # fmt: skip
        if self.stored:
            lines.append(f"  written   {self.stored:,} blocks, {human(self.stored_nbytes)}")
        if self.errors:
            lines.append(f"  errors    {self.errors:,} fetches failed")
        if self.latency_ns:
            lines.append(
                f"  latency   half under {_time(self.quantile_ns(0.5))}, 99 % under {_time(self.quantile_ns(0.99))}"
            )
            most = max(count for _, _, count in self.latency_ns)
            for low, high, count in self.latency_ns:
                lines.append(f"    {_time(low):>8} .. {_time(high):<8} {'#' * max(1, 40 * count // most)} {count:,}")
        return "\n".join(lines)


def human(n: int) -> str:
    """A number of bytes for people."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 100 or size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.0f} TiB" if size >= 100 or size == int(size) else f"{size:.1f} TiB"


def _time(ns: int) -> str:
    if ns < 1000:
        return f"{ns} ns"
    if ns < 10**6:
        return f"{ns / 1e3:.1f} us"
    return f"{ns / 1e6:.1f} ms" if ns < 10**9 else f"{ns / 1e9:.1f} s"


def read_stats(memory: Memory) -> Stats:
    """Take a region's counters down."""
    c = memory.counters()
    latency = tuple((1 << i, 1 << (i + 1), n) for i, n in enumerate(c["latency"]) if n)
    return Stats(
        name=memory.name, delivery=memory.delivery, faults=c["faults"], filled=c["filled"], joins=c["joins"],
        failed=c["failed"], blocks=c["blocks"], zeroed=c["zeroed"], refilled=c["refilled"], reexposed=c["reexposed"],
        nblocks=memory.nblocks,
        resident_blocks=memory.resident_blocks(),
        block_nbytes=memory.block_nbytes, nbytes=memory.nbytes, nbytes_asked=c["nbytes_asked"],
        nbytes_used=c["nbytes_used"], errors=c["errors"], moved=c["moved"],
        refused=c["refused"], units=c["units"], evicted=c["evicted"], rescued=c["rescued"], recycled=c["recycled"],
        pinned_skips=c["pinned"], stored=c["stored"], stored_nbytes=c["stored_nbytes"], store_errors=c["store_errors"],
        budget_nbytes=memory.budget_nbytes, held_nbytes=c["held_nbytes"], waiting_nbytes=c["waiting_nbytes"],
        eexist=c["eexist"], eagain=c["eagain"], latency_ns=latency,
    )  # fmt: skip
