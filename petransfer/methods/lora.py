"""LoRA (Hu et al. 2021) through peft, on all linear layers unless told otherwise, and what its kin share."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig

from petransfer.errors import UserError
from petransfer.methods.common import put, targets, task_type
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model with frozen weights and adapters drawn from `seed`; adapters are held in fp32.

    Raises:
        UserError: the targets name no layer, or rows are to be trained beside a head of its own.
    """
    return put(loaded, method, configuration(loaded, method), seed)


def configuration(loaded: Loaded, method: MethodSpec, **switches: Any) -> LoraConfig:
    """peft's, with its switches."""
    return LoraConfig(
        task_type=task_type(loaded),
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets(loaded, method),
        trainable_token_indices=_trained_rows(loaded, method),
        **switches,
    )


def _trained_rows(loaded: Loaded, method: MethodSpec) -> dict[str, list[int]] | None:
    """Rows of the input embeddings that are trained. peft applies them to every layer that is tied to it too."""
    if method.embeddings == "frozen":
        return None
    embeddings = loaded.model.get_input_embeddings()
    rows = range(embeddings.num_embeddings) if method.embeddings == "trained" else loaded.new_tokens
    if not rows:
        return None
    head = loaded.model.get_output_embeddings()
    if loaded.layout.encoder_decoder and head is not None and head.weight is not embeddings.weight:
        # peft believes the configuration, where transformers says "tied" for every T5, and would overwrite the head
        raise UserError(
            f"embeddings: {method.embeddings} cannot be had with LoRA on a T5 with a head of its own (v1.1, mT5): "
            "peft would tie the two; take embeddings: frozen, or method full"
        )
    name = next(name for name, module in loaded.model.named_modules() if module is embeddings)
    return {name.rsplit(".", 1)[-1]: list(rows)}
