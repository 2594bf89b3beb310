"""Train, save, evaluate and resume every method, and compare it with plain peft and with the prediction of `fit`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from petransfer.data.encoding import Encoded, decode, encode_examples
from petransfer.data.task import Example
from petransfer.errors import Interrupted, UserError
from petransfer.evaluation.exact_match import evaluate
from petransfer.evaluation.generation import generate
from petransfer.evaluation.label_scoring import _scores
from petransfer.memory.step_memory import StepSpec, simulate
from petransfer.methods import apply_method, save_method
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.quantization import inventory
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.methods import METHODS, Method
from petransfer.recipe.run_spec import MethodSpec, RunSpec, TrainSpec
from petransfer.sharing.adapter import Adapter
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training.batches import ShuffledExamples, collate
from petransfer.training.distributed import this_process
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from petransfer.training.losses import token_loss
from petransfer.training.optimizer import make_optimizer, schedule_factor
from petransfer.training.state import trained_tensors
from tests.tiny_models import keep


def small(method: Method) -> MethodSpec:
    """Return the settings of a method with small sizes, for tiny models."""
    sizes = {"rank": 3, "alpha": 6.0, "rate_ratio": 8.0, "virtual_tokens": 5}
    given: dict[str, Any] = {key: value for key, value in sizes.items() if key in method.keys}
    return MethodSpec(method.name, 32, **given, options={key: one.default for key, one in method.options.items()})


SMALL = {name: small(method) for name, method in METHODS.items() if name != "full"}
SMALL["vera"] = MethodSpec("vera", 32, rank=8)
ROWS = [Encoded((5, 6, 7, 8, 1), (9, 10, 1)), Encoded((15, 6, 1), (9, 10, 22, 30, 1)), Encoded((40, 1), (11, 1))]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, with half as many heads for keys and values as for queries."""

    def make(pieces: int) -> Any:
        config = LlamaConfig(
            vocab_size=pieces, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return keep(tmp_path_factory.mktemp("tiny-llama"), make)


@pytest.fixture(scope="module")
def deep_decoder_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 whose decoder has more layers than its encoder."""

    def make(pieces: int) -> Any:
        config = T5Config(
            vocab_size=pieces, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=3, num_heads=2,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return T5ForConditionalGeneration(config)

    return keep(tmp_path_factory.mktemp("deep-decoder-t5"), make)


@pytest.fixture
def base(request: pytest.FixtureRequest) -> Path:
    """The folder of a checkpoint. The parameter is the name of the checkpoint's fixture."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def made(folder: Path, method: MethodSpec) -> tuple[Loaded, torch.nn.Module]:
    """Load a checkpoint and apply a method to it."""
    loaded = load_checkpoint(checkpoint_spec(str(folder)), method.bits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return loaded, apply_method(loaded, method, 0)


def train(
    model: torch.nn.Module, loaded: Loaded, steps: int = 8, rate: float = 1e-2, rows: Sequence[Encoded] = ROWS
) -> list[float]:
    """Train for a few steps, and return the loss of each step."""
    batch, spec = collate(rows, loaded.layout), TrainSpec(steps, 3, rate)
    optimizer = make_optimizer(model, spec)
    losses = []
    model.eval()  # without dropout, the losses of the steps can be compared
    for step in range(steps):
        loss = token_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule_factor(spec, step) * group["scale"]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def logits(model: torch.nn.Module, loaded: Loaded) -> torch.Tensor:
    """Return the logits of ROWS, computed without gradients."""
    batch = {name: value for name, value in collate(ROWS, loaded.layout).items() if name != "labels"}
    with torch.no_grad():
        found: torch.Tensor = model(**batch, use_cache=False).logits
    return found.float()


@pytest.mark.parametrize("base", ["tiny_t5", "tiny_gpt2", "tiny_llama"], indirect=True)
@pytest.mark.parametrize("name", SMALL)
def test_fit_counts_the_trained_parameters_and_plain_peft_computes_the_same_logits(
    name: str, base: Path, tmp_path: Path
) -> None:
    if name == "oft" and "gpt2" in base.name:
        # peft supports it only for plain linear layers
        with pytest.raises(UserError, match="OFT cannot be applied to"):
            made(base, SMALL[name])
        return
    loaded, model = made(base, SMALL[name])
    trained = trained_tensors(model)
    config = AutoConfig.from_pretrained(base)
    foreseen = simulate(
        config, "tiny", StepSpec(SMALL[name], 2, 5, 5, "cpu"), loaded.model.config.model_type == "llama"
    )
    assert foreseen.trained_parameters == sum(value.numel() for value in trained.values()) > 0
    frozen = {key: value.clone() for key, value in model.named_parameters() if key not in trained}
    before = {key: value.detach().clone() for key, value in trained.items()}
    untrained = logits(model.eval(), loaded)
    losses = train(model, loaded)
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(value, frozen[key]) for key, value in model.named_parameters() if key in frozen)
    assert not any(torch.equal(value, before[key]) for key, value in trained.items())
    save_method(name, model, tmp_path, "tiny")
    ours = logits(model, loaded)
    plain = PeftModel.from_pretrained(load_checkpoint(checkpoint_spec(str(base)), 32).model, str(tmp_path)).eval()
    theirs = logits(plain, loaded)[:, -ours.shape[1] :]
    assert (ours - theirs).abs().max() < 1e-5 < (ours - untrained).abs().max()
    assert str(base) not in (tmp_path / "adapter_config.json").read_text()


@pytest.mark.parametrize("base", ["tiny_t5", "tiny_gpt2"], indirect=True)
def test_the_inventory_has_the_dtypes_of_the_base_and_no_parameters_of_the_method(base: Path, tiny_gpt2: Path) -> None:
    spec = checkpoint_spec(str(base))
    for bits in (16, 8):
        alone = inventory(load_checkpoint(spec, bits).model)  # type: ignore[arg-type]
        for name, method in SMALL.items():
            # peft has no OFT for GPT-2's layers
            if bits not in METHODS.lookup(name).unsupported_bits and (name, base) != ("oft", tiny_gpt2):
                model = apply_method(load_checkpoint(spec, bits), replace(method, bits=bits), 0)  # type: ignore[arg-type]
                found = inventory(model)
                assert found.bytes.keys() == alone.bytes.keys(), name
                assert found.parameters <= alone.parameters, name  # some methods train biases or norms of the base


@pytest.mark.parametrize("base", ["tiny_t5", "tiny_gpt2", "tiny_llama"], indirect=True)
@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_one_pass_scoring_agrees_with_generation_after_virtual_tokens(name: str, base: Path) -> None:
    loaded, model = made(base, SMALL[name])
    words = ["jump", "walk and run", "look left thrice and jump", "turn around right"]
    taught = encode_examples(
        [Example(at, word, "I_JUMP I_WALK", "all") for at, word in enumerate(words)],
        "",
        loaded.tokenizer,
        loaded.layout,
    )
    inputs = [row.input_ids for row in taught]
    train(model, loaded, 60, 0.3, taught)
    predictions = generate(model, loaded, inputs, 6)
    assert predictions == [generate(model, loaded, [one], 6)[0] for one in inputs]  # padding in a batch changes nothing
    examples = [Example(at, word, predictions[at] if at % 2 else "walk", "all") for at, word in enumerate(words)]
    encoded = encode_examples(examples, "", loaded.tokenizer, loaded.layout)
    found = evaluate(model, loaded, examples, encoded, audited=4)
    assert found.audited + found.near_ties == 4
    assert found.disagreements == 0


@pytest.mark.parametrize("name", ["lora", "prompt", "prefix"])
def test_a_decoder_with_more_layers_than_its_encoder_generates(name: str, deep_decoder_t5: Path) -> None:
    """transformers creates a cache with as many layers as the encoder has, which is too few here."""
    loaded, model = made(deep_decoder_t5, SMALL[name])
    train(model, loaded, 2)
    inputs = [row.input_ids for row in ROWS]
    with_cache = generate(model, loaded, inputs, 6)
    batch = collate([Encoded(inputs[0], (loaded.layout.eos_id,))], loaded.layout)
    ids = torch.tensor([[loaded.layout.decoder_start_id]])
    for _ in range(6):  # one forward pass per token, without a cache
        mask = batch["attention_mask"]
        found = model(input_ids=batch["input_ids"], attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, found[:, -1:].argmax(-1)], 1)
    generated = ids[0, 1:].tolist()
    end = generated.index(loaded.layout.eos_id) if loaded.layout.eos_id in generated else len(generated)
    assert with_cache[0] == decode([generated[:end]], loaded.tokenizer)[0]


