"""The command line: parse options, call the library and print the results.

torch is imported only by the verbs (subcommands) that need it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, NoReturn

import typer

import petransfer.models.quiet_libraries  # noqa: F401 - silence the libraries before they are imported
from petransfer import __version__
from petransfer.cli.lazy_verbs import Verbs
from petransfer.cli.log_output import show_log
from petransfer.cli.terminal_text import print_text
from petransfer.cli.usage_errors import usage_error
from petransfer.cli.utf8 import lost_characters_note, start_again_in_utf8, utf8_arguments, write_any_text
from petransfer.errors import RunError, UserError
from petransfer.study.launched_processes import launched_process

# Errors about folders that are read-only, full or wrong. A one-line message explains them better than a traceback.
_CANNOT_WRITE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_CANNOT_WRITE_ERRNO = {
    errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP,
    # errors of failing disks and of network file systems
    errno.EIO, errno.ESTALE, errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.EXDEV, errno.EBUSY, errno.ENODEV,
}  # fmt: skip

# The verbs that several processes can execute together, if a launcher such as `accelerate launch` starts petransfer.
# Any other verb is executed by the first process only; the other processes exit.
SHARED = ("run", "sweep", "train")

# Options of every verb, which users can write at any position.
_ANYWHERE = ("--debug", "--verbose", "--quiet")

# The base class of the exceptions for wrong options and arguments. Typer exports only this subclass of it.
_ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="petransfer",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Parameter-efficient fine-tuning of T5-family and decoder-only models, and "
    "studies of what pretraining contributes.",
)


@app.callback(invoke_without_command=True)
def _top(
    version: bool = typer.Option(False, "--version", help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", help="Print more details to stderr. Works with every command."),
    quiet: bool = typer.Option(
        False, "--quiet", help="Print only warnings and errors to stderr. Works with every command."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error. Works with every command."),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command `petransfer`."""
    _open_closed_streams()
    # plots are written to files, and the backend of a notebook or of an older matplotlib may be unknown here
    os.environ["MPLBACKEND"] = "agg"
    start_again_in_utf8()
    # Options such as --debug can precede the verb. For a shared verb, no process may exit here, because the leading
    # process would wait for it forever.
    verb = next((argument for argument in sys.argv[1:] if argument not in _ANYWHERE), "")
    if not launched_process().leads and verb not in SHARED:
        sys.exit(0)
    call(app, sys.argv[1:])


def _current_folder_exists() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _open_closed_streams() -> None:
    """Open standard streams that were closed by the caller, so that no file of a run gets their numbers.

    `sys.stdin` stays None, so that `predict` can report the missing input.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open until the process ends


def _file_error(error: OSError) -> str:
    """Return the message on a folder or file that cannot be used. '' for other errors."""
    if isinstance(error, FileNotFoundError) and not _current_folder_exists():
        return "the current folder was deleted; change to another folder"
    if isinstance(error, _CANNOT_WRITE) or error.errno in _CANNOT_WRITE_ERRNO:
        what = "change its permissions, or " if isinstance(error, PermissionError) else ""
        place = error.filename or "a file or the output"
        return f"{place} cannot be used ({error.strerror}); {what}use another folder or file"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open; allow more of them, such as with `ulimit -n 4096`"
    return ""


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from petransfer.training.out_of_memory import is_out_of_memory  # imports torch

    return is_out_of_memory(error)


def call(application: typer.Typer, arguments: list[str]) -> None:
    """Run a Typer application. An error is printed as one line and ends the process.

    The exit code is 2 for a user's mistake, 1 for a failed run, 130 after Ctrl-C.
    """
    debug = "--debug" in arguments
    write_any_text()
    leads = launched_process().leads
    show_log(verbose="--verbose" in arguments, quiet=not leads or "--quiet" in arguments)
    if not leads:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
    try:
        given = [argument for argument in arguments if argument not in _ANYWHERE]
        name = "petransfer" if application is app else None  # also for `python -m petransfer`
        code = application(utf8_arguments(given), prog_name=name, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (UserError, RunError) as error:
        if debug:
            import traceback

            traceback.print_exc()
        _end(2 if isinstance(error, UserError) else 1, f"error: {error}")
    except _ClickError as error:  # an unknown option, a missing argument, a value of a wrong type
        _end(error.exit_code, usage_error(error))
    except BrokenPipeError:  # the reader of the output has ended, as in `petransfer ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        message = _file_error(error)
        if debug or not message:
            raise
        _end(2, f"error: {message}")
    except (KeyboardInterrupt, typer.Abort):
        _end(130, "stopped")
    except (MemoryError, RuntimeError) as error:  # after typer.Abort, which is a RuntimeError
        if debug or not _is_out_of_memory(error):
            raise
        _end(1, "error: out of memory; close other programs that use it, or use a machine or a card with more memory")
    finally:
        print_text(*lost_characters_note(), file=sys.stderr)


def _end(code: int, message: str) -> NoReturn:
    """Exit with a code. If a launcher started several processes, only the leading one prints the message."""
    if message and launched_process().leads:
        print_text(message, file=sys.stderr)
    sys.exit(code)
