"""Refuse values in config.json with which a model fails always, or only on longer texts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from petransfer import fit
from petransfer.errors import UserError
from petransfer.models.architecture import configuration
from petransfer.models.config_values import refuse_wrong_values
from petransfer.models.loading import load
from petransfer.models.registry import checkpoint_spec


def _computes(buckets: int, furthest: int) -> bool:
    """Return whether transformers finds a bucket for each distance up to 300, in the encoder and in the decoder."""
    distances = torch.arange(-300, 301)
    for bidirectional in (True, False):
        try:
            found = T5Attention._relative_position_bucket(distances, bidirectional, buckets, furthest)
        except (ValueError, ZeroDivisionError):
            return False
        if not bool(((found >= 0) & (found < buckets)).all()):
            return False
    return True


@pytest.mark.parametrize("buckets", [1, 2, 3, 4, 5, 8, 31, 32])
def test_relative_positions_are_refused_exactly_where_t5_fails(buckets: int) -> None:
    for furthest in (-1, 0, 1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 128):
        config = T5Config(relative_attention_num_buckets=buckets, relative_attention_max_distance=furthest)
        if _computes(buckets, furthest):
            refuse_wrong_values(config, "base")
        else:
            with pytest.raises(UserError, match=r"config\.json of base says relative_attention_.*get the checkpoint"):
                refuse_wrong_values(config, "base")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"relative_attention_max_distance": 16}, "relative_attention_max_distance=16"),
    ({"feed_forward_proj": "gated-nothing"}, "'nothing'"),
    ({"layer_norm_epsilon": -1e-6}, "layer_norm_epsilon=-1e-06"),
    ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon"),
    ({"dropout_rate": "0.1"}, "dropout_rate"),
    ({"num_decoder_layers": 0}, "num_decoder_layers=0"),
    ({"model_type": "t6"}, "does not know its model_type"),
    ({"model_type": None}, "model_type"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_loading_the_model_or_its_configuration_names_the_wrong_value(
    wrong: dict[str, Any], message: str, tiny_t5: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "base"))
    content = json.loads((folder / "config.json").read_text())
    content = {key: value for key, value in content.items() if key not in ("dense_act_fn", "is_gated_act")}
    (folder / "config.json").write_text(json.dumps(content | wrong))
    for read in (lambda: load(str(folder), 32, device="cpu"), lambda: configuration(checkpoint_spec(str(folder)))):
        with pytest.raises(UserError) as error:
            read()
        assert message in str(error.value)
        assert "config.json of" in str(error.value)
        assert "no configuration" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "", "\ufeff{}", "nul", '{"model_type": "t5", "num_heads": {}}'])
def test_a_malformed_config_json_is_reported_as_wrong(text: str, tiny_t5: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "base"))
    (folder / "config.json").write_text(text)
    for read in (lambda: load(str(folder), 32, device="cpu"), lambda: configuration(checkpoint_spec(str(folder)))):
        with pytest.raises(
            UserError, match=r"config\.json of .*base is wrong \(.+\); correct it, or get the checkpoint"
        ):
            read()


def test_a_model_that_needs_code_from_its_repository_is_refused(tiny_t5: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "base"))
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(own))
    for read in (lambda: load(str(folder), 32, device="cpu"), lambda: configuration(checkpoint_spec(str(folder)))):
        with pytest.raises(UserError, match=r"code of its own .* which petransfer does not run"):
            read()


def test_key_heads_whose_number_does_not_divide_the_query_heads_are_refused() -> None:
    config = LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=4, head_dim=8)
    with pytest.raises(UserError, match="num_attention_heads=6 and num_key_value_heads=4; the second must divide"):
        refuse_wrong_values(config, "base")
    refuse_wrong_values(LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8), "base")


def test_values_that_the_code_of_the_architecture_refuses_are_reported(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1)
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    rotary = {"rope_parameters": {"rope_type": "unheard of", "rope_theta": 1e4}}
    (tmp_path / "config.json").write_text(json.dumps(content | rotary))
    with pytest.raises(UserError, match=r"config\.json of .* is wrong \(KeyError: 'unheard of'\); correct it"):
        fit(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(content | {"num_key_value_heads": 0}))
    with pytest.raises(UserError, match="num_key_value_heads=0; it must be a whole number above 0"):
        fit(str(tmp_path))


def test_nan_in_the_configuration_is_refused() -> None:
    config = LlamaConfig(rms_norm_eps=1e-6)
    config.rms_norm_eps = math.nan
    with pytest.raises(UserError, match="rms_norm_eps=nan"):
        refuse_wrong_values(config, "base")
