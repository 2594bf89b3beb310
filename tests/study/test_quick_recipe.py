"""The recipe that `train` makes from a model and a data file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, BartForConditionalGeneration, GPT2LMHeadModel

from petransfer.errors import UserError
from petransfer.study.quick_recipe import recipe_for
from petransfer.study.train_request import TrainRequest
from tests.tiny_models import keep

MADE = {"bart": BartForConditionalGeneration, "gpt2": GPT2LMHeadModel}
SIZES = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "n_embd": 32, "n_layer": 1, "n_head": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "tasks", "prefix"),
    [
        ("t5", {"summarization": {"prefix": "summarize: ", "num_beams": 4}}, "answer: "),
        ("t5", {"summarization": {"num_beams": 4}}, ""),
        ("t5", {"summarization": {"prefix": " "}}, ""),
        ("t5", ["summarization"], ""),
        ("bart", {"summarization": {"num_beams": 4, "length_penalty": 2.0}}, ""),
        ("bart", {"translation": {"prefix": "translate: "}}, ""),
        ("gpt2", {"text-generation": {"do_sample": True, "max_length": 50}}, ""),
    ],
)
def test_only_an_original_t5_gets_a_prefix(
    kind: str, tasks: object, prefix: str, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.tsv").write_text("".join(f"say {n}\t{n}\n" for n in range(40)))
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "base"))
    if kind != "t5":
        shutil.rmtree(folder)
        keep(folder, lambda tokens: MADE[kind](AutoConfig.for_model(kind, vocab_size=tokens, **SIZES)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    recipe = recipe_for(str(folder), str(tmp_path / "rows.tsv"), TrainRequest(), [], False)
    assert recipe["task"]["prefix"] == prefix


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """The path of a file with 40 rows."""
    (tmp_path / "rows.tsv").write_text("".join(f"say {n}\t{n}\n" for n in range(40)))
    return str(tmp_path / "rows.tsv")


def test_a_method_in_an_override_has_its_own_defaults(rows: str) -> None:
    chosen = recipe_for("nano/english", rows, TrainRequest(method="full"), [], False)
    assert chosen["train"]["learning_rate"] == 2e-2
    assert recipe_for("nano/english", rows, TrainRequest(), ["methods.0.name=full"], False) == chosen


@pytest.mark.parametrize(
    ("methods", "rate"),
    [
        ("[{name: lora, rank: 2}, {name: full, rate_scaling: rms}]", {"lora": 2e-3, "full": 2e-2}),
        ("[{name: full, rate_scaling: rms}]", 2e-2),
        ("[{name: full}]", 1e-4),  # 2e-2 is a share of each tensor's size
    ],
)
def test_the_default_learning_rate_is_chosen_for_the_methods_of_an_override(
    methods: str, rate: object, rows: str
) -> None:
    found = recipe_for("nano/english", rows, TrainRequest(), [f"methods={methods}"], False)
    assert found["train"]["learning_rate"] == rate


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        ({}, ["train.epochs=2"], "--set train.epochs: use --epochs instead"),
        (
            {"max_minutes": 3},
            ["train.early_stopping=null"],
            "--max-minutes is a part of train.early_stopping, which --set",
        ),
        ({"max_minutes": 3, "steps": 9}, ["train.early_stopping.patience=4"], "train.early_stopping.max_minutes=3"),
        ({"max_minutes": 3, "steps": 9}, [], "--max-minutes needs early stopping"),
        ({"max_minutes": 3, "early_stopping": 0}, [], "--max-minutes needs early stopping"),
    ],
)
def test_an_override_that_contradicts_an_option_is_refused(
    settings: dict[str, Any], overrides: list[str], message: str, rows: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        recipe_for("nano/english", rows, TrainRequest(**settings), overrides, False)


@pytest.mark.parametrize("override", ["train.early_stopping.max_minutes=5", "train.early_stopping.patience=9"])
def test_an_override_that_keeps_a_time_limit_is_accepted(override: str, rows: str) -> None:
    found = recipe_for("nano/english", rows, TrainRequest(max_minutes=3), [override], False)
    assert found["train"]["early_stopping"]["max_minutes"] == (5 if "max_minutes" in override else 3)


@pytest.mark.parametrize(
    ("model", "data", "advice"),
    [
        ("rows.tsv", "nano/english", "petransfer train MODEL rows.tsv"),
        ("base/config.json", "rows.tsv", "name the folder base"),
        ("https://huggingface.co/google/flan-t5-small", "rows.tsv", "give its hub id, google/flan-t5-small"),
        ("nano/english", "https://huggingface.co/datasets/me/rows", "give its hub id, me/rows"),
        ("nano/english", "https://example.org/rows.csv", "download the file first"),
    ],
)
def test_wrong_models_and_data_files_are_refused_with_advice(
    model: str, data: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.tsv").write_text("to walk\tgehen\n" * 20)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape(advice)):
        recipe_for(model, data, TrainRequest(), [], False)
