"""Add characters that a tokenizer lacks as tokens: texts can be decoded, and an adapter learns the tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration, T5Tokenizer

from petransfer.errors import UserError
from petransfer.models.added_tokens import add_tokens
from petransfer.models.checkpoint_files import load_tokenizer
from petransfer.models.loading import load_checkpoint
from petransfer.models.own_families import added_characters
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.study.train_request import split_tokens, train_request
from tests.cli.calls import call

ADDED = ("\n", "\t", "{", "}", "<")


def sentencepiece() -> PreTrainedTokenizerBase:
    """Return a tokenizer of the kind that T5 has, with single characters as tokens."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.;()0123456789:"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((letter, -1.0) for letter in letters)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with a SentencePiece tokenizer and 8 more embedding rows than tokens."""
    folder = tmp_path_factory.mktemp("t5-spare")
    tokenizer = sentencepiece()
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=len(tokenizer) + 8, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@given(st.text("ab {}\n\t<", max_size=12).filter(lambda text: not text.startswith(" ")))
def test_decoded_texts_keep_their_blanks_and_braces(text: str) -> None:
    tokenizer = TOKENIZER
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


TOKENIZER = sentencepiece()
add_tokens(TOKENIZER, ADDED)


def test_only_characters_that_the_tokenizer_loses_are_added() -> None:
    tokenizer = sentencepiece()
    before = len(tokenizer)
    assert add_tokens(tokenizer, ("a", "\n", "(")) == (before,)
    assert add_tokens(tokenizer, ("\n",)) == ()


def test_embeddings_of_added_tokens_differ_and_others_are_unchanged(base: Path) -> None:
    spec = checkpoint_spec(str(base))
    plain = load_checkpoint(spec, 32)
    added = load_checkpoint(CheckpointSpec(**{**vars(spec), "added_tokens": ADDED}), 32)
    ids = list(added.new_tokens)
    assert ids == [len(plain.tokenizer) + at for at in range(5)]
    rows, old = (each.model.get_input_embeddings().weight for each in (added, plain))
    assert torch.equal(rows[: ids[0]], old[: ids[0]])
    assert torch.equal(rows[ids[-1] + 1 :], old[ids[-1] + 1 :])

    def similarity(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cosine_similarity(left[:, None], right[None], dim=-1)

    assert (similarity(rows[ids], rows[ids]) - torch.eye(5)).max() < 0.9
    assert similarity(rows[ids], old).max() < 0.9


def test_an_adapter_learns_and_predicts_added_tokens(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [{"input": f"row {n}", "target": "{\n}"} for n in range(40)]
    Path("code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["train", str(base), "code.jsonl", "--cpu", "--out", "out", "--prefix", ""]
    assert call(monkeypatch, *arguments) == 2
    assert "--add-tokens" in capsys.readouterr().err
    added = ["--add-tokens", "newline,braces", "--steps", "40", "--lr", "0.01"]
    assert call(monkeypatch, *arguments, *added, "--method", "ia3") == 2
    assert "the embeddings of added tokens must be trained" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, *added, "--rank", "32") == 0
    (result,) = Path("out/runs").glob("*/result.json")
    assert json.loads(result.read_text())["test"]["exact_match"] == 100
    capsys.readouterr()
    assert call(monkeypatch, *arguments, *added, "--rank", "32", "--plan", "--json") == 0
    planned = json.loads(capsys.readouterr().out)["memory"]["memory"]["trained_parameters"]
    assert planned == json.loads(result.read_text())["trained_parameters"]
    assert call(monkeypatch, "predict", str(result.parent), "row 3", "--cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["output"] == "{\n}"


def test_more_added_tokens_than_spare_embedding_rows_are_refused(base: Path) -> None:
    spec = CheckpointSpec(**{**vars(checkpoint_spec(str(base))), "added_tokens": tuple("<>[]{}ABCDEF")})
    with pytest.raises(Exception, match="has embedding rows for 8 added tokens, but you asked for 12; add fewer"):
        load_checkpoint(spec, 32)


def test_too_many_tokens_are_refused_before_anything_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(base, tmp_path / "full")
    rows = len(load_tokenizer(checkpoint_spec(str(base))))
    model = T5ForConditionalGeneration.from_pretrained(base)
    monkeypatch.chdir(tmp_path)
    Path("rows.tsv").write_text("".join(f"row {n}\tABC\n" for n in range(40)))
    arguments = ["train", "full", "rows.tsv", "--cpu", "--out", "out", "--steps", "3", "--add-tokens", "<,>,[,]"]
    for spare, expected in ((2, "has embedding rows for 2 added tokens, but you asked for 4"), (0, "has no embedding")):
        model.resize_token_embeddings(rows + spare)
        model.save_pretrained("full")
        for plan in (["--plan"], []):
            assert call(monkeypatch, *arguments, *plan) == 2
            assert expected in capsys.readouterr().err
    assert not Path("out").exists()


def test_names_of_added_tokens_may_contain_blanks_and_capitals() -> None:
    assert split_tokens("newline, Tab,é") == ("newline", " Tab", "é")
    assert split_tokens(",") == (",",)
    assert train_request({"add_tokens": "newline,tab"}).add_tokens == ("newline", "tab")
    assert added_characters(["newline", " Tab", "é", "{}", " "]) == ("\n", "\t", "é", "{", "}", " ")
    with pytest.raises(UserError, match=r"unknown name of an added token 'newlines'.*newline"):
        added_characters(["newlines"])
