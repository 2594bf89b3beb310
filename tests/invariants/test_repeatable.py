"""Invariants 3, 6 and 8: a resumed run, plain peft, and a repeated run with the same seed give the same numbers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from petransfer.data import load_task
from petransfer.data.encoding import encode_examples
from petransfer.errors import Interrupted, RunError
from petransfer.evaluation.exact_match import score
from petransfer.models.loading import load_checkpoint
from petransfer.recipe.run_spec import MethodSpec, Optimizer, RunSpec
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training import state
from petransfer.training.execution import Execution
from petransfer.training.metrics_file import read_metrics
from tests.conftest import FULL, LORA

SETTINGS = Settings(Execution(threads=1, log_every=2, save_every=0.0), cpu=True)
Make = Callable[..., RunSpec]


@pytest.fixture(autouse=True)
def _no_reload_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not load saved weights again, which takes as long as training. test_reload_check.py tests this check."""
    monkeypatch.setattr("petransfer.study.single_run.check_reloaded", lambda *_: True)


@pytest.fixture(name="make", scope="module")
def make_spec(tiny_spec: Make) -> Make:
    """A function that makes specs like `tiny_spec`, but with fewer examples to score."""

    def make(*arguments: Any, **options: Any) -> RunSpec:
        spec = tiny_spec(*arguments, **options)
        few = dict(spec.task.options) | {"dev": 8, "test": 12}
        return replace(spec, task=replace(spec.task, options=tuple(sorted(few.items()))))

    return make


def _run(spec: RunSpec, folder: Path, stop_at: set[int] | None = None) -> dict[str, Any] | None:
    """Execute a run and return its result. Return None if it is interrupted at the next step of `stop_at`."""
    at = {"step": 0}

    def progress(step: int, loss: float, seconds: float) -> None:
        at["step"] = step

    def should_stop() -> bool:
        return at["step"] in (stop_at or set()) and not (stop_at or set()).discard(at["step"])

    try:
        return run_one(spec, RunFolder(folder), SETTINGS, progress, should_stop)
    except Interrupted:
        return None


