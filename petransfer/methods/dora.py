"""DoRA (Liu et al. 2024): LoRA changes the direction of each column of the weights; each column's norm is also trained.

The norms are computed in fp32.
"""

from __future__ import annotations

import functools

from petransfer.methods import lora
from petransfer.recipe.methods import LORA_KEYS, Method

METHOD = Method(
    name="dora",
    title="DoRA",
    source="Liu et al. 2024",
    apply=functools.partial(lora.apply, use_dora=True),
    keys=LORA_KEYS,
    size="rank",
    unsupported_bits={8: "peft cannot compute the norms of 8-bit weights"},
    not_stacked="its norms are computed over base and adapter together",
)
