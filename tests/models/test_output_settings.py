"""Output settings and similar fields of config.json, which do not describe the architecture, are ignored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from petransfer import Adapter, UserError
from petransfer.models.loading import load
from tests.cli.calls import call

SETTINGS: list[dict[str, Any]] = [
    {"return_dict": False},
    {"output_attentions": True},
    {"output_hidden_states": True, "use_cache": False},
    {"attn_implementation": "flash_attention_2", "gradient_checkpointing": True},
    {"sliding_window": 2},  # for models whose attention has no window
]


@pytest.mark.parametrize("fields", SETTINGS, ids=lambda fields: next(iter(fields)))
@pytest.mark.parametrize("base", ["tiny_t5", "tiny_gpt2"])
def test_output_settings_in_config_json_do_not_change_predictions(
    base: str, fields: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plain: Path = request.getfixturevalue(base)
    changed = Path(shutil.copytree(plain, tmp_path / "base"))
    content = json.loads((plain / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(content | fields))
    texts = ["walk twice", "jump left and walk"]
    expected = Adapter.load(plain, device="cpu").predict(texts, 6)
    assert Adapter.load(changed, device="cpu").predict(texts, 6) == expected
    for bits in (32, 8):
        model, _ = load(changed, bits, device="cpu")  # type: ignore[arg-type]
        assert all(module.config.return_dict for module in model.modules() if hasattr(module, "config"))
        assert model.config._attn_implementation == "sdpa"
        assert not model.is_gradient_checkpointing
    model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", "[1]", r"generation_config\.json of .* is wrong \('list' object"),
        ("generation_config.json", '{"compile_config": {"mode": 1}}', r"generation_config\.json of .* is wrong"),
        ("tokenizer_config.json", "5", r"the tokenizer of .* \(tokenizer_config\.json is not a JSON object\)"),
        ("special_tokens_map.json", "{", r"the tokenizer of .* \(special_tokens_map\.json is not JSON \("),
        ("adapter_config.json", "{", r"cannot be loaded \(adapter_config\.json is not JSON \("),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str, content: str, message: str, tiny_gpt2: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(tiny_gpt2, tmp_path / "base"))
    (changed / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load(changed, 32, device="cpu")


def test_a_base_with_output_settings_is_trained_merged_and_verified(
    tiny_t5: Path, tiny_rows: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_t5, "base")
    content = json.loads(Path("base/config.json").read_text())
    fields = {"return_dict": False, "output_hidden_states": True, **SETTINGS[3]}
    Path("base/config.json").write_text(json.dumps(content | fields))
    options = ("--steps", "2", "--test", "4", "--bits", "32", "--cpu", "--out", "study")
    assert call(monkeypatch, "train", "./base", str(tiny_rows), *options) == 0
    assert call(monkeypatch, "adapter", "merge", "study", "merged", "--cpu") == 0
    assert call(monkeypatch, "adapter", "verify", "study", "--plain", "--cpu") == 0
