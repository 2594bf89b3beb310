"""Rows are scored, and shown in cards, in the form of the training: template or chat. Damaged files are refused."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import petransfer
from petransfer.errors import UserError
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import Options, RunSpec
from petransfer.sharing import plain_check
from petransfer.sharing.bundle import bundle_of_folder
from petransfer.sharing.card import card
from petransfer.sharing.usage_code import base_in_words, usage
from tests.chat_models import CHATML, byte_level, chat_llama
from tests.sharing.conftest import call

STEPS = ("--steps", "2", "--cpu", "--dev", "4", "--test", "4")
TEMPLATE = "title: {title} of {year}"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A study with a template of two columns, and rows that were not in its training."""
    folder = tmp_path_factory.mktemp("templated")
    rows = [{"title": f"book {n}", "year": n, "target": "walk" if n % 2 else "run"} for n in range(30)]
    data = write(folder / "a.jsonl", rows)
    assert call("train", "nano/english", data, "--template", TEMPLATE, *STEPS, "--out", str(folder / "out")) == 0
    return folder / "out", [row | {"title": "new"} for row in rows[:4]]


def test_evaluate_applies_the_template_to_pairs_with_json_objects(
    templated: tuple[Path, list[dict[str, Any]]], here: Path
) -> None:
    run, rows = templated
    adapter = petransfer.Adapter.load(run, device="cpu")
    expected = adapter.evaluate(write(here / "new.jsonl", rows))
    pairs = [(json.dumps(row), row["target"]) for row in rows]
    assert adapter.evaluate(pairs).log_prob_per_token == pytest.approx(expected.log_prob_per_token, abs=1e-5)
    with pytest.raises(UserError, match="not a JSON object with title, year"):
        adapter.evaluate([("new", "walk")])


