"""Compare a GGUF file with its original model on a few rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from petransfer.data.answers import text_answers, without_untrained_calls
from petransfer.data.encoding import Encoded, input_text
from petransfer.data.task import Example
from petransfer.evaluation.predictor import Predictor
from petransfer.sharing.llama_cpp_model import LlamaCppModel
from petransfer.sharing.usable_rows import encoded_rows, for_examples


@dataclass(frozen=True)
class GgufComparison:
    """The differences between a model and its GGUF file.

    rows: number of compared rows.
    loss, gguf_loss: mean loss in nats per target token, computed by petransfer and by llama.cpp.
    same_tokens: percentage of rows whose input is tokenized equally by petransfer and llama.cpp.
    agree: percentage of target tokens with equal predictions by petransfer and llama.cpp.
    """

    rows: int
    loss: float
    gguf_loss: float
    same_tokens: float
    agree: float


def compare_gguf(predictor: Predictor, examples: Sequence[Example], file: Path) -> GgufComparison:
    """Compare the losses, tokens and predictions of a model and its GGUF file.

    Raises:
        UserError: llama-cpp-python is not installed, the file cannot be loaded, or an example cannot be encoded.
    """
    predictor = for_examples(predictor, examples, "the file", "the model")
    form = (predictor.loaded.tokenizer, predictor.loaded.layout)
    examples = text_answers(without_untrained_calls(examples, *form), *form)
    encoded = encoded_rows(examples, predictor, "the file")
    longest = max(len(one.input_ids) + len(one.target_ids) for one in encoded)
    losses, gguf_losses, agree, same = [], [], [], []
    with contextlib.closing(LlamaCppModel(file, max(32, longest))) as other:
        for example, one in zip(examples, encoded, strict=True):
            target_t = torch.tensor(one.target_ids)
            ours_tv = _target_logits(predictor, one)
            theirs_tv = other.target_logits(one.input_ids, one.target_ids)[:, : ours_tv.shape[1]]
            losses.append(torch.nn.functional.cross_entropy(ours_tv, target_t, reduction="none"))
            gguf_losses.append(torch.nn.functional.cross_entropy(theirs_tv, target_t, reduction="none"))
            agree.append(ours_tv.argmax(1) == theirs_tv.argmax(1))
            same.append(other.tokenize(*_input_of(predictor, example)) == list(one.input_ids))
    return GgufComparison(
        rows=len(encoded),
        loss=float(torch.cat(losses).mean()),
        gguf_loss=float(torch.cat(gguf_losses).mean()),
        same_tokens=100 * sum(same) / len(same),
        agree=100 * float(torch.cat(agree).float().mean()),
    )


def _input_of(predictor: Predictor, example: Example) -> tuple[str, bool]:
    """Return the text for llama.cpp's tokenizer, and whether special tokens must be added."""
    text = input_text(example, predictor.prefix, predictor.loaded.tokenizer)
    if example.chat == "template":
        return text, False
    layout = predictor.loaded.layout
    return (text if layout.encoder_decoder else text + layout.input_end), True


@torch.inference_mode()
def _target_logits(predictor: Predictor, one: Encoded) -> torch.Tensor:
    """Return petransfer's logits for the target: (target tokens, vocabulary), fp32, on the CPU."""
    layout, device = predictor.loaded.layout, next(predictor.model.parameters()).device
    count = len(one.target_ids)
    if layout.encoder_decoder:
        read = [layout.decoder_start_id, *layout.decoder_prefix, *one.target_ids[:-1]]
        batch = {"input_ids": one.input_ids, "decoder_input_ids": read}
    else:
        batch = {"input_ids": [*one.input_ids, *one.target_ids[:-1]]}
    tensors = {name: torch.tensor([ids], device=device) for name, ids in batch.items()}
    logits_tv: torch.Tensor = predictor.model(**tensors, use_cache=False).logits[0, -count:]
    return logits_tv.float().cpu()
