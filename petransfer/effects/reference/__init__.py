"""The scores of Orhan (2021, arXiv:2109.15101), shown next to our scores.

orhan2021.csv has the number of correct answers of each seed, from the paper's released result files
(github.com/eminorhan/parsing-transformers at commit 9887632, results/**). Only results with the number of epochs of the
paper's scripts are used. The paper trained all weights, scored after the last epoch, and used COGS without the
correction of 2022.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from petransfer.effects.pairs import Contrast

CITATION = "Orhan (2021), arXiv:2109.15101"
FAMILIES = ("t5-base", "t5-3b", "opus-mt-de-fr")


@dataclass(frozen=True)
class PaperScores:
    """The scores of Orhan (2021) for one arm on one split, or on one category of the split.

    Attributes:
        category: '' for the whole split.
        examples: number of test examples.
        shares: share of correct answers of each seed, 0 to 1.
    """

    family: str
    arm: str
    checkpoint: str
    task: str
    split: str
    category: str
    examples: int
    epochs: int
    learning_rate: float
    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean exact match over seeds, in percent."""
        return 100 * sum(self.shares) / len(self.shares)


@functools.cache
def paper_scores() -> dict[tuple[str, str, str, str, str], PaperScores]:
    """Return the scores of Orhan (2021) by (family, arm, task, split, category). Category '' is the whole split."""
    text = (resources.files("petransfer.effects.reference") / "orhan2021.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        examples = int(row["examples"])
        key = (row["family"], row["arm"], row["task"], row["split"], row["category"])
        found[key] = PaperScores(
            *key[:2],
            row["checkpoint"],
            *key[2:],
            examples,
            int(row["epochs"]),
            float(row["learning_rate"]),
            tuple(int(right) / examples for right in row["right_by_seed"].split()),
        )
    return found


def nearest_paper_family(family: str) -> str:
    """Return the family in Orhan (2021) to compare with `family`: `family` itself, or the nearest in size."""
    if family in FAMILIES:
        return family
    return "t5-3b" if family.endswith(("-3b", "-xl", "-11b", "-xxl")) else "t5-base"


def paper_score(family: str, arm: str, task: str, split: str, category: str = "") -> PaperScores | None:
    """Return the scores of Orhan (2021) for an arm on a split. None if the paper has no scores.

    Args:
        family: family of our checkpoints.
        category: one category of the split. '' for the whole split.
    """
    return paper_scores().get((nearest_paper_family(family), arm, task, split, category))


def paper_contrast(
    family: str, left: str, right: str, task: str, split: str, categories: Sequence[str] = ()
) -> Contrast | None:
    """Return the contrast of two arms in Orhan (2021). None if the paper lacks an arm or a category.

    Args:
        family: family of the paper's checkpoints.
        categories: the categories whose test examples alone count. Empty: all test examples.
    """
    import numpy as np

    from petransfer.effects.pairs import Contrast

    wanted = categories or ("",)
    sides = [[paper_scores().get((family, arm, task, split, category)) for category in wanted] for arm in (left, right)]
    known = [[part for part in side if part is not None] for side in sides]
    if any(len(side) < len(wanted) for side in known):
        return None
    sizes = [part.examples for part in known[0]]
    scores = [np.average([part.shares for part in side], axis=0, weights=sizes)[:, None] for side in known]
    return Contrast(
        name=f"{left}-{right}",
        split=split,
        method=f"all weights, {family}",
        left=scores[0],
        right=scores[1],
        log_prob_left=None,
        log_prob_right=None,
        categories=np.zeros(1, dtype=np.int64),
        left_name=left,
        right_name=right,
        examples=sum(sizes),
    )


def paper_note(families: Iterable[str], task: str, splits: Iterable[str], arms: Collection[str]) -> str:
    """Return a note on the scores of Orhan (2021): their source, and the differences from our experiments.

    Args:
        families: families of our checkpoints.
        task: name of the task.
        splits, arms: splits and arms for which the paper's scores are shown.
    """
    names, splits = list(dict.fromkeys(families)), list(splits)
    remarks = dict.fromkeys(line for split in splits for family in names for line in caveats(family, task, split, arms))
    theirs = " and ".join(dict.fromkeys(map(nearest_paper_family, names)))
    return f"paper: {CITATION}, {theirs}, all weights trained; {'; '.join(remarks)}."


def caveats(family: str, task: str, split: str, arms: Collection[str]) -> list[str]:
    """Return one note for each difference between the experiments of Orhan (2021) and ours.

    Args:
        family: family of our checkpoints.
        arms: arms for which the paper's scores are shown.
    """
    paper_family = nearest_paper_family(family)
    found = ["its epochs were chosen on test accuracy, and its scratch arm's settings were not tuned"]
    if paper_family != family:
        found.append(f"its models are {paper_family}, ours {family}: compare which arm is better, not the values")
    if "protein" in arms:
        found.append(
            "its protein arm has new, untied embeddings: compare it with an English arm that also has new embeddings"
        )
    if task == "cogs" and split == "gen":
        found.append("it was scored on COGS without the correction of 2022, which changed 51 rows")
    if paper_family == "opus-mt-de-fr":
        found.append("it used beam search for this family")
    return found
