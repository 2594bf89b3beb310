"""A base whose tokenizer or chat template changed after training: the change is reported, and changes the base's id."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from petransfer.models.hashes import tokenizer_hashes
from petransfer.models.registry import NANO, checkpoint_spec
from petransfer.sharing.adapter import Adapter
from tests.chat_models import chat_llama
from tests.models.tokenizers import _sentencepiece, save_tokenizer
from tests.sharing.conftest import call, refused


@pytest.mark.parametrize("method", ["lora", "full", "full without tokenizer"])
def test_a_changed_chat_template_is_reported(
    method: str, here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    base = chat_llama(here / "base")
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(30)
    ]
    (here / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = method.split(maxsplit=1)[0]
    options = ("--method", kind, "--steps", "2", "--dev", "4", "--test", "4", "--cpu", "--out", "study")
    assert call("train", "./base", "chats.jsonl", *options) == 0
    (saved,) = (here / "study" / "runs").glob("*/*/petransfer.json")
    if method == "full without tokenizer":  # older versions saved no tokenizer with the model
        (saved.parent / "tokenizer_config.json").unlink()
    caplog.clear()
    Adapter.load(here / "study", device="cpu").predict(["say 1"], 2)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING and "training" in one.getMessage()]
    template = base / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "model"))
    Adapter.load(here / "study", device="cpu").predict(["say 1"], 2)
    if method == "full":  # the model has its own chat template
        assert "chat template" not in caplog.text
        return
    assert "the chat template of base is not the one that was used in training" in caplog.text
    if method == "lora":
        capsys.readouterr()
        assert call("adapter", "verify", "study", "--cpu", "--no-evaluate") == 1
        assert "the chat template of base changed since training" in capsys.readouterr().out


def test_changed_token_ids_are_refused_and_added_tokens_give_a_warning(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert call("checkpoints", "cp", "nano/english", "base") == 0
    assert call("train", "./base", "pairs.tsv", "--steps", "2", "--test", "4", "--cpu", "--out", "study") == 0
    file = here / "base" / "tokenizer.json"
    before = file.read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(here / "base")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(here / "base")
    assert call("predict", "study", "to walk", "--max-new-tokens", "2", "--cpu") == 0
    assert "the tokenizer of base is not the one that was used in training" in caplog.text
    content = json.loads(before)
    ids = content["model"]["vocab"]
    first, second = [token for token in ids if token.strip("Ġ").isalpha()][-2:]
    ids[first], ids[second] = ids[second], ids[first]
    file.write_text(json.dumps(content), encoding="utf-8")
    for verb in (("predict", "study", "to walk"), ("eval", "study"), ("adapter", "merge", "study", "merged")):
        message = refused(capsys, *verb, "--cpu")
        assert "the tokenizer of base changed since the adapter was trained: texts now have other token ids" in message
        assert "restore it, or use --any-base to accept it as it is" in message
    assert not (here / "merged").exists()
    assert call("predict", "study", "to walk", "--max-new-tokens", "2", "--cpu", "--any-base") == 0


def test_a_changed_chat_template_changes_only_its_own_hash() -> None:
    tokenizer = AutoTokenizer.from_pretrained(NANO / "tokenizer")
    assert "chat_template_sha256" not in tokenizer_hashes(tokenizer, with_template=False)
    before = tokenizer_hashes(tokenizer, with_template=True)
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    after = tokenizer_hashes(tokenizer, with_template=True)
    assert {name for name in before if before[name] != after[name]} == {"chat_template_sha256"}


def test_a_changed_sentencepiece_file_changes_only_its_own_hash(tmp_path: Path) -> None:
    before = tokenizer_hashes(save_tokenizer("marian", tmp_path), with_template=False)
    _sentencepiece(tmp_path / "source.spm", unk_id=1, eos_id=0, bos_id=-1, model_type="bpe")
    after = tokenizer_hashes(AutoTokenizer.from_pretrained(tmp_path), with_template=False)
    assert {name for name in before if before[name] != after[name]} == {"sentencepiece_sha256"}


def _pickled(folder: Path, factor: float) -> None:
    torch.save({"weight": factor * torch.ones(2)}, folder / "pytorch_model.bin")


CHANGES: dict[str, Callable[[Path, int], object]] = {
    "weights": _pickled,
    "template": lambda folder, n: (folder / "chat_template.jinja").write_text(str(n)),
    "a further template": lambda folder, n: (folder / "additional_chat_templates" / "tool_use.jinja").write_text(
        str(n)
    ),
    "SentencePiece file": lambda folder, n: (folder / "source.spm").write_bytes(bytes([n])),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_of_a_base_changes_its_checkpoint_spec(
    change: Callable[[Path, int], object], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "additional_chat_templates").mkdir()
    _pickled(tmp_path, 0)
    change(tmp_path, 1)
    first = checkpoint_spec(str(tmp_path))
    change(tmp_path, 2)
    assert checkpoint_spec(str(tmp_path)) != first


def test_the_hash_of_a_base_with_safetensors_is_the_same_as_in_earlier_versions(tiny_t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_t5, tmp_path / "base")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    (folder / "pytorch_model.bin").write_bytes(b"not used, because there are safetensors")
    assert checkpoint_spec(str(folder)).weights == digest.hexdigest()
