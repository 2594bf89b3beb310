"""LoRA (Hu et al. 2021) with peft, by default on all linear layers.

The files of rsLoRA, LoRA+, DoRA and PiSSA use `lora_config` and `apply` of this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from petransfer.errors import UserError
from petransfer.recipe.methods import LORA_KEYS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int, **switches: Any) -> torch.nn.Module:
    """Return the model with frozen weights and trainable LoRA matrices.

    Args:
        **switches: Further arguments of peft's `LoraConfig`, for variants of LoRA.

    Raises:
        UserError: The targets match no layer, or the embeddings of this model cannot be trained with LoRA.
    """
    from petransfer.methods.shared.attach import attach_adapter

    return attach_adapter(loaded, method, lora_config(loaded, method, **switches), seed)


def lora_config(loaded: Loaded, method: MethodSpec, **switches: Any) -> LoraConfig:
    """Return peft's `LoraConfig` for a method. `switches` are further arguments of `LoraConfig`."""
    from peft import LoraConfig

    from petransfer.methods.shared.attach import task_type
    from petransfer.methods.shared.target_layers import target_layers

    return LoraConfig(
        task_type=task_type(loaded),
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=target_layers(loaded, method),
        trainable_token_indices=_trained_embeddings(loaded, method),
        **switches,
    )


def _trained_embeddings(loaded: Loaded, method: MethodSpec) -> dict[str, list[int]] | None:
    """Return the input embedding rows to train, for peft's `trainable_token_indices`. None: no rows."""
    if method.embeddings == "frozen":
        return None
    embeddings = loaded.model.get_input_embeddings()
    rows = range(embeddings.num_embeddings) if method.embeddings == "trained" else loaded.new_tokens
    if not rows:
        return None
    head = loaded.model.get_output_embeddings()
    if loaded.layout.encoder_decoder and head is not None and head.weight is not embeddings.weight:
        # transformers' configuration says "tied" for every T5; peft trusts it and would overwrite the head
        kind = loaded.model.config.model_type
        raise UserError(
            f"embeddings: {method.embeddings} is not possible with LoRA on this model ({kind}): its output head is not "
            "tied to the encoder's embeddings, as in T5 v1.1, mT5 and T5Gemma, but peft would tie the two; use "
            "embeddings: frozen, or method full"
        )
    name = next(name for name, module in loaded.model.named_modules() if module is embeddings)
    return {name.rsplit(".", 1)[-1]: list(rows)}


METHOD = Method(name="lora", title="LoRA", source="Hu et al. 2021", apply=apply, keys=LORA_KEYS, size="rank")
