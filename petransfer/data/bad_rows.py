"""Counts rows that cannot be used by their reason, and words the error or the note about them."""

from __future__ import annotations

from petransfer.plurals import count

_REASONS_SHOWN = 5
_SHOWN_AS = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥", "\xa0": "⍽"})


class BadRow(ValueError):
    """A row that cannot be used.

    Args:
        reason: The kind of the fault, by which bad rows are counted.
        detail: What is special to this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


class BadRows:
    """The rows that cannot be used, of one or several files.

    For each reason the number of rows and the first row with its detail are kept.
    """

    def __init__(self) -> None:
        self.count = 0
        self._numbers: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, place: str, problem: BadRow) -> None:
        """Count a row. place: its file and line."""
        self.count += 1
        self._numbers[problem.reason] = self._numbers.get(problem.reason, 0) + 1
        self._first.setdefault(problem.reason, f"{place}: {problem}")

    def __bool__(self) -> bool:
        return self.count > 0

    def has(self, reason: str) -> bool:
        """Whether any row was counted for this reason."""
        return reason in self._numbers

    def is_new(self, problem: BadRow) -> bool:
        """Whether this is the first row with such a fault, so that its place will be shown."""
        return problem.reason not in self._numbers

    def summary(self) -> str:
        """The reasons on one line, the most frequent first, each with its number of rows and its first row."""
        order = sorted(self._numbers, key=lambda reason: -self._numbers[reason])
        shown = []
        for reason in order[:_REASONS_SHOWN]:
            more = self._numbers[reason] - 1
            shown.append(self._first[reason] + (f" (and {more:,} more such row{'s'[: more > 1]})" if more else ""))
        others = len(order) - len(shown)
        return "; ".join([*shown, f"and {others} other reasons"] if others else shown)

    def refusal(self, rows: int, name: str) -> str:
        """The error where such rows are refused. rows: how many there are in all; name: of the data."""
        return (
            f"{self.count:,} of {rows:,} rows of {name} cannot be used: {self.summary()}; correct them, or leave such "
            "rows out with --skip-bad-rows"
        )

    def note(self) -> str:
        """The note where such rows are left out."""
        return f"{count(self.count, 'bad row')} left out: {self.summary()}"


def visible(text: str, most: int = 60) -> str:
    """A text in quotes for a message: line breaks, tabs and blanks at its ends are visible, and a long middle is cut.

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