def _weights(folder: Path, name: str = "adapter/adapter_model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def _numbers(result: dict[str, Any] | None) -> dict[str, Any]:
    assert result is not None
    return {part: result[part] for part in ("dev", "test")}


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


ADAPTER, MODEL = "adapter/adapter_model.safetensors", "model/model.safetensors"


@pytest.mark.parametrize(
    ("method", "file", "optimizer"),
    [
        (LORA, ADAPTER, "adamw"),
        (replace(LORA, dropout=0.1, embeddings="trained"), ADAPTER, "adamw"),
        (replace(LORA, bits=4), ADAPTER, "adamw"),
        pytest.param(replace(LORA, bits=8), ADAPTER, "adamw", marks=pytest.mark.slow),
        (FULL, MODEL, "adamw"),
        (FULL, MODEL, "adamw-8bit"),
    ],
    ids=["lora", "lora-embeddings", "lora-4-bit", "lora-8-bit", "full", "full-adamw-8bit"],
)
def test_an_interrupted_run_is_bit_identical_to_an_uninterrupted_run(
    method: MethodSpec, file: str, optimizer: Optimizer, make: Make, tmp_path: Path
) -> None:
    spec = make(method, steps=6)
    spec = replace(spec, train=replace(spec.train, optimizer=optimizer))
    whole = _run(spec, tmp_path / "whole")
    stops = {1, 2}
    tries = 0
    result = None
    while result is None:
        result = _run(spec, tmp_path / "cut", stops)
        tries += 1
        if result is None:  # a kill can happen between writing a line and saving the state
            with (tmp_path / "cut" / "metrics.jsonl").open("a") as metrics:
                metrics.write('{"step": 5, "loss": 0}\n{"st')
    assert tries == 3
    assert _same(_weights(tmp_path / "whole", file), _weights(tmp_path / "cut", file))
    assert _numbers(whole) == _numbers(result)
    lines = [
        [{**line, "seconds": 0} for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == list(range(1, 7))  # every step has a point of the learning curve
    assert all(0 <= line["dev_em"] <= 100 for line in lines[0])
    assert not (tmp_path / "cut" / "state").exists()


def test_gradient_checkpointing_does_not_change_the_result(make: Make, tmp_path: Path) -> None:
    """This includes dropout: the repeated forward pass draws the same values."""
    spec = make(replace(LORA, dropout=0.1), steps=4)
    plain = _run(spec, tmp_path / "plain")
    settings = replace(SETTINGS, execution=replace(SETTINGS.execution, checkpointing=True))
    checkpointed = run_one(spec, RunFolder(tmp_path / "checkpointed"), settings)
    assert _same(_weights(tmp_path / "plain"), _weights(tmp_path / "checkpointed"))
    assert _numbers(plain) == _numbers(checkpointed)


def test_runs_depend_on_their_spec_and_seed_but_not_on_earlier_random_numbers(make: Make, tmp_path: Path) -> None:
    spec = make(steps=4)
    torch.manual_seed(123)
    torch.rand(7)
    first = _run(spec, tmp_path / "a")
    torch.rand(13)
    second = _run(spec, tmp_path / "b")
    other = _run(replace(spec, seed=1), tmp_path / "c")
    assert _same(_weights(tmp_path / "a"), _weights(tmp_path / "b"))
    assert _numbers(first) == _numbers(second)
    assert not _same(_weights(tmp_path / "a"), _weights(tmp_path / "c"))
    assert _numbers(first) != _numbers(other)


@pytest.fixture(scope="module")
def strong(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RunSpec, Path]]:
    """A function that returns the spec and the folder of a run with a high learning rate, for `embeddings`."""

    @functools.cache
    def run(embeddings: str) -> tuple[RunSpec, Path]:
        spec = make(replace(LORA, embeddings=embeddings), steps=6)
        spec = replace(spec, train=replace(spec.train, learning_rate=3e-2))
        folder = tmp_path_factory.mktemp(embeddings)
        _run(spec, folder)
        return spec, folder

    return run


@pytest.mark.parametrize("embeddings", ["frozen", "trained"])
def test_plain_peft_gives_the_same_logits(
    embeddings: str, strong: Callable[[str], tuple[RunSpec, Path]], tiny_t5: Path
) -> None:
    from petransfer.sharing.adapter import Adapter

    spec, folder = strong(embeddings)
    ours = Adapter.load(folder, device="cpu").predictor
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5, dtype=torch.float32)
    ids = {"input_ids": torch.tensor([[40, 50, 60, 1]]), "decoder_input_ids": torch.tensor([[0, 70, 80]])}
    with torch.no_grad():
        before = base.eval()(**ids).logits
        plain = PeftModel.from_pretrained(base, folder / "adapter").eval()
        after = plain(**ids).logits
        assert torch.equal(after, ours.model(**ids).logits)
    assert (after - before).abs().max() > 1e-3
    assert _log_probs(plain, spec) == pytest.approx(_kept_log_probs(folder), abs=1e-3)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert str(folder) not in json.dumps(config)
    assert config["base_model_name_or_path"] == spec.checkpoint.name


def _log_probs(model: torch.nn.Module, spec: RunSpec) -> list[float]:
    """Return the log-probability of each test example, from a model that only has the adapter of the run."""
    loaded = load_checkpoint(spec.checkpoint, 32)
    examples = load_task(spec.task.name, **dict(spec.task.options)).load(spec.task.split).test
    encoded = encode_examples(examples, "", loaded.tokenizer, loaded.layout)
    return [row.log_prob for row in score(model, loaded, examples, encoded, len(examples))]


def _kept_log_probs(run: Path) -> list[float]:
    """Return the log-probability of each test example, as the run saved it from the model in memory."""
    kept = pyarrow.parquet.read_table(run / "examples.parquet")["log_prob"].to_pylist()
    return [float(value) for value in kept]


def test_the_order_of_the_examples_uses_the_seed_of_the_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def stop_here(examples: Any, batch_size: int, seed: int, *_: Any) -> None:
        seeds.append(seed)
        raise Interrupted

    monkeypatch.setattr("petransfer.study.single_run.ShuffledExamples", stop_here)
    for seed in (3, 4):
        assert _run(replace(make(steps=3), seed=seed), tmp_path / str(seed)) is None
    assert seeds == [3, 4]


def test_training_the_embeddings_changes_the_encoder_the_decoder_and_the_head(
    strong: Callable[[str], tuple[RunSpec, Path]], tiny_t5: Path
) -> None:
    """T5 uses one embedding matrix in four places. All of them must use the trained embeddings."""
    _, folder = strong("trained")
    model = PeftModel.from_pretrained(
        AutoModelForSeq2SeqLM.from_pretrained(tiny_t5, dtype=torch.float32), folder / "adapter"
    )
    inner = model.base_model.model
    rows = torch.tensor([[5, 6, 7]])
    frozen = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5, dtype=torch.float32)
    encoder, decoder = inner.encoder.embed_tokens(rows), inner.decoder.embed_tokens(rows)
    assert torch.equal(encoder, decoder)
    assert not torch.equal(encoder, frozen.shared(rows))
    hidden = torch.randn(1, 1, 32)
    assert torch.allclose(inner.lm_head(hidden)[..., 5:8], hidden @ encoder[0].T, atol=1e-5)


def test_a_full_disk_while_saving_keeps_the_last_complete_state(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(steps=4)
    whole = _run(spec, tmp_path / "whole")
    real, calls = state.save_file, {"n": 0}

    def full(*arguments: object, **options: object) -> None:
        calls["n"] += 1
        if calls["n"] == 6:  # the file of the optimiser in the third state
            raise OSError(28, "No space left on device")
        real(*arguments, **options)

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(RunError, match="No space left on device; the last good state is kept"):
        _run(spec, tmp_path / "cut")
    calls["n"] = 5  # the next file belongs to the first state
    with pytest.raises(RunError, match="No space left on device; no earlier state was saved"):
        _run(spec, tmp_path / "first")
    states = list((tmp_path / "cut" / "state").iterdir())
    assert [folder.name for folder in states] == ["step-000000002"]
    monkeypatch.setattr(state, "save_file", real)
    result = _run(spec, tmp_path / "cut")
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "cut"))
    assert _numbers(whole) == _numbers(result)


def test_a_state_of_another_spec_is_not_used(make: Make, tmp_path: Path) -> None:
    spec = make(steps=6)
    assert _run(spec, tmp_path / "cut", {1}) is None
    assert state.newest_progress(tmp_path / "cut" / "state", spec.canonical_json()) is not None
    assert state.newest_progress(tmp_path / "cut" / "state", replace(spec, seed=5).canonical_json()) is None
