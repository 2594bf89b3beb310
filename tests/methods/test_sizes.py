"""The methods of a recipe: matched sizes, the keys of each method, labels, and the supported numbers of bits."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from petransfer.cli import main
from petransfer.data.encoding import Encoded
from petransfer.errors import UserError
from petransfer.methods import apply_method, save_method, with_size
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.effect_requests import requested_effects
from petransfer.recipe.loading import load_recipe, validate
from petransfer.recipe.method_part import MethodPart, method_of
from petransfer.recipe.methods import METHODS, Method
from petransfer.recipe.run_spec import MethodSpec, RunSpec
from petransfer.study.folders import RunFolder
from petransfer.study.grid import expand
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training.batches import collate
from petransfer.training.execution import Execution
from petransfer.training.losses import token_loss
from petransfer.training.state import trained_tensors
from tests.tiny_models import keep

TABLE = Path(__file__).parents[2] / "docs" / "how-to" / "choose-a-method.md"
SIZED = [name for name, form in METHODS.items() if form.size]


def recipe(*methods: dict[str, Any], **changes: Any) -> Any:
    """Return a validated recipe for the embedded family."""
    content = {
        "name": "many", "task": {"name": "scan", "splits": ["right"]}, "arms": ["english", "scratch", "random"],
        "methods": list(methods), "train": {"steps": 10, "learning_rate": 1e-3},
    }  # fmt: skip
    return validate(content | changes, "here")


@pytest.mark.parametrize("base", ["tiny_t5", "tiny_gpt2"])
@pytest.mark.parametrize("name", SIZED)
def test_match_parameters_chooses_the_size_with_the_nearest_number_of_parameters(
    name: str, base: str, request: pytest.FixtureRequest
) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(request.getfixturevalue(base))), 32)
    method = method_of(MethodPart(name=name, bits=32, match_parameters=12_000))
    assert (method.rank, method.virtual_tokens, method.alpha) == (0, 0, 0.0)
    key = METHODS[name].size
    found = with_size(loaded, method)
    size = getattr(found, key)

    def count(at: int) -> int:
        with torch.device("meta"):
            meta = replace(loaded, model=type(loaded.model)(loaded.model.config))
        model = apply_method(meta, replace(found, **{key: at}), 0)
        return sum(value.numel() for value in trained_tensors(model).values())

    apart = {at: abs(count(at) - method.match_parameters) for at in (size - 1, size, size + 1) if at}
    assert apart[size] == min(apart.values())
    assert found.alpha == (2.0 * size if "alpha" in METHODS[name].keys else 0.0)
    model = apply_method(load_checkpoint(checkpoint_spec(str(request.getfixturevalue(base))), 32), method, 0)
    assert sum(value.numel() for value in trained_tensors(model).values()) == count(size)


def test_a_study_stops_before_training_if_match_parameters_cannot_be_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["methods=[{name: lora, match_parameters: 100, bits: 32}]", "train.steps=2", "arms=[english]", "effects=[]"]
    sets = [part for one in given for part in ("--set", one)]
    monkeypatch.setattr(sys, "argv", ["petransfer", "run", "--recipe", "lora-scan", "--cpu", *sets])
    with pytest.raises(SystemExit) as stopped:
        main()
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "match_parameters: lora cannot have 100 parameters; the nearest number is 11,264, with rank 1" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "ia3", "rank": 8}, "the method ia3 has no rank; its settings are layers and targets"),
        ({"name": "prompt", "layers": [0]}, "the method prompt has no layers"),
        ({"name": "ln", "targets": ["q"]}, "the method ln has no targets; its only setting is bits"),
        ({"name": "lora", "virtual_tokens": 3}, "the method lora has no virtual_tokens"),
        ({"name": "vera", "embeddings": "new"}, "the method vera has no embeddings"),
        ({"name": "ia3", "match_parameters": 9}, "the method ia3 has no match_parameters"),
        ({"name": "lora", "rank": 8, "match_parameters": 9}, "give either rank or match_parameters"),
        ({"name": "lora", "layers": [1, 1]}, "layers: a number is given twice"),
        ({"name": "dora", "bits": 8}, "dora does not support a base model with 8 bits"),
        ({"name": "ia3", "bits": 4}, "ia3 does not support a base model with 4 bits"),
        ({"name": "lora", "match_parameters": 0}, "match_parameters"),
        ({"name": "prompt", "virtual_token": 3}, "virtual_tokens"),
    ],
)
def test_wrong_keys_and_values_of_a_method_are_refused_in_one_line(method: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        recipe(method)
    assert "\n" not in str(refused.value)


def test_the_message_about_an_unknown_method_suggests_the_nearest_name() -> None:
    for given, nearest in (("lorra", "lora"), ("lora+", "loraplus")):
        with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
            expand(recipe({"name": given}))


def test_layers_and_ranks_that_the_model_cannot_have_are_refused(tiny_t5: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    with pytest.raises(UserError, match="layers: the model has no layer 3; its layers are 0 to 0"):
        apply_method(loaded, MethodSpec("lora", 32, 2, 4.0, layers=(0, 3)), 0)
    with pytest.raises(UserError, match="pissa: rank 33 is too large for"):
        apply_method(loaded, MethodSpec("pissa", 32, 33, 66.0), 0)


def test_labels_of_methods_are_unique_and_effects_find_methods_by_them() -> None:
    parts: list[dict[str, Any]] = [{"name": name, "bits": 32} for name in METHODS]
    parts += [
        {"name": "lora", "bits": 32} | more
        for more in (
            {"rank": 4}, {"layers": [0]}, {"alpha": 4.0}, {"targets": ["q", "v"]}, {"dropout": 0.1},
            {"embeddings": "new"}, {"match_parameters": 50_000}, {"rate_scaling": "rms"},
        )
    ]  # fmt: skip
    parts += [{"name": "loraplus", "bits": 32, "rate_ratio": 4.0}, {"name": "prompt", "bits": 32, "virtual_tokens": 7}]
    labels = [MethodPart(**part).label for part in parts]
    assert len(set(labels)) == len(labels)
    assert {"lora r16 32-bit", "rslora r16 32-bit"} <= set(labels)
    two = recipe({"name": "lora", "bits": 32}, {"name": "prompt", "bits": 32}, {"name": "loraplus", "bits": 32},
                 effects=["prompt-lora", "english-scratch", "loraplus-lora"])  # fmt: skip
    found = [(effect.left, effect.right) for effect in requested_effects(two) if effect.kind == "methods"]
    assert found == [("prompt 20-tokens 32-bit", "lora r16 32-bit"), ("loraplus r16 32-bit", "lora r16 32-bit")]
    cells = expand(two)
    assert [cell.method for cell in cells if cell.arm == "scratch"] == ["full 32-bit"]
    assert len({cell.run_id for cell in cells}) == len(cells) == 7


def test_a_run_spec_can_be_restored_from_its_dict() -> None:
    cells = expand(
        recipe(*({"name": name, "bits": 32, **({"layers": [0]} if name == "vera" else {})} for name in METHODS))
    )
    for cell in cells:
        assert RunSpec.from_dict(cell.spec.as_dict()) == cell.spec
        assert ("virtual_tokens" in cell.spec.canonical_json()) == (cell.spec.method.name in ("prompt", "prefix"))


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from petransfer.study.grid import expand; from petransfer.recipe.loading import load_recipe\n"
        "expand(load_recipe('methods-scan', [], {})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_recipe_methods_scan_compares_more_than_ten_methods_on_one_split() -> None:
    scan = load_recipe("methods-scan", [], {})
    tuned = {method.name for method in scan.methods}
    assert len(tuned) > 10
    assert tuned <= set(METHODS) - {"bias"}  # T5 has no biases, so `bias` would be the same as `ln`
    assert set(scan.arms) <= {"english", "scratch", "random"}
    assert {cell.spec.task.split for cell in expand(scan)} == {"opposite_right"}
    assert load_recipe("prompt-scan", [], {}).family == "nano"


@pytest.fixture(scope="module")
def wide_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A T5 and a decoder-only model that are wide enough for the blocks of 4-bit weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    def t5(tokens: int) -> Any:
        config = T5Config(
            vocab_size=tokens, d_model=64, d_kv=32, d_ff=128, num_layers=1, num_heads=2,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return T5ForConditionalGeneration(config)

    def llama(tokens: int) -> Any:
        config = LlamaConfig(
            vocab_size=tokens, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    makers = {"t5": t5, "llama": llama}
    return {name: keep(tmp_path_factory.mktemp(f"wide-{name}"), make) for name, make in makers.items()}


@pytest.mark.parametrize("base", ["t5", "llama"])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_a_method_trains_with_all_numbers_of_bits_that_it_supports(
    name: str, bits: Any, base: str, wide_bases: dict[str, Path], tmp_path: Path
) -> None:
    if bits in METHODS[name].unsupported_bits:
        pytest.skip(METHODS[name].unsupported_bits[bits])
    loaded = load_checkpoint(checkpoint_spec(str(wide_bases[base])), bits)
    size: dict[str, Any] = {"rank": 4} if METHODS[name].size == "rank" else {}
    method = method_of(MethodPart(name=name, bits=bits, **size))
    batch = collate([Encoded((5, 6, 7, 1), (9, 10, 1)), Encoded((15, 6, 1), (9, 22, 30, 1))], loaded.layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():  # like the check before quantised runs, which moves the scales of 8-bit weights
            untrained = float(token_loss(loaded.model, batch))
        model = apply_method(loaded, method, 0).eval()
        assert {value.dtype for value in trained_tensors(model).values()} == {torch.float32}
        if name not in ("prompt", "prefix"):  # these add virtual tokens; all others start with the base's loss
            assert float(token_loss(model, batch)) == pytest.approx(untrained, abs=0.05)
        optimizer = torch.optim.AdamW(trained_tensors(model).values(), lr=1e-2)
        losses = []
        for _ in range(4):
            loss = token_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.03
    save_method(name, model, tmp_path, "tiny")


@pytest.mark.parametrize("bits", [8, 4])
def test_a_run_reports_the_number_of_parameters_of_a_quantised_model(
    bits: Any, wide_bases: dict[str, Path], tmp_path: Path, tiny_spec: Any
) -> None:
    whole = AutoModelForSeq2SeqLM.from_pretrained(wide_bases["t5"])
    method = MethodSpec("pissa", bits, rank=4, alpha=8.0)
    spec = replace(tiny_spec(method, steps=2), checkpoint=checkpoint_spec(str(wide_bases["t5"])))
    result = run_one(spec, RunFolder(tmp_path), Settings(Execution(threads=1), cpu=True, force=True))
    added = 2 * result["trained_parameters"]  # PiSSA has a second adapter, which subtracts its initial values
    assert result["parameters"] == sum(value.numel() for value in whole.parameters()) + added


def abilities(method: Method) -> list[str]:
    """Return what the documented table says about a method: its size, 8 and 4 bits, merging and stacking."""
    reasons = (*(method.unsupported_bits.get(bits) for bits in (8, 4)), method.not_merged, method.not_stacked)
    return [f"`{method.size}`" if method.size else "none", *("no" if reason else "yes" for reason in reasons)]


def test_the_documented_table_of_methods_agrees_with_the_code() -> None:
    if not TABLE.is_file():
        pytest.skip("no docs/ in this checkout")
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    rows = {cells[1].strip("`"): cells[3:-1] for line in lines if (cells := [one.strip() for one in line.split("|")])}
    assert len(rows) > 10
    assert rows == {name: abilities(METHODS[name]) for name in rows}
