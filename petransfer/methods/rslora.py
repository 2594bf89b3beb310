"""rsLoRA (Kalajdzievski 2023): LoRA that is scaled by alpha over the square root of the rank."""

from __future__ import annotations

import functools

from petransfer.methods import lora
from petransfer.recipe.methods import LORA_KEYS, Method

METHOD = Method(
    name="rslora",
    title="rank-stabilised LoRA",
    source="Kalajdzievski 2023",
    apply=functools.partial(lora.apply, use_rslora=True),
    # its scale is four times LoRA's at rank 16; on the embedded family as swept on dev sets
    learning_rate_factor=0.25,
    nano_learning_rate_factor=0.5,
    keys=LORA_KEYS,
    size="rank",
)
