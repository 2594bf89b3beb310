"""Run a benchmark from a clone of the repository: python -m benchmarks train --help."""

import sys

from benchmarks.command_line import app
from petransfer.cli import call


def main() -> None:
    """Run the command line of the benchmarks, with the same exit codes as `petransfer`."""
    call(app, sys.argv[1:])


if __name__ == "__main__":
    main()
