"""Put a peft adapter on a loaded model."""

from __future__ import annotations

import copy
import functools
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

from petransfer.errors import UserError, reason_of, shortened
from petransfer.methods.shared.compute_dtype import compute_as_in_training
from petransfer.methods.shared.target_layers import matches, names_or_pattern
from petransfer.models.loading import Loaded
from petransfer.models.text_part import text_linear_layers
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import MethodSpec
from petransfer.similar_names import similar_name

_log = logging.getLogger(__name__)

# The value of `target_modules` in adapter_config.json by which peft marks an adapter without target layers.
NO_LAYER = "dummy-target-modules"

# Layers of Mamba-like models whose weights are read without calling the layer, so that an adapter has no effect.
_READ_AS_WEIGHTS = ("dt_proj", "x_proj")

# The part of a trained tensor's name that follows the name of its layer.
_OWN_TENSOR = re.compile(r"\.(?:lora_|ia3_|oft_|vera_|modules_to_save|original_module|weight$|bias$)")


def task_type(loaded: Loaded) -> str:
    """Return peft's task type: `SEQ_2_SEQ_LM` for an encoder-decoder, `CAUSAL_LM` for a decoder-only model."""
    return "SEQ_2_SEQ_LM" if loaded.layout.encoder_decoder else "CAUSAL_LM"


def attach_adapter(loaded: Loaded, method: MethodSpec, config: PeftConfig, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and a new, trainable adapter in fp32.

    Raises:
        UserError: peft cannot apply the method to this model, or a name in the method's `targets` matches no layer.
    """
    torch.manual_seed(seed)
    layers = text_linear_layers(loaded.model)  # listed first, because peft changes the model even if it fails
    listed = names_or_pattern(loaded, method.targets)
    try:
        with warnings.catch_warnings():  # peft warns about norm and Conv1D layers, but handles them correctly
            warnings.simplefilter("ignore", UserWarning)
            experts = _leave_out_experts(config, loaded.model)
            model: torch.nn.Module = get_peft_model(loaded.model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _refused(loaded.model.config.model_type, layers, method, reason_of(error)) from error
    if any(".experts." in name and value.dim() == 3 for name, value in loaded.model.named_parameters()):
        _log_untrained_experts(loaded.model.config.model_type)
    if isinstance(listed, list):
        _refuse_unmatched(model, layers, method, [name for name in listed if name not in experts])
    compute_as_in_training(model, method.bits)
    return model


def _leave_out_experts(config: PeftConfig, model: torch.nn.Module) -> set[str]:
    """Remove the targets that are experts with joined weights from `config`, and return the names of these targets.

    For such a target, peft would adapt the one tensor that holds the weights of all experts.

    Raises:
        ValueError: No other target is left.
    """
    found = copy.deepcopy(config)
    convert_peft_config_for_transformers(found, model, None)
    if not getattr(found, "target_parameters", None) or config.target_parameters:
        return set()
    if not found.target_modules:
        raise ValueError("they belong to experts, whose weights are joined in one tensor")
    experts = set() if isinstance(config.target_modules, str) else set(config.target_modules) - found.target_modules
    config.target_modules = found.target_modules
    return experts


def _refuse_unmatched(model: Any, layers: Sequence[str], method: MethodSpec, names: Sequence[str]) -> None:
    """Raise UserError if one of the names in a method's `targets` matches no adapted layer.

    Args:
        model: The peft model.
        layers: The names of the base model's linear layers that a text passes through.
    """
    adapted = model.base_model.targeted_module_names
    unmatched = next((name for name in names if not any(matches(layer, [name]) for layer in adapted)), None)
    if unmatched is None:
        return
    where = f" in layers {', '.join(map(str, method.layers))}" if method.layers else ""
    similar = similar_name(unmatched, {layer.rpartition(".")[2] for layer in layers})
    hint = f" (did you mean '{similar}'?)" if similar else ""
    reason = f"no layer's name{where} ends in '{shortened(unmatched, 80)}'"
    raise _refused(model.config.model_type, layers, method, reason, hint)


@functools.cache
def _log_untrained_experts(kind: str) -> None:
    """Log once per process that a mixture of experts of type `kind` is trained without its experts."""
    _log.info("the experts of this model (%s) are not trained, only its other layers; --method full trains them", kind)


def refuse_untrained(kind: str, layers: Sequence[str], method: MethodSpec, tensors: Sequence[str]) -> None:
    """Raise UserError if a training step gives no gradient to some of the trained tensors.

    Args:
        kind: The model's type.
        layers: The names of its linear layers that a text passes through.
        tensors: The names of the trained tensors without a gradient.
    """
    if not tensors:
        return
    names = {_OWN_TENSOR.split(name)[0].rpartition(".")[2] for name in tensors}
    found = ", ".join(f"'{name}'" for name in sorted(names))
    raise _refused(
        kind, layers, method, f"{found} would get no gradient, because texts do not pass through these layers"
    )


def _refused(kind: str, layers: Sequence[str], method: MethodSpec, reason: str, hint: str = "") -> UserError:
    """Return the error for a method that cannot be applied to a model of type `kind` with these linear layers.

    `reason` has the names of unusable layers in quotes.
    """
    declared = METHODS.lookup(method.name)
    reason = shortened(re.sub(r"^\[PEFT:[\w.]+\] ", "", reason).split(" Please ")[0].rstrip("."), 200)
    if "targets" not in declared.keys:
        others = ", ".join(sorted(set(METHODS) - {method.name}))
        return UserError(
            f"{declared.title} cannot be applied to this model ({kind}): {reason}; choose another of {others}"
        )
    targets = method.targets if isinstance(method.targets, str) else ", ".join(method.targets)
    unusable = {*re.findall(r"'(\w+)'", reason), *_READ_AS_WEIGHTS}
    chosen = sorted({name.rpartition(".")[2] for name in layers} - unusable)[:12]
    other = f"other layers, such as --set 'methods.0.targets=[{', '.join(chosen)}]', or " if chosen else ""
    return UserError(
        f"{declared.title} cannot be applied to the layers {targets:.80} of this model ({kind}): {reason}{hint}; "
        f"choose {other}another method"
    )
