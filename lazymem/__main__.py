"""What does `python -m lazymem` do? The commands."""

from lazymem.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
