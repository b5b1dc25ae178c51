"""The command `siftune`."""

from __future__ import annotations

from . import threads


def main() -> None:
    """Settle the threads before anything heavy is imported, then hand over to the command line."""
    threads.settle()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
