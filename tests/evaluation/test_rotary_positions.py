"""Long rows do not change the rotary embeddings of shorter rows, and therefore not their texts and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from petransfer.data.encoding import Encoded
from petransfer.data.task import Example
from petransfer.evaluation.generation import generations
from petransfer.evaluation.one_pass import score
from petransfer.models.lengths import positions
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.models.rotary_positions import longest_shared_length
from petransfer.training.batches import collate
from petransfer.training.losses import token_loss
from tests.tiny_models import keep

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "initializer_range": 0.6,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [4.0] * 8, "short_factor": [1.0] * 8,
    "original_max_position_embeddings": 24,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def _model(kind: str, tokens: int) -> Any:
    if kind == "longrope":
        fields = {"max_position_embeddings": 96, "original_max_position_embeddings": 24}
        return Phi3ForCausalLM(Phi3Config(vocab_size=tokens, rope_parameters=LONGROPE, **SIZES, **fields))
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=tokens, rope_parameters=DYNAMIC, max_position_embeddings=24, **SIZES)
    )


@pytest.fixture(params=["longrope", "dynamic"])
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Loaded:
    folder = keep(tmp_path / "base", lambda tokens: _model(request.param, tokens))
    return load_checkpoint(checkpoint_spec(str(folder)), 32)


def test_each_text_equals_the_text_of_its_input_alone(loaded: Loaded) -> None:
    assert longest_shared_length(loaded.model.config) == 24
    rows = [tuple(range(5, 5 + length)) for length in (4, 9, 18, 22, 40)]
    alone = [generations(loaded.model, loaded, [row], [12])[0].text for row in reversed(rows)][::-1]
    assert [one.text for one in generations(loaded.model, loaded, rows, [12] * len(rows))] == alone


def test_each_text_of_a_recurrent_model_equals_the_text_of_its_input_alone(tmp_path: Path) -> None:
    folder = keep(
        tmp_path / "base",
        lambda tokens: RwkvForCausalLM(RwkvConfig(vocab_size=tokens, context_length=64, **SIZES)),
    )
    recurrent = load_checkpoint(checkpoint_spec(str(folder)), 32)
    rows = [tuple(range(5 + length, 5 + 2 * length)) for length in (2, 13, 3, 4, 5)]
    alone = [generations(recurrent.model, recurrent, [row], [12])[0].text for row in rows]
    assert [one.text for one in generations(recurrent.model, recurrent, rows, [12] * len(rows))] == alone


def test_each_score_equals_the_score_of_its_example_alone(loaded: Loaded) -> None:
    rows = [Encoded(tuple(range(5, 5 + length)), (7, 8, 1)) for length in (4, 9, 18, 22, 40)]
    examples = [Example(at, "x", "y", "all") for at in range(len(rows))]
    alone = [score(loaded.model, loaded, [one], [row], 8)[0].log_prob for one, row in zip(examples, rows, strict=True)]
    together = score(loaded.model, loaded, examples, rows, 8)
    assert [one.log_prob for one in together] == pytest.approx(alone, abs=1e-3)
    # a row whose embeddings change during generation counts as a near-tie, so that its text is generated
    changing = loaded.model.config.rope_parameters["rope_type"] == "dynamic"
    assert [row.near_tie for row in together[3:]] == [True, changing]


def test_the_loss_does_not_depend_on_earlier_batches(loaded: Loaded) -> None:
    batches = [collate([Encoded(tuple(range(5, 5 + length)), (7, 8, 1))], loaded.layout) for length in (28, 60)]
    first, _, again = (float(token_loss(loaded.model, batches[at]).detach()) for at in (0, 1, 0))
    assert again == first


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("default", {}, 32),
        ("linear", {"factor": 4.0}, 128),
        ("dynamic", {"factor": 2.0}, 64),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 8}, 32),  # config.json has the extended number
        ("llama3", {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8}, 32),
    ],
)  # fmt: skip
def test_scaling_extends_the_positions(kind: str, fields: dict[str, Any], expected: int) -> None:
    config = LlamaConfig(max_position_embeddings=32, rope_parameters={"rope_type": kind, "rope_theta": 1e4, **fields})
    assert positions(config) == expected


def test_layers_without_scaling_limit_the_positions() -> None:
    scaled, plain = (
        {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        {"rope_type": "default", "rope_theta": 1e4},
    )
    by_layer = {"full_attention": scaled, "sliding_attention": plain}
    assert positions(Gemma3TextConfig(max_position_embeddings=64, rope_parameters=by_layer)) == 64


def test_models_without_changing_rotary_embeddings_have_no_longest_shared_length(tiny_gpt2: Path) -> None:
    assert longest_shared_length(load_checkpoint(checkpoint_spec(str(tiny_gpt2)), 32).model.config) is None
    assert longest_shared_length(LlamaConfig()) is None
