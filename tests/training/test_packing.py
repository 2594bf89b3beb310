"""Packed and padded examples give equal gradients. Models and methods that do not support packing are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
)

from petransfer.data.encoding import Encoded, Layout
from petransfer.errors import UserError
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec, RunSpec, TaskSpec, TrainSpec
from petransfer.recipe.stacking import stack_key
from petransfer.training import packing
from petransfer.training.batches import IGNORED, ShuffledExamples, collate
from petransfer.training.losses import token_loss
from petransfer.training.packing import FEWEST_TOKENS, check_packing, collate_packed, refuse_packing
from tests.chat_models import chat_llama
from tests.sharing.conftest import call, refused

LAYOUT = Layout(encoder_decoder=False, pad_id=0, eos_id=1)
SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=6)),
}


def examples(count: int = 7) -> list[Encoded]:
    """Return examples of different lengths."""
    drawn = torch.Generator().manual_seed(1)

    def row(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 60, (length,), generator=drawn).tolist())

    return [Encoded(row(2 + 3 * at % 11), (*row(1 + at % 4), 1)) for at in range(count)]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("room", [FEWEST_TOKENS, 20])
def test_loss_and_gradients_of_packed_and_padded_examples_are_equal(
    kind: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "FEWEST_TOKENS", room)
    torch.manual_seed(2)
    model = MODELS[kind]().eval()
    found = {}
    for name, batch in (("padded", collate(examples(), LAYOUT)), ("packed", collate_packed(examples()))):
        model.zero_grad()
        loss = token_loss(model, batch)
        loss.backward()
        found[name] = loss.item(), [value.grad.clone() for value in model.parameters() if value.grad is not None]
    assert found["packed"][0] == pytest.approx(found["padded"][0], rel=1e-5)
    for one, other in zip(found["packed"][1], found["padded"][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    check_packing(model, examples(), LAYOUT)


def test_no_token_attends_to_another_example() -> None:
    torch.manual_seed(2)
    model = MODELS["llama"]().eval()
    first, second = examples(2)
    second = Encoded(second.input_ids * 3, second.target_ids)  # the longer example is placed first
    batch = collate_packed([first, second])
    start = len(second.input_ids) + len(second.target_ids) - 1
    assert batch["position_ids"][0, start] == 0
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "position_ids")} | {"use_cache": False}
    with torch.inference_mode():
        before = model(**inputs).logits[0, start:].clone()
        inputs["input_ids"][0, :start] = 5
        assert torch.equal(model(**inputs).logits[0, start:], before)


def test_packed_rows_contain_each_target_once() -> None:
    batch = collate_packed(examples(40))
    assert batch["input_ids"].shape[0] == 1
    targets = sorted(token for one in examples(40) for token in one.target_ids)
    assert sorted(batch["labels"][batch["labels"] != IGNORED].tolist()) == targets
    many = ShuffledExamples(examples(40), 40, 0, LAYOUT, collate_packed).batch(0, 0, 1).micro_batches(16)
    assert [cut["input_ids"].shape[0] for cut in many] == [1, 1, 1]


def test_a_model_that_attends_across_boundaries_of_examples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = MODELS["llama"]().eval()
    was = model.forward
    monkeypatch.setattr(model, "forward", lambda position_ids=None, **rest: was(**rest))
    with pytest.raises(UserError, match="attend to other examples"):
        check_packing(model, examples(), LAYOUT)


def spec(**method: Any) -> RunSpec:
    """Return the settings of a run with packing."""
    return RunSpec(
        checkpoint=checkpoint_spec("nano/english"),
        task=TaskSpec("scan", "jump_around_right"),
        method=MethodSpec(**({"name": "lora", "bits": 32, "rank": 4} | method)),
        train=TrainSpec(8, 8, 1e-3, packing=True),
        seed=0,
    )


def test_packing_changes_the_run_id_only_if_it_is_used() -> None:
    packed = spec()
    plain = replace(packed, train=replace(packed.train, packing=False))
    assert "packing" not in plain.canonical_json()
    assert packed.run_id != plain.run_id
    assert RunSpec.from_dict(packed.as_dict()) == packed
    assert stack_key(packed) is None
    assert stack_key(plain) is not None


@pytest.mark.parametrize(
    ("config", "method", "expected"),
    [
        (T5Config(), {}, "is an encoder-decoder"),
        (LlamaConfig(), {"name": "prompt", "rank": 0, "virtual_tokens": 4}, "adds virtual tokens"),
        (BloomConfig(), {}, "has no input for position ids"),
    ],
)
def test_models_and_methods_that_do_not_support_packing_are_refused(
    config: Any, method: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as problem:
        refuse_packing(spec(**method), config)
    assert "--packing" in str(problem.value)


def test_training_with_packing_has_the_same_losses_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    base = chat_llama(tmp_path / "base")
    rows = [
        [{"role": "user", "content": f"walk {n}" * (n % 3 + 1)}, {"role": "assistant", "content": f"j{n}"}]
        for n in range(20)
    ]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    arguments = ["train", str(base), "chats.jsonl", "--steps", "6", "--cpu", "--lr", "0.01", "--bits", "32"]
    assert "encoder-decoder" in refused(capsys, "train", "nano/english", "chats.jsonl", "--packing", "--cpu")
    assert not Path("results").exists()
    results = {}
    for name, more in (("plain", []), ("packed", ["--packing"])):
        assert call(*arguments, *more, "--out", name) == 0
        (folder,) = Path(name, "runs").iterdir()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        results[name] = [line["loss"] for line in lines if "loss" in line]
    assert results["packed"] == pytest.approx(results["plain"], rel=1e-4)
    assert call(*arguments, "--packing", "--plan", "--json") == 0
    message = capsys.readouterr().out
    plan = json.loads(message[message.index("\n{") :] if not message.startswith("{") else message)
    rows, tokens = plan["tokens"]["packed"]
    assert 1 <= rows < 16, "the 16 chats of a step must need fewer than 16 rows"
    assert tokens < 16 * sum(plan["tokens"]["longest"])
    assert "packing: true" in Path("packed/recipe.yaml").read_text()
    assert "packing: " not in Path("plain/recipe.yaml").read_text()
