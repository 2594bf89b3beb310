"""Merge an adapter into its base's weights, save the merged model, and measure the change of the logits."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from petransfer.atomic_files import creating
from petransfer.data.chat import chat_layout
from petransfer.data.encoding import encode_examples
from petransfer.errors import RunError, UserError, reason_of
from petransfer.evaluation.exact_match import evaluate
from petransfer.models.complete_weights import load_complete
from petransfer.models.loading import DTYPES, Loaded
from petransfer.models.saving import save_model
from petransfer.models.special_tokens import declare_ends
from petransfer.models.support import supported_class
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import Bits
from petransfer.sharing.attach import attach
from petransfer.sharing.base import LoadOptions, base_of, refuse_other_base
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.bundle_files import PROVENANCE
from petransfer.sharing.combined_adapters import load_adapters
from petransfer.sharing.export_files import copy_sentencepiece_files, separate_output_head
from petransfer.sharing.own_tokenizer import with_own_tokenizer
from petransfer.sharing.size_checks import resize_vocabulary
from petransfer.sharing.task_data import data_of, options_to_record
from petransfer.sharing.usable_rows import usable_rows

# The largest relative change of the logits that is allowed for each of two steps: adding an adapter to the 32-bit
# weights, and writing and reading the model. The change is the root mean square of the differences, divided by the root
# mean square of the logits. Rounding the merged weights to 16 bits has no limit: the change depends on the checkpoint
# (0.5 to 7 % were measured), and it is reported.
LIMIT = 1e-3
# The logits are compared on this many rows of this many random tokens.
ROWS, TOKENS = 16, 24
# The largest number of examples on which exact match on dev is computed.
DEV_EXAMPLES = 200


@dataclass(frozen=True)
class Merged:
    """How much merging changed the logits, and the saved model's exact match on dev.

    The saved model is compared with the adapter on its 32-bit base, unless stated otherwise.

    moved: root mean square change of the logits, divided by the root mean square of the logits. 0.01 is 1 %.
    largest: largest change of one logit.
    agree: percentage of positions with an unchanged most likely token.
    bits: bits of the saved model.
    trained_bits: bits of the base in training. None if unknown.
    moved_from_trained, agree_with_trained: `moved` and `agree`, compared with the adapter on a base of `trained_bits`.
        None after training without quantisation.
    dev: exact match of the saved model on at most DEV_EXAMPLES dev examples, in %. None without the data.
    dev_claimed: exact match on dev in petransfer.json, in %. None if not recorded.
    """

    moved: float
    largest: float
    agree: float
    bits: int
    trained_bits: int | None = None
    moved_from_trained: float | None = None
    agree_with_trained: float | None = None
    dev: float | None = None
    dev_claimed: float | None = None


@dataclass(frozen=True)
class _Change:
    moved: float
    largest: float
    agree: float


def merge(
    bundle: Bundle, target: Path, load_options: LoadOptions, bits: Bits | None = None, separate_head: bool = False
) -> Merged:
    """Write the merged model and its tokenizer to `target`, and measure the change of the logits.

    Args:
        target: a new folder, for plain transformers, `predict` and `eval`.
        bits: bits of the saved weights, 32 or 16. Default: 32 after training with a 32-bit base, else 16.
        separate_head: save T5's output head as a separate tensor. See `export_files.separate_output_head`.

    Raises:
        UserError: `target` exists, the method or the bits cannot be merged, or a file fails a check.
        RunError: merging or saving changed the logits by more than LIMIT. Nothing is saved.
    """
    _refuse_inputs(bundle)
    trained: Bits = bundle.spec.method.bits if bundle.spec else 16
    new_bits: Bits = bits or (32 if trained == 32 else 16)
    _refuse_bits(new_bits)
    if os.path.lexists(target):  # a link to nothing too
        raise UserError(f"{target} exists; delete it or use another folder")
    base = base_of(bundle, load_options, 32)
    loaded = base.load(load_options.device)
    refuse_other_base(base, loaded, load_options)
    resize_vocabulary(bundle, loaded.model)
    count = int(loaded.model.get_input_embeddings().num_embeddings)
    model = attach(loaded, [bundle], 32)
    tokenizer_of_base, loaded = loaded.tokenizer, with_own_tokenizer(loaded, bundle, base)
    before = _logits(model, loaded, count)
    at_trained_bits = _logits_at_trained_bits(bundle, load_options, trained, count) if trained < 16 else None
    whole = _merged_model(model, loaded.model, bundle.label)
    with creating(target) as partial:
        _refuse_changed(_change(before, _logits(whole, loaded, count)), "merging the adapter")
        if separate_head:
            separate_output_head(whole)
        rounded = _rounded(whole, DTYPES[new_bits])
        _set_tied_flag(rounded)
        after_rounding = _logits(rounded, loaded, count)
        declare_ends(rounded, chat_layout(loaded.tokenizer, loaded.layout, bundle.chat()).end_ids)
        save_model(rounded, partial)
        loaded.tokenizer.save_pretrained(partial)
        if loaded.tokenizer is tokenizer_of_base:  # an adapter's own tokenizer is saved as it is
            copy_sentencepiece_files(base.checkpoint, partial)
        saved = _read(partial, target, loaded, new_bits)
        _refuse_changed(_change(after_rounding, _logits(saved, loaded, count)), "writing and reading it")
        merged = _measured(bundle, saved, loaded, new_bits, count, before, at_trained_bits, load_options)
        _write_provenance(partial, bundle, merged)
    return merged


def _refuse_inputs(bundle: Bundle) -> None:
    """Raise UserError for a method that changes no weight, such as prompt tuning."""
    kind, name = bundle.config.get("peft_type"), bundle.method
    of_run = [METHODS[name]] if name is not None and name in METHODS else []
    for method in (*of_run, *METHODS.of_package()):
        if method.peft_type == kind and method.not_merged:
            raise UserError(f"{bundle.label} cannot be merged, as {method.title} never can: {method.not_merged}")


def _refuse_bits(bits: int) -> None:
    """Raise UserError for bits that the weights of a merged model cannot have."""
    if bits not in (4, 8, 16, 32):
        raise UserError(f"bits is {bits!r}; give 16 or 32, as a number")
    if bits not in DTYPES:
        raise UserError(
            f"an adapter cannot be merged into a base of {bits} bits: the sum would be rounded to a few levels, and "
            "most of what the adapter learnt is smaller than the step between two levels; merge into 16 bits, or use "
            "the adapter with its base model"
        )


def _merged_model(model: Any, base: Any, label: str) -> Any:
    """Merge the adapter of `model` into the weights of `base`, in place, and return the merged model.

    Args:
        model: the model with its adapter.
        base: the base model inside `model`.
        label: name of the adapter in messages.

    Raises:
        UserError: peft cannot merge the adapter.
    """
    _untie_adapted_head(base)
    try:
        with warnings.catch_warnings():
            # peft compares the head with the encoder's embeddings, which is wrong for T5Gemma; see `_set_tied_flag`
            warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
            merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
        raise UserError(f"{label} cannot be merged: {reason_of(error, 160)}; use it with its base model") from error
    _restore_unread_embeddings(merged)
    return merged


def _logits_at_trained_bits(bundle: Bundle, load_options: LoadOptions, bits: Bits, count: int) -> torch.Tensor:
    adapters = load_adapters([bundle], load_options, bits=bits)
    return _logits(adapters.model, adapters.loaded, count)


def _ends(model: Any) -> list[Any]:
    """Return the embeddings that can share their weights with the output head, and the head (None without a head)."""
    # T5Gemma's encoder and decoder have different embeddings, and the head shares the decoder's.
    owner = model.get_decoder() if model.config.model_type == "t5gemma" else model
    return [owner.get_input_embeddings(), model.get_output_embeddings()]


def _untie_adapted_head(base: Any) -> None:
    """Separate an output head that shares its weights with the embeddings, if an adapter changes one of the two."""
    # Without a copy of the weights, merging into the embeddings would also change the output head, and merging into the
    # output head would also change the embeddings.
    ends = _ends(base)
    plain = [getattr(end, "base_layer", end) for end in ends]
    adapted = any(end is not inner for end, inner in zip(ends, plain, strict=True))
    if adapted and None not in plain and plain[0].weight is plain[1].weight:
        plain[1].weight = torch.nn.Parameter(plain[1].weight.detach().clone(), requires_grad=False)


def _restore_unread_embeddings(model: Any) -> None:
    """Give an encoder-decoder's table `shared` the weights that its encoder and decoder read."""
    # With modules_to_save=["shared"], peft trains a copy of this table. No part of T5 or BART reads the copy, but
    # transformers would give the saved copy to the encoder and the decoder.
    for shared, encoder, decoder in _shared_tables(model):
        if shared.weight is not encoder.weight and encoder.weight is decoder.weight:
            shared.weight = encoder.weight


