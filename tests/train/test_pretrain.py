"""Span corruption and the pretraining of an embedded checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from petransfer.checkpoints.registry import NANO
from petransfer.errors import UserError
from petransfer.train import pretrain as module
from petransfer.train.loop import Execution, Interrupted
from petransfer.train.pretrain import TRAINING, PretrainSpec, Size, pretrain, read_corpus, redraw_rows
from petransfer.train.spans import Noise, corrupt

SENTINELS = np.arange(1000, 1032)
EOS = 1


@given(seed=st.integers(0, 10_000), noise=st.builds(Noise, st.integers(16, 128), st.floats(0.1, 0.4), st.floats(2, 5)))
@settings(max_examples=60)
def test_what_is_lost_can_be_put_back(seed: int, noise: Noise) -> None:
    rng = np.random.default_rng(seed)
    window = rng.integers(2, 1000, noise.window)
    example = corrupt(window, noise, rng, SENTINELS, EOS)
    assert len(example.target_ids) == noise.target_length
    assert len(example.input_ids) == noise.window - noise.lost + noise.spans + 1
    assert example.input_ids[-1] == example.target_ids[-1] == EOS
    spans: dict[int, list[int]] = {}
    for piece in example.target_ids[:-1]:
        if piece >= 1000:
            spans[piece] = []
            last = piece
        else:
            spans[last].append(piece)
    assert all(spans.values())
    rebuilt = [piece for at in example.input_ids[:-1] for piece in (spans[at] if at >= 1000 else [at])]
    assert rebuilt == window.tolist()


def test_unseen_rows_are_drawn_like_the_seen_ones_and_no_two_are_alike() -> None:
    torch.manual_seed(0)
    weight = torch.randn(400, 64) * 2 + 0.3
    weight[200:] = weight[200]  # what pretraining does to pieces that never occur
    kept = weight.clone()
    seen = torch.zeros(400, dtype=torch.bool)
    seen[:200] = True
    redraw_rows(weight, seen, keep=[300], seed=0)
    assert torch.equal(weight[:200], kept[:200])
    assert torch.equal(weight[300], kept[300])
    new = weight[200:300]
    assert float(new.std()) == pytest.approx(float(weight[:200].std()), rel=0.1)
    cosine = torch.nn.functional.normalize(new) @ torch.nn.functional.normalize(new).T
    assert float((cosine - torch.eye(100)).max()) < 0.9


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(NANO / "tokenizer")


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "two",
        "dogs",
        "run",
        "over",
        "there",
        "with",
        "some",
        "old",
        "hats",
    ]
    for part, documents in (("train", 60), ("valid", 20)):
        texts = ["\n".join(" ".join(rng.choice(words, 12)) for _ in range(8)) for _ in range(documents)]
        (folder / f"{part}.txt").write_text("\n\n".join(texts))
    return folder


def _pretrain(
    folder: Path,
    corpus_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    stop_at: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(module.SIZES, "tiny", Size(32, 1, 64, 1))
    corpus = read_corpus(corpus_folder, tokenizer, one_document_a_line=False)
    spec = PretrainSpec(
        "words", "tiny", corpus.sha256, "t", len(corpus.train), Noise(32), replace(TRAINING, steps=60, batch_size=8)
    )
    at = {"step": 0}

    def progress(step: int, loss: float, seconds: float) -> None:
        at["step"] = step

    def should_stop() -> bool:
        return at["step"] in stop_at and not stop_at.discard(at["step"])

    pretrain(
        spec, corpus, tokenizer, folder, Execution(threads=1, log_every=10, save_every=0.0), progress, should_stop,
        mixed_precision="no", valid_every=20,
    )  # fmt: skip


def test_pretraining_learns_and_an_interruption_changes_nothing(
    tmp_path: Path, corpus_folder: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RARE", 5)
    _pretrain(tmp_path / "whole", corpus_folder, tokenizer, set(), monkeypatch)
    stops = {7, 31}
    for _ in range(2):
        with pytest.raises(Interrupted):
            _pretrain(tmp_path / "cut", corpus_folder, tokenizer, stops, monkeypatch)
    _pretrain(tmp_path / "cut", corpus_folder, tokenizer, stops, monkeypatch)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []
    assert whole["shared.weight"].dtype == torch.bfloat16
    card = json.loads((tmp_path / "whole" / "pretraining.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.1
    assert card["valid_loss"] == pytest.approx(losses[-1])
    assert card["seen_tokens"] == 60 * 8 * 32
    assert tokenizer.convert_tokens_to_ids("Ġcat") not in card["new_pieces"]
    assert tokenizer.convert_tokens_to_ids("ĠI_JUMP") in card["new_pieces"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n\n\n", "holds no text"), (b"\xff\xfe\x00bad", "is not UTF-8 at byte 0"), (None, "no train.txt")],
)
def test_a_bad_corpus_is_refused(
    content: bytes | None, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    for part in ("train", "valid"):
        if content is not None:
            (tmp_path / f"{part}.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_corpus(tmp_path, tokenizer, one_document_a_line=False)
