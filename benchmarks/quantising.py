"""Measure how much quantisation raises a checkpoint's loss on plain text, with chosen layers left at 16 bits or not.

For an encoder-decoder, the loss is that of T5's pretraining (span corruption). For a decoder-only model, it is the loss
of the second half of each window of text, given the first half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petransfer.data.encoding import Encoded
from petransfer.errors import UserError
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.quantization import inventory, keep_default_packing, quantization_config
from petransfer.pretraining.span_corruption import Noise, corrupt
from petransfer.recipe.run_spec import Bits, CheckpointSpec
from petransfer.training.batches import IGNORED, collate
from petransfer.training.losses import token_loss

NOISE = Noise()
AT_ONCE = 16


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        bits: Bits per weight: 16, 8 or 4.
        wide: The layers that stay at 16 bits.
        loss: The loss in nats per target token.
        change: The change of the loss relative to the loss at 16 bits: 0.01 is 1 % more.
        bytes: The size of all weights in bytes.
    """

    bits: int
    wide: str
    loss: float
    change: float
    bytes: int


def rows(checkpoint: CheckpointSpec, text: Path, windows: int, layers: Sequence[str] = ("wo",)) -> Iterator[Row]:
    """Measure the loss of a checkpoint at 16 bits, then at 8 bits and at 4 bits.

    At 8 and at 4 bits there are several measurements: as petransfer loads the checkpoint, with the output head
    quantised too, and with each of `layers` left at 16 bits.

    Args:
        checkpoint: the checkpoint.
        text: a file of plain text.
        windows: number of windows of 128 tokens that are taken from the text.
        layers: the ends of the names of the layers that stay at 16 bits, one after the other.

    Raises:
        UserError: The text is too short or not UTF-8, or the tokenizer has no sentinel tokens for lost spans.
    """
    reference = load_checkpoint(checkpoint, 16)
    examples = _examples(reference, text, windows)
    base = _loss(reference, examples)
    yield Row(16, "all", base, 0.0, inventory(reference.model).total)
    del reference
    for bits in (8, 4):
        for wide, keep in (("head", ()), ("nothing", ()), *((f"head and {name}", (name,)) for name in layers)):
            loaded = load_checkpoint(checkpoint, bits, keep_wide=keep)
            if wide == "nothing":
                quantise_head(loaded.model, bits)
            loss = _loss(loaded, examples)
            yield Row(bits, wide, loss, loss / base - 1, inventory(loaded.model).total)


def quantise_head(model: Any, bits: Bits) -> None:
    """Replace the output head by a quantised copy. Embeddings that shared their weights with the head do not change."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    outputs, inputs = head.weight.shape
    if bits == 4:
        settings: Any = quantization_config(4)
        new: Any = bnb.nn.Linear4bit(
            inputs,
            outputs,
            bias=head.bias is not None,
            compute_dtype=settings.bnb_4bit_compute_dtype,
            compress_statistics=settings.bnb_4bit_use_double_quant,
            quant_type=settings.bnb_4bit_quant_type,
            quant_storage=settings.bnb_4bit_quant_storage,
        )
    else:
        new = bnb.nn.Linear8bitLt(inputs, outputs, bias=head.bias is not None, has_fp16_weights=False, threshold=6.0)
    new.load_state_dict({name: value.detach().clone() for name, value in head.state_dict().items()})
    keep_default_packing(new)
    model.set_output_embeddings(new.to(head.weight.device))


def _examples(loaded: Loaded, text: Path, windows: int) -> list[Encoded]:
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text} cannot be read as UTF-8 text ({error}); name a plain text file") from error
    tokenizer: Any = loaded.tokenizer
    needed = windows * NOISE.window
    # Only the beginning of the text is tokenised. It is long enough, because a token has fewer than 16 characters on
    # average.
    ids = np.array(tokenizer(content[: 16 * needed], add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < needed:
        raise UserError(
            f"{text} has {len(ids):,} tokens but {windows} windows need {needed:,}; use a smaller --windows"
        )
    cut = ids[:needed].reshape(windows, NOISE.window)
    if not loaded.layout.encoder_decoder:
        half = NOISE.window // 2
        return [Encoded(tuple(window[:half].tolist()), tuple(window[half:].tolist())) for window in cut]
    marks = tokenizer.convert_tokens_to_ids([f"<extra_id_{index}>" for index in range(NOISE.spans)])
    if len(set(marks)) < NOISE.spans:
        raise UserError(f"{tokenizer.name_or_path} has no sentinels <extra_id_0>; use a T5 or a decoder-only model")
    rng = np.random.default_rng(0)
    return [corrupt(window, NOISE, rng, np.array(marks), loaded.layout.eos_id) for window in cut]


@torch.no_grad()
def _loss(loaded: Loaded, examples: Sequence[Encoded]) -> float:
    """Return the loss in nats per target token. Target tokens that did not occur in pretraining are left out."""
    loaded.model.eval()
    new = torch.tensor(loaded.new_tokens, dtype=torch.long)
    total, tokens = 0.0, 0
    for first in range(0, len(examples), AT_ONCE):
        batch = collate(examples[first : first + AT_ONCE], loaded.layout)
        batch["labels"] = batch["labels"].masked_fill(torch.isin(batch["labels"], new), IGNORED)
        tokens += int((batch["labels"] != IGNORED).sum())
        total += float(token_loss(loaded.model, batch))
    return total / tokens
