"""VeRA (Kopiczko et al. 2024): train two vectors per layer, which scale random matrices that all layers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petransfer.recipe.methods import LAYER_KEYS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and trainable vectors.

    The shared random matrices depend on `seed` and are saved with the adapter.
    """
    from peft import VeraConfig

    from petransfer.methods.shared.attach import attach_adapter, task_type
    from petransfer.methods.shared.target_layers import target_layers

    config = VeraConfig(
        task_type=task_type(loaded),
        r=method.rank,
        target_modules=target_layers(loaded, method),
        vera_dropout=method.dropout,
        projection_prng_key=seed,
        save_projection=True,
    )
    return attach_adapter(loaded, method, config, seed)


METHOD = Method(
    name="vera",
    title="VeRA",
    source="Kopiczko et al. 2024",
    apply=apply,
    learning_rate_factor=10,  # as in its paper
    nano_learning_rate_factor=25,
    keys=LAYER_KEYS | {"rank", "dropout", "match_parameters"},
    size="rank",
    peft_type="VERA",
    not_stacked="its random matrices are shared by all layers and drawn from the seed",
)
