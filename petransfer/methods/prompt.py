"""Prompt tuning (Lester et al. 2021): train virtual tokens before the input.

The start values are the embeddings of randomly chosen tokens of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from petransfer.errors import UserError
from petransfer.recipe.methods import VIRTUAL_TOKEN_KEYS, Method
from petransfer.recipe.run_spec import MethodSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from petransfer.models.loading import Loaded


def apply(loaded: Loaded, method: MethodSpec, seed: int) -> torch.nn.Module:
    """Return the model with frozen weights and trainable virtual tokens before the input."""
    from peft import PromptTuningConfig

    from petransfer.methods.shared.attach import attach_adapter, task_type

    on_meta = loaded.model.device.type == "meta"
    config = PromptTuningConfig(
        task_type=task_type(loaded),
        num_virtual_tokens=method.virtual_tokens,
        num_transformer_submodules=1,  # with 2, peft would store virtual tokens for the decoder and never use them
        prompt_tuning_init="RANDOM" if on_meta else "SAMPLE_VOCAB",
        **_shape(loaded.model),
    )
    return attach_adapter(loaded, method, config, seed)


def _shape(model: PreTrainedModel) -> dict[str, int]:
    """Return peft's arguments for the size of the virtual tokens.

    Raises:
        UserError: peft does not find the model's embeddings.
    """
    from transformers import PreTrainedModel

    from petransfer.models.text_part import text_config, vocabulary_size

    embeddings: torch.Tensor = model.get_input_embeddings().weight
    kind, rows = model.config.model_type, vocabulary_size(model.config)
    # peft takes the first tensor with these rows
    body = next((part for part in model.children() if isinstance(part, PreTrainedModel)), model)
    if not any(value.shape[:1] == (rows,) for value in body.parameters()):
        raise UserError(
            f"prompt: prompt tuning is not available for {kind}, because its embeddings have {len(embeddings):,} rows "
            f"and its vocabulary has {rows:,} tokens; use lora"
        )
    # Without `token_dim`, peft takes the width of the layers, but the embeddings of OPT-350m are narrower.
    shape = {"token_dim": embeddings.shape[1]}
    # T5Gemma's configuration has one part for the encoder and one for the decoder, where peft does not look.
    if (encoder := getattr(model.config, "encoder", None)) is not None:
        part = text_config(encoder)
        shape |= {"num_layers": part.num_hidden_layers, "num_attention_heads": part.num_attention_heads}
    return shape


METHOD = Method(
    name="prompt",
    title="prompt tuning",
    source="Lester et al. 2021",
    apply=apply,
    learning_rate_factor=150,  # as in peft's examples
    nano_learning_rate_factor=3000,
    keys=VIRTUAL_TOKEN_KEYS,
    size="virtual_tokens",
    peft_type="PROMPT_TUNING",
    virtual_tokens_before="input",
    not_merged="its virtual tokens are not part of the weights; use the adapter together with its base",
    not_stacked="its virtual tokens change the input of the base model",
)
