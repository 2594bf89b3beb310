"""Greedy generation: what a model says, for near-ties, audits and predictions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from petransfer.data.encoding import Layout, decode
from petransfer.models.lengths import Virtual, positions
from petransfer.models.loading import Loaded


@dataclass(frozen=True)
class Answer:
    """What a model said. ended: whether it said the end itself, or was cut at its limit."""

    text: str
    ended: bool


def generate(
    model: torch.nn.Module, loaded: Loaded, inputs: Sequence[tuple[int, ...]], max_new_tokens: int, batch_size: int = 64
) -> list[str]:
    """The greedy answers, in the order of `inputs`. `max_new_tokens` must cover the longest answer that is expected."""
    return [answer.text for answer in answers(model, loaded, inputs, [max_new_tokens] * len(inputs), batch_size)]


@torch.inference_mode()
def answers(
    model: torch.nn.Module,
    loaded: Loaded,
    inputs: Sequence[tuple[int, ...]],
    limits: Sequence[int],
    batch_size: int = 64,
) -> list[Answer]:
    """The greedy answers, in the order of `inputs`, of at least so many pieces each where they do not end before."""
    was_training = model.training
    model.eval()
    layout = loaded.layout
    device = next(model.parameters()).device
    order = sorted(range(len(inputs)), key=lambda at: len(inputs[at]))
    said: dict[int, Answer] = {}
    for chosen in _batches(order, batch_size, [len(row) for row in inputs], _padded_amiss(model, loaded)):
        ids, mask = _pad_left([inputs[at] for at in chosen], layout.pad_id, left=not layout.encoder_decoder)
        config = _greedy(layout, max(limits[at] for at in chosen))
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
        )
        # a decoder may start from the very piece that ends an answer, as BART's does
        new = out[:, 1 if layout.encoder_decoder else ids.shape[1] :].tolist()
        texts = decode([_until_end(row, layout.eos_id) for row in new], loaded.tokenizer)
        ended = [layout.eos_id in row for row in new]
        said |= zip(chosen, map(Answer, texts, ended), strict=True)
    model.train(was_training)
    return [said[at] for at in range(len(inputs))]


def room(model: torch.nn.Module, loaded: Loaded, pieces: int) -> int | None:
    """How many pieces can be said after an input of so many, 0 or less where it is too long; None without a limit."""
    most = positions(loaded.model.config)
    if most is None:
        return None
    config = getattr(model, "active_peft_config", None)
    virtual = Virtual()
    if config is not None and config.is_prompt_learning:
        side = "target" if str(config.peft_type.value) == "PREFIX_TUNING" else "input"
        virtual = Virtual(**{side: int(config.num_virtual_tokens)})
    if not loaded.layout.encoder_decoder:
        return most - pieces - virtual.input - virtual.target
    return most - virtual.target if pieces + virtual.input <= most else 0


def _padded_amiss(model: torch.nn.Module, loaded: Loaded) -> bool:
    """Whether peft would put virtual tokens before a decoder's padding, and count both as positions."""
    config = getattr(model, "active_peft_config", None)
    return bool(config is not None and config.is_prompt_learning and not loaded.layout.encoder_decoder)


def _batches(order: Sequence[int], size: int, lengths: Sequence[int], alike: bool) -> Iterator[list[int]]:
    """The positions in batches, of inputs of one length each where they must be alike."""
    for _, group in itertools.groupby(order, key=lambda at: lengths[at] if alike else 0):
        positions = list(group)
        for start in range(0, len(positions), size):
            yield positions[start : start + size]


def _greedy(layout: Layout, max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=layout.pad_id,
        eos_token_id=layout.eos_id,
        decoder_start_token_id=layout.decoder_start_id if layout.encoder_decoder else None,
    )


def _pad_left(rows: Sequence[tuple[int, ...]], pad: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[at, place], mask[at, place] = torch.tensor(row), 1
    return ids, mask


def _until_end(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos)] if eos in row else row
