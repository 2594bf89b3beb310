"""Speed benchmarks with few steps: every side runs, the sides agree, and the results are written to a file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from benchmarks import growth, sides, startup, training
from benchmarks.prepared import Changes, prepare
from petransfer.data.encoding import Encoded
from petransfer.errors import UserError
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.training.loop import Loop
from tests.benchmarks.test_bench import _bench
from tests.cli.calls import call

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_training_benchmark_times_all_sides_and_checks_the_gradient(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    small = ("--recipe", "smoke", "--batch", "4", "--steps", "1", "--repeats", "1", "--out", str(out))
    assert _bench(monkeypatch, "train", *small) == 0
    (row,) = json.loads(out.read_text())
    assert row["gradient_difference"] < 1e-3
    assert set(row["examples_per_second"]) == {"petransfer", "trainer", "trainer, grouped by length"}
    assert all(rate > 0 for rate in row["examples_per_second"].values())
    assert 0 < row["share_of_matmul_rate"]["petransfer"] < 1
    assert _bench(monkeypatch, "train", "--recipe", "smoke", "--arm", "englsh") == 2


@pytest.mark.slow
def test_the_training_benchmark_times_a_decoder_only_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_gpt2: Path
) -> None:
    out = tmp_path / "out.json"
    small = ("--recipe", "smoke", "--checkpoint", str(tiny_gpt2), "--batch", "4", "--steps", "1", "--repeats", "1")
    assert _bench(monkeypatch, "train", *small, "--out", str(out)) == 0
    (row,) = json.loads(out.read_text())
    assert all(rate > 0 for rate in row["examples_per_second"].values())
    assert row["hardware"]["processor"]


def test_labels_of_a_decoder_only_model_are_only_the_target() -> None:
    fields = training._fields(Encoded((5, 6, 7), (8, 1)), encoder_decoder=False)
    assert fields == {"input_ids": [5, 6, 7, 8, 1], "attention_mask": [1] * 5, "labels": [-100, -100, -100, 8, 1]}


@pytest.mark.slow
def test_all_sides_train_on_the_same_examples_in_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a whole turn, the side that groups by length has less padding."""
    steps, size = 8, 4
    prepared = prepare("smoke", "english", Changes(batch=size), None, CPU)
    met: dict[str, list[Any]] = {}

    class Seen(DataCollatorForSeq2Seq):  # type: ignore[misc]
        def __call__(self, rows: Any, return_tensors: Any = None) -> Any:
            batch = super().__call__(rows, return_tensors)
            met[side].append([tuple(row["input_ids"]) for row in rows])
            padded[side] = padded.get(side, 0) + batch["input_ids"].numel()
            return batch

    plain = Loop.take_step

    def step(loop: Loop, at: int) -> Any:
        met[side].append([row.input_ids for row in loop.source.batch(at, 0, 1).examples])
        return plain(loop, at)

    monkeypatch.setattr(training, "DataCollatorForSeq2Seq", Seen)
    monkeypatch.setattr(Loop, "take_step", step)
    padded: dict[str, int] = {}
    turns = training.turns(prepared, tmp_path, steps)
    for _ in range(2):
        for side, turn in turns.items():
            met[side] = []
            assert turn() > 0
        first, *others = ([batch[training.WARM :], batch[: training.WARM]] for batch in met.values())
        assert len(others) == 2
        assert all(_sorted(timed) == _sorted(first[0]) and warm == first[1] for timed, warm in others)
    assert padded["trainer, grouped by length"] < padded["trainer"]


def _sorted(batches: list[list[Any]]) -> list[Any]:
    return sorted(row for batch in batches for row in batch)


@pytest.mark.slow
def test_the_scoring_benchmark_agrees_with_generation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = ("--recipe", "smoke", "--train-steps", "3", "--examples", "6", "--repeats", "1", "--out", str(out))
    assert _bench(monkeypatch, "eval", *small) == 0
    (row,) = json.loads(out.read_text())
    assert (row["examples"], row["disagreements"], row["train_steps"]) == (6, 0, 3)
    assert row["run_id"] is None
    assert sum(row["profile"].values()) == pytest.approx(100, abs=1)
    assert row["profile"]["products"] > row["profile"]["passes over logits"] > 0


