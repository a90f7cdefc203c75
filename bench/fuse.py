"""What does a first touch of a page cost whose bytes Python gives, through FUSE and through lazymem?

np.memmap of a file on a mount that pyfuse3 serves, against a lazy array over a Python provider; both have the bytes ready. The
same loop touches both, in the same random orders, in turns. The provider process has a core of its own; the server once shares
the toucher's, once has its own: sharing is faster, since it sleeps before each read and no core has to be woken, so that is
what lazymem is compared with. The kernel's read-ahead is told to keep out (MADV_RANDOM), and the server counts its reads: one
for each touch.

Needs root, to mount, and pyfuse3 (Debian: libfuse3-dev fuse3 pkg-config gcc; pip: pyfuse3). Without them it says so, and gives
no rows. Rows as of `python -m lazymem bench`; `--quick` as there.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

LIMIT = 0.35
READS = "user.reads"


def serve(folder: str, nbytes: int) -> None:
    """The server's life: one file, "blocks", until it is asked to end."""
    import pyfuse3
    import trio

    class Blocks(pyfuse3.Operations):
        """One file; the fewest operations that opening and reading it takes."""

        def __init__(self) -> None:
            super().__init__()
            self.block = bytes(1 << 20)
            self.reads = 0

        async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
            made = pyfuse3.EntryAttributes()
            made.st_ino = inode
            made.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o444
            made.st_size = 0 if inode == pyfuse3.ROOT_INODE else nbytes
            made.attr_timeout = made.entry_timeout = 3600
            return made

        async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
            if name != b"blocks":
                raise pyfuse3.FUSEError(2)
            return await self.getattr(pyfuse3.ROOT_INODE + 1)

        async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
            return pyfuse3.FileInfo(fh=inode, keep_cache=False)  # what was read before is forgotten

        async def read(self, fh: int, off: int, size: int) -> bytes:
            self.reads += 1
            return self.block[:size]

        async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
            if name != READS.encode():
                raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
            return str(self.reads).encode()

    pyfuse3.init(Blocks(), folder, {*pyfuse3.default_options, "fsname=lazymem-bench"} - {"default_permissions"})
    try:
        trio.run(pyfuse3.main, 1, 1)  # a request at a time: nobody asks for more
    finally:
        pyfuse3.close(unmount=True)


@contextlib.contextmanager
def mounted(nbytes: int, core: int) -> Iterator[str]:
    """The path of a served file, its server on this core."""
    with tempfile.TemporaryDirectory(prefix="lazymem-fuse-") as folder:
        server = subprocess.Popen([sys.executable, os.path.abspath(__file__), "serve", folder, str(nbytes)])
        path = os.path.join(folder, "blocks")
        try:
            deadline = time.monotonic() + 20
            while not os.path.exists(path):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the file system was not mounted; its server has said why")
                time.sleep(0.02)
            for thread in os.listdir(f"/proc/{server.pid}/task"):
                os.sched_setaffinity(int(thread), {core})
            yield path
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            subprocess.run(["umount", "-l", folder], check=False, stderr=subprocess.DEVNULL)


def reason_to_skip() -> str | None:
    """Why nothing can be measured here, if so."""
    if os.geteuid():
        return "only root may mount"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    try:
        import pyfuse3  # noqa: F401
    except ImportError as error:
        return f"{error} (Debian: libfuse3-dev fuse3 pkg-config gcc; pip install pyfuse3)"
    return None


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """The rows."""
    from lazymem.bench.cases import MemoryMap, run_slice
    from lazymem.bench.fault import Child, plan_for, spread_of, summary, take_turns

    everywhere = os.sched_getaffinity(0)
    core = max(everywhere)
    plan = plan_for(mmap.PAGESIZE, quick)

    class Fuse(MemoryMap):
        """np.memmap of the served file, each page asked for by itself."""

        def make(self) -> int:
            at = super().make()
            self._array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[union-attr]
            self.reads = int(os.getxattr(self._path, READS))
            return at

        def end(self, touched: int) -> None:
            reads = int(os.getxattr(self._path, READS)) - self.reads
            super().end(touched)
            if reads != touched:
                raise RuntimeError(f"{touched} touches were {reads} reads")

        def slice(self, seed: int, threads: int) -> tuple[np.ndarray[Any, Any], int]:
            """As a `Child`'s: this process itself touches."""
            os.sched_setaffinity(0, {core})
            try:
                return run_slice(self, plan.nblocks, plan.block_nbytes, seed, threads)
            finally:
                os.sched_setaffinity(0, everywhere)

    nbytes = plan.nblocks * plan.block_nbytes
    common = {"block_nbytes": plan.block_nbytes, "threads": 1}
    names = ["memmap-fuse", "inline-python", "memmap-fuse-apart"]
    with (
        mounted(nbytes, core) as path,
        mounted(nbytes, min(everywhere)) as path_apart,
        Child("inline-python", plan, "", core) as ours,
    ):
        fuse, apart = Fuse(path, plan.block_nbytes, False), Fuse(path_apart, plan.block_nbytes, False)
        took, walls = take_turns([fuse, ours, apart], plan, 1, lambda text: None)
    for name, rounds, wall_ns in zip(names, took, walls, strict=True):
        yield {"bench": "fuse", "case": name, **common, **summary(rounds, wall_ns)}
    ratios = [float(np.median(b)) / float(np.median(a)) for a, b in zip(took[0], took[1], strict=True)]
    value = float(np.median(ratios))
    row = {"bench": "fuse", "case": "inline-python/memmap-fuse", **common, "value": round(value, 4), "unit": "ratio"}
    yield row | {"spread": spread_of(ratios), "rounds": len(ratios), "limit": LIMIT, "ok": value <= LIMIT}


def main() -> None:
    from lazymem.bench.facts import facts

    reason = reason_to_skip()
    if reason is not None:
        print(f"bench/fuse.py: skipped: {reason}", file=sys.stderr)
        return
    quick = "--quick" in sys.argv[1:]
    common = facts("python bench/fuse.py" + " --quick" * quick, True)
    for row in measure(quick):
        print(json.dumps(row | common), flush=True)
        text = f"{row['value']}  limit {LIMIT}" if "value" in row else f"p50 {row['p50_ns']:>9,}  p99 {row['p99_ns']:>9,} ns"
        print(f"{row['case']:28} {text}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        main()
