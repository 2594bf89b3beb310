"""The tokens whose rows of the embedding matrix are trained together with an adapter."""

from __future__ import annotations

from collections.abc import Collection

from petransfer.recipe.run_spec import MethodSpec


def trained_tokens(method: MethodSpec, new: Collection[int], used: Collection[int]) -> tuple[int, ...]:
    """Return the ids of the tokens whose embeddings are trained with `embeddings: new` or `embeddings: used`.

    Only tokens that occur in the training data are trained. The others would only learn to be suppressed.

    Args:
        new: tokens whose embeddings were not trained in pretraining.
        used: tokens that occur in the training data.

    Returns:
        The ids in a fixed order. Empty for methods that train no rows or all rows.
    """
    if method.embeddings == "used":
        return tuple(sorted(used))
    return tuple(token for token in new if token in used) if method.embeddings == "new" else ()
