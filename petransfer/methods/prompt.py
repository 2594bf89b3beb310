"""Prompt tuning (Lester et al. 2021): virtual tokens before the input, which start as pieces drawn at random."""

from __future__ import annotations

import torch
from peft import PromptTuningConfig

from petransfer.methods.common import put, task_type
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """The model with frozen weights and virtual tokens before what the encoder, or a decoder-only model, reads."""
    on_meta = loaded.model.device.type == "meta"
    config = PromptTuningConfig(
        task_type=task_type(loaded),
        num_virtual_tokens=method.virtual_tokens,
        num_transformer_submodules=1,  # peft would hold as many again for the decoder, and never use them
        prompt_tuning_init="RANDOM" if on_meta else "SAMPLE_VOCAB",
    )
    return put(loaded, method, config, seed)
