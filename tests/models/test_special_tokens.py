"""Find start, end and padding tokens in all files that can define them, and report missing tokens in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BartConfig, GPT2Config, MT5Config, T5Config, T5GemmaConfig

from petransfer.data.encoding import Encoded, encode_examples
from petransfer.data.layout import Layout
from petransfer.data.task import Example
from petransfer.errors import UserError
from petransfer.models.lengths import length_check
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import NANO, checkpoint_spec
from petransfer.models.special_tokens import layout_of
from petransfer.training.batches import collate
from petransfer.training.losses import token_loss


def tokens(**ids: Any) -> Any:
    """Return an object that has the special tokens of a tokenizer and nothing else."""
    empty = {"eos_token_id": None, "pad_token_id": None, "bos_token_id": None, "added_tokens_decoder": {}}
    special = {"all_special_ids": [4, 5, 8, 9], "all_special_tokens": ["<4>", "<5>", "<8>", "<9>"]}
    return SimpleNamespace(**(empty | special | ids))


T5 = {"vocab_size": 50, "eos_token_id": None, "pad_token_id": None}
GEMMA = {"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


@pytest.mark.parametrize(
    ("config", "tokenizer", "generation", "expected"),
    [
        # T5 starts with the padding token if no file names a start token
        (T5Config(**T5), tokens(eos_token_id=1, pad_token_id=0), None, Layout(True, 0, 1, 0)),
        (MT5Config(**T5), tokens(eos_token_id=1, pad_token_id=3), None, Layout(True, 3, 1, 0)),
        (T5Config(**T5, decoder_start_token_id=7), tokens(eos_token_id=1), None, Layout(True, 1, 1, 7)),
        # named only in generation_config.json
        (T5Config(**T5), tokens(), {"eos_token_id": [4, 5], "pad_token_id": 2, "decoder_start_token_id": 9},
         Layout(True, 2, 4, 9, other_end_ids=(5,))),
        # targets end with the tokenizer's end token or the first of the list; generation stops at each of the list
        (GPT2Config(vocab_size=50, eos_token_id=[8, 9], bos_token_id=None), tokens(), None,
         Layout(False, 8, 8, other_end_ids=(9,))),
        (GPT2Config(vocab_size=50, eos_token_id=[8, 9], bos_token_id=None), tokens(eos_token_id=9), None,
         Layout(False, 9, 9, other_end_ids=(8,))),
        # generation_config.json has precedence over config.json; an ordinary token (30) does not end a text
        (GPT2Config(vocab_size=50, eos_token_id=8, bos_token_id=None), tokens(eos_token_id=8),
         {"eos_token_id": [9, 30]}, Layout(False, 8, 8, other_end_ids=(9,))),
        # T5Gemma has them in the configuration of its decoder
        (T5GemmaConfig(encoder=GEMMA, decoder=GEMMA), tokens(), None, Layout(True, 0, 1, 2)),
        (BartConfig(vocab_size=50), tokens(eos_token_id=2, pad_token_id=1), None, Layout(True, 1, 2, 2)),
        # a padding token that was added without resizing the embeddings is not used
        (T5Config(**T5), tokens(eos_token_id=1, pad_token_id=50), None, Layout(True, 1, 1, 1)),
    ],
)  # fmt: skip
def test_special_tokens_are_found(config: Any, tokenizer: Any, generation: Any, expected: Layout) -> None:
    generation = SimpleNamespace(**generation) if generation else None
    assert layout_of(config, tokenizer, generation) == expected


def test_a_missing_end_token_and_an_impossible_start_token_are_named() -> None:
    with pytest.raises(UserError, match=r"has no end token: .*eos_token_id"):
        layout_of(T5Config(**T5), tokens())
    with pytest.raises(UserError, match=r"decoder_start_token_id is 99, and the embeddings have 50 rows"):
        layout_of(T5Config(**T5, decoder_start_token_id=99), tokens(eos_token_id=1))


def test_training_works_with_a_padding_token_without_an_embedding(tiny_gpt2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_gpt2, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    tokenizer.save_pretrained(folder)
    loaded = load_checkpoint(checkpoint_spec(str(folder)), 32)
    assert loaded.tokenizer.pad_token_id >= loaded.model.config.vocab_size
    rows = [Example(0, "jump", "left", "all"), Example(1, "jump around and around", "left", "all")]
    batch = collate(encode_examples(rows, "", loaded.tokenizer, loaded.layout), loaded.layout)
    assert torch.isfinite(token_loss(loaded.model, batch))


def test_a_start_token_in_generation_config_is_read_from_the_folder(tiny_t5: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_t5, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("decoder_start_token_id", None)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 6, "eos_token_id": 1}))
    assert load_checkpoint(checkpoint_spec(str(folder)), 32).layout.decoder_start_id == 6


def test_a_tokenizer_that_needs_a_missing_package_is_reported_in_one_line(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("\nT5Tokenizer requires the SentencePiece library\nbut it was not found")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(UserError, match=r"needs a package that is not installed: .*SentencePiece") as error:
        load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    assert "\n" not in str(error.value)


def test_a_damaged_tokenizer_is_reported_in_one_line(tiny_t5: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_t5, folder)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match="tokenizer") as error:
        load_checkpoint(checkpoint_spec(str(folder)), 32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_folder_without_a_tokenizer_is_refused(left: tuple[str, ...], tiny_t5: Path, tmp_path: Path) -> None:
    """transformers would create an empty tokenizer, for which every character of every row is unknown."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_t5, folder)
    for path in folder.glob("*token*"):
        if path.name not in left:
            path.unlink()
    with pytest.raises(UserError, match=r"base holds no tokenizer; copy tokenizer\.json") as error:
        load_checkpoint(checkpoint_spec(str(folder)), 32)
    assert "\n" not in str(error.value)


def test_layer_drop_is_off_in_training(tmp_path: Path) -> None:
    from transformers import BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=6176, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64, encoder_layerdrop=0.9,
        decoder_layerdrop=0.9, dropout=0.0,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((NANO / "tokenizer" / name).read_bytes())
    model = load_checkpoint(checkpoint_spec(str(tmp_path)), 32).model.train()
    assert model.config.encoder_layerdrop == 0.9  # the configuration, which is saved, is that of the checkpoint
    ids = torch.tensor([[5, 6, 7]])
    first = model(input_ids=ids, decoder_input_ids=ids).logits
    assert all(torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, first) for _ in range(5))


def test_a_row_with_a_token_that_has_no_embedding_is_a_bad_row() -> None:
    check = length_check(GPT2Config(vocab_size=50, n_positions=64), "base", 0, vocabulary=50)
    assert check(Encoded((3, 49), (1,))) is None
    problem = check(Encoded((3, 50), (1,)))
    assert problem is not None
    assert "no row in the embeddings of base" in str(vars(problem) or problem)
