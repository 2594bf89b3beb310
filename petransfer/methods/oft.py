"""OFT (Qiu et al. 2023): rotate the inputs of each layer by a trained block-diagonal orthogonal matrix.

A rotation does not change the angles between the rows of the weights. According to the paper, this keeps the model
close to the base model.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from petransfer.recipe.methods import LAYER_KEYS, Method, Option
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and trainable rotations, which start as the identity."""
    from peft import OFTConfig

    from petransfer.methods.shared.attach import attach_adapter, task_type
    from petransfer.methods.shared.target_layers import target_layers

    config = OFTConfig(
        task_type=task_type(loaded),
        r=0,  # the number of blocks; 0 because the size of the blocks is given instead
        # peft takes the nearest size that divides the number of the layer's inputs
        oft_block_size=int(method.options["block_size"]),
        module_dropout=method.dropout,
        target_modules=target_layers(loaded, method),
        use_cayley_neumann=bool(method.options["series_terms"]),
        num_cayley_neumann_terms=int(method.options["series_terms"]) or 5,
    )
    with warnings.catch_warnings():  # peft warns about each block size that it changes
        warnings.simplefilter("ignore", UserWarning)
        return attach_adapter(loaded, method, config, seed)


METHOD = Method(
    name="oft",
    title="OFT",
    source="Qiu et al. 2023",
    apply=apply,
    keys=LAYER_KEYS | {"dropout"},
    options={
        "block_size": Option(32, "inputs that are rotated together; larger blocks train more", minimum=2, maximum=4096),
        "series_terms": Option(
            5, "terms of the series that approximates the rotation; 0 computes it exactly, more slowly", 0, 64
        ),
    },
    peft_type="OFT",
    not_stacked="its rotations change the inputs of the base's own layers",
)
