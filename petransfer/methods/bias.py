"""BitFit (Ben Zaken et al. 2022): train only the biases. In a model without biases (T5), train only the norm layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petransfer.methods import ln
from petransfer.recipe.methods import NO_FSDP_AT_16_BITS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with trainable biases. A model without biases (T5) gets trainable norm layers."""
    from peft import LoraConfig

    from petransfer.methods.shared.attach import NO_LAYER, attach_adapter, task_type
    from petransfer.methods.shared.compute_dtype import hold_in_fp32

    if not any(_is_bias(name) for name, _ in loaded.model.named_parameters()):
        return ln.apply(loaded, method, seed)
    # a LoRA adapter without target layers: plain peft can load its biases
    config = LoraConfig(task_type=task_type(loaded), target_modules=NO_LAYER, bias="all")
    model = attach_adapter(loaded, method, config, seed)
    for name, value in model.named_parameters():
        value.requires_grad_(_is_bias(name))  # peft also trains T5's table of relative positions, as if it were a bias
    if method.bits < 32:
        for module in model.modules():
            bias = module._parameters.get("bias")
            if bias is not None and bias.requires_grad:
                hold_in_fp32(module, ("bias",))
    return model


def _is_bias(name: str) -> bool:
    """Return whether a parameter is a bias and processes text, not images or audio."""
    from petransfer.models.text_part import is_text

    return name.endswith(".bias") and is_text(name)


METHOD = Method(
    name="bias",
    title="BitFit",
    source="Ben Zaken et al. 2022",
    apply=apply,
    learning_rate_factor=5,  # as in its paper
    nano_learning_rate_factor=60,
    not_stacked="it changes the base's own biases or norms",
    not_split={16: NO_FSDP_AT_16_BITS},
)
