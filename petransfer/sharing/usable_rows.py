"""Choose the rows that an adapter can be scored on: a run with `bad_rows: skip` left out the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from petransfer.data import Example
from petransfer.data.encoded_examples import encode_part
from petransfer.data.encoding import Encoded
from petransfer.errors import UserError
from petransfer.evaluation.generation import virtual_tokens
from petransfer.models.lengths import length_check
from petransfer.models.loading import Loaded
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.task_data import options_of


def leaves_out_rows(bundle: Bundle | None) -> bool:
    """Return whether an adapter was trained with `bad_rows: skip`."""
    return bundle is not None and bundle.spec is not None and options_of(bundle).get("bad_rows") == "skip"


def usable_rows(
    examples: Sequence[Example], bundle: Bundle, model: torch.nn.Module, loaded: Loaded
) -> Sequence[Example]:
    """Return the examples of an adapter's own task without those that its run left out.

    Args:
        examples: one part of the data that the adapter was trained on.
        model: the model with the adapter.
        loaded: the base, with the layout of the adapter's examples.
    """
    if not leaves_out_rows(bundle):
        return examples
    most = int(options_of(bundle).get("max_length", 0))
    too_long = length_check(loaded.model.config, loaded.model.name_or_path, most, virtual_tokens(model))
    return encode_part(examples, bundle.prefix(), loaded.tokenizer, loaded.layout, too_long).examples


def refuse_too_long(encoded: Sequence[Encoded], model: torch.nn.Module, loaded: Loaded) -> None:
    """Raise UserError for the first row that has more tokens than the model has positions."""
    too_long = length_check(loaded.model.config, "the model", 0, virtual_tokens(model))
    for number, row in enumerate(encoded, start=1):
        problem = too_long(row)
        if problem:
            raise UserError(f"row {number:,} cannot be scored: {problem}; shorten it, or leave it out")
