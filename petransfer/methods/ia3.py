"""(IA)3 (Liu et al. 2022): train vectors that scale keys, values and the input of the last layer of each MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petransfer.errors import UserError
from petransfer.recipe.methods import LAYER_KEYS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and trainable scaling vectors, whose start values are 1."""
    from peft import IA3Config
    from peft.utils import constants

    from petransfer.methods.shared.attach import attach_adapter, task_type
    from petransfer.methods.shared.target_layers import target_layers

    known = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    feedforward = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    kind = str(loaded.model.config.model_type)
    kind = "t5" if kind == "mt5" else kind  # peft's list for mT5 would scale only one of the two halves of each MLP
    if method.targets == "all-linear" and kind not in known:
        raise UserError(f"ia3: the keys and values of {kind} are not known to peft; name these layers in targets")
    # `all-linear` means the layers that peft lists for the architecture
    chosen = target_layers(loaded, method, known.get(kind))
    last = tuple(feedforward.get(kind, ()))
    names = [name for name in chosen if any(name == end or name.endswith(f".{end}") for end in last)]
    config = IA3Config(
        task_type=task_type(loaded),
        target_modules=chosen,
        feedforward_modules=names if isinstance(chosen, list) else list(last),
    )
    return attach_adapter(loaded, method, config, seed)


METHOD = Method(
    name="ia3",
    title="(IA)3",
    source="Liu et al. 2022",
    apply=apply,
    # as in peft's examples; at LoRA's learning rate, these few numbers would hardly change
    learning_rate_factor=8,
    nano_learning_rate_factor=50,
    keys=LAYER_KEYS,
    peft_type="IA3",
    unsupported_bits=dict.fromkeys(
        (8, 4), "on a quantised base model, peft's scaled outputs are fp32, which the next layers do not accept"
    ),
    not_stacked="it scales the outputs of the base's own layers",
)
