"""Compare the predicted memory with the memory that PyTorch allocates, and test `petransfer fit`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, LlamaConfig, T5Config

from petransfer.cli import main
from petransfer.data import load_task
from petransfer.errors import UserError
from petransfer.memory.advice import FIT_OPTIONS, TRAIN_OPTIONS, Advice, Change, as_options, recipe_options, suggestion
from petransfer.memory.cards import Card
from petransfer.memory.fit import fit
from petransfer.memory.measured import capability, measure
from petransfer.memory.planner import CONTEXT, PAGED, needs_checkpointing, on_card, plan
from petransfer.memory.step_memory import StepSpec, simulate
from petransfer.memory.study_memory import method_title, predict_memory, step_spec_of
from petransfer.models.architecture import configuration
from petransfer.models.control_arms import randomly_initialized
from petransfer.models.registry import NANO, checkpoint_spec, registry
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import Bits, MethodSpec, Options, RunSpec, TaskSpec
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training.execution import Execution
from tests.conftest import LORA

LAYERS = 2  # of the encoder and of the decoder; few, because the time of a prediction grows with them
T5 = {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": LAYERS, "num_heads": 4, "decoder_start_token_id": 0}
SHALLOW = T5 | {"num_layers": 1}
GATED = T5 | {"feed_forward_proj": "gated-gelu"}
SMALL = {
    "t5": lambda: (AutoModelForSeq2SeqLM, T5Config(vocab_size=8000, **T5), False),
    "t5-v1.1": lambda: (AutoModelForSeq2SeqLM, T5Config(vocab_size=8000, tie_word_embeddings=False, **GATED), True),
    "gpt2": lambda: (AutoModelForCausalLM, GPT2Config(vocab_size=8000, n_embd=128, n_layer=LAYERS, n_head=4), False),
    "llama": lambda: (
        AutoModelForCausalLM,
        LlamaConfig(
            vocab_size=8000, hidden_size=128, intermediate_size=256, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False,
        ),
        True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint with random weights for each architecture."""
    made = {}
    for name, make in SMALL.items():
        folder = tmp_path_factory.mktemp(name)
        auto, config, own_head = make()
        torch.manual_seed(0)
        randomly_initialized(auto, config, own_head).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_bytes((NANO / "tokenizer" / file).read_bytes())
        made[name] = folder
    return made


def lora(bits: Bits) -> MethodSpec:
    return MethodSpec("lora", bits=bits, rank=8, alpha=16.0)


FULL = MethodSpec("full", bits=32)
SHORT, LONG = (8, 20, 40), (2, 60, 90)
CELLS: list[tuple[str, MethodSpec, tuple[int, int, int], dict[str, Any]]] = [
    *(("t5", lora(bits), SHORT, {}) for bits in (4, 8, 16, 32)),
    *(("t5-v1.1", lora(bits), LONG, {}) for bits in (4, 8, 16)),
    *(("gpt2", lora(bits), LONG, {}) for bits in (4, 8)),
    *(("llama", lora(bits), SHORT, {}) for bits in (4, 16)),
    ("t5", replace(lora(4), keep_wide=("wo",)), SHORT, {}),
    ("t5", FULL, SHORT, {}),
    ("gpt2", FULL, LONG, {"accumulates": True}),
    ("llama", FULL, SHORT, {"optimizer": "adamw-8bit"}),
    ("t5", lora(4), LONG, {"checkpointing": True}),
    ("gpt2", lora(16), (12, 60, 41), {"packing": True}),
    ("llama", lora(16), (12, 60, 41), {"packing": True, "accumulates": True}),
    ("llama", lora(8), LONG, {"checkpointing": True, "accumulates": True, "optimizer": "adamw-8bit"}),
    ("t5", replace(FULL, bits=16), LONG, {"accumulates": True}),
    ("llama", replace(FULL, bits=16), SHORT, {"checkpointing": True}),
]


