"""petransfer's exceptions: for a user's mistake (exit code 2), a failed run (exit code 1), and an interrupted run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Raised for a mistake that the user can correct. The message is one line: what is wrong, where, what to do."""


class RunError(Exception):
    """Raised if a run failed although its recipe has no mistake."""


class Interrupted(Exception):
    """Raised if a run was asked to stop. Its training state was saved, so that the run can be resumed."""


def reason_of(error: object, most: int | None = None) -> str:
    """Return an error's message, or its type if the message is empty, on one line of at most `most` characters.

    If `most` is None, the length is not limited.
    """
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters. The end of a longer text is replaced by three dots.

    >>> shortened("around_right", 9)
    'around...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def unknown(what: str, given: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not among `known`. Its message suggests the most similar known name.

    Args:
        what: what the name stands for, such as `split`.
        given: the name that the user gave.
        known: the names that are allowed.

    >>> str(unknown("split", "add_jmp", ["add_jump", "right"]))
    "unknown split 'add_jmp': did you mean 'add_jump'? (known: add_jump, right)"
    """
    names = sorted(known)
    given = shortened(given, 80)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {what} '{given}'{hint} (known: {', '.join(names)})")
