"""Choose and encode the rows that an adapter can be scored on. A run with `bad_rows: skip` left out the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from petransfer.data import Example
from petransfer.data.answers import text_answers, without_untrained_calls
from petransfer.data.bad_rows import BadRow, BadRows
from petransfer.data.encoded_examples import encode_part
from petransfer.data.encoding import Encoded, encode_checked
from petransfer.errors import UserError
from petransfer.evaluation.generation import virtual_tokens
from petransfer.evaluation.predictor import Predictor
from petransfer.models.lengths import length_check
from petransfer.models.loading import Loaded
from petransfer.models.text_part import vocabulary_size
from petransfer.plurals import count
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.task_data import options_of


def _leaves_out_rows(bundle: Bundle) -> bool:
    """Return whether an adapter was trained with `bad_rows: skip`."""
    return bundle.spec is not None and options_of(bundle).get("bad_rows") == "skip"


def usable_rows(
    examples: Sequence[Example], bundle: Bundle, model: torch.nn.Module, loaded: Loaded
) -> Sequence[Example]:
    """Return the examples of an adapter's own task that its run used. Answers that call tools are written as text.

    Args:
        examples: one part of the data that the adapter was trained on.
        model: the model with the adapter.
        loaded: the base, with the layout of the adapter's examples.
    """
    if not _leaves_out_rows(bundle):
        form = (loaded.tokenizer, loaded.layout)
        return text_answers(without_untrained_calls(examples, *form), *form)
    config = loaded.model.config
    most = int(options_of(bundle).get("max_length", 0))
    too_long = length_check(config, loaded.model.name_or_path, most, virtual_tokens(model), vocabulary_size(config))
    return encode_part(examples, bundle.prefix(), loaded.tokenizer, loaded.layout, too_long).examples


def for_examples(predictor: Predictor, examples: Sequence[Example], name: str, label: str) -> Predictor:
    """Return the predictor that writes examples of data `name` in their form: as chats if they are chats.

    Raises:
        UserError: the examples are chats, and the model `label` has no chat template.
    """
    chat = examples[0].chat
    if chat == "template" != predictor.chat and predictor.for_chats(by_default=True) is None:
        kind = "an encoder-decoder" if predictor.loaded.layout.encoder_decoder else "a model without a chat template"
        raise UserError(f"{name} holds chats, and {label} is {kind}; give rows with the columns input and target")
    return replace(predictor, chat=chat) if chat and chat != predictor.chat else predictor


def encoded_rows(examples: Sequence[Example], predictor: Predictor, name: str) -> list[Encoded]:
    """Return the token ids of all examples of data `name`.

    Raises:
        UserError: examples cannot be scored. The message counts them by reason.
    """
    loaded = predictor.loaded
    config = loaded.model.config
    too_long = length_check(config, "the model", 0, virtual_tokens(predictor.model), vocabulary_size(config))
    bad, rows = BadRows(), []
    for number, row in enumerate(encode_checked(examples, predictor.prefix, loaded.tokenizer, loaded.layout), start=1):
        problem = row if isinstance(row, BadRow) else too_long(row)
        if problem:
            bad.add(f"row {number:,}", problem)
        elif isinstance(row, Encoded):
            rows.append(row)
    if bad:
        raise UserError(
            f"{bad.count:,} of {count(len(examples), 'row')} of {name} cannot be scored: {bad.summary()}; correct or "
            "shorten these rows, or remove them"
        )
    return rows
