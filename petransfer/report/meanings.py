"""Explanations of the headings and words in tables of runs, printed as lines below a table."""

from __future__ import annotations

import re
from collections.abc import Iterable

from petransfer.recipe.metrics import HEADINGS, meanings
from petransfer.report.run_table import LOSS

Columns = Iterable[tuple[str, Iterable[str]]]
"""The heading and the cells of each column of a table."""

LOSS_MEANING = f"{LOSS}: mean cross-entropy of a target token of the test rows, in nats. Lower is better."

# Explanations of headings. The text before the colon is a heading, or one word of a heading.
_HEADING_MEANINGS = (
    "arm: the pretrained model, or a control with random weights.",
    "split: how the rows of the benchmark are divided, such as SCAN's opposite_right. In most splits, test rows "
    "combine words in ways that no training or dev row has, so that test EM can be far below dev EM.",
    "seeds: number of runs that differ only in the seed of the random numbers. With several seeds, scores are "
    "means, with the lowest and the highest seed in brackets.",
    "dev: the rows for choosing the best step and settings.",
    "test: the rows for the final score.",
    "EM: exact match, the share of generated texts that are equal to the target.",
    LOSS_MEANING,
    "paper: the scores of the larger models of Orhan (2021), arXiv:2109.15101, all weights trained. Compare the order "
    "of the arms, not the values.",
    "p (Holm): the p value, corrected because several differences are tested together.",
    "points: differences in percentage points, with their 95 % intervals in brackets.",
    "B minus A: difference in percentage points, with its 95 % interval in brackets.",
)
# Explanations of words in cells, by the column's heading. {} is the number or the name in the word.
_CELL_MEANINGS = {
    "method": (
        (r"\br(\d+)\b", "r{0}: the adapter's rank is {0}."),
        (r"\bnew-embeddings\b", "new-embeddings: the embeddings of tokens that are new to the model are trained too."),
        (r"\b(\d+)-bit\b", "{0}-bit: each weight of the base model has {0} bits."),
        (r"-bit but (\S+)", "but {0}: the layers {0} are not quantised."),
        (r"\bfull\b", "full: all weights are trained."),
    ),
    "arm": (
        (
            r"\bscratch\b",
            "scratch: all weights are random at first, and all of them are trained, even if the other arms train "
            "an adapter.",
        ),
        (r"\brandom\b", "random: the weights of the base model are random, and only the adapter is trained."),
        (
            r"\bcode_anon\b",
            "code_anon: pretrained on anonymised code (no comments, no strings, all identifiers renamed).",
        ),
        (r"-newemb\b", "-newemb: the embeddings of the pretrained model are replaced by random ones."),
    ),
    "verdict": (
        (
            r"\binconclusive\b",
            "inconclusive: neither a difference nor its absence is certain. A difference "
            "needs p below 0.05 and an interval without zero.",
        ),
        (r"\bequivalent\b", "equivalent: a test shows that the difference is smaller than the margin."),
        (r"\bsaturated\b", "saturated: both scores are too near 0 or 100 % to show a difference."),
        (r"\bnot learnt\b", "not learnt: a score on dev is so low that test scores cannot be compared."),
    ),
    "split": (
        (r"\bheld-out\b", "held-out: rows of your own files; dev and test rows are other rows than the training rows."),
    ),
}


def meanings_of(columns: Columns) -> list[str]:
    """Return a line for each heading, metric, method, arm, verdict and split of a table that needs an explanation."""
    cells = {heading: " ".join(texts) for heading, texts in columns}
    words = {word for heading in cells for word in (heading, *heading.split())}
    if cells.get("split", "").replace("held-out", "").strip() == "":
        words.discard("split")  # the split `held-out` is explained below
    found = [line for line in _HEADING_MEANINGS if line.partition(":")[0] in words]
    found += meanings(
        [name for name, heading in HEADINGS.items() if not {heading, f"test {heading}"}.isdisjoint(cells)]
    )
    for heading, patterns in _CELL_MEANINGS.items():
        for pattern, meaning in patterns:
            numbers = {one.groups() for one in re.finditer(pattern, cells.get(heading, ""))}
            found += [meaning.format(*groups) for groups in sorted(numbers, key=lambda one: [*map(_number, one)])]
    return found


def _number(text: str) -> tuple[int, str]:
    """Return a key that sorts numbers by value, and other texts alphabetically."""
    return (int(text), "") if text.isdigit() else (0, text)
