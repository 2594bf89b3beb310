"""Prepare a saved model for llama.cpp's converter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from petransfer.models.checkpoint_files import tokenizer_file
from petransfer.recipe.run_spec import CheckpointSpec

# Names of SentencePiece files. llama.cpp's converter needs one of them, but transformers 5 writes only tokenizer.json.
_SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def copy_sentencepiece_files(checkpoint: CheckpointSpec, folder: Path) -> None:
    """Copy the SentencePiece files of a checkpoint's tokenizer, if there are any, to a folder."""
    for name in _SENTENCEPIECE:
        found = tokenizer_file(checkpoint, name)
        if found is not None and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


@torch.no_grad()
def separate_output_head(model: Any) -> bool:
    """Replace T5's shared output head by a separate tensor, in place. Return whether the head was replaced."""
    config = model.config
    if not getattr(config, "scale_decoder_outputs", False) or not hasattr(model, "lm_head"):
        return False
    # A T5 with a shared head multiplies the decoder's states by d_model ** -0.5. llama.cpp omits this factor: its most
    # likely token is right, but its probabilities are wrong. With the factor in the new head, transformers and
    # llama.cpp compute equal logits.
    weight = model.get_input_embeddings().weight
    model.lm_head.weight = torch.nn.Parameter(weight.detach().clone() * config.d_model**-0.5, requires_grad=False)
    config.scale_decoder_outputs = config.tie_word_embeddings = False
    return True
