"""A checkpoint whose inputs and targets have different vocabularies is refused, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import MarianConfig

from petransfer.errors import UserError
from petransfer.models.checkpoint_files import load_tokenizer
from petransfer.models.registry import checkpoint_spec
from petransfer.models.support import supported_class
from tests.models.tokenizers import save_tokenizer


def test_a_configuration_with_two_sizes_of_the_vocabulary_is_refused() -> None:
    config = MarianConfig(vocab_size=60, decoder_vocab_size=50, share_encoder_decoder_embeddings=False)
    with pytest.raises(UserError, match=r"base has separate vocabularies .*one vocabulary"):
        supported_class(config, "base")
    assert supported_class(MarianConfig(vocab_size=60), "base")


def test_a_tokenizer_with_two_vocabularies_of_one_size_is_refused(tmp_path: Path) -> None:
    save_tokenizer("marian", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    spec = checkpoint_spec(str(tmp_path))
    load_tokenizer(spec)
    (tmp_path / "target_vocab.json").write_bytes((tmp_path / "vocab.json").read_bytes())
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"separate_vocabs": True}))
    with pytest.raises(UserError, match="separate vocabularies"):
        load_tokenizer(spec)
