"""Generation stops at any of the checkpoint's end tokens, as in plain transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from petransfer.data import Example
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.evaluation.exact_match import evaluate
from petransfer.evaluation.generation import generations
from petransfer.evaluation.label_scoring import choose_labels
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.sharing.adapter import Adapter
from tests.chat_models import chat_llama

# The tokenizer's own end token is 0, and 2 is a further special token.
OWN, OTHER, TOKENS = 0, 2, 24
TEXTS = ["to walk", "must say", "run and see", "look", "a", "b c"]


def plain_texts(folder: Path, adapter: Path | None = None) -> tuple[list[str], list[int]]:
    """Return the texts that plain transformers generates greedily, and their numbers of tokens with the end token."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    texts, tokens = [], []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            row = model.eval().generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False)[0, ids.shape[1] :]
        texts.append(tokenizer.decode(row, skip_special_tokens=True))
        tokens.append(len(row))
    return texts, tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that often generates token 2 within a few tokens, and never its tokenizer's end token."""
    folder = chat_llama(tmp_path_factory.mktemp("ends") / "base", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(3)
    for weight in model.parameters():
        weight.data += 0.5 * torch.randn(weight.shape)
    letters = AutoTokenizer.from_pretrained(folder)("abcdefghijklmnopqrstuvwxyz")["input_ids"]
    head = model.lm_head.weight.data
    head[[at for at in range(len(head)) if at not in {*letters, OTHER}]] = 0
    head[OTHER] *= 1.3
    model.save_pretrained(folder)
    return folder


def _own(folder: Path, config: Any, generation: Any) -> Path:
    """Write the end tokens into config.json and generation_config.json. `generation=None` deletes the second file."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": config}))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return folder


@pytest.fixture(params=[(OWN, [OWN, OTHER]), ([OWN, OTHER], None), (OWN, OTHER), (OTHER, [OWN])], ids=str)
def ended(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> Path:
    """The model with its end tokens in one or two of the files."""
    return _own(shutil.copytree(base, tmp_path / "ended"), *request.param)


def test_texts_of_a_base_model_end_as_in_plain_transformers(ended: Path) -> None:
    expected, _ = plain_texts(ended)
    assert Adapter.load(ended, device="cpu").predict(TEXTS, TOKENS) == expected


@pytest.fixture
def listed(base: Path, tmp_path: Path) -> Path:
    return _own(shutil.copytree(base, tmp_path / "listed"), OWN, [OWN, OTHER])


def test_the_second_end_token_ends_texts_earlier(listed: Path, base: Path) -> None:
    """The other tests are only meaningful if this one passes."""
    assert min(plain_texts(listed)[1]) < TOKENS <= min(plain_texts(base)[1])


def test_texts_of_peft_adapters_and_merged_models_end_as_in_plain_peft(listed: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(listed), config).save_pretrained(tmp_path / "adapter")
    expected, tokens = plain_texts(listed, tmp_path / "adapter")
    assert min(tokens) < TOKENS
    adapter = Adapter.load(tmp_path / "adapter", checkpoint=str(listed), device="cpu")
    assert adapter.predict(TEXTS, TOKENS) == expected
    adapter.merge(tmp_path / "merged", bits=32)
    assert Adapter.load(tmp_path / "merged", device="cpu").predict(TEXTS, TOKENS) == expected


def test_streamed_texts_end_like_the_generated_texts(listed: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(listed)), 32)
    rows = [tuple(loaded.tokenizer(text)["input_ids"]) for text in TEXTS]
    seen: dict[int, str] = {}
    found = generations(loaded.model, loaded, rows, [TOKENS] * len(rows), on_text=seen.__setitem__)
    assert [one.text for one in found] == [seen.get(at, "") for at in range(len(rows))] == plain_texts(listed)[0]
    assert any(one.ended for one in found)


def test_ordinary_tokens_can_be_end_tokens_of_base_models(base: Path, tmp_path: Path) -> None:
    letter = plain_texts(base)[0][0][3]
    ordinary = AutoTokenizer.from_pretrained(base)(letter)["input_ids"][0]
    folder = _own(shutil.copytree(base, tmp_path / "ordinary"), OWN, [OWN, ordinary])
    (text, *_), (tokens, *_) = plain_texts(folder)
    assert tokens < TOKENS
    assert Adapter.load(folder, device="cpu").predict(TEXTS, TOKENS)[0] == text.removesuffix(letter)
    assert load_checkpoint(checkpoint_spec(str(folder)), 32).layout.end_ids == (OWN,), (
        "in training, targets can contain this letter"
    )


def test_exact_match_and_labels_accept_any_end_token(listed: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(listed)), 32)
    rows = [tuple(loaded.tokenizer(text + "\n")["input_ids"]) for text in TEXTS]
    found = generations(loaded.model, loaded, rows, [TOKENS] * len(rows))
    pairs = [(text, one.text) for text, one in zip(TEXTS, found, strict=True) if one.ended and one.text]
    examples = [Example(at, *pair, "all") for at, pair in enumerate(pairs)]
    assert len(examples) > 1
    encoded = encode_examples(examples, "", loaded.tokenizer, loaded.layout)
    outcome = evaluate(loaded.model, loaded, examples, encoded, audited=100)
    assert (outcome.exact_match, outcome.disagreements) == (1.0, 0)
    for row, example in zip(encoded, examples, strict=True):
        labels = [example.target, f"{example.target}x"]
        assert choose_labels(loaded.model, loaded, [row], labels) == [example.target]


def test_a_target_that_contains_an_end_token_is_not_counted_as_correct(base: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(base)), 32)
    ids = tuple(loaded.tokenizer("to walk\n")["input_ids"])
    (one,) = generations(loaded.model, loaded, [ids], [6])
    target = tuple(loaded.tokenizer(one.text)["input_ids"])
    for ends, correct in (((), True), (target[2:3], False)):
        stopping = replace(loaded, layout=replace(loaded.layout, other_end_ids=ends))
        outcome = evaluate(loaded.model, stopping, [Example(0, "", one.text, "all")], [Encoded(ids, target)], audited=0)
        assert outcome.scored[0].correct is correct