@pytest.mark.parametrize(("kind", "method", "sizes", "changes"), CELLS)
def test_predicted_memory_is_close_to_the_memory_measured_on_a_cpu(
    kind: str, method: MethodSpec, sizes: tuple[int, int, int], changes: dict[str, Any], folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Weights, adapters and the optimiser's state differ by at most 2 %, and the peak of a step by at most 10 %.

    Most peaks differ by at most 1 %.
    """
    monkeypatch.setattr("petransfer.memory.measured.STEPS", 2)  # the first step makes the state of the optimiser
    spec = checkpoint_spec(str(folders[kind]))
    step_spec = StepSpec(method, *sizes, device="cpu", **changes)
    config, own_head = configuration(spec)
    foreseen, taken = simulate(config, kind, step_spec, own_head), measure(spec, step_spec)
    assert foreseen.weights == taken.weights
    fixed = sum(foreseen.weights.values()) + foreseen.trained + foreseen.optimizer
    assert fixed == pytest.approx(taken.fixed, rel=0.02)
    assert foreseen.peak == pytest.approx(taken.peak, rel=0.1)


def test_packing_needs_other_memory_than_padding(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve examples of 100 tokens fill three rows, because five examples fit into one row of 512 tokens."""

    place, options = str(folders["gpt2"]), {"batch_size": 12, "lengths": (60, 41), "device": "cpu"}
    packed, padded = (fit(place, packing=packing, **options) for packing in (True, False))  # type: ignore[arg-type]
    assert packed.step_spec.packed == (3, 500)
    assert packed.memory.activations > padded.memory.activations, "a mask of 3 x 500 x 500, and padding"
    assert packed.as_dict()["packing"] is True
    assert _fit(monkeypatch, place, "--packing", "--batch", "12", "--lengths", "60,41", "--cpu") == 0
    shown = "12 examples with at most 60 input tokens and 41 target tokens, packed into 3 rows of 500 tokens"
    assert shown in capsys.readouterr().out


def test_the_faster_cpu_step_is_measured_together_with_its_copies_of_weights(folders: dict[str, Path]) -> None:
    """On a CPU, the training loop keeps bf16 copies of quantised weights. It still needs less than the plain step."""
    found = measure(checkpoint_spec(str(folders["t5"])), StepSpec(lora(4), *SHORT, device="cpu"), with_loop=True)
    attention, feed = 4 * 128 * 128, 2 * 128 * 512
    assert found.kept == 2 * LAYERS * (3 * attention + 2 * feed)  # bf16
    assert found.loop is not None
    assert found.fixed + found.kept < found.loop < found.peak


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "method", "sizes", "changes"), CELLS)
def test_the_predicted_peak_is_close_to_the_peak_measured_on_a_card(
    kind: str, method: MethodSpec, sizes: tuple[int, int, int], changes: dict[str, Any], folders: dict[str, Path]
) -> None:
    spec = checkpoint_spec(str(folders[kind]))
    step_spec = StepSpec(method, *sizes, device="cuda", capability=capability(), **changes)
    config, own_head = configuration(spec)
    assert simulate(config, kind, step_spec, own_head).peak == pytest.approx(measure(spec, step_spec).peak, rel=0.1)


def test_weights_can_be_quantised_after_a_simulation(folders: dict[str, Path]) -> None:
    """bitsandbytes caches its maps of codes for the whole process. A simulation must not leave empty maps in it."""
    from petransfer.models.loading import load_checkpoint

    config, own_head = configuration(checkpoint_spec(str(folders["t5"])))
    simulate(config, "t5", StepSpec(lora(4), *SHORT), own_head)
    model = load_checkpoint(checkpoint_spec(str(folders["t5"])), 4).model
    logits = model(input_ids=torch.tensor([[5, 1]]), decoder_input_ids=torch.tensor([[0, 7]])).logits
    assert bool(torch.isfinite(logits).all())


def test_the_parts_of_a_prediction_equal_hand_computed_numbers() -> None:
    """Compute the parameters of a T5 and of LoRA, and the state of AdamW, from the sizes of the layers."""
    config = T5Config(vocab_size=8000, **T5)
    step_spec = StepSpec(lora(16), 2, 10, 10, device="cpu")
    memory = simulate(config, "t5", step_spec, False)
    attention, feed = 4 * 128 * 128, 2 * 128 * 512
    linear = LAYERS * (attention + feed) + LAYERS * (2 * attention + feed)
    norms, biases = 128 * (LAYERS * 2 + LAYERS * 3 + 2), 2 * 32 * 4
    assert memory.weights == {"bfloat16": 2 * (8000 * 128 + linear + norms + biases)}
    adapters = 8 * LAYERS * (3 * 4 * (128 + 128) + 2 * 2 * (128 + 512))
    assert memory.trained_parameters == adapters
    assert memory.trained == 4 * adapters
    assert memory.optimizer == 8 * adapters
    assert memory.logits % (2 * 10 * 8000 * 2) == 0


