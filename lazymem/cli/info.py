"""What does an array file hold? Its header says; no element is read."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import lazymem
from lazymem.counters import human


def facts(file: str, dtype: str | None, shape: tuple[int, ...] | None, offset: int) -> dict[str, Any]:
    """Open the file, and take down what it is.

    Raises
    ------
    OSError, ValueError, TypeError
        As `lazymem.open`.
    """
    given: dict[str, Any] = {"dtype": dtype, "shape": shape, "offset": offset} if dtype is not None else {}
    with lazymem.open(file, **given) as a:
        region = lazymem.region(a)
        return {
            "file": region.filename, "dtype": str(a.dtype), "shape": list(a.shape),
            "order": "C" if a.flags.c_contiguous else "F", "begins_at": region.offset, "nbytes": a.nbytes,
            "blocks": region.nblocks, "block_nbytes": region.block_nbytes, "delivery": region.delivery,
        }  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """The command. Returns the exit status."""
    if args.dtype is None and (args.shape is not None or args.offset):
        print("lazymem info: --shape and --offset are for raw elements; give --dtype too", file=sys.stderr)
        return 2
    try:
        found = facts(args.file, args.dtype, args.shape, args.offset)
    except (ValueError, TypeError) as error:  # OSError is the caller's
        print(f"lazymem info: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(found))
        return 0
    print(f"file       {found['file']}")
    print(f"dtype      {found['dtype']}")
    print(f"shape      {tuple(found['shape'])}")
    print(f"order      {found['order']}")
    print(f"begins at  byte {found['begins_at']:,}")
    print(f"size       {human(found['nbytes'])} ({found['nbytes']:,} bytes)")
    print(f"blocks     {found['blocks']:,} of {human(found['block_nbytes'])}")
    return 0
