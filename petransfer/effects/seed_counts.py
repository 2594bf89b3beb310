"""Compute before a study runs whether its number of seeds can decide an effect. Uses only arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL = 0.05
# Up to this number of permutations the test is exact; above it, the test draws this number at random.
MOST_DEALS = 20_000
# Largest number of seeds that is tried.
MOST_SEEDS = 1000


def smallest_p(seeds_left: int, seeds_right: int, *, paired: bool = False) -> float:
    """Return the smallest two-sided p that the permutation test can give: 2 / (number of permutations).

    If the permutations are a random sample, the observed assignment counts as one more permutation.
    """
    if min(seeds_left, seeds_right) < 2:
        return 1.0
    deals = 2 ** min(seeds_left, seeds_right) if paired else math.comb(seeds_left + seeds_right, seeds_left)
    return 2 / (deals if deals <= MOST_DEALS else MOST_DEALS + 1)


def fewest_seeds(tests: int, *, paired: bool = False) -> int:
    """Return the smallest number of seeds per group with which one of `tests` effects can reach p < 0.05 after Holm.

    After Holm's adjustment the smallest p must be below 0.05 / `tests`. Returns MOST_SEEDS if no number of seeds is
    enough, because random permutations limit the smallest p.
    """
    enough = (seeds for seeds in range(2, MOST_SEEDS) if smallest_p(seeds, seeds, paired=paired) * tests < LEVEL)
    return next(enough, MOST_SEEDS)


def fewest_for_equivalence(*, paired: bool = False) -> int:
    """Return the minimum number of seeds per group, or of pairs, for the verdict `equivalent`: four, or six pairs.

    With fewer seeds the exact test cannot detect a difference of any size, so a missing difference proves nothing. A
    bootstrap over seeds does not help: with three seeds it draws the lowest seed three times with probability 1/27.
    This is more than the 2.5 % beyond each end of the interval, so the ends are single seeds. A t test would assume
    normal seeds, which is wrong if a few of them generalise and the others do not.
    """
    return fewest_seeds(1, paired=paired)


@dataclass(frozen=True)
class Demand:
    """The number of effects that a study tests together, and the number of seeds that they need.

    tests: all tested effects. seeds: seeds of the study. unpaired: effects between arms or families. paired: contrasts
    of methods.
    """

    tests: int
    seeds: int
    unpaired: int
    paired: int

    @property
    def needed(self) -> int:
        """The smallest number of seeds per group with which all effects, unpaired and paired, can be decided."""
        kinds = [fewest_seeds(self.tests, paired=kind == "paired") for kind in ("unpaired", "paired")
                 if getattr(self, kind)]  # fmt: skip
        return max(kinds, default=0)

    @property
    def line(self) -> str:
        """A warning in one line; empty if the study has enough seeds or no effects."""
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
