"""Count the unusable rows of the data by reason, and write the message about them."""

from __future__ import annotations

from petransfer.errors import UserError
from petransfer.plurals import count

_REASONS_SHOWN = 5
NOT_UTF8 = "not UTF-8"
_SHOWN_AS = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥", "\xa0": "⍽"})


class BadRow(ValueError):
    """The error for a row that cannot be used.

    Args:
        reason: Kind of fault. Rows are counted by reason.
        detail: Fault of this one row, such as the character that the tokenizer loses. Can be empty.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


class UnusableRows(UserError):
    """The error for files with unusable rows, raised before any row is tokenized."""


class BadRows:
    """The number of unusable rows for each reason, and a message about the first such row."""

    def __init__(self) -> None:
        self.count = 0
        self._numbers: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, place: str, problem: BadRow) -> None:
        """Count an unusable row. `place` is its file and line, for messages."""
        self.count += 1
        self._numbers[problem.reason] = self._numbers.get(problem.reason, 0) + 1
        self._first.setdefault(problem.reason, f"{place}: {problem}")

    def __bool__(self) -> bool:
        return self.count > 0

    def has(self, reason: str) -> bool:
        return reason in self._numbers

    def is_new(self, problem: BadRow) -> bool:
        """Return whether `problem` is the first problem with this reason.

        `summary` shows only the places of these first rows.
        """
        return problem.reason not in self._numbers

    def summary(self) -> str:
        """Return one line with the most frequent reasons, their first rows and their numbers of rows."""
        order = sorted(self._numbers, key=lambda reason: -self._numbers[reason])
        shown = []
        for reason in order[:_REASONS_SHOWN]:
            more = self._numbers[reason] - 1
            same = "has" if more == 1 else "have"
            others = f", and {count(more, 'more row')} {same} this problem" if more else ""
            shown.append(self._first[reason] + others)
        hidden = len(order) - len(shown)
        return "; ".join([*shown, f"and {count(hidden, 'other reason')}"] if hidden else shown)

    def refusal(self, rows: int, name: str) -> str:
        """Return the error message for data with unusable rows. `rows`: number of all rows. `name`: the data's name."""
        problem = f"{self.count:,} of {rows:,} rows of {name} cannot be used: {self.summary()}"
        if set(self._numbers) == {NOT_UTF8} and 10 * self.count > rows:
            # The problem has the advice already. Leaving out so many rows is not suggested: no text with letters beyond
            # ASCII would remain.
            return problem
        skip = ", or skip these rows with --skip-bad-rows (in a recipe: bad_rows: skip)" if self.count < rows else ""
        too_long = all("--max-length" in reason for reason in self._numbers)
        advice = "increase or remove --max-length" if too_long else "correct these rows"
        if any("virtual tokens" in first for first in self._first.values()):
            advice += " or use fewer virtual tokens"
        return f"{problem}; {advice}{skip}"

    def note(self) -> str:
        """Return the note about the number of skipped rows and the reasons."""
        return f"{count(self.count, 'bad row')} left out: {self.summary()}"


def visible(text: str, most: int = 60) -> str:
    """Return a text in quotes for a message, of at most `most` characters.

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
