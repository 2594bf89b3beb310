"""`petransfer.Adapter` loads runs, studies, bundles, bases and merged models, and predicts as the command line does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import petransfer
from petransfer.errors import UserError
from petransfer.models.registry import NANO
from petransfer.sharing.base import LoadOptions, base_of
from petransfer.sharing.bundle import open_bundle
from tests.sharing.conftest import ROWS, call, refused

TEXTS = [source for source, _ in ROWS[:6]]


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return the lines that `petransfer predict ARGUMENTS` prints."""
    capsys.readouterr()
    assert call("predict", *arguments, "--max-new-tokens", "16", "--cpu") == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_its_study_and_its_bundle_give_the_same_predictions(
    run: Path, packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run.parent.parent
    answers = [
        petransfer.Adapter.load(place, device="cpu").predict(TEXTS, max_new_tokens=16) for place in (run, study, packed)
    ]
    assert answers[0] == answers[1] == answers[2] == predicted(capsys, str(study), *TEXTS)
    assert len(set(answers[0])) > 1
    adapter = petransfer.Adapter.load(packed, device="cpu")
    assert (adapter.kind, adapter.label) == ("adapter", packed.name)
    scores = petransfer.Adapter.load(run, device="cpu").evaluate()
    assert scores.exact_match == scores.claimed == json.loads((run / "result.json").read_text())["test"]["exact_match"]
    assert all(check.passed for check in adapter.verify(evaluate=False))
    assert adapter.predict([]) == []
    with pytest.raises(UserError, match="list of texts"):
        adapter.predict("to walk")


def test_predict_on_a_study_with_several_runs_lists_them_and_needs_a_run_id(
    run: Path, trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = trained("nano/english", "--seeds", "1")
    for folder in (run, other):
        shutil.copytree(folder, here / "study" / "runs" / folder.name)
    message = refused(capsys, "predict", "study", "to walk")
    assert f"{run.name} (nano/english, lora, seed 0)" in message
    assert f"{other.name} (nano/english, lora, seed 1)" in message
    assert "--run ID" in message
    asked = predicted(capsys, "study", *TEXTS, "--run", other.name[:6])
    assert asked == predicted(capsys, str(other), *TEXTS)
    assert "holds no finished run whose id begins with zz" in refused(capsys, "predict", "study", "x", "--run", "zz")


def test_bases_and_merged_models_predict_and_are_scored(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = petransfer.Adapter.load(run, device="cpu").merge(here / "merged", bits=32)
    claims = json.loads((run / "adapter" / "petransfer.json").read_text())["claims"]
    assert merged.dev == merged.dev_claimed == claims["dev"]["exact_match"]
    expected = predicted(capsys, str(run), *TEXTS)
    assert predicted(capsys, "merged", *TEXTS) == expected
    assert predicted(capsys, "nano/english", *TEXTS) != expected
    assert petransfer.Adapter.load(here / "merged", device="cpu").kind == "model"
    with pytest.raises(UserError, match="merged is a whole model, not an adapter"):
        petransfer.Adapter.load("merged").merge("again")
    assert call("eval", str(run), "nano/english", "merged", "--base", "--data", "pairs.tsv", "--cpu", "--json") == 0
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["base: nano/english", str(run), "nano/english", "merged", f"merged: {run}"]
    assert rows["merged"]["exact_match"] == rows[str(run)]["exact_match"] == rows[f"merged: {run}"]["exact_match"]
    assert rows["nano/english"]["exact_match"] == rows["base: nano/english"]["exact_match"] == 0


def test_merge_reports_the_differences_from_the_model_at_the_bits_of_training(
    trained: Callable[..., Path], here: Path
) -> None:
    adapter = petransfer.Adapter.load(trained("nano/english", "--bits", "4"), device="cpu")
    merged = adapter.merge(here / "merged")
    assert (merged.bits, merged.trained_bits) == (16, 4)
    assert merged.moved_from_trained is not None
    assert merged.moved_from_trained > 2 * merged.moved
    assert merged.agree_with_trained is not None
    assert merged.agree_with_trained <= merged.agree


def test_training_rows_are_counted_and_scored_separately(
    run: Path, place: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "more.tsv").write_text((here / "pairs.tsv").read_text() + "to sing 9\tsingen\n", encoding="utf-8")
    scores = petransfer.Adapter.load(run, device="cpu").evaluate("more.tsv")
    result = json.loads((run / "result.json").read_text())
    sizes = {part: result[part]["examples"] for part in ("dev", "test")}
    assert scores.examples == 41
    assert scores.seen_rows is not None
    assert len(scores.seen_rows) == 40 - sizes["dev"] - sizes["test"]
    assert "seen_rows" not in repr(scores)  # a notebook would show the number of each row
    right = scores.exact_match * 41 / 100
    assert scores.seen is not None
    assert scores.unseen is not None
    seen = len(scores.seen_rows)
    assert right == pytest.approx(scores.seen * seen / 100 + scores.unseen * (41 - seen) / 100)
    assert call("eval", str(run), "--data", "more.tsv", "--cpu") == 0
    assert f"was trained on {seen} of these 41 rows" in capsys.readouterr().err
    for part in ("dev", "test"):
        held_out = petransfer.Adapter.load(run, device="cpu").evaluate("more.tsv", part=part)
        assert (held_out.examples, held_out.seen_rows) == (sizes[part], ())
        assert held_out.exact_match == pytest.approx(result[part]["exact_match"])
    (place / "pairs.tsv").rename(place / "moved.tsv")
    capsys.readouterr()
    assert call("eval", str(run), "--data", "more.tsv", "--cpu") == 0
    message = capsys.readouterr().err
    assert message.count("its training data are not here, or have changed, so it is not known which of these rows") == 1
    (place / "moved.tsv").rename(place / "pairs.tsv")


def test_evaluate_refuses_a_part_for_pairs_and_an_unknown_part(here: Path) -> None:
    base = petransfer.Adapter.load("nano/english", device="cpu")
    with pytest.raises(UserError, match=r"part 'dev' was given with pairs .* have no parts; remove part"):
        base.evaluate([("to walk", "gehen")], part="dev")
    with pytest.raises(UserError, match=r"unknown part 'tset': did you mean 'test'\? \(known: dev, test\)"):
        base.evaluate("pairs.tsv", part="tset")


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_a_base_checkpoint_has_32_bits_on_every_name_of_the_cpu(device: Any) -> None:
    base = petransfer.Adapter.load("nano/english", device=device)
    assert base.predictor.loaded.model.dtype == torch.float32


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder with a base and an adapter that plain peft saved for this base."""
    torch.manual_seed(0)
    base = AutoModelForSeq2SeqLM.from_pretrained(NANO / "english")
    tokenizer = AutoTokenizer.from_pretrained(NANO / "tokenizer")
    base.resize_token_embeddings(base.get_input_embeddings().num_embeddings + 8)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = get_peft_model(
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base"), LoraConfig(target_modules=["q", "v"])
    )
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    return tmp_path


def test_an_adapter_of_plain_peft_gets_a_base_with_32_bits_on_the_cpu(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with open_bundle(str(plain / "adapter")) as bundle:
        assert base_of(bundle, LoadOptions(device="cpu")).bits == 32
        assert base_of(bundle, LoadOptions(device="cuda:1")).bits == 16
        assert base_of(bundle, LoadOptions()).bits == 16


def test_an_adapter_of_plain_peft_works_with_the_new_path_of_its_moved_base(
    plain: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plain / "base").rename(plain / "moved")
    assert "as its base, and there is no such folder on this machine; name the base with --checkpoint" in refused(
        capsys, "predict", str(plain / "adapter"), "to walk"
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(plain / "moved")
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, plain / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(plain / "moved")
    expected = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")
        expected.append(tokenizer.decode(model.generate(**ids, max_new_tokens=8)[0], skip_special_tokens=True))
    adapter = petransfer.Adapter.load(plain / "adapter", checkpoint=str(plain / "moved"), device="cpu")
    assert [adapter.predict([text], max_new_tokens=8)[0] for text in TEXTS] == expected
    # nano/english is resized to the vocabulary of the adapter
    small = petransfer.Adapter.load(plain / "adapter", checkpoint="nano/english", device="cpu")
    assert [small.predict([text], max_new_tokens=8)[0] for text in TEXTS] == expected


def test_a_base_whose_weights_changed_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("checkpoints", "cp", "nano/english", "base") == 0
    options = ("--steps", "4", "--test", "10", "--cpu", "--out", "study")
    assert call("train", "./base", "pairs.tsv", *options) == 0
    expected = predicted(capsys, "study", "to walk")
    # save the same tensors in several files; the tied embeddings are saved more than once
    same = AutoModelForSeq2SeqLM.from_pretrained("base")
    tensors = {name: value.clone() for name, value in same.state_dict().items()}
    (here / "base" / "model.safetensors").unlink()
    same.save_pretrained("base", state_dict=tensors, max_shard_size="400KB")
    assert len(list((here / "base").glob("model-0*.safetensors"))) > 1
    assert predicted(capsys, "study", "to walk") == expected
    assert call("adapter", "verify", "study", "--cpu", "--no-evaluate") == 0
    assert "have the recorded values; they are saved in other files" in capsys.readouterr().out
    for file in (here / "base").glob("model*"):
        file.unlink()
    other = AutoModelForSeq2SeqLM.from_pretrained(NANO / "german")
    other.save_pretrained("base")
    for verb in (("predict", "study", "to walk"), ("eval", "study"), ("adapter", "merge", "study", "merged")):
        message = refused(capsys, *verb, "--cpu")
        assert "base is not the base that the adapter was trained on: model.safetensors has the sha256" in message
        assert "and its tensors have other values; use --any-base to accept it" in message
        assert "if its tensors have" not in message
    assert len(predicted(capsys, "study", "to walk", "--any-base")) == 1


def _changed(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_base_whose_configuration_changed_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("checkpoints", "cp", "nano/english", "base") == 0
    options = ("--steps", "4", "--test", "10", "--cpu")
    assert call("train", "./base", "pairs.tsv", *options, "--out", "study") == 0
    (run,) = (here / "study" / "runs").iterdir()
    expected = predicted(capsys, "study", "to walk")
    shutil.copytree(here / "base", here / "elsewhere" / "base")
    before = json.loads((here / "base" / "config.json").read_text())["layer_norm_epsilon"]
    _changed(here / "base", layer_norm_epsilon=0.5)
    message = f"config.json of base changed since the adapter was trained: layer_norm_epsilon was {before} and is 0.5"
    verbs = (
        ("predict", "study", "to walk"),
        ("eval", "study"),
        ("adapter", "merge", "study", "merged"),
        ("serve", "study"),
    )
    for verb in verbs:
        error = refused(capsys, *verb, "--cpu")
        assert message in error
        assert "--any-base" in error
    assert not (here / "merged").exists()
    assert call("adapter", "verify", "study", "--no-evaluate", "--cpu") == 1
    assert f"config.json of base changed since training: layer_norm_epsilon was {before} and is 0.5" in (
        capsys.readouterr().out
    )
    assert len(predicted(capsys, "study", "to walk", "--any-base")) == 1
    assert predicted(capsys, "study", "to walk", "--checkpoint", "elsewhere/base") == expected
    assert call("train", "./base", "pairs.tsv", *options, "--out", "other") == 0
    error = refused(capsys, "eval", "study", "other", "--cpu")
    assert f"bases with different configurations (layer_norm_epsilon: {before} and 0.5)" in error
    path = run / "adapter" / "petransfer.json"
    content = json.loads(path.read_text())
    del content["base"]["configuration"]
    path.write_text(json.dumps(content))
    assert len(predicted(capsys, "study", "to walk")) == 1, (
        "adapters of earlier versions have no record of the configuration"
    )
    assert call("adapter", "verify", "study", "--no-evaluate", "--cpu") == 0


def test_a_whole_model_whose_config_json_changed_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method", "full", "--steps", "2", "--test", "10", "--cpu", "--out", "study")
    assert call("train", "nano/english", "pairs.tsv", *options) == 0
    (run,) = (here / "study" / "runs").iterdir()
    _changed(run / "model", layer_norm_epsilon=0.5)
    for verb in (("predict", "study", "to walk"), ("eval", "study")):
        error = refused(capsys, *verb, "--cpu")
        assert "config.json is not the file that the run saved" in error
        assert "--any-base" in error
    assert len(predicted(capsys, "study", "to walk", "--any-base")) == 1