def test_the_folder_of_a_training_is_refused_as_a_base_with_advice(run: Path, here: Path) -> None:
    shutil.copytree(run, "study/runs/0123")
    for place in ("study", "study/runs/0123", "study/runs/0123/adapter"):
        with pytest.raises(UserError, match=f"{place} is an adapter, .*`petransfer adapter merge {place} merged`"):
            checkpoint_spec(place)
    Path("study/runs/0123/adapter").rename("study/runs/0123/model")
    Path("study/runs/0123/model/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"study is a finished training, .*name the folder .*study/runs/0123/model"):
        checkpoint_spec("study")


def test_the_code_in_the_card_contains_the_template(templated: tuple[Path, list[dict[str, Any]]]) -> None:
    run, _ = templated
    message = card(petransfer.Adapter.load(run)._source.adapter())
    assert "tokenizer('title: the title of the year'," in message
    assert """predict adapter.petransfer.zip '{"title": "the title", "year": "the year"}'""" in message


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was trained on chats."""
    folder = tmp_path_factory.mktemp("chats")
    base = chat_llama(folder / "base")
    turns = [[{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": f"Ho {n}"}] for n in range(30)]
    data = write(folder / "chats.jsonl", [{"messages": turn} for turn in turns])
    assert call("train", str(base), data, *STEPS, "--out", str(folder / "out")) == 0
    return folder / "out"


def test_verify_plain_uses_the_chat_template_for_plain_transformers_too(
    chat_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = petransfer.Adapter.load(chat_run, device="cpu")
    seen: list[Any] = []
    generations = plain_check.generations

    def noted(model: Any, loaded: Any, rows: Any, *rest: Any, **options: Any) -> Any:
        seen.append((loaded.tokenizer.decode(rows[0]), loaded.tokenizer.decode(loaded.layout.eos_id)))
        return generations(model, loaded, rows, *rest, **options)

    monkeypatch.setattr(plain_check, "generations", noted)
    assert adapter.verify(evaluate=False, plain=True)[-1].passed
    assert len(seen) == 2
    for prompt, end in seen:
        assert re.fullmatch(r"<\|im_start\|>user\nHi \d+<\|im_end\|>\n<\|im_start\|>assistant\n", prompt)
        assert end == "<|im_end|>"


def test_the_code_in_the_card_uses_the_chat_template_and_its_end_token(chat_run: Path, here: Path) -> None:
    adapter = petransfer.Adapter.load(chat_run, device="cpu")
    bundle = adapter._source.adapter()
    shutil.copytree(bundle.weights.parent, "adapter")
    shutil.copytree(chat_run.parent / "base", "base")
    (code,) = re.findall(r"```python\n(.*?)```", card(bundle), flags=re.DOTALL)
    message = io.StringIO()
    with contextlib.redirect_stdout(message):
        exec(code.replace("max_new_tokens=128", "max_new_tokens=16"), names := {})
    assert message.getvalue() == adapter.predict(["an input"], max_new_tokens=16)[0] + "\n"
    assert names["end"] == adapter.predictor.loaded.layout.eos_id != names["tokenizer"].eos_token_id


def test_the_card_of_a_base_with_languages_has_no_code(run: Path) -> None:
    spec = bundle_of_folder(run).spec
    assert spec is not None
    languages = replace(spec.checkpoint, source_language="en_XX", target_language="de_DE")
    message = usage(replace(spec, checkpoint=languages), {})
    assert "en_XX and de_DE" in message
    assert "```python" not in message


@pytest.mark.parametrize("name", ['a", trust_remote_code=True) #', "a](https://x.y) <b>", "a`\n```\n<script>", "a|b"])
def test_markup_and_code_in_the_name_of_a_base_are_escaped_in_the_card(name: str, run: Path) -> None:
    spec = bundle_of_folder(run).spec
    assert spec is not None
    named = replace(spec, checkpoint=replace(spec.checkpoint, name=name, weights="main"))
    assert not re.search(r"[<`\n]|\]\(https://x\.y", base_in_words(named))
    message = usage(named, {})
    assert f"from_pretrained({json.dumps(name)}" in message
    assert "<script>" not in message.partition("```python")[0]
    assert message.count("\n```") == 4


def test_a_dataset_is_scored_on_its_test_split_or_else_on_its_only_split(run: Path, here: Path) -> None:
    import datasets

    def part(targets: list[str]) -> Any:
        return datasets.Dataset.from_dict({"input": [f"to {t} {n}" for n, t in enumerate(targets)], "target": targets})

    datasets.DatasetDict({"train": part(["gehen"] * 5), "test": part(["rennen"] * 3)}).save_to_disk("both")
    datasets.DatasetDict({"train": part(["gehen"] * 5)}).save_to_disk("one")
    adapter = petransfer.Adapter.load(run, device="cpu")
    both, one = adapter.evaluate("both"), adapter.evaluate("one")
    assert (both.task, both.examples) == ("both, split test", 3)
    assert (one.task, one.examples) == ("one, split train", 5)


def test_the_error_names_the_row_with_more_tokens_than_positions(trained: Callable[..., Path], tiny_gpt2: Path) -> None:
    adapter = petransfer.Adapter.load(trained(str(tiny_gpt2)), device="cpu")
    with pytest.raises(UserError, match=r"1 of 2 rows of 2 pairs cannot be scored: row 2: the input and target"):
        adapter.evaluate([("to walk", "gehen"), ("to walk " * 2000, "gehen")])


@pytest.mark.parametrize("content", ["{}", '{"task": 3}', '{"checkpoint": {"name": 1}, "task": {}, "method": {}}'])
def test_a_damaged_spec_json_is_named_in_the_error(content: str, run: Path, here: Path) -> None:
    shutil.copytree(run, "copy")
    Path("copy/spec.json").write_text(content)
    adapter = petransfer.Adapter.load("copy", device="cpu")
    for use in (lambda: adapter.predict(["to walk"]), adapter.evaluate):
        with pytest.raises(UserError, match=r"copy/spec\.json is damaged"):
            use()


def test_a_spec_json_of_another_run_is_refused(run: Path, here: Path) -> None:
    shutil.copytree(run, "copy")
    spec = RunSpec.from_dict(json.loads(Path("copy/spec.json").read_text()))
    other = replace(spec, task=replace(spec.task, options=Options({"sha256": "0" * 64})))
    Path("copy/spec.json").write_text(json.dumps(other.as_dict()))
    with pytest.raises(UserError, match=rf"spec\.json describes the run {other.run_id}, and petransfer\.json of"):
        petransfer.Adapter.load("copy", device="cpu").predict(["to walk"])


@pytest.mark.parametrize("content", ["task: 3", "task: [1]", "task: {options: [1]}", "task: {options: {train: [1]}}"])
def test_a_damaged_recipe_is_named_in_the_error(content: str, run: Path, here: Path) -> None:
    shutil.copytree(run.parent.parent, "study")
    Path("study/recipe.yaml").write_text(content)
    with pytest.raises(UserError, match=r"recipe\.yaml is damaged \(task"):
        petransfer.Adapter.load(f"study/runs/{run.name}")


def test_a_damaged_file_of_a_merged_model_is_named_in_the_error(run: Path, here: Path) -> None:
    petransfer.Adapter.load(run, device="cpu").merge("merged")
    for name, content, message in (
        ("model.safetensors", Path("merged/model.safetensors").read_bytes()[:-50], r"model\.safetensors is damaged"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("tokenizer.json", b'{"version"', "the tokenizer of merged cannot be loaded"),
        ("config.json", b'{"model_type": "t5", "d_model": "a"}', r"config\.json of merged is wrong"),
    ):
        file = Path("merged", name)
        kept = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            petransfer.Adapter.load("merged", device="cpu").predict(["to walk"])
        file.write_bytes(kept)


def test_a_tilde_in_a_path_means_the_home_folder(run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    petransfer.Adapter.load(run, device="cpu").merge("~/merged")
    assert (here / "home" / "merged" / "config.json").is_file()
    assert petransfer.Study("smoke", out="~/study").folder == here / "home" / "study"
    assert not (here / "~").exists()


def test_chats_are_scored_with_the_chat_template_and_refused_without_one(
    here: Path, run: Path, tiny_gpt2: Path
) -> None:
    chat = [{"role": "user", "content": "to walk"}, {"role": "assistant", "content": "go"}]
    Path("chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    folder = chat_llama(Path("chat"))
    base = petransfer.Adapter.load(folder, device="cpu")
    # the answer ends with the template's end of turn, which is not the tokenizer's end token
    found = base.evaluate("chats.jsonl").log_prob_per_token
    tokenizer, model = byte_level(), LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor(tokenizer.apply_chat_template(chat)["input_ids"][:-1])  # without the last line break
    with torch.inference_mode():
        logits_tv = model(ids[None]).logits[0, :-1].log_softmax(-1)
    answer = tokenizer("go<|im_end|>")["input_ids"]
    assert ids[-len(answer) :].tolist() == answer
    assert found == pytest.approx(
        logits_tv[-len(answer) :].gather(1, ids[-len(answer) :, None]).mean().item(), abs=1e-5
    )

    for place, kind in ((run, "an encoder-decoder"), (tiny_gpt2, "a model without a chat template")):
        with pytest.raises(UserError, match=f"chats.jsonl holds chats, and .* is {kind}; give rows with"):
            petransfer.Adapter.load(place, device="cpu").evaluate("chats.jsonl")
    refusing = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHATML
    other = petransfer.Adapter.load(chat_llama(Path("refuses"), refusing), device="cpu")
    rows = [chat, [{"role": "system", "content": "be brief"}, *chat]]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"1 of 2 rows of chats.jsonl cannot be scored: row 2: the chat template ref"):
        other.evaluate("chats.jsonl")
