"""The exceptions of petransfer, and functions for their messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from petransfer.similar_names import similar_name


class UserError(Exception):
    """Raised for a mistake that the user can correct. The exit code is 2.

    The message is one line: what is wrong, where, what to do.
    """


class RunError(Exception):
    """Raised when a run fails although its recipe has no mistake. The exit code is 1."""


class FolderMoved(RunError):
    """The folder of a run was moved or removed while the run was trained."""


def refuse_moved(folder: Path, file: str = "") -> None:
    """Raise FolderMoved if a folder was moved or removed during the training.

    Args:
        folder: The folder.
        file: Name of a file that must exist in the folder. Empty: only the folder is checked.
    """
    # the folder is not created again, because the user could then overlook the moved folder with the earlier files
    if not (folder / file).exists():
        raise FolderMoved(
            f"{folder} was moved or removed during training; move it back and run the same command again, or name "
            "its new place with --out"
        )


class Interrupted(Exception):
    """Raised when a run stops on request, after its training state was saved."""


def reason_of(error: object, most: int | None = None) -> str:
    """Return an error's message on one line.

    Args:
        most: Largest number of characters. A longer message is cut between two words, and ends with three dots. None:
            no limit.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if most is None or len(text) <= most:
        return text
    cut = text[: most - 3]
    words = cut.rpartition(" ")[0]
    return f"{words if len(words) > most // 3 else cut}..."  # a long path has no blanks


def shortened(text: str, most: int) -> str:
    """Shorten a text to at most `most` characters. Three dots replace the end of a longer text.

    >>> shortened("around_right", 9)
    'around...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def no_bf16(bits: int, card: str) -> UserError:
    """Return the error for a training with less than 32 bits on a card without bf16.

    >>> str(no_bf16(16, "Tesla T4"))
    'bits: 16 computes in bf16, which Tesla T4 does not support; use bits: 32'
    """
    return UserError(f"bits: {bits} computes in bf16, which {card} does not support; use bits: 32")


def unknown(what: str, given: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name. The message suggests the most similar known name.

    >>> str(unknown("split", "add_jmp", ["add_jump", "right"]))
    "unknown split 'add_jmp': did you mean 'add_jump'? (known: add_jump, right)"
    """
    names = sorted(known)
    given = shortened(given, 80)
    near = similar_name(given, names)
    hint = f": did you mean '{near}'?" if near else ""
    return UserError(f"unknown {what} '{given}'{hint} (known: {', '.join(names)})")
