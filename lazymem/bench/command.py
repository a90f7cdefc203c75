"""What can be asked of `python -m lazymem bench`?

Rows go to standard output, a line of JSON each, as they are measured; a table for people to standard error (not with --json).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from lazymem.options import PAGE_NBYTES, nbytes

BLOCKS_NBYTES = (4 << 10, 64 << 10, 2 << 20)
_FIGURES = (("p50", "p50_ns"), ("p99", "p99_ns"), ("p99.9", "p99_9_ns"), ("mean", "mean_ns"))


def _block(text: str) -> int:
    try:
        size = nbytes(text if not text.isdigit() else int(text), "--block")
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size < PAGE_NBYTES or size > 2 << 20 or size & (size - 1):
        raise argparse.ArgumentTypeError(f"{text!r}: give a power of two from a page ({PAGE_NBYTES}) to 2 MiB")
    return size


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r}: give 1 to 256")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benches as sub-commands."""
    commands = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)

    fault = commands.add_parser("fault", help="the latency of a first touch, beside the least that could serve it")
    fault.add_argument("--block", type=_block, action="append", metavar="SIZE",
                       help='block size, again for more (default: "4 KiB", "64 KiB", "2 MiB")')  # fmt: skip
    fault.add_argument("--case", action="append", metavar="NAME", help="only this case, again for more")
    fault.add_argument("--threads", type=_count, nargs="+", default=[1], metavar="N",
                       help="touching threads; more than one implies --unpinned")  # fmt: skip
    fault.add_argument("--provider", metavar="MODULE:NAME",
                       help="a Python provider of your own (an instance, or a callable that returns one), beside one "
                       "whose bytes are ready; in blocks as it says, or as --block does")  # fmt: skip

    provider = commands.add_parser("provider", help="provider processes: several at once, first values, memory, idling, HTTP")
    failure = commands.add_parser("failure", help="from a failure to the exception, other blocks meanwhile, forks")
    array = commands.add_parser("array", help="a resident array against an ordinary one; creating; importing")
    ways = commands.add_parser("copy-or-move", help="every way of getting a block into place; what each asks of the kernel")
    scan = commands.add_parser("scan", help="arrays larger than their memory: scans, random reads, writing, against by hand")
    for each in (fault, ways, scan):
        each.add_argument("--png", metavar="FILE", help="draw a picture too (needs matplotlib: the bench extra)")
    for each in (fault, array):
        each.add_argument("--unpinned", action="store_true", help="do not pin to one core; also cases without any option")
    for each in (fault, array, provider, failure, ways, scan):
        each.add_argument("--quick", action="store_true", help="a few touches only: does it work, not how fast")

    compare = commands.add_parser("compare", help="two files of rows: exit code 1 if anything became slower")
    compare.add_argument("old", metavar="OLD")
    compare.add_argument("new", metavar="NEW")
    for each in (fault, array, provider, failure, ways, scan, compare):
        each.add_argument("--json", action="store_true", help="rows only, no table")


