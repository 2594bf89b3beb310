"""What so many seeds can show at best, by counting: known before a study is run. Needs nothing but arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL = 0.05
# The permutation test tries all deals of the seeds up to so many, and beyond them so many that are drawn at random.
MOST_DEALS = 20_000
# Where seeds are counted, no more than these are thought of.
MOST_SEEDS = 1000


def smallest_p(seeds_left: int, seeds_right: int, *, paired: bool = False) -> float:
    """The smallest two-sided p that the permutation test can give with so many seeds: twice a tail of one deal.

    Where deals are drawn, the one that was seen counts as one more.
    """
    if min(seeds_left, seeds_right) < 2:
        return 1.0
    deals = 2 ** min(seeds_left, seeds_right) if paired else math.comb(seeds_left + seeds_right, seeds_left)
    return 2 / (deals if deals <= MOST_DEALS else MOST_DEALS + 1)


def fewest_seeds(tests: int, *, paired: bool = False) -> int:
    """The seeds a group without which none of `tests` effects can reach p < 0.05 after Holm, however large it is.

    Holm asks of the smallest p that it be below the level over the number of tests. MOST_SEEDS where no number is
    enough, for drawn deals bound that p.
    """
    enough = (seeds for seeds in range(2, MOST_SEEDS) if smallest_p(seeds, seeds, paired=paired) * tests < LEVEL)
    return next(enough, MOST_SEEDS)


def fewest_for_equivalence(*, paired: bool = False) -> int:
    """The seeds a group, or pairs of them, below which two groups are not called equivalent: four, or six pairs.

    With fewer the exact test cannot see a difference of any size, even alone, so that seeing none says nothing. Nor can
    a bootstrap over seeds say more: of three it draws the lowest thrice with a chance of 1/27, more than the 2.5 % that
    lie beyond an interval's end, so that the ends are single seeds. What is left is the t test's assumption that seeds
    are normal, which they are not where one in a few generalises and the others do not.
    """
    return fewest_seeds(1, paired=paired)


@dataclass(frozen=True)
class Demand:
    """How many effects a study judges together, and the seeds that this needs. paired: contrasts of methods."""

    tests: int
    seeds: int
    unpaired: int
    paired: int

    @property
    def needed(self) -> int:
        """Seeds a group without which at least one kind of its effects can never be decided."""
        kinds = [fewest_seeds(self.tests, paired=kind == "paired") for kind in ("unpaired", "paired")
                 if getattr(self, kind)]  # fmt: skip
        return max(kinds, default=0)

    @property
    def line(self) -> str:
        """A line for people, or nothing where the seeds suffice or there are no effects."""
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
