"""Invariant 2: K adapters trained stacked end where K single runs end, and leave the folders of single runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from safetensors.torch import load_file

from petransfer.recipe.spec import RunSpec
from petransfer.study.ledger import RunFolder
from petransfer.study.run import Settings, run_one
from petransfer.study.stacked import run_stack
from petransfer.train.execution import Execution
from petransfer.train.metrics import read_metrics

SETTINGS = Settings(Execution(threads=1, log_every=1, save_every=0.0, micro_batch=4), cpu=True)
WEIGHTS = "adapter/adapter_model.safetensors"
Make = Callable[..., RunSpec]


@pytest.fixture
def make(tmp_path: Path, tiny_t5: Path) -> Make:
    """Specs on a few dozen rows of unlike lengths."""
    verbs = ("walk", "run", "look", "jump", "turn", "see")
    times = {"once": 1, "twice": 2, "thrice and then some more times": 3, "four times": 4, "often": 9}
    rows = [f"{verb} {word}\t{' '.join([verb.upper()] * count)}\n" for verb in verbs for word, count in times.items()]
    (tmp_path / "rows.tsv").write_text("".join(rows))
    from petransfer.recipe.load import validate
    from petransfer.study.grid import expand, resolve

    def one(folder: Path | None = None, **changes: Any) -> RunSpec:
        task = {"name": "lines", "options": {"train": str(tmp_path / "rows.tsv"), "dev": 5, "test": 6}}
        content = {
            "name": "x", "task": task, "family": {"name": "t", "arms": {"english": str(folder or tiny_t5)}},
            "arms": ["english"], "methods": [{"name": "lora", "rank": 4, "bits": 32}], "seeds": [0],
            "train": {"steps": 4, "batch_size": 10, "learning_rate": 2e-3},
        }  # fmt: skip
        (cell,) = expand(resolve(validate(content, "x")))
        return replace(cell.spec, **changes)

    return one


def _members(spec: RunSpec) -> list[RunSpec]:
    """Three that differ in all in which members of a stack may differ."""
    other = replace(spec.method, rank=2, alpha=3.0)
    return [
        spec,
        replace(spec, seed=1, method=other, train=replace(spec.train, learning_rate=5e-3)),
        replace(spec, seed=2, train=replace(spec.train, schedule="constant", weight_decay=0.1, rate_scaling="rms")),
    ]


def _alone(specs: Sequence[RunSpec], out: Path) -> list[Path]:
    for spec in specs:
        run_one(spec, RunFolder(out / spec.run_id), SETTINGS)
    return [out / spec.run_id for spec in specs]


def _stacked(specs: Sequence[RunSpec], out: Path, **options: Any) -> list[Path]:
    run_stack(specs, [RunFolder(out / spec.run_id) for spec in specs], SETTINGS, **options)
    return [out / spec.run_id for spec in specs]


def _lines(run: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0} for line in read_metrics(run / "metrics.jsonl")]


def _close(alone: Path, stacked: Path, tolerance: float) -> None:
    """The same files and numbers, to rounding."""
    names = [{str(path.relative_to(run)) for path in run.rglob("*")} - {".claim"} for run in (alone, stacked)]
    assert names[0] == names[1]
    left, right = _lines(alone), _lines(stacked)
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert other["loss"] == pytest.approx(one["loss"], rel=tolerance)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=20 * tolerance)
        assert other["learning_rate"] == one["learning_rate"]
    weights = [load_file(run / WEIGHTS) for run in (alone, stacked)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert value.shape == weights[1][name].shape
        apart = float((value - weights[1][name]).norm() / value.norm().clamp(min=1e-6))
        assert apart < 30 * tolerance, (name, apart)
    results = [json.loads((run / "result.json").read_text()) for run in (alone, stacked)]
    assert results[1]["environment"].pop("stacked") > 1
    assert results[0]["environment"] == results[1]["environment"]
    for key in ("run_id", "parameters", "trained_parameters", "weights", "steps", "micro_batch", "out_of_memory"):
        assert results[0][key] == results[1][key]
    tables = [pyarrow.parquet.read_table(run / "examples.parquet").to_pydict() for run in (alone, stacked)]
    assert tables[0].keys() == tables[1].keys()
    assert tables[0]["index"] == tables[1]["index"]
    assert tables[1]["log_prob"] == pytest.approx(tables[0]["log_prob"], rel=10 * tolerance)


@pytest.mark.parametrize(
    ("kind", "changes", "count", "tolerance"),
    [
        ("tiny_t5", {"dropout": 0.2}, 3, 1e-5),
        ("tiny_gpt2", {"dropout": 0.2}, 3, 1e-5),
        ("tiny_t5", {"embeddings": "trained"}, 2, 1e-5),
        pytest.param("tiny_gpt2", {"embeddings": "trained"}, 3, 1e-5, marks=pytest.mark.slow),
        pytest.param("tiny_t5", {"bits": 16}, 3, 1e-2, marks=pytest.mark.slow),
        pytest.param("tiny_gpt2", {"bits": 8}, 3, 1e-2, marks=pytest.mark.slow),
        ("tiny_t5", {"bits": 8}, 2, 1e-2),
        ("tiny_t5", {"bits": 4}, 2, 1e-2),
    ],
    ids=["t5", "gpt2", "t5-rows", "gpt2-rows", "t5-bf16", "gpt2-8", "t5-8", "t5-4"],
)
def test_a_stack_ends_where_single_runs_end(
    kind: str,
    changes: dict[str, Any],
    count: int,
    tolerance: float,
    make: Make,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # where the CPU has them, bitsandbytes repacks 4-bit weights for kernels that take no layer as small as these
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    spec = make(request.getfixturevalue(kind))
    specs = _members(replace(spec, method=replace(spec.method, **changes)))[:count]
    alone, stacked = _alone(specs, tmp_path / "alone"), _stacked(specs, tmp_path / "stacked")
    for one, other in zip(alone, stacked, strict=True):
        _close(one, other, tolerance)
