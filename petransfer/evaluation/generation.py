"""Greedy generation: the most likely token at each step, without the model's generation defaults."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

from petransfer.data.encoding import Layout, decode
from petransfer.evaluation.batches import halve_until_it_fits
from petransfer.evaluation.text_stream import OnText, TextStream
from petransfer.models.lengths import VirtualTokens, positions
from petransfer.models.loading import Loaded
from petransfer.models.rotary_positions import forgetting_offsets, longest_shared_length
from petransfer.models.text_part import text_config
from petransfer.models.wrappers import base_model_of, evaluating
from petransfer.training.distributed import needs_all_processes

# The largest number of attention weights of one head in a batch: examples x tokens x tokens. Longer inputs therefore
# get smaller batches.
ATTENTION = 2**24
# Types of models whose generated texts depend, in transformers, on the other inputs of the batch or on its padding.
_ALONE = frozenset({"paligemma", "recurrent_gemma", "rwkv", "xlstm"})


@dataclass(frozen=True)
class Generation:
    """One generated text.

    Attributes:
        ended: whether the model generated an end token. False means that the text was cut.
        input_tokens: number of tokens of the input.
        tokens: number of tokens of the text, without the end token.
        token_ids: the tokens of the text, without the end token.
    """

    text: str
    ended: bool
    input_tokens: int
    tokens: int
    token_ids: tuple[int, ...] = ()


def generate(
    model: torch.nn.Module, loaded: Loaded, inputs: Sequence[tuple[int, ...]], max_new_tokens: int, batch_size: int = 64
) -> list[str]:
    """Return the greedily generated texts in the order of the inputs.

    Args:
        inputs: token ids of each input.
        max_new_tokens: length limit of a text in tokens.
        batch_size: inputs per call of the model's `generate`.
    """
    generated = generations(model, loaded, inputs, [max_new_tokens] * len(inputs), batch_size)
    return [generation.text for generation in generated]


@torch.inference_mode()
def generations(
    model: torch.nn.Module,
    loaded: Loaded,
    inputs: Sequence[tuple[int, ...]],
    limits: Sequence[int],
    batch_size: int = 64,
    on_text: OnText | None = None,
) -> list[Generation]:
    """Return a `Generation` for each input, by greedy decoding.

    Args:
        inputs: token ids of each input.
        limits: length limit of each text in tokens. A text can be longer, up to the largest limit in the batch, but
            never longer than the model's positions allow.
        batch_size: inputs per call of the model's `generate`. It is halved when memory runs out.
        on_text: called after each generated token with the index of the input and the text so far.

    Raises:
        OutOfMemory: memory is too small for one input, or for one batch of a sharded model.
    """
    layout = loaded.layout
    batch_size = 1 if loaded.model.config.model_type in _ALONE else batch_size
    lengths = [len(row) for row in inputs]
    left_after = {tokens: tokens_left(model, loaded, tokens) for tokens in set(lengths)}
    rooms = [left_after[tokens] for tokens in lengths]
    limits = [limit if left is None else max(1, min(limit, left)) for limit, left in zip(limits, rooms, strict=True)]

    def largest_limit(chosen: Sequence[int]) -> int:
        return max(limits[index] for index in chosen)

    def fits(chosen: Sequence[int]) -> bool:
        """Return whether a batch, sorted by length, is small enough and has positions for its longest text."""
        longest, left = lengths[chosen[-1]], rooms[chosen[-1]]
        return len(chosen) * longest**2 <= ATTENTION and (left is None or largest_limit(chosen) <= left)

    with evaluating(model), without_generation_defaults(model):
        apart = _pads_wrongly(model, loaded) or _changes_positions(loaded, lengths, limits)

        def generated(chosen: list[int]) -> list[Generation]:
            stream = on_text and TextStream(chosen, loaded.tokenizer, layout.end_ids, on_text)
            return _generate_batch(model, loaded, [inputs[index] for index in chosen], largest_limit(chosen), stream)

        by_index = _with_less_memory(
            _batches(lengths, batch_size, fits, equal_lengths=apart), generated, halves=not needs_all_processes(model)
        )
    return [by_index[index] for index in range(len(inputs))]


def _generate_batch(
    model: torch.nn.Module,
    loaded: Loaded,
    inputs: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    stream: TextStream | None,
) -> list[Generation]:
    """Return a `Generation` for each input of one batch, with one call of the model's `generate`."""
    layout, device = loaded.layout, next(model.parameters()).device
    ids_bt, mask_bt = _padded(inputs, layout.pad_id, left=not layout.encoder_decoder)
    with forgetting_offsets(model):
        out_bt = model.generate(  # type: ignore[operator]
            input_ids=ids_bt.to(device),
            attention_mask=mask_bt.to(device),
            generation_config=greedy_config(layout, max_new_tokens),
            **_decoder_inputs(layout, len(inputs), device),
            **_cache(model, loaded),
            streamer=stream,
        )
    # The given tokens are skipped by their number, because some decoders, such as BART's, start with the end token.
    given = 1 + len(layout.decoder_prefix) if layout.encoder_decoder else ids_bt.shape[1]
    new = out_bt[:, given:].tolist()
    kept = [_until_end(row, layout.end_ids) for row in new]
    texts = decode(kept, loaded.tokenizer)
    ended = [len(kept_row) < len(row) for kept_row, row in zip(kept, new, strict=True)]
    return [*map(Generation, texts, ended, map(len, inputs), map(len, kept), map(tuple, kept))]


