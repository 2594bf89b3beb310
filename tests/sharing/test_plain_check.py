"""Text differences between plain transformers and petransfer that only come from rounding are recognised."""

from __future__ import annotations

from dataclasses import replace

import torch

from petransfer.data.encoding import encode_inputs
from petransfer.evaluation.generation import generations
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.sharing.plain_check import part_at_near_tie


def test_texts_that_first_differ_at_equal_logits_differ_by_a_near_tie() -> None:
    loaded = load_checkpoint(checkpoint_spec("nano/english"), 32, device="cpu")
    (row,) = encode_inputs(["walk twice"], loaded.tokenizer, loaded.layout)
    (ours,) = generations(loaded.model, loaded, [row], [4])
    first = ours.token_ids[0]
    twin = max(set(range(300, 400)) - set(ours.token_ids))
    with torch.no_grad():
        for table in (loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight):
            table[twin] = table[first]
    (ours,) = generations(loaded.model, loaded, [row], [4])
    pair = {first, twin}
    assert ours.token_ids[0] in pair
    (other,) = pair - {ours.token_ids[0]}

    def parts(token: int) -> bool:
        theirs = replace(ours, token_ids=(token, *ours.token_ids[1:]))
        return part_at_near_tie(loaded.model, loaded, row, ours, theirs)

    assert parts(other)
    assert not parts(twin - 1)
    cut = replace(ours, token_ids=ours.token_ids[:2], ended=False)
    assert not part_at_near_tie(loaded.model, loaded, row, ours, cut)
