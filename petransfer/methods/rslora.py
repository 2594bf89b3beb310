"""rsLoRA (Kalajdzievski 2023): LoRA with the scale alpha / sqrt(rank) instead of alpha / rank."""

from __future__ import annotations

import functools

from petransfer.methods import lora
from petransfer.recipe.methods import LORA_KEYS, Method

METHOD = Method(
    name="rslora",
    title="rank-stabilised LoRA",
    source="Kalajdzievski 2023",
    apply=functools.partial(lora.apply, use_rslora=True),
    # at rank 16, its scale is four times LoRA's, so a quarter of the learning rate has the same effect; the factor for
    # the embedded family is the result of a sweep on dev sets
    learning_rate_factor=0.25,
    nano_learning_rate_factor=0.5,
    keys=LORA_KEYS,
    size="rank",
)
