"""Compute, before a study runs, how many seeds its effects need. Imports no SciPy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from petransfer.plurals import count

LEVEL = 0.05
# If there are at most this many permutations, the test uses all of them. Otherwise it draws this many at random.
MOST_PERMUTATIONS = 20_000
# Searches for a sufficient number of seeds stop at this number.
MOST_SEEDS = 1000


def smallest_p(seeds_left: int, seeds_right: int, *, paired: bool = False) -> float:
    """Return the smallest two-sided p value of the permutation test. 1 if a group has a single seed."""
    if min(seeds_left, seeds_right) < 2:
        return 1.0
    permutations = 2 ** min(seeds_left, seeds_right) if paired else math.comb(seeds_left + seeds_right, seeds_left)
    # A random sample of permutations has one more permutation: the observed one.
    return 2 / (permutations if permutations <= MOST_PERMUTATIONS else MOST_PERMUTATIONS + 1)


def fewest_seeds(tests: int, *, paired: bool = False) -> int:
    """Return the smallest number of seeds per group with which `tests` effects can reach p < 0.05 (Holm).

    Returns `MOST_SEEDS` if no number of seeds is enough.
    """
    # The test draws at most `MOST_PERMUTATIONS` permutations, so p is at least about 2 / `MOST_PERMUTATIONS`. For very
    # many effects, no number of seeds is therefore enough.
    enough = (seeds for seeds in range(2, MOST_SEEDS) if smallest_p(seeds, seeds, paired=paired) * tests < LEVEL)
    return next(enough, MOST_SEEDS)


def fewest_for_verdict(*, paired: bool = False) -> int:
    """Return the smallest number of seeds per group for a verdict: four seeds, or six pairs of seeds.

    With fewer seeds in a group, an effect is `inconclusive` (or `not learnt`).
    """
    # With fewer seeds in both groups, the permutation test cannot detect any difference, so a test without a result
    # proves nothing. A bootstrap over seeds does not help: with three seeds, a sample consists of the lowest seed alone
    # with probability 1/27 (3.7 %), and a 95 % interval leaves out only 2.5 % at each end. Each end is then the score
    # of a single seed. A t test would assume normal scores. That is wrong if a few seeds generalise and the others do
    # not. If one group has many seeds, the test can detect a difference from two or three seeds, but so few scores do
    # not show how much the scores of this group vary.
    return fewest_seeds(1, paired=paired)


@dataclass(frozen=True)
class SeedDemand:
    """The numbers of seeds of effects that are tested together, to check whether the seeds are enough.

    Attributes:
        unpaired: for each effect without pairs of seeds, such as an effect between arms, the numbers of seeds on its
            two sides.
        paired: for each effect between methods whose runs are paired by seed, its number of pairs.
    """

    unpaired: tuple[tuple[int, int], ...] = ()
    paired: tuple[int, ...] = ()

    @property
    def tests(self) -> int:
        """The number of effects."""
        return len(self.unpaired) + len(self.paired)

    @property
    def needed(self) -> int:
        """The smallest number of seeds with which every effect can reach p < 0.05 (Holm). 0 if there are no effects."""
        kinds = [fewest_seeds(self.tests, paired=kind == "paired") for kind in ("unpaired", "paired")
                 if getattr(self, kind)]  # fmt: skip
        return max(kinds, default=0)

    @property
    def line(self) -> str:
        """A one-line warning that the study has too few seeds. '' if the study has enough seeds."""
        together = "1 effect is tested" if self.tests == 1 else f"{self.tests} effects are tested together (Holm)"
        obstacle = self._obstacle()
        if not obstacle:
            return ""
        if self.needed == MOST_SEEDS:
            return f"{together}. No number of seeds is enough for so many effects; declare fewer effects"
        numbers = sorted({number for groups in self.unpaired for number in groups} | set(self.paired))
        each = "" if len(numbers) == 1 else " per arm"
        seeds = f"{numbers[0]} to {numbers[-1]} seeds per arm" if each else count(numbers[0], "seed")
        return (
            f"{together}. With {seeds}, {obstacle}. Use at least {self.needed} seeds{each}: --seeds 0-{self.needed - 1}"
        )

    def _obstacle(self) -> str:
        """Return why no effect, or no effect of one kind, can be decided. '' if the seeds are enough.

        Of several effects of one kind, the effect with the smallest possible p value counts.
        """
        fewest = fewest_for_verdict()
        least = self._least_p(groups for groups in self.unpaired if min(groups) >= fewest)
        least_of_pairs = self._least_p(((pairs, pairs) for pairs in self.paired), paired=True)
        # pairs of seeds need more seeds than two groups, so effects without pairs can have enough seeds already
        too_few = bool(self.unpaired) and least >= LEVEL, bool(self.paired) and least_of_pairs >= LEVEL
        if not any(too_few):
            return ""
        both = (bool(self.unpaired), bool(self.paired))
        none = "no effect" if too_few == both else f"no effect {'without' if too_few[0] else 'with'} pairs of seeds"
        possible = self._least_p(self.unpaired)
        if too_few[0] and possible < LEVEL:  # a side with many seeds allows small p values
            return f"{none} can be decided, however large it is: this needs p < 0.05 and {fewest} seeds on each side"
        found = min(p for p, few in zip((possible, least_of_pairs), too_few, strict=True) if few)
        return f"{none} can reach p < 0.05, however large it is: the smallest possible p is {found:.3f}"

    def _least_p(self, groups: Iterable[tuple[int, int]], *, paired: bool = False) -> float:
        """Return the smallest p value that an effect between two of these groups can have, corrected (Holm)."""
        found = (smallest_p(*sizes, paired=paired) * self.tests for sizes in groups)
        return min([1.0, *found])
