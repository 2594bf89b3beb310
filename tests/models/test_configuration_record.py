"""The recorded fields of config.json: only changes that change the computation are reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from petransfer.data.layout import Layout
from petransfer.models.configuration_record import configuration_record, differing_fields
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import Bits, CheckpointSpec
from tests.models.architectures import SMALL
from tests.tiny_models import keep

WORDS = "{name} was {first} and is {second}"


def _record(folder: Path, bits: Bits = 32) -> dict[str, Any]:
    """Return the record as it is read from petransfer.json."""
    spec = checkpoint_spec(str(folder))
    found: dict[str, Any] = json.loads(json.dumps(configuration_record(spec, load_checkpoint(spec, bits))))
    return found


def _changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.fixture(scope="module")
def t5(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 whose config.json, as files on the hub, lacks the keys that transformers adds when it saves."""
    folder = Path(shutil.copytree(tiny_t5, tmp_path_factory.mktemp("t5") / "base"))
    _changed(folder, dense_act_fn=..., is_gated_act=..., scale_decoder_outputs=..., tie_word_embeddings=...)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(tokens: int) -> Any:
        config = LlamaConfig(
            vocab_size=tokens, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, eos_token_id=1, pad_token_id=0, bos_token_id=1,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return keep(tmp_path_factory.mktemp("llama"), make)


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "base"))


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("t5", {"layer_norm_epsilon": 0.5}, "layer_norm_epsilon was 1e-06 and is 0.5"),
    ("t5", {"feed_forward_proj": "gelu"}, 'feed_forward_proj was "relu" and is "gelu"'),
    ("t5", {"tie_word_embeddings": False}, "tie_word_embeddings (scale_decoder_outputs) was true and is false"),
    ("t5", {"relative_attention_max_distance": 64}, "relative_attention_max_distance was 128 and is 64"),
    ("t5", {"decoder_start_token_id": 5}, "decoder_start_token_id was 0 and is 5"),
    ("llama", {"rms_norm_eps": 1e-2}, "rms_norm_eps was 1e-06 and is 0.01"),
    ("llama", {"hidden_act": "relu"}, 'hidden_act was "silu" and is "relu"'),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta was 10000.0 and is 5.0"),
    ("llama", {"rope_parameters": ..., "rope_theta": 500.0}, "rope_parameters.rope_theta was 10000.0 and is 500.0"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        'rope_type was "default" and is "linear"',
    ),
]


@pytest.mark.parametrize(("base", "values", "message"), CHANGES, indirect=["base"])
def test_a_field_that_changes_the_computation_is_named_with_both_values(
    base: Path, values: dict[str, Any], message: str
) -> None:
    before = _record(base)
    _changed(base, **values)
    assert message in (differing_fields(before, _record(base), WORDS) or "")


def _saved_anew(folder: Path) -> None:
    """Write config.json with transformers, which adds keys and changes their order."""
    AutoConfig.from_pretrained(folder).save_pretrained(folder)


def _whole_model_saved_anew(folder: Path) -> None:
    AutoModelForSeq2SeqLM.from_pretrained(folder).save_pretrained(folder)


UNCHANGED: dict[str, Callable[[Path], object]] = {
    "copied": lambda folder: None,
    "saved anew": _saved_anew,
    "the model saved anew": _whole_model_saved_anew,
    "written out": lambda folder: _changed(folder, layer_norm_epsilon=1e-6, feed_forward_proj="relu"),
    "a default left out": lambda folder: _changed(folder, relative_attention_num_buckets=...),
    "bookkeeping": lambda folder: _changed(
        folder, _name_or_path="elsewhere", transformers_version="4.1", torch_dtype="bfloat16", architectures=["Other"],
        use_cache=False, task_specific_params={"summarization": {"num_beams": 4}}, id2label={"0": "no"},
    ),
    "dropout": lambda folder: _changed(folder, dropout_rate=0.3, classifier_dropout=0.5),
    "initialisation": lambda folder: _changed(folder, initializer_factor=2.0),
    "decoding": lambda folder: _changed(folder, num_beams=4, max_length=9, repetition_penalty=1.5, do_sample=True),
}  # fmt: skip


@pytest.mark.parametrize("change", UNCHANGED.values(), ids=UNCHANGED)
@pytest.mark.parametrize("base", ["t5"], indirect=True)
def test_changes_without_effect_on_the_computation_are_not_reported(
    base: Path, change: Callable[[Path], object]
) -> None:
    before = _record(base)
    change(base)
    assert differing_fields(before, _record(base), WORDS) is None


@pytest.mark.parametrize("name", SMALL)
def test_saving_the_configuration_of_an_architecture_again_changes_no_recorded_field(name: str, tmp_path: Path) -> None:
    """A file with few keys, as on the hub, and the file with all keys that transformers writes have equal fields."""
    kind, fields, _ = SMALL[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": kind, **fields}))
    layout = Layout(bool(AutoConfig.from_pretrained(tmp_path).is_encoder_decoder), 0, 1)
    tokenizer = SimpleNamespace(
        eos_token_id=1, all_special_ids=[1], all_special_tokens=["</s>"], added_tokens_decoder={}
    )
    loaded: Any = SimpleNamespace(tokenizer=tokenizer, layout=layout, commit=None)
    spec = CheckpointSpec("base", "0" * 64, source=str(tmp_path))
    before = json.loads(json.dumps(configuration_record(spec, loaded), allow_nan=False))
    _saved_anew(tmp_path)
    after = configuration_record(spec, loaded)
    assert before["sha256"] != after["sha256"]
    assert differing_fields(before, after, WORDS) is None


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("base", ["t5", "llama"], indirect=True)
def test_the_bits_of_the_weights_change_no_recorded_field(base: Path, bits: Bits) -> None:
    assert differing_fields(_record(base), _record(base, bits), WORDS) is None


@pytest.mark.parametrize("base", ["t5"], indirect=True)
def test_a_changed_initialisation_is_reported_for_random_weights(base: Path) -> None:
    from dataclasses import replace

    def record() -> dict[str, Any]:
        spec = replace(checkpoint_spec(str(base)), reinit="all")
        return configuration_record(spec, load_checkpoint(spec, 32))

    before = record()
    _changed(base, initializer_factor=2.0)
    assert differing_fields(before, record(), WORDS) == "initializer_factor was 1.0 and is 2.0"


def test_fields_that_only_one_version_of_transformers_has_are_not_compared() -> None:
    record = {"fields": {"a": 1, "b": {"c": 1, "d": 2}}, "tokens": {"pad_token_id": 0}, "sha256": "0"}
    newer = {"fields": {"a": 1, "b": {"c": 1, "new": 5}, "new": 3}, "tokens": {"eos_token_id": 1}, "sha256": "1"}
    assert differing_fields(record, newer, WORDS) is None
    assert differing_fields(record, record | {"fields": {"a": 7}}, WORDS) is None, (
        "fields of the same file are not compared"
    )


def test_at_most_three_fields_are_shown() -> None:
    one, other = ({"fields": dict.fromkeys("abcdef", value), "tokens": {}, "sha256": str(value)} for value in (1, 2))
    message = differing_fields(one, other, WORDS)
    assert message == "a was 1 and is 2, b was 1 and is 2, c was 1 and is 2 and 3 other fields"
