"""The command `petransfer`, also started with `python -m petransfer`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    if sys.flags.optimize > 1:  # transformers needs docstrings, and so does --help
        print("error: Python runs without docstrings (-OO or PYTHONOPTIMIZE=2); unset PYTHONOPTIMIZE", file=sys.stderr)
        sys.exit(2)
    try:
        from petransfer.cli import main as command_line  # takes a second; Ctrl-C must not print a traceback
        from petransfer.cli.log_output import keep_from_other_handlers

        keep_from_other_handlers()
        command_line()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
