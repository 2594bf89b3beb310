"""Prompt tuning (Lester et al. 2021): train virtual tokens before the input.

The start values are the embeddings of randomly chosen tokens of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from petransfer.recipe.methods import VIRTUAL_TOKEN_KEYS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and trainable virtual tokens before the input."""
    from peft import PromptTuningConfig

    from petransfer.methods.shared.attach import attach_adapter, task_type

    on_meta = loaded.model.device.type == "meta"
    config = PromptTuningConfig(
        task_type=task_type(loaded),
        num_virtual_tokens=method.virtual_tokens,
        num_transformer_submodules=1,  # with 2, peft would store virtual tokens for the decoder and never use them
        prompt_tuning_init="RANDOM" if on_meta else "SAMPLE_VOCAB",
    )
    return attach_adapter(loaded, method, config, seed)


METHOD = Method(
    name="prompt",
    title="prompt tuning",
    source="Lester et al. 2021",
    apply=apply,
    learning_rate_factor=150,  # as in peft's examples
    nano_learning_rate_factor=3000,
    keys=VIRTUAL_TOKEN_KEYS,
    size="virtual_tokens",
    peft_type="PROMPT_TUNING",
    virtual_tokens_before="input",
    not_merged="its virtual tokens are not part of the weights; use the adapter together with its base",
    not_stacked="its virtual tokens change the input of the base model",
)
