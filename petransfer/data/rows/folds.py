"""Divide the training rows into folds for cross-validation."""

from __future__ import annotations

import re
from array import array
from typing import Any

from petransfer.errors import UserError

ALL = "all"


def check_fold(fold: str, dev: str | float, split_column: str) -> None:
    """Raise UserError for a wrong option `fold`, or for `fold` together with `dev` or `split_column`."""
    if not fold:
        return
    if not isinstance(fold, str) or (fold != ALL and not _is_number_of_fold(fold)):
        raise UserError(f"fold is {fold!r}: give NUMBER/FOLDS, such as 2/5, or all")
    if dev != "" or split_column:
        raise UserError("lines has fold and dev or split_column; leave one of them out, because a fold is the dev set")


def _is_number_of_fold(fold: str) -> bool:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", fold)
    return found is not None and int(found[2]) >= 2 and 1 <= int(found[1]) <= int(found[2])


def fold_codes(parts: array[int], hashes: array[int], fold: str, name: str) -> Any:
    """Return the part of every row as an array: 0 train, 1 dev, 2 test.

    The training rows of one fold become dev. Rows with the same input are in the same fold.

    Args:
        hashes: 8-byte hash of each row's input, which determines the row's fold.
        fold: `2/5` moves the second of five folds to dev. `all` leaves all training rows in the training set.
    """
    import numpy as np

    codes = np.frombuffer(parts, dtype=np.uint8).copy() if len(parts) else np.zeros(0, np.uint8)
    if fold == ALL:
        return codes
    number, folds = map(int, fold.split("/"))
    own = np.flatnonzero(codes == 0)
    inputs, order = np.unique(np.frombuffer(hashes, dtype=np.uint64)[own], return_inverse=True)
    if len(inputs) < folds:
        raise UserError(f"{name} has {len(inputs)} different inputs, fewer than {folds} folds; lower --folds")
    codes[own[order % folds == number - 1]] = 1
    return codes


def scored_positions(codes: Any, code: int, fold: str, most: int) -> Any:
    """Return the positions of the rows of a part, as an array.

    With the fold `all`, an empty dev or test part gets an evenly spaced sample of the training rows.

    Args:
        codes: Part of every row: 0 train, 1 dev, 2 test.
        most: Largest number of rows in the sample.
    """
    import numpy as np

    found = np.flatnonzero(codes == code)
    if fold == ALL and not len(found):
        train = np.flatnonzero(codes == 0)
        return train[:: -(-len(train) // most) if len(train) else 1]
    return found