@pytest.mark.parametrize("base", ["tiny_t5", "tiny_gpt2"], indirect=True)
def test_labels_are_scored_after_virtual_tokens(base: Path) -> None:
    loaded, model = made(base, SMALL["prompt"])
    labels = [(9, 10, loaded.layout.eos_id), (11, loaded.layout.eos_id)]
    inputs = [(5, 6, 7), (8, 9, 15)]
    found = _scores(model.eval(), loaded, inputs, labels)
    for source, scores in zip(inputs, found, strict=True):
        for label, score in zip(labels, scores, strict=True):
            batch = collate([Encoded(source, label)], loaded.layout)
            asked = batch.pop("labels")[0]
            with torch.no_grad():
                alone = model(**batch, use_cache=False).logits[0, -len(asked) :][asked >= 0]
            assert torch.allclose(torch.tensor(score), alone.gather(-1, torch.tensor(label)[:, None])[:, 0], atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_training_ends_with_exactly_the_weights_of_an_uninterrupted_one(
    name: str, tiny_t5: Path, tmp_path: Path
) -> None:
    def carry_on(folder: Path, stop_at: int = 0) -> dict[str, torch.Tensor]:
        loaded, model = made(tiny_t5, SMALL[name])
        seen = {"step": 0}
        loop = Loop(
            model,
            ShuffledExamples(ROWS, 2, 0, loaded.layout),
            TrainSpec(6, 2, 1e-2),
            this_process(True),
            folder,
            identity="one",
            seed=0,
            execution=Execution(threads=1),
            hooks=Hooks(lambda step, loss, seconds: seen.update(step=step), lambda: seen["step"] == stop_at),
        )
        loop.run()
        return {key: value.detach().clone() for key, value in trained_tensors(model).items()}

    whole = carry_on(tmp_path / "whole")
    with pytest.raises(Interrupted):
        carry_on(tmp_path / "cut", 3)
    resumed = carry_on(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", ["pissa", "prompt"])
def test_a_run_with_match_parameters_is_evaluated_saved_and_predicts(
    name: str, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    spec = tiny_spec(replace(SMALL[name], rank=0, virtual_tokens=0, alpha=0.0, match_parameters=1152), steps=4)
    result = run_one(spec, RunFolder(tmp_path), Settings(Execution(threads=1), cpu=True))
    assert result["trained_parameters"] == 1152
    assert (result["dev"]["disagreements"], result["test"]["disagreements"]) == (0, 0)
    assert len(Adapter.load(tmp_path, device="cpu").predict(["jump around right"], 4)) == 1


def test_loraplus_trains_b_with_a_larger_learning_rate(tiny_t5: Path) -> None:
    _, model = made(tiny_t5, SMALL["loraplus"])
    optimizer = make_optimizer(model, TrainSpec(1, 2, 1e-3))
    rates = {id(value): group["scale"] for group in optimizer.param_groups for value in group["params"]}
    found = {name.split(".lora_")[1][0]: rates[id(value)] for name, value in trained_tensors(model).items()}
    assert found == {"A": 1.0, "B": 8.0}
    assert len(rates) == len(trained_tensors(model))


def test_pissa_starts_with_the_logits_of_the_base_and_its_largest_singular_values(tiny_t5: Path) -> None:
    loaded, model = made(tiny_t5, SMALL["pissa"])
    plain = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    assert torch.allclose(logits(model.eval(), loaded), logits(plain.model.eval(), plain), atol=1e-5)
    layer: Any = dict(model.named_modules())["base_model.model.decoder.block.0.layer.2.DenseReluDense.wo"]
    start = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    rest = torch.linalg.svdvals(layer.base_layer.weight - start)
    sizes = torch.linalg.svdvals(layer.base_layer.weight)
    assert torch.allclose(rest[:-3], sizes[3:], atol=1e-5)


@pytest.mark.parametrize("base", ["deep_decoder_t5", "tiny_llama"], indirect=True)
@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "vera", "ia3"])
def test_only_the_chosen_layers_are_adapted(name: str, base: Path) -> None:
    adapted, everywhere = (
        trained_tensors(made(base, method)[1]) for method in (replace(SMALL[name], layers=(1,)), SMALL[name])
    )
    assert adapted.keys() == {key for key in everywhere if ".block.1." in key or ".layers.1." in key}
    assert 0 < len(adapted) < len(everywhere)


def test_the_method_bias_trains_only_biases_and_norms_in_a_model_without_biases(tiny_gpt2: Path, tiny_t5: Path) -> None:
    _, model = made(tiny_gpt2, SMALL["bias"])
    assert {key.rsplit(".", 1)[-1] for key in trained_tensors(model)} == {"bias"}
    _, norms = made(tiny_t5, SMALL["bias"])
    assert all("layer_norm" in key for key in trained_tensors(norms))
    assert trained_tensors(norms).keys() == trained_tensors(made(tiny_t5, SMALL["ln"])[1]).keys()


def test_the_saved_configuration_of_peft_names_the_variant_of_lora(tiny_t5: Path, tmp_path: Path) -> None:
    kinds = {"rslora": "use_rslora", "dora": "use_dora"}
    for name, key in kinds.items():
        _, model = made(tiny_t5, SMALL[name])
        save_method(name, model, tmp_path / name, "tiny")
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())[key] is True
    _, model = made(tiny_t5, SMALL["pissa"])
    save_method("pissa", model, tmp_path / "pissa", "tiny")
    config = json.loads((tmp_path / "pissa" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (6, 12, True)


@pytest.mark.parametrize("name", ["lora", "ia3", "pissa"])
def test_names_of_target_layers_are_saved_in_alphabetical_order(name: str, tiny_t5: Path, tmp_path: Path) -> None:
    """peft keeps the names in a set, whose order differs between processes. Bundles of one run would differ, too."""
    _, model = made(tiny_t5, replace(SMALL[name], targets=("wo", "k", "wi", "o", "v", "q")))
    save_method(name, model, tmp_path / name, "tiny")
    config = json.loads((tmp_path / name / "adapter_config.json").read_text())
    assert config["target_modules"] == ["k", "o", "q", "v", "wi", "wo"]
