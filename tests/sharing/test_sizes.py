"""A small bundle cannot use much memory or time: sizes and patterns are checked before peft allocates memory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load, save

from petransfer.errors import UserError
from petransfer.sharing import examples_file, slow_patterns
from petransfer.sharing.examples_file import rows_of, without_texts
from tests.sharing.conftest import contents, refused, write

ROOT = "base_model.model."
LAYER = f"{ROOT}encoder.block.0.layer.0.SelfAttention.q"
COMMON = {"base_model_name_or_path": "nano/english", "task_type": "SEQ_2_SEQ_LM", "inference_mode": True}
TOKENS = {"num_transformer_submodules": 1, "num_attention_heads": 1, "num_layers": 1}
CASES: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "VeRA of rank 10**7": (
        {"peft_type": "VERA", "r": 10**7, "target_modules": ["q"], "projection_prng_key": 0, "save_projection": False},
        {f"{LAYER}.vera_lambda_d": torch.ones(4), f"{LAYER}.vera_lambda_b": torch.ones(4)},
        "a rank of 10,000,000 needs projections",
    ),
    "a prefix of 32,768 x 16,384": (
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 32_768, "token_dim": 16_384, **TOKENS},
        {"prompt_embeddings": torch.ones(2, 4)},
        "describes 1,073,741,824 parameters, and its file holds 8",
    ),
    "a prompt of 65,536 x 65,536": (
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 65_536, "token_dim": 65_536, **TOKENS},
        {"prompt_embeddings": torch.ones(2, 4)},
        "describes 4,294,967,296 parameters, and its file holds 8",
    ),
    "IA3 with a pattern without end": (
        {"peft_type": "IA3", "target_modules": r"(([\w.])+)+!", "feedforward_modules": []},
        {f"{LAYER}.ia3_l": torch.ones(4)},
        "take more than 0.5 s to match",
    ),
    "VeRA with a pattern of layers without end": (
        {
            "peft_type": "VERA", "r": 2, "target_modules": ["q"], "layers_to_transform": [0],
            "layers_pattern": r"(([\w.])+)+!",
        },
        {f"{LAYER}.vera_lambda_d": torch.ones(2), f"{LAYER}.vera_lambda_b": torch.ones(4)},
        "take more than 0.5 s to match",
    ),
    "a module to save that is a pattern": (
        {"peft_type": "IA3", "target_modules": ["q"], "feedforward_modules": [], "modules_to_save": ["(a+)+$"]},
        {f"{LAYER}.ia3_l": torch.ones(4)},
        "is not the name of a layer",
    ),
    "rows of embeddings that are no numbers": (
        {"peft_type": "IA3", "target_modules": ["q"], "feedforward_modules": [], "trainable_token_indices": ["q"]},
        {f"{LAYER}.ia3_l": torch.ones(4)},
        "trainable_token_indices is not a list of rows",
    ),
    "layers that are no names": (
        {"peft_type": "IA3", "target_modules": [3], "feedforward_modules": []},
        {f"{LAYER}.ia3_l": torch.ones(4)},
        "cannot be applied to t5",
    ),
    "a bias that is nothing": (
        {"peft_type": "VERA", "r": 2, "target_modules": ["q"], "bias": None},
        {f"{LAYER}.vera_lambda_d": torch.ones(2), f"{LAYER}.vera_lambda_b": torch.ones(4)},
        "cannot be applied to t5",
    ),
    "a prompt for a number of parts that is none": (
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "token_dim": 4} | TOKENS
        | {"num_transformer_submodules": "x"},
        {"prompt_embeddings": torch.ones(2, 4)},
        "num_transformer_submodules is 'x'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_small_bundle_with_extreme_or_invalid_settings_is_refused_quickly(
    case: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_patterns, "SECONDS", 0.5)
    config, tensors, message = CASES[case]
    files = {"adapter_config.json": json.dumps(COMMON | config).encode(), "adapter_model.safetensors": save(tensors)}
    write(here / "x.petransfer.zip", files)
    before = time.process_time()
    assert message in refused(capsys, "predict", "x.petransfer.zip", "to walk", "--cpu")
    assert time.process_time() - before < 30


def test_a_rank_that_is_too_large_for_layers_without_tensors_is_refused(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = contents(packed)
    config, tensors = json.loads(files["adapter_config.json"]), load(files["adapter_model.safetensors"])
    kept = {name: value for name, value in tensors.items() if name.startswith(f"{LAYER}.lora")}
    rank = 65_536
    kept = {name: torch.zeros(rank, 1) if "lora_A" in name else torch.zeros(1, rank) for name in kept}
    config |= {"r": rank, "target_modules": ["q"], "rank_pattern": {}, "trainable_token_indices": None}
    plain = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(kept)}
    write(here / "x.petransfer.zip", plain)
    message = refused(capsys, "predict", "x.petransfer.zip", "to walk", "--cpu")
    assert "does not fit its base: on this base it would have" in message


def test_an_examples_file_with_too_many_rows_or_damage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "examples.parquet"
    columns = {"index": [0] * 2000, "correct": [True] * 2000, "log_prob": [0.0] * 2000, "prediction": ["x"] * 2000}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert len(rows_of(path)) == 2000
    (tmp_path / "kept.parquet").write_bytes(without_texts(path))
    assert pyarrow.parquet.read_table(tmp_path / "kept.parquet").column_names == ["index", "correct", "log_prob"]
    monkeypatch.setattr(examples_file, "ROWS", 1999)
    for read in (rows_of, without_texts):
        with pytest.raises(UserError, match="has 2,000 rows; at most 1,999 are read"):
            read(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"examples\.parquet cannot be read"):
        rows_of(path)


def test_an_examples_file_with_columns_of_wrong_types_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "examples.parquet"
    columns = {"index": [0] * 9, "correct": ["x"] * 9, "log_prob": [0.0] * 9}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="holds other values than a run writes"):
        rows_of(path)