@pytest.mark.slow
def test_the_scoring_benchmark_can_use_a_finished_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run has 100 % exact match, because agreement on wrong predictions alone would show little."""
    rows, study, out = tmp_path / "rows.tsv", tmp_path / "study", tmp_path / "out.json"
    rows.write_text("".join(f"jump {count}\twalk left\n" for count in range(20)))
    short = ("--bits", "32", "--steps", "60", "--lr", "1e-2", "--dev", "4", "--test", "8", "--out", str(study))
    assert call(monkeypatch, "train", "nano/english", str(rows), *short) == 0
    (run,) = (study / "runs").iterdir()
    asked = ("--run", str(run), "--repeats", "1", "--out", str(out))
    assert _bench(monkeypatch, "eval", *asked) == 0
    (row,) = json.loads(out.read_text())
    assert (row["run_id"], row["train_steps"], row["examples"]) == (run.name, 60, 8)
    assert (row["exact_match"], row["disagreements"]) == (100.0, 0)
    assert _bench(monkeypatch, "eval", "--run", str(tmp_path)) == 2


def test_the_sides_take_turns_and_the_median_is_returned() -> None:
    order: list[str] = []
    values = iter([1.0, 10.0, 20.0, 2.0, 30.0, 3.0])
    turns = {name: lambda name=name: order.append(name) or next(values) for name in ("a", "b")}
    found = sides.alternating(turns, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert sides.medians(found) == {"a": 2.0, "b": 10.0}


def test_start_up_time_is_measured_in_separate_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "COMMANDS", {"nothing": ("-c", "pass")})
    found = {row["command"]: row for row in startup.rows(1, seeds=2)}
    assert list(found) == ["nothing", "petransfer plan, 8 runs", "petransfer status, 8 runs"]
    for row in found.values():
        assert row["processor"] > 0
        assert row["median"] == row["least"] > 0


def test_growth_is_measured_over_sizes_and_over_lengths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = ("--sizes", "nano,micro", "--lengths", "4,8", "--at-length", "4", "--batch", "2", "--repeats", "1")
    assert _bench(monkeypatch, "growth", *small, "--threads", "0", "--out", str(out)) == 0
    rows = json.loads(out.read_text())
    points = [("nano", 4), ("nano", 8), ("micro", 4)]
    assert [(row["size"], row["length"], row["what"]) for row in rows] == [
        (*point, what) for point in points for what in ("training", "scoring")
    ]
    assert all(row["seconds"] > 0 and 0 < row["share_of_matmul_rate"] < 1 for row in rows)
    assert all(
        row["tokens_per_second"] == pytest.approx(2 * 2 * row["length"] / row["seconds"], rel=0.1) for row in rows
    )
    for trained, scored in zip(rows[::2], rows[1::2], strict=True):
        assert trained["flops_per_token"] > 2 * scored["flops_per_token"]
    assert _bench(monkeypatch, "growth", "--sizes", "openai-community/gpt2", "--threads", "0") == 2
    assert _bench(monkeypatch, "growth", "--lengths", "16,x") == 2


def test_floating_point_operations_are_counted(tmp_path: Path) -> None:
    """nano has 2 + 2 layers. A decoder layer has 8 products of 128 x 128 and 2 of 128 x 512. The head is 128 x 6176."""
    tokenizer = load_checkpoint(checkpoint_spec("nano/english"), 32).tokenizer
    side = growth._Side(growth.Point("nano", 10), tokenizer, 1, tmp_path, CPU, 32)
    square, wide, head = 128 * 128, 128 * 512, 128 * len(tokenizer)
    frozen = 10 * (2 * (4 * square + 2 * wide) + 2 * (8 * square + 2 * wide) + head)
    attended = 4 * 6 * 128 * 10 * 10
    pairs = 10 * 16 * (2 * (4 * 256 + 2 * 640) + 2 * (8 * 256 + 2 * 640))
    assert side.flops("scoring") == 2 * (frozen + pairs) + attended
    assert side.flops("training") == 4 * frozen + 6 * pairs + 3 * attended


@pytest.mark.slow
def test_another_checkpoint_and_number_of_bits_can_be_timed(tiny_t5: Path) -> None:
    """This includes 4 bits, where a packed tensor has half as many numbers as weights."""
    found = {bits: prepare("smoke", "english", Changes(4, str(tiny_t5), bits), None, CPU) for bits in (32, 4)}
    assert {bits: one.spec.method.bits for bits, one in found.items()} == {32: 32, 4: 4}
    assert all(one.spec.checkpoint == checkpoint_spec(str(tiny_t5)) for one in found.values())
    work = {bits: training._work(one) for bits, one in found.items()}
    assert work[4] == work[32] > 0


def test_several_gpus_are_refused_unless_the_cpu_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert sides.device_of(cpu=True) == CPU
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        sides.device_of(cpu=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert sides.device_of(cpu=False).type == "cuda"


def test_the_clock_synchronizes_a_gpu_and_measures_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(time, "process_time", lambda: -1.0)
    card = torch.device("cuda")
    assert sides.clock(card) > 0
    assert waited == [card]
    assert torch.get_num_threads() > 1 or sides.clock(CPU) == -1.0
    assert waited == [card]


@pytest.mark.gpu
def test_speed_benchmarks_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    short = ("--repeats", "1", "--out", str(out))
    smoke = ("--recipe", "smoke", "--bits", "16", *short)
    assert _bench(monkeypatch, "train", "--batch", "4", "--steps", "2", *smoke) == 0
    assert _bench(monkeypatch, "eval", "--train-steps", "2", "--examples", "6", *smoke) == 0
    assert _bench(monkeypatch, "growth", "--sizes", "nano", "--lengths", "4", "--at-length", "4", *short) == 0
    assert _bench(monkeypatch, "stacked", "--runs", "1,2", "--rounds", "1", "--batch", "2", "--out", str(out)) == 0
    rows = json.loads(out.read_text())
    assert len(rows) == 5
    for row in rows:
        assert row["hardware"]["gpu"] == torch.cuda.get_device_name()
        assert row["hardware"]["clock"] == "wall"


@pytest.mark.parametrize("held", ["not JSON", "{}", None], ids=["not JSON", "no list", "a file for a folder"])
def test_an_unusable_output_file_is_refused_before_measuring(
    held: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(startup, "rows", lambda repeats: pytest.fail("measured"))
    out = tmp_path / "out.json"
    out.write_text(held or "[]")
    asked = out if held else out / "deeper" / "out.json"
    assert _bench(monkeypatch, "startup", "--out", str(asked)) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: --out {asked}")
    assert len(message.splitlines()) == 1
    assert out.read_text() == (held or "[]")
