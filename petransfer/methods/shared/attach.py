"""Put a peft adapter on a loaded model."""

from __future__ import annotations

import warnings

import torch
from peft import PeftConfig, get_peft_model

from petransfer.errors import UserError, reason_of
from petransfer.methods.shared.compute_dtype import compute_as_in_training
from petransfer.models.loading import Loaded
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import MethodSpec

# The value of `target_modules` in adapter_config.json by which peft marks an adapter without target layers.
NO_LAYER = "dummy-target-modules"


def task_type(loaded: Loaded) -> str:
    """Return peft's task type: `SEQ_2_SEQ_LM` for an encoder-decoder, `CAUSAL_LM` for a decoder-only model."""
    return "SEQ_2_SEQ_LM" if loaded.layout.encoder_decoder else "CAUSAL_LM"


def attach_adapter(loaded: Loaded, method: MethodSpec, config: PeftConfig, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and a new, trainable adapter in fp32.

    Raises:
        UserError: peft cannot apply the method to this model.
    """
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():  # peft warns about norm and Conv1D layers, but handles them correctly
            warnings.simplefilter("ignore", UserWarning)
            model: torch.nn.Module = get_peft_model(loaded.model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        where = getattr(config, "target_modules", None) or loaded.model.config.model_type
        title, reason = METHODS.lookup(method.name).title, reason_of(error, 160)
        raise UserError(f"{title} cannot be put on {where!r:.120}: {reason}") from error
    compute_as_in_training(model, method.bits)
    return model