def test_memory_rises_with_the_batch_and_falls_with_gradient_checkpointing() -> None:
    config = T5Config(vocab_size=8000, **SHALLOW)
    for device in ("cpu", "cuda"):
        step_spec = StepSpec(lora(4), 8, 60, 60, device=device)  # type: ignore[arg-type]
        peaks = [simulate(config, "t5", replace(step_spec, batch=batch), False).peak for batch in (1, 2, 4, 8)]
        rise = [after - before for before, after in itertools.pairwise(peaks)]
        assert rise[1] == pytest.approx(2 * rise[0], rel=0.1)
        assert rise[2] == pytest.approx(2 * rise[1], rel=0.1)
        assert simulate(config, "t5", replace(step_spec, checkpointing=True), False).peak < peaks[-1]


@pytest.mark.usefixtures("remembered_predictions")
def test_the_largest_micro_batch_that_fits_is_found() -> None:
    config = T5Config(vocab_size=8000, **SHALLOW)
    spec = checkpoint_spec("owner/name")
    whole = plan(config, spec, StepSpec(lora(16), 64, 60, 60), False, None)
    card = on_card(whole.memory.peak) - (on_card(whole.memory.peak) - CONTEXT) // 2
    found = plan(config, spec, StepSpec(lora(16), 64, 60, 60), False, card)
    assert found.fits
    assert 1 < found.step_spec.batch < 64
    assert found.needed <= card
    more = replace(found.step_spec, batch=found.step_spec.batch + 1)
    assert on_card(simulate(config, "t5", more, False).peak) > card


@pytest.mark.usefixtures("remembered_predictions")
def test_advice_lists_the_smallest_changes_that_make_a_training_fit() -> None:
    config = T5Config(vocab_size=500, d_model=1024, d_kv=64, d_ff=4096, num_layers=1, num_heads=16)
    spec = checkpoint_spec("owner/name")
    found = plan(config, spec, StepSpec(FULL, 4, 30, 30), False, CONTEXT + 220_000_000)
    assert not found.fits
    # LoRA with fewer bits fits, too, but is not listed
    assert as_options(found.advice, FIT_OPTIONS) == ["--method lora"]
    assert plan(config, spec, StepSpec(FULL, 4, 30, 30), False, 2**29).advice == ()


def test_advice_is_written_in_options_of_the_called_command(tiny_spec: Callable[..., RunSpec]) -> None:
    """`run` and `plan` have no --bits and no --optimizer, so that their advice uses --set.

    The method of a run can be changed only if it is a method of the recipe.
    """
    paged: Advice = (Change("optimizer", "paged-adamw-8bit"),)
    advice: list[Advice] = [paged, (Change("method", "lora"), Change("bits", 4))]
    assert (
        suggestion(advice, TRAIN_OPTIONS)
        == "; it would fit with --set train.optimizer=paged-adamw-8bit, or --method lora --bits 4"
    )
    spec = replace(tiny_spec(), method=FULL)
    words = recipe_options([lora(16), spec.method], spec)
    assert as_options(advice, words) == [
        "--set train.optimizer=paged-adamw-8bit",
        "--set methods.1.name=lora --set methods.1.bits=4",
    ]
    alone = ["--set train.optimizer=paged-adamw-8bit"]
    assert as_options(advice, recipe_options([lora(16)], spec)) == alone
    anew = replace(spec, checkpoint=replace(spec.checkpoint, reinit="all"))
    assert (
        as_options(advice, recipe_options([lora(16), spec.method], anew)) == alone
    )  # every recipe trains all weights of this arm