def _decoder_inputs(layout: Layout, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the tokens that the decoder reads before it generates, as a keyword argument of `generate`."""
    # `generate` adds the start token itself.
    if not layout.decoder_prefix:
        return {}
    given = torch.tensor([[layout.decoder_start_id, *layout.decoder_prefix]], device=device)
    return {"decoder_input_ids": given.expand(rows, -1)}


def greedy_config(layout: Layout, max_new_tokens: int) -> GenerationConfig:
    """Return the configuration for greedy decoding of at most `max_new_tokens` tokens."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=layout.pad_id,
        eos_token_id=list(layout.end_ids),
        decoder_start_token_id=layout.decoder_start_id if layout.encoder_decoder else None,
    )


@contextlib.contextmanager
def without_generation_defaults(model: torch.nn.Module) -> Iterator[None]:
    """Disable the model's own generation defaults inside the `with` block."""
    # For a field that is None in the configuration of a call, transformers uses the model's generation_config.json. The
    # field can be a penalty, a minimum length, forced tokens, beams, ... With these, the text no longer consists of the
    # most likely token at each step.
    owner = base_model_of(model)
    own = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = own


def tokens_left(model: torch.nn.Module, loaded: Loaded, input_tokens: int) -> int | None:
    """Return the number of tokens that can be generated after an input. None means no limit.

    The number is 0 or less for an input that is too long.
    """
    most = positions(loaded.model.config)
    if most is None:
        return None
    virtual = virtual_tokens(model)
    if not loaded.layout.encoder_decoder:
        return most - input_tokens - virtual.input - virtual.target
    longest = positions(loaded.model.config, of_encoder=True) or most
    left = most - virtual.target - len(loaded.layout.decoder_prefix)
    return left if input_tokens + virtual.input <= longest else 0


def virtual_tokens(model: torch.nn.Module) -> VirtualTokens:
    """Return the numbers of virtual tokens that a model's adapter puts before the input and before the target."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return VirtualTokens()
    side = "target" if str(config.peft_type.value) == "PREFIX_TUNING" else "input"
    return VirtualTokens(**{side: int(config.num_virtual_tokens)})


def _cache(model: torch.nn.Module, loaded: Loaded) -> dict[str, Any]:
    """Return a cache, as a keyword argument of `generate`, for decoders with more layers than the encoder."""
    # For T5, transformers makes a cache with as many layers as the encoder has, so `generate` fails for a decoder with
    # more layers. The cache made here gets a new layer when the decoder needs one. With prefix tuning, peft makes the
    # cache.
    config = loaded.model.config
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None) or 0
    adapter = getattr(model, "active_peft_config", None)
    prefix = adapter is not None and str(adapter.peft_type.value) == "PREFIX_TUNING"
    if not loaded.layout.encoder_decoder or prefix or layers <= text_config(config).num_hidden_layers:
        return {}
    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def _pads_wrongly(model: torch.nn.Module, loaded: Loaded) -> bool:
    """Return whether padding would change the generated text."""
    config = getattr(model, "active_peft_config", None)
    # With prompt and prefix tuning of a decoder-only model, peft puts the virtual tokens before the padding and counts
    # the padding as positions. The input then has wrong positions.
    return bool(config is not None and config.is_prompt_learning and not loaded.layout.encoder_decoder)


def _changes_positions(loaded: Loaded, lengths: Sequence[int], limits: Sequence[int]) -> bool:
    """Return whether a text can become so long that it changes the texts of shorter rows in its batch."""
    most = longest_shared_length(loaded.model.config)
    longest = max((length + limit for length, limit in zip(lengths, limits, strict=True)), default=0)
    return most is not None and longest > most


def _batches(
    lengths: Sequence[int], size: int, fits: Callable[[Sequence[int]], bool], equal_lengths: bool
) -> Iterator[list[int]]:
    """Yield the indices of the inputs of each batch, sorted by length. A single input is a batch even if not `fits`."""
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    for _, group in itertools.groupby(order, key=lambda at: lengths[at] if equal_lengths else 0):
        indices = list(group)
        while indices:
            count = min(size, len(indices))
            while count > 1 and not fits(indices[:count]):
                count //= 2
            yield indices[:count]
            indices = indices[count:]


def _with_less_memory(
    batches: Iterable[list[int]], function: Callable[[list[int]], Sequence[Generation]], halves: bool
) -> dict[int, Generation]:
    """Call a function on batches of indices, and return each index's result. Batches are halved if memory runs out."""
    found: dict[int, Generation] = {}
    most = sys.maxsize
    for batch in batches:
        left = batch
        while left:
            chosen = left[:most]
            rows = halve_until_it_fits(function, chosen, halves)
            if len(rows) < len(chosen):
                most = len(rows)
            found |= zip(left, rows, strict=False)
            left = left[len(rows) :]
    return found


def _padded(rows: Sequence[tuple[int, ...]], pad: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids_bt, mask_bt = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids_bt[at, place], mask_bt[at, place] = torch.tensor(row), 1
    return ids_bt, mask_bt


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    return list(itertools.takewhile(lambda token: token not in ends, row))
