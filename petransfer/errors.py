"""The ways petransfer says no: a user's mistake (exit code 2), a failed run (exit code 1), a run told to stop."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: what, where, what to do."""


class RunError(Exception):
    """A run that could not be carried out, through no mistake in the recipe."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and it can go on from there."""


def reason_of(error: object, most: int | None = None) -> str:
    """Return the message of an error in one line of at most `most` characters; its type if it has no message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters; the end of a longer one is replaced by three dots.

    >>> shortened("around_right", 9)
    'around...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def unknown(what: str, given: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not among `known`, with the nearest one.

    >>> str(unknown("split", "add_jmp", ["add_jump", "right"]))
    "unknown split 'add_jmp': did you mean 'add_jump'? (known: add_jump, right)"
    """
    names = sorted(known)
    given = shortened(given, 80)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {what} '{given}'{hint} (known: {', '.join(names)})")