def _command(args: argparse.Namespace) -> str:
    """The command line that makes such rows, without paths."""
    words = ["python -m lazymem bench", args.bench]
    for block in getattr(args, "block", None) or ():
        words.append(f"--block {block}")
    for case in getattr(args, "case", None) or ():
        words.append(f"--case {case}")
    if getattr(args, "provider", None):
        words.append(f"--provider {args.provider}")
    if getattr(args, "threads", [1]) != [1]:
        words.append("--threads " + " ".join(map(str, args.threads)))
    words += [f"--{flag}" for flag in ("unpinned", "quick") if getattr(args, flag, False)]
    return " ".join(words)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _fault_rows(args: argparse.Namespace, core: int | None, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    from lazymem.arrays import NATIVE_BLOCK_NBYTES
    from lazymem.bench.fault import cases_for, measure_block, plan_for

    for block in args.block or sorted({max(b, PAGE_NBYTES) for b in BLOCKS_NBYTES}):
        names = cases_for(core is not None, block, NATIVE_BLOCK_NBYTES, bool(args.provider))
        if args.case:
            names = [name for name in names if name in args.case]
        if names:
            yield from measure_block(plan_for(block, args.quick), names, args.threads, core, say, args.provider or "")


def _refusal(args: argparse.Namespace) -> str | None:
    """Why `bench fault` cannot do what is asked, if so. A provider's own block is taken down as if it had been given."""
    from lazymem.bench.cases import DEFAULTS, PINNED, PROVIDED

    known = (*PINNED, *DEFAULTS, *(PROVIDED if args.provider else ()))
    unknown = [name for name in args.case or () if name not in known]
    if unknown:
        return f"no case {', '.join(unknown)}; lazymem/bench/cases.py lists them"
    if args.provider:
        from lazymem.bench.asked import load_provider, suited_block_nbytes

        try:
            suited = suited_block_nbytes(load_provider(args.provider))
        except Exception as error:  # of the user's code too
            return f"--provider {args.provider}: {type(error).__name__}: {error}"
        args.block = args.block or [suited]
    return None


def _line(row: dict[str, Any]) -> str:
    if row["bench"] == "fault":
        figures = "  ".join(f"{name} {row[key]:>9,}" for name, key in _FIGURES)
        return f"{row['case']:28} {row['block_nbytes']:>8} {row['threads']:>3} thr  {figures} ns  spread {row['spread']:.1%}"
    size = f" {row['block_nbytes']:>8} {row['threads']:>3} thr" if "threads" in row else ""
    bound = f"at least {row['least']:,}" if "least" in row else f"limit {row.get('limit', 0):,}"
    verdict = f"  {bound}: {'ok' if row['ok'] else 'MISSED'}" if "ok" in row else ""
    return f"{row['case']:28}{size}  {row['value']:>12,} {row.get('unit', 'ratio')}{verdict}"


def _measure(args: argparse.Namespace) -> int:
    from lazymem.bench.facts import facts
    from lazymem.bench.fault import BenchError

    pinned = args.bench in ("array", "copy-or-move") or (args.bench == "fault" and max(args.threads) == 1)
    pinned &= not getattr(args, "unpinned", False)
    core = max(os.sched_getaffinity(0)) if pinned else None
    common = facts(_command(args), pinned)
    if args.bench == "fault":
        refusal = _refusal(args)
        if refusal:
            print(f"bench: {refusal}", file=sys.stderr)
            return 2
        measured = _fault_rows(args, core, _say)
    elif args.bench == "array":
        from lazymem.bench.array import measure_array

        measured = measure_array(args.quick, core, _say)
    elif args.bench == "failure":
        from lazymem.bench.failure import measure_failure

        measured = measure_failure(args.quick, _say)
    elif args.bench == "copy-or-move":
        from lazymem.bench.copy_or_move import measure_copy_or_move

        measured = measure_copy_or_move(args.quick, _say)
    elif args.bench == "scan":
        from lazymem.bench.scan import measure_scan

        measured = measure_scan(args.quick, _say)
    else:
        from lazymem.bench.provider import measure_provider

        measured = measure_provider(args.quick, _say)
    rows = []
    try:
        for row in measured:
            rows.append(row | common)
            print(json.dumps(rows[-1]), flush=True)
    except BenchError as error:
        _say("")
        print(f"bench: {error}", file=sys.stderr)
        return 1
    _say("")
    if not args.json:
        print("\n".join(map(_line, rows)), file=sys.stderr)
    if getattr(args, "png", None):
        from lazymem.bench.plot import save, save_scans, save_ways

        try:
            {"fault": save, "copy-or-move": save_ways, "scan": save_scans}[args.bench](rows, args.png)
        except (ImportError, ValueError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    return 0


def _compare(args: argparse.Namespace) -> int:
    from lazymem.bench.compare import BadRows, compare, exit_code, json_rows, read_rows, table

    try:
        verdicts = compare(read_rows(args.old), read_rows(args.new))
    except (BadRows, OSError) as error:
        print(f"bench compare: {error}", file=sys.stderr)
        return 2
    print("\n".join(json_rows(verdicts)) if args.json else table(verdicts))
    code = exit_code(verdicts)
    if code == 2:
        print("bench compare: the files have no row in common", file=sys.stderr)
    return code


def run(args: argparse.Namespace) -> int:
    """Do what was asked. Returns the exit code: 0; 1 a case failed, or something became slower; 2 a question without sense."""
    return _compare(args) if args.bench == "compare" else _measure(args)
