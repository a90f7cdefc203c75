"""Which commands are there, and what do they take?"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lazymem.version import __version__

_EPILOG = "`%(prog)s COMMAND --help` says more of each. Something does not work? Start with `%(prog)s doctor`."


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the same facts as one JSON object")


def _parser(prog: str, wanted: str | None) -> argparse.ArgumentParser:
    """The parser; only the wanted command may import more than argparse."""
    parser = argparse.ArgumentParser(
        prog, description="Numpy arrays that are real memory, filled on first touch.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"lazymem {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    text = "Say whether lazymem works here, and what would allow what does not"
    doctor = commands.add_parser(
        "doctor",
        help=text[0].lower() + text[1:],
        description=f"{text}. Small arrays are really made and touched, in processes of their own. "
        "Exit status: 0 when arrays can be made, else 1.",
    )
    _json_option(doctor)

    text = "Show it: touch a 1 GB file and a 1 TiB array here and there"
    demo = commands.add_parser(
        "demo",
        help=text[0].lower() + text[1:],
        description=f"{text}, through numpy and through a plain pointer. Takes a few seconds and no network; "
        "the file is sparse, lies in the temporary folder ($TMPDIR) and is removed. "
        "Exit status: 0 when every value was right, else 1.",
    )
    _json_option(demo)

    text = "Say what an array file holds; only its header is read"
    info = commands.add_parser(
        "info", help=text[0].lower() + text[1:], description=f"{text}. Exit status: 0, or 1 with the reason."
    )
    info.add_argument("file", metavar="FILE", help="a .npy file; any file with --dtype")
    info.add_argument("--dtype", help='read it as raw elements of this type, such as "f4"')
    info.add_argument(
        "--shape", type=_lengths, help="of the raw elements: lengths with commas, such as 1000,3; one may be -1: --shape=-1,3"
    )
    info.add_argument("--offset", type=int, default=0, metavar="BYTES", help="of the first raw element (default: 0)")
    _json_option(info)

    text = "Measure what a touch costs"
    bench = commands.add_parser("bench", help=text[0].lower() + text[1:], description=f"{text}.")
    if wanted == "bench":
        from lazymem.bench import command

        command.add_arguments(bench)

    text = "Do everything at once for some minutes, and compare every byte that is read"
    soak = commands.add_parser(
        "soak",
        help=text[0].lower() + text[1:],
        description=f"{text}: touches, writes, operations, guards, populate and prefetch, closing and opening, forks, a "
        "thousand signals a second, sources that fail, processes that are killed. In rounds of 15 s, a process each. "
        "Exit status: 0 when nothing was wrong, hung, crashed or was left over, else 1.",
    )
    if wanted == "soak":
        from lazymem.soak import command as soaking

        soaking.add_arguments(soak)
    return parser


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers with commas, such as 1000,-1") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; the process's own by default.

    Returns
    -------
    int
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = "python -m lazymem" if os.path.basename(sys.argv[0]) == "__main__.py" else "lazymem"
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    args = _parser(prog, wanted).parse_args(arguments)
    try:
        status = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `lazymem doctor | head -1`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (OSError, NotImplementedError) as error:
        print(f"{prog} {args.command}: {error}", file=sys.stderr)
        return 1
    return status


def _run(args: argparse.Namespace) -> int:
    if args.command == "doctor":
        from lazymem.cli import doctor

        return doctor.run(args)
    if args.command == "demo":
        from lazymem.cli import demo

        return demo.run(args)
    if args.command == "info":
        from lazymem.cli import info

        return info.run(args)
    if args.command == "soak":
        from lazymem.soak import command as soaking

        return soaking.run(args)
    from lazymem.bench import command

    return int(command.run(args))
