"""Count the generated texts that were cut, and explain how to generate longer texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from petransfer.evaluation.generation import Generation
from petransfer.plurals import count
from petransfer.recipe.values import MOST_NEW_TOKENS


@dataclass
class CutTexts:
    """Numbers of generated texts.

    Attributes:
        limit: length limit of a text in tokens, as the user gave it.
        texts: number of all texts.
        at_limit: number of texts that were cut at the limit.
        at_positions: number of texts that were cut because the model has no more positions.
    """

    limit: int
    texts: int = 0
    at_limit: int = 0
    at_positions: int = 0

    def add(self, found: Iterable[Generation]) -> None:
        """Count some texts."""
        for one in found:
            self.texts += 1
            if not one.ended:
                self.at_limit += one.tokens >= self.limit
                self.at_positions += one.tokens < self.limit

    def notes(self, option: str) -> list[str]:
        """Return one sentence for each reason for which texts were cut.

        Args:
            option: the option for the limit as the user writes it before the number, such as `--max-new-tokens `.
        """
        found = []
        if self.at_limit:
            longer = min(2 * self.limit, MOST_NEW_TOKENS)
            advice = f"; {option}{longer} allows more" if longer > self.limit else ""
            found.append(f"{self._number(self.at_limit)} cut at {count(self.limit, 'token')}{advice}")
        if self.at_positions:
            found.append(f"{self._number(self.at_positions)} cut, because the model has no more positions")
        return found

    def _number(self, cut: int) -> str:
        if self.texts == 1:
            return "the text was"
        return f"{cut:,} of {count(self.texts, 'text')} {'was' if cut == 1 else 'were'}"
