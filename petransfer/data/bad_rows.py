"""Count the rows of the data that cannot be used, by reason, and write the error message or the note about them."""

from __future__ import annotations

from petransfer.plurals import count

_REASONS_SHOWN = 5
_SHOWN_AS = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥", "\xa0": "⍽"})


class BadRow(ValueError):
    """The error for a row that cannot be used.

    Args:
        reason: The kind of fault. Rows with the same reason are counted together.
        detail: What is wrong in this row only, such as the character that the tokenizer loses; may be empty.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


class BadRows:
    """Counts of the rows that cannot be used, from one or several files.

    For each reason, this object stores the number of rows, and the place and the detail of the first row.
    """

    def __init__(self) -> None:
        self.count = 0
        self._numbers: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, place: str, problem: BadRow) -> None:
        """Count a row that cannot be used.

        Args:
            place: The file and the line of the row, for messages.
            problem: Why the row cannot be used.
        """
        self.count += 1
        self._numbers[problem.reason] = self._numbers.get(problem.reason, 0) + 1
        self._first.setdefault(problem.reason, f"{place}: {problem}")

    def __bool__(self) -> bool:
        return self.count > 0

    def has(self, reason: str) -> bool:
        """Return whether any row was counted for this reason."""
        return reason in self._numbers

    def is_new(self, problem: BadRow) -> bool:
        """Return whether no row was counted yet for the reason of `problem`.

        `summary` shows only the place of each reason's first row, so callers need not compute the places of later rows.
        """
        return problem.reason not in self._numbers

    def summary(self) -> str:
        """Return the most frequent reasons on one line, each with its first row and the number of further rows."""
        order = sorted(self._numbers, key=lambda reason: -self._numbers[reason])
        shown = []
        for reason in order[:_REASONS_SHOWN]:
            more = self._numbers[reason] - 1
            shown.append(self._first[reason] + (f" (and {more:,} more such row{'s'[: more > 1]})" if more else ""))
        others = len(order) - len(shown)
        return "; ".join([*shown, f"and {others} other reasons"] if others else shown)

    def refusal(self, rows: int, name: str) -> str:
        """Return the error message for data that has bad rows, if the user did not choose to skip them.

        Args:
            rows: The number of all rows, good and bad.
            name: The name of the data.
        """
        return (
            f"{self.count:,} of {rows:,} rows of {name} cannot be used: {self.summary()}; correct them, or leave such "
            "rows out with --skip-bad-rows"
        )

    def note(self) -> str:
        """Return the note that tells the user how many bad rows were skipped, and why."""
        return f"{count(self.count, 'bad row')} left out: {self.summary()}"


def visible(text: str, most: int = 60) -> str:
    """Return a text in quotes for a message. Line breaks, tabs, and blanks at both ends are made visible.

    If the text is longer than `most` characters, its middle is replaced by three dots.

    >>> visible("two words ")
    "'two words␣'"
    """
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if inner else len(text)
    text = "␣" * before + inner + "␣" * (len(text) - len(inner) - before)
    text = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text.translate(_SHOWN_AS))
    if len(text) > most:
        text = f"{text[: most - 23]}...{text[-20:]}"
    return f"'{text}'"
