"""Choose the training rows that are held out for dev and test, from an 8-byte hash of each row."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any

# If the user names no file for a part: the share of the training rows that is held out for it, and the largest number
# of rows for dev and for test.
SHARE, MOST_DEV, MOST_TEST = 0.1, 200, 1000


def text_hash(text: str, seed: int) -> int:
    """Return an 8-byte hash of a text, keyed with the seed. Rows are held out in the order of their hashes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest(), "big")


def partition(parts: array[int], hashes: array[int], cuts: Mapping[str, float]) -> Any:
    """Return the part of every row as an array: 0 train, 1 dev, 2 test.

    The training rows with the smallest hashes become test rows, and the next rows become dev rows. Rows with the same
    input have the same hash and stay in one part.

    Args:
        cuts: Size of each part that is cut from the training rows: a share (below 1) or a number of rows. 0: the
            default size.
    """
    import numpy as np

    codes = np.frombuffer(parts, dtype=np.uint8).copy() if len(parts) else np.zeros(0, np.uint8)
    own = np.flatnonzero(codes == 0)
    if not cuts or not len(own):
        return codes
    values = np.frombuffer(hashes, dtype=np.uint64)[own]
    test, dev = (_count(cuts.get(part), len(own), most) for part, most in (("test", MOST_TEST), ("dev", MOST_DEV)))
    ordered = np.argsort(values, kind="stable")
    first = _end(values, ordered, test)
    second = _end(values, ordered, first + dev) if dev else first
    codes[own[ordered[:first]]] = 2
    codes[own[ordered[first:second]]] = 1
    return codes


def _count(cut: float | None, rows: int, most: int) -> int:
    if cut is None:
        return 0
    if not cut:
        return min(most, max(1, round(SHARE * rows)))
    return max(1, round(cut * rows)) if cut < 1 else int(cut)


def _end(values: Any, ordered: Any, wanted: int) -> int:
    """Return the number of rows to take: `wanted`, or more if rows with equal hashes follow."""
    end = min(wanted, len(ordered))
    while 0 < end < len(ordered) and values[ordered[end]] == values[ordered[end - 1]]:
        end += 1
    return end


# Parts of the two warnings below. `petransfer.study.used_rows` recognises the warnings by them.
OVERLAP, SEVERAL = "have an input that is trained on", "different inputs have more than one target"


def overlaps(codes: Any, hashes: array[int]) -> list[str]:
    """Return a warning for each held-out part that shares inputs with the training rows."""
    import numpy as np

    values = np.frombuffer(hashes, dtype=np.uint64) if len(hashes) else np.zeros(0, np.uint64)
    train, found = values[codes == 0], []
    for code, part in ((1, "dev"), (2, "test")):
        mine = values[codes == code]
        shared = int(np.isin(mine, train).sum())
        if shared:
            found.append(f"warning: {shared:,} of {len(mine):,} {part} rows {OVERLAP}")
    return found


def several_targets(codes: Any, inputs: array[int], targets: array[int]) -> list[str]:
    """Return a warning if one input has several different targets, with the highest exact match that can be reached.

    Args:
        codes: Part of every row, as `partition` returns it.
        inputs, targets: Hash of every row's input and target.
    """
    import numpy as np

    if not len(inputs):
        return []
    given, wanted = (np.frombuffer(each, dtype=np.uint64) for each in (inputs, targets))
    pairs = given ^ (wanted * np.uint64(0x9E3779B97F4A7C15))  # a hash of input and target; numpy drops the overflow
    _, first = np.unique(pairs, return_index=True)
    _, numbers = np.unique(given[first], return_counts=True)
    several = int((numbers > 1).sum())
    if not several:
        return []
    parts = {part: codes == code for part, code in (("dev", 1), ("test", 2)) if (codes == code).any()}
    parts = parts or {"these rows": codes >= 0}
    best = {part: _most_right(given[of], pairs[of]) for part, of in parts.items()}
    limits = " and ".join(f"{100 * share:.1f} % on {part}" for part, share in best.items())
    # the limit is 100 % if only training rows have these inputs, or if the parts disagree with each other
    limit = f", so exact match can reach at most {limits}" if min(best.values()) < 1 else ""
    return [
        f"warning: {several:,} of {len(numbers):,} {SEVERAL} (up to "
        f"{int(numbers.max()):,}). A model generates one text for an input{limit}. "
        "Keep one target for each input, or judge the texts by another metric, such as --metric chrf"
    ]


def _most_right(inputs: Any, pairs: Any) -> float:
    """Return the share of rows that a model gets right if it generates the most frequent target of each input.

    Args:
        inputs, pairs: Hash of every row's input, and of input and target together.
    """
    import numpy as np

    _, first, times = np.unique(pairs, return_index=True, return_counts=True)
    _, place = np.unique(inputs[first], return_inverse=True)
    most = np.zeros(place.max() + 1, dtype=np.int64)
    np.maximum.at(most, place, times)
    return float(most.sum() / len(inputs))