def _shared_tables(model: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield the embeddings `shared`, of the encoder and of the decoder of each part that has all three."""
    for module in model.modules():
        parts = [getattr(module, name, None) for name in ("encoder", "decoder")]
        tables = [getattr(module, "shared", None), *(getattr(part, "embed_tokens", None) for part in parts)]
        if all(isinstance(getattr(table, "weight", None), torch.nn.Parameter) for table in tables):
            yield tables[0], tables[1], tables[2]


def _set_tied_flag(model: Any) -> None:
    """Set `tie_word_embeddings` to whether the output head shares the weights of the embeddings."""
    ends = _ends(model)
    config = model.config.get_text_config(decoder=True)
    # T5's configuration stays unchanged: there, this key would also change how the logits are computed.
    if None in ends or hasattr(config, "scale_decoder_outputs"):
        return
    tied = ends[0].weight is ends[1].weight
    model.config.tie_word_embeddings = config.tie_word_embeddings = tied
    # Without ties, BART's encoder and decoder do not read the table `shared` either.
    for shared, *tables in () if tied else _shared_tables(model):
        for table in tables:
            if table.weight is shared.weight:
                table.weight = torch.nn.Parameter(shared.weight.detach().clone(), requires_grad=False)


def _rounded(model: Any, dtype: torch.dtype) -> Any:
    """Convert a model's saved tensors to `dtype`, in place, and return the model."""
    # Buffers that are not saved, such as rotary frequencies, stay in fp32.
    for module in model.modules():
        buffers = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
        for tensor in (*module._parameters.values(), *(module._buffers[name] for name in buffers)):
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return model


def _read(partial: Path, target: Path, loaded: Loaded, bits: Bits) -> torch.nn.Module:
    """Load the merged model from its temporary folder `partial`, which becomes `target`."""
    try:
        auto = supported_class(loaded.model.config, str(target))
        model: torch.nn.Module = load_complete(auto, str(partial), dtype=DTYPES[bits])
    except UserError as error:
        reason = str(error).partition("; ")[0].replace(str(partial), str(target))
        raise RunError(
            f"the merged model cannot be loaded again, so it was not saved: {reason}; use the adapter with its base"
        ) from error
    return model.to(loaded.model.device).eval()


@torch.inference_mode()
def _logits(model: torch.nn.Module, loaded: Loaded, count: int) -> torch.Tensor:
    """Return logits for fixed random tokens with ids below `count`: (ROWS, TOKENS, vocabulary), fp32, on the CPU."""
    drawn = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    ids_bt, target_bt = (torch.randint(3, count, (ROWS, TOKENS), generator=drawn).to(device) for _ in range(2))
    batch = {"input_ids": ids_bt, "attention_mask": torch.ones_like(ids_bt)}
    if loaded.layout.encoder_decoder:
        batch["decoder_input_ids"] = target_bt
    logits_btv: torch.Tensor = model(**batch, use_cache=False).logits
    return logits_btv.float().cpu()


def _measured(
    bundle: Bundle,
    saved: torch.nn.Module,
    loaded: Loaded,
    new_bits: Bits,
    count: int,
    before: torch.Tensor,
    at_trained_bits: torch.Tensor | None,
    load_options: LoadOptions,
) -> Merged:
    after = _logits(saved, loaded, count)
    change = _change(before, after)
    from_trained = None if at_trained_bits is None else _change(at_trained_bits, after)
    claim = (bundle.provenance or {}).get("claims", {}).get("dev")
    return Merged(
        **vars(change),
        bits=new_bits,
        trained_bits=bundle.spec.method.bits if bundle.spec else None,
        moved_from_trained=from_trained.moved if from_trained else None,
        agree_with_trained=from_trained.agree if from_trained else None,
        dev=_dev_exact_match(bundle, saved, loaded, load_options),
        dev_claimed=float(claim["exact_match"]) if claim else None,
    )


def _change(before: torch.Tensor, after: torch.Tensor) -> _Change:
    difference = after - before
    moved = float(difference.square().mean().sqrt() / before.square().mean().sqrt())
    agree = 100 * float((before.argmax(-1) == after.argmax(-1)).float().mean())
    return _Change(moved, float(difference.abs().max()), agree)


def _refuse_changed(change: _Change, step: str) -> None:
    """Raise RunError if a step of merging changed the logits by more than LIMIT."""
    # `not ... <=` also refuses NaN.
    if not change.moved <= LIMIT:
        raise RunError(
            f"the merged model differs from the adapter: {step} changed its logits by {100 * change.moved:.1f} %; "
            "nothing was written"
        )


def _dev_exact_match(bundle: Bundle, model: torch.nn.Module, loaded: Loaded, load_options: LoadOptions) -> float | None:
    """Return exact match on at most DEV_EXAMPLES dev examples, in %. None without the data."""
    if bundle.spec is None:
        return None
    loaded = replace(loaded, layout=chat_layout(loaded.tokenizer, loaded.layout, bundle.chat()))
    try:
        examples = usable_rows(data_of(bundle, load_options.data_dir).dev, bundle, model, loaded)[:DEV_EXAMPLES]
    except UserError:
        return None
    if not examples:
        return None
    encoded = encode_examples(examples, bundle.prefix(), loaded.tokenizer, loaded.layout)
    return 100 * evaluate(model, loaded, examples, encoded, audited=0).exact_match


def _write_provenance(folder: Path, bundle: Bundle, merged: Merged) -> None:
    """Write petransfer.json for the merged model."""
    if bundle.provenance is None:  # petransfer did not make the adapter
        return
    kept: dict[str, Any] = {
        key: bundle.provenance[key] for key in ("run_id", "spec", "base", "labels") if key in bundle.provenance
    }
    origin: dict[str, Any] = {"bits": merged.bits, "adapter_sha256": bundle.provenance.get("files") or {}}
    with contextlib.suppress(UserError):  # an adapter without a recipe does not know its data
        origin["data"] = options_to_record(bundle)
    content = kept | {"merged": origin}
    (folder / PROVENANCE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