def test_advice_to_use_lora_names_the_bits_if_the_given_bits_do_not_fit() -> None:
    """LoRA fits the card with 16 bits and not with 32 bits."""
    config = T5Config(vocab_size=500, d_model=1024, d_kv=64, d_ff=4096, num_layers=1, num_heads=16)
    spec, full = checkpoint_spec("owner/name"), StepSpec(MethodSpec("full", bits=32), 1, 30, 30, checkpointing=True)
    at = {
        bits: on_card(simulate(config, "t5", replace(full, method=lora(bits)), False).peak)
        for bits in (32, 16)  # type: ignore[misc]
    }
    found = plan(config, spec, full, False, (at[32] + at[16]) // 2)
    assert "--method lora" not in as_options(found.advice, FIT_OPTIONS)
    assert "--method lora --bits 16" in as_options(found.advice, FIT_OPTIONS)


@pytest.mark.slow
def test_stack_1_is_advised_if_a_single_run_fits_with_gradient_checkpointing() -> None:
    config, spec = T5Config(vocab_size=8000, **T5), checkpoint_spec("owner/name")
    one = StepSpec(lora(4), 1, 200, 200)
    kept, again = (simulate(config, "t5", replace(one, checkpointing=on), False).peak for on in (False, True))
    card = on_card((kept + again) // 2)
    assert needs_checkpointing(config, spec, one, False, card)
    # also if that is not enough, so that a run with --force needs as little memory as possible
    assert needs_checkpointing(config, spec, one, False, on_card(again) - 1)
    assert not needs_checkpointing(config, spec, one, False, on_card(kept))
    assert (Change("stack", 1),) in plan(config, spec, replace(one, members=2), False, card).advice
    assert suggestion([], FIT_OPTIONS) == ""


@pytest.mark.slow
def test_the_paged_optimizer_is_advised_only_if_the_8bit_optimizer_does_not_fit() -> None:
    """With the paged optimiser, only the state of the tensor that is being updated is on the card."""
    config, spec = T5Config(vocab_size=500, **T5 | {"d_ff": 2048}), checkpoint_spec("owner/name")
    one = StepSpec(FULL, 1, 30, 30, checkpointing=True)
    eight, paged = (
        simulate(config, "t5", replace(one, optimizer=name), False)
        for name in ("adamw-8bit", "paged-adamw-8bit")  # type: ignore[arg-type]
    )
    assert paged.optimizer < eight.optimizer / 2
    card = (on_card(eight.peak) + on_card(paged.peak)) // 2
    found = plan(config, spec, one, False, card)
    assert (Change("optimizer", "paged-adamw-8bit"),) in found.advice
    assert (Change("optimizer", "adamw-8bit"),) not in found.advice
    assert PAGED not in plan(config, spec, one, False, on_card(eight.peak)).advice


@pytest.mark.slow
def test_gradient_checkpointing_is_turned_on_only_if_it_makes_one_example_fit() -> None:
    config, spec = T5Config(vocab_size=8000, **T5), checkpoint_spec("owner/name")
    one = StepSpec(lora(4), 1, 200, 200)
    kept, again = (simulate(config, "t5", replace(one, checkpointing=on), False).peak for on in (False, True))
    found = plan(config, spec, replace(one, batch=2), False, on_card(kept) - 1)
    assert (found.fits, found.turned_on, found.step_spec.checkpointing, found.step_spec.batch) == (True, True, True, 1)
    kept_on = plan(config, spec, one, False, on_card(kept))
    assert (kept_on.fits, kept_on.turned_on, kept_on.step_spec.checkpointing) == (True, False, False)
    short = plan(config, spec, one, False, on_card(again) - 1)
    assert (short.fits, short.turned_on, short.step_spec.checkpointing) == (False, False, False)
    prefix = MethodSpec("prefix", bits=16, virtual_tokens=4)  # does not support gradient checkpointing
    assert not plan(config, spec, replace(one, method=prefix), False, CONTEXT).turned_on


def _fit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["petransfer", "fit", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


T5_11B = ("google-t5/t5-11b", "--bits", "4", "--json")
T5_11B_PARAMETERS = 11_307_321_344


def test_t5_11b_fits_twelve_gigabytes_in_four_bits_if_every_layer_needs_as_much_as_the_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fits only with gradient checkpointing. The next test is slow, because it predicts all 24 layers."""

    def found(layers: int, *options: str) -> Any:
        fields = registry().architectures["t5-11b"]
        monkeypatch.setitem(registry().architectures, "t5-11b", fields | {"num_layers": layers})
        assert _fit(monkeypatch, *T5_11B, "--batch", "1", *options) == 0
        return json.loads(capsys.readouterr().out)

    one, two = (found(layers, "--checkpointing")["memory"] for layers in (1, 2))
    weights = [sum(memory["weights"].values()) for memory in (one, two)]
    assert weights[0] + 23 * (weights[1] - weights[0]) < 1.10 * 0.516 * T5_11B_PARAMETERS
    assert one["on_card"] + 23 * (two["on_card"] - one["on_card"]) <= 12 * 10**9
    plain = found(1)
    assert not plain["checkpointing"]
    card = (one["on_card"] + plain["memory"]["on_card"]) / 2e9
    small = found(1, "--card", f"{card}GB")
    assert small["checkpointing"]
    assert small["memory"]["on_card"] == one["on_card"]
    assert small["micro_batch"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("batch", [("--batch", "1"), ()], ids=["1", "default"])
def test_t5_11b_fits_twelve_gigabytes_in_four_bits(
    batch: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fits only with gradient checkpointing. Without --batch, a step has 32 examples and the search takes longer."""
    assert _fit(monkeypatch, *T5_11B, "--card", "12GB", *batch) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpointing"]
    assert sum(found["memory"]["weights"].values()) < 1.10 * 0.516 * T5_11B_PARAMETERS
    assert found["memory"]["on_card"] <= 12 * 10**9
    assert found["micro_batch"] >= 1


@pytest.mark.usefixtures("one_layer")
def test_fit_prints_a_table_of_the_memory_and_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fit(monkeypatch, "nano/english", "--bits", "4", "--batch", "2", "--measure", "--cpu") == 0
    message = capsys.readouterr().out
    for part in ("weights (nf4)", "optimiser state", "activations", "sum at the peak", "prediction divided by"):
        assert part in message
    assert "petransfer's own training step needs " in message
    assert " for copies of weights" in message
    assert _fit(monkeypatch, "google-t5/t5-base", "--method", "full", "--bits", "32", "--card", "1.56GB") == 1
    advice = "does not fit into 1.6 GB; it would fit with --optimizer paged-adamw-8bit, or --method lora\n"
    assert advice in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nano/english", "--bits", "5"], "give 4, 8, 16 or 32"),
        (["nano/english", "--method", "lorra"], "did you mean 'lora'"),
        (["nano/english", "--method", "full", "--bits", "4"], "cannot train 4-bit weights"),
        (
            ["nano/english", "--method", "dora", "--stack", "2"],
            "dora is not stacked, because its norms",
        ),
        (
            ["nano/english", "--stack", "2", "--measure"],
            "--stack 2 cannot be combined with --measure; leave one of them out",
        ),
        (
            ["nano/english", "--stack", "2", "--checkpointing"],
            "--stack 2 cannot be combined with --gradient-checkpointing; leave one",
        ),
        (["nano/english", "--packing"], "nano/english is an encoder-decoder"),
        (["nano/english", "--stack", "2", "--packing"], "--stack 2 cannot be combined with --packing; leave one"),
        (["nano/english", "--optimizer", "sgd"], "unknown optimizer"),
        (
            ["nano/english", "--rank", "8", "--match-parameters", "100000"],
            "give either --rank or --match-parameters, which sets --rank",
        ),
        (["nano/english", "--lengths", "64"], "two whole numbers"),
        (["nano/english", "--card", "huge"], "write a size such as 12GB"),
        (["nano/englisch"], "nano/english"),
        (["owner/unknown"], "owner/unknown is not in the local cache and the hub cannot be reached"),
        (["Rostlab/prot_t5_xl_half_uniref50-enc"], "is not in the local cache"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fit(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("remembered_predictions")
def test_fit_predicts_the_memory_of_a_stack_of_runs(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(stack: int, card: str, batch: int = 8) -> dict[str, Any]:
        words = (str(tiny_t5), "--bits", "32", "--batch", str(batch), "--lengths", "38,301", "--json", "--card", card)
        fits = _fit(monkeypatch, *words, "--stack", str(stack)) == 0
        content: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert content["fits"] == fits
        return content

    one, four = found(1, "80GB"), found(4, "80GB")
    assert (one["stack"], four["stack"]) == (1, 4)
    assert four["memory"]["weights"] == one["memory"]["weights"]  # all runs share them
    assert four["memory"]["optimizer"] == 4 * one["memory"]["optimizer"]
    card = f"{(one['memory']['on_card'] + four['memory']['on_card']) / 2e9}GB"
    assert found(1, card)["micro_batch"] == 8
    assert 1 <= found(4, card)["micro_batch"] < 8
    least = [found(members, "80GB", batch=1)["memory"]["on_card"] for members in (2, 4)]
    none = found(4, f"{sum(least) / 2e9}GB")
    assert not none["fits"]
    assert "--stack 2" in none["advice"]


def test_fit_refuses_an_encoder_only_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoConfig.for_model("bert", architectures=["BertModel"]).save_pretrained(tmp_path)
    assert _fit(monkeypatch, str(tmp_path)) == 2
    assert "encoder-only" in capsys.readouterr().err


@pytest.mark.usefixtures("one_layer")
def test_plan_predicts_the_memory_once_for_all_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--recipe", "orhan-base", "--card", "12GB", "--arms", "english,scratch,code", "--json"]
    monkeypatch.setattr(sys, "argv", ["petransfer", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert [place["name"] for place in memory] == [
        "google-t5/t5-base, all weights, 32 bits",
        "google-t5/t5-base (from scratch), all weights, 32 bits",
        "Salesforce/codet5-base, all weights, 32 bits",
    ]
    assert all(place["fits"] for place in memory)


def test_each_length_of_examples_and_each_optimizer_gets_its_own_prediction(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    (tmp_path / "long.tsv").write_text("".join(f"{'walk ' * 100}{row}\t{'walk ' * 100}{row}\n" for row in range(100)))
    options = (("dev", 20), ("test", 40), ("train", str(tmp_path / "long.tsv")))
    short, long = tiny_spec(), tiny_spec(task=TaskSpec("lines", "long", options=options))
    small = tiny_spec(train=replace(short.train, optimizer="adamw-8bit"))
    found = predict_memory([short, long, small], 10**12, device="cpu")
    assert [one.spec for one in found] == [short, long, small]
    assert found[1].fit is not None
    assert found[0].fit is not None
    assert found[1].fit.needed > found[0].fit.needed
    assert found[1].name.endswith("split long")


def test_a_byte_level_model_has_one_token_per_character(tiny_spec: Callable[..., RunSpec]) -> None:
    spec = tiny_spec()
    plain = step_spec_of(spec, False, config=T5Config(vocab_size=32_128))
    assert plain == step_spec_of(spec, False)
    bytewise = step_spec_of(
        replace(spec, task=replace(spec.task, prefix="go: ")), False, config=T5Config(vocab_size=384)
    )
    source, target = load_task("lines", **spec.task.arguments).longest(spec.task.split)
    assert (bytewise.input_length, bytewise.target_length) == (source + 4 + 2, target + 2)
    assert plain.target_length < target


@pytest.mark.usefixtures("one_layer")
def test_a_run_that_does_not_fit_the_card_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("petransfer.study.run_study.this_card", lambda: Card(1_700_000_000))
    arguments = ["run", "--recipe", "orhan-base", "--arms", "english", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["petransfer", *arguments, "--set", "effects=[]"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "google-t5/t5-base, all weights, 32 bits" in error
    assert "does not fit" in error
    assert "it would fit with --set train.optimizer=adamw-8bit, or --set methods.0.name=lora" in error
    assert "--force starts the run anyway" in error
    assert len(error.splitlines()) == 1


def test_a_run_turns_on_gradient_checkpointing_only_if_it_does_not_fit_otherwise(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result records it. The run id and the dev score do not change."""
    spec = tiny_spec(steps=2)
    config, own_head = configuration(spec.checkpoint)
    one = replace(step_spec_of(spec, False), batch=1, accumulates=True)
    kept, again = (simulate(config, "t5", replace(one, checkpointing=on), own_head).peak for on in (False, True))
    cards = {"none": None, "enough": on_card(kept), "little": (on_card(kept) + on_card(again)) // 2}
    results = {}
    for name, card in cards.items():
        monkeypatch.setattr("petransfer.study.checkpointing_choice.card_of", lambda device, card=card: card)
        run_one(spec, RunFolder(tmp_path / name), Settings(Execution(threads=1), cpu=True))
        results[name] = json.loads((tmp_path / name / "result.json").read_text())
    assert {name: result["checkpointing"] for name, result in results.items()} == {
        "none": False,
        "enough": False,
        "little": True,
    }
    assert len({result["run_id"] for result in results.values()}) == 1
    assert results["little"]["dev"] == results["none"]["dev"]


def test_embedded_checkpoints_are_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    from petransfer.memory.study_memory import predict_memory
    from petransfer.recipe.loading import load_recipe
    from petransfer.study.grid import expand

    monkeypatch.setattr("petransfer.memory.planner.plan", lambda *given: pytest.fail("simulated"))
    assert predict_memory([cell.spec for cell in expand(load_recipe("lora-scan"))], 2**30) == []


def test_fit_counts_the_trained_embeddings_of_new_tokens(
    tiny_spec: Callable[..., RunSpec], tiny_t5: Path, tmp_path: Path
) -> None:
    from petransfer.memory.study_memory import check_matched_sizes, step_spec_of, trained_tokens_of_run
    from petransfer.study.settings import Settings
    from petransfer.study.single_run import open_base, prepare

    anew = replace(checkpoint_spec(str(tiny_t5)), reinit="embeddings")
    method = MethodSpec("lora", bits=32, rank=2, alpha=4.0, embeddings="new")
    spec = tiny_spec(method, steps=4, checkpoint=anew)
    config, own_head = configuration(spec.checkpoint)
    token_ids = trained_tokens_of_run(spec, config)
    assert 10 < len(token_ids) < config.vocab_size
    settings = Settings(Execution(threads=1), cpu=True)
    model = prepare(spec, RunFolder(tmp_path), open_base(spec, settings)).model
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert plan(config, anew, step_spec_of(spec, False), own_head, None, token_ids).memory.trained_parameters == trained
    wanted = trained - len(token_ids) * config.d_model  # LoRA's parameters, not counting trained embeddings
    with pytest.raises(UserError, match="lora cannot have"):
        check_matched_sizes([replace(spec, method=replace(method, rank=0, alpha=0.0, match_parameters=wanted))])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "oft", "rank": 64}, "--rank: the method oft has no rank"),
        ({"virtual_tokens": 5}, "--virtual-tokens: the method lora has no virtual_tokens"),
        ({"rank": 10**6}, "--rank 1000000: it should be less than or equal to 4096"),
        ({"match_parameters": 10**13}, "--match-parameters 10000000000000: it should be less"),
    ],
)
def test_a_size_that_the_method_cannot_have_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        fit("nano/english", bits=32, **options)


def test_more_virtual_tokens_than_positions_are_refused(tiny_gpt2: Path) -> None:
    with pytest.raises(UserError) as by_number:
        fit(str(tiny_gpt2), bits=32, method="prompt", virtual_tokens=4096)
    with pytest.raises(UserError) as by_parameters:
        fit(str(tiny_gpt2), bits=32, method="prompt", match_parameters=4096 * 32)
    for refusal in (by_number, by_parameters):
        assert "virtual tokens" in str(refusal.value)


def test_a_model_with_an_operation_that_needs_values_cannot_be_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("torch.nonzero() raises unimplemented")

    monkeypatch.setattr("petransfer.memory.step_memory.token_loss", fail)
    with pytest.raises(UserError, match=r"memory of nano/english \(t5\) cannot be predicted: .*torch.nonzero"):
        fit("nano/english", bits=32)


def test_the_title_of_a_method_does_not_depend_on_the_name_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on whether the method trains all weights, which a method of another package can do, too."""
    everything = replace(METHODS.lookup("full"), name="everything", title="all of it")
    lookup = METHODS.lookup
    monkeypatch.setattr(METHODS, "lookup", lambda name: everything if name == "everything" else lookup(name))
    assert method_title(replace(LORA, name="everything")) == "all of it"
    assert method_title(replace(LORA, name="full")) == "all weights"


def test_rows_longer_than_max_length_or_the_positions_need_no_memory(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    """Such rows are refused or left out before training."""
    (tmp_path / "rows.tsv").write_text("".join(f"{'walk ' * 3000}{row}\trun\n" for row in range(60)))
    options = (("dev", 20), ("test", 20), ("train", str(tmp_path / "rows.tsv")))
    spec = tiny_spec(task=TaskSpec("lines", "long", options=options))
    config = AutoConfig.for_model("bart", max_position_embeddings=64)
    assert step_spec_of(spec, False, config=config).input_length == 64
    limited = replace(spec, task=replace(spec.task, source=Options({"max_length": 40})))
    assert step_spec_of(limited, False, config=config).input_length == 40
    assert step_spec_of(spec, False).input_length > 5000
