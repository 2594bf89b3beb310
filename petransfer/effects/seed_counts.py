"""Compute, before a study runs, whether its number of seeds is enough to judge its effects. Imports no SciPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL = 0.05
# If there are at most this many permutations, the test uses all of them. Otherwise it draws this many at random.
MOST_DEALS = 20_000
# Searches for a sufficient number of seeds stop at this number.
MOST_SEEDS = 1000


def smallest_p(seeds_left: int, seeds_right: int, *, paired: bool = False) -> float:
    """Return the smallest two-sided p that the permutation test can give: 2 / (number of permutations).

    If the permutations are a random sample, the observed assignment of seeds to groups counts as one more permutation.
    Returns 1 if a group has a single seed.
    """
    if min(seeds_left, seeds_right) < 2:
        return 1.0
    deals = 2 ** min(seeds_left, seeds_right) if paired else math.comb(seeds_left + seeds_right, seeds_left)
    return 2 / (deals if deals <= MOST_DEALS else MOST_DEALS + 1)


def fewest_seeds(tests: int, *, paired: bool = False) -> int:
    """Return the smallest number of seeds per group with which any of `tests` effects can have p < 0.05 (Holm).

    For this, the smallest p before Holm's adjustment must be below 0.05 / `tests`. Returns `MOST_SEEDS` if no number of
    seeds is enough: the test draws at most `MOST_DEALS` permutations, so its p cannot become smaller than about
    2 / `MOST_DEALS`.
    """
    enough = (seeds for seeds in range(2, MOST_SEEDS) if smallest_p(seeds, seeds, paired=paired) * tests < LEVEL)
    return next(enough, MOST_SEEDS)


def fewest_for_equivalence(*, paired: bool = False) -> int:
    """Return the minimum number of seeds per group, or of pairs, for the verdict `equivalent`: four, or six pairs.

    With fewer seeds, the exact test cannot detect a difference of any size. So if the test detects no difference, that
    proves nothing. A bootstrap over seeds does not help. With three seeds, a bootstrap sample consists of the lowest
    seed alone with probability 1/27 (3.7 %). The 95 % interval leaves out only 2.5 % at each end, so each end of the
    interval is the score of a single seed. A t test would assume that the seeds' scores are normal. That is wrong if a
    few seeds generalise and the others do not.
    """
    return fewest_seeds(1, paired=paired)


@dataclass(frozen=True)
class Demand:
    """The number of effects that a study tests together, and the number of seeds that these effects need.

    tests: number of all tested effects (`unpaired` + `paired`). seeds: number of seeds of the study. unpaired: number
    of effects whose runs are not paired by seed, such as those between arms. paired: number of contrasts of methods
    whose runs are paired by seed.
    """

    tests: int
    seeds: int
    unpaired: int
    paired: int

    @property
    def needed(self) -> int:
        """The smallest number of seeds per group with which every effect can reach p < 0.05 after Holm.

        0 if the study has no effects.
        """
        kinds = [fewest_seeds(self.tests, paired=kind == "paired") for kind in ("unpaired", "paired")
                 if getattr(self, kind)]  # fmt: skip
        return max(kinds, default=0)

    @property
    def line(self) -> str:
        """A warning that the study has too few seeds, in one line; '' if it has enough seeds or no effects."""
        if self.seeds >= self.needed:
            return ""
        least = min(1.0, smallest_p(self.seeds, self.seeds, paired=not self.unpaired) * self.tests)
        together = "1 effect is judged" if self.tests == 1 else f"{self.tests} effects are judged together (Holm)"
        if self.needed == MOST_SEEDS:
            return f"{together}: no number of seeds decides any of so many; declare fewer effects"
        return (
            f"{together}: that takes {self.needed} seeds, and {self.seeds} cannot decide any effect, however large "
            f"(least p {least:.3f}); --seeds 0-{self.needed - 1}"
        )
