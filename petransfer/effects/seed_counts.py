"""Compute, before a study runs, how many seeds its effects need. Imports no SciPy."""

from __future__ import annotations

import math
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
    """The numbers of effects and seeds of a study, to check whether the seeds are enough.

    Attributes:
        tests: number of all effects: `unpaired` + `paired`.
        seeds: number of seeds of the study. Single arms can have more.
        unpaired: number of effects without pairs of seeds, such as effects between arms.
        paired: number of effects between methods whose runs are paired by seed.
        groups: numbers of seeds in the two groups of an effect without pairs. Of several such effects, the effect with
            the smallest possible p value counts. None: `seeds` in both groups.
    """

    tests: int
    seeds: int
    unpaired: int
    paired: int
    groups: tuple[int, int] | None = None

    def _possible_p(self, *, paired: bool) -> float:
        """Return the smallest p value that an effect can have, corrected for `tests` effects (Holm)."""
        groups = (self.seeds, self.seeds) if paired or self.groups is None else self.groups
        return min(1.0, smallest_p(*groups, paired=paired) * self.tests)

    @property
    def needed(self) -> int:
        """The smallest number of seeds with which every effect can reach p < 0.05 (Holm). 0 if there are no effects."""
        kinds = [fewest_seeds(self.tests, paired=kind == "paired") for kind in ("unpaired", "paired")
                 if getattr(self, kind)]  # fmt: skip
        return max(kinds, default=0)

    @property
    def line(self) -> str:
        """A one-line warning that the study has too few seeds. '' if the study has enough seeds."""
        # pairs of seeds need more seeds than two groups, so effects without pairs can have enough seeds already
        only_pairs = not self.unpaired or self._possible_p(paired=False) < LEVEL
        if only_pairs and (not self.paired or self._possible_p(paired=True) < LEVEL):
            return ""
        least = self._possible_p(paired=only_pairs)
        none = "no effect with pairs of seeds" if self.unpaired and only_pairs else "no effect"
        together = "1 effect is tested" if self.tests == 1 else f"{self.tests} effects are tested together (Holm)"
        if self.needed == MOST_SEEDS:
            return f"{together}. No number of seeds is enough for so many effects; declare fewer effects"
        return (
            f"{together}. With {count(self.seeds, 'seed')}, {none} can reach p < 0.05, however large it is: the "
            f"smallest possible p is {least:.3f}. Use at least {self.needed} seeds: --seeds 0-{self.needed - 1}"
        )
