"""A model computes the same after saving and loading, also a Marian with learned position embeddings."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import MarianConfig, MarianMTModel

from petransfer.models.saving import save_model


def test_learned_position_embeddings_of_marian_are_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=50, decoder_vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        for part in (model.model.encoder, model.model.decoder):
            part.embed_positions.weight.normal_()
    ids = torch.randint(2, 50, (2, 7))
    save_model(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "plain")
    found = {}
    for name in ("ours", "plain"):
        again = MarianMTModel.from_pretrained(tmp_path / name).eval()
        found[name] = again(input_ids=ids, decoder_input_ids=ids).logits
    expected = model(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(found["ours"], expected)
    assert not torch.allclose(found["plain"], expected, atol=1e-3)  # transformers alone does not save them
