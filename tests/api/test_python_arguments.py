"""The public functions accept common Python types, and refuse other arguments with a one-line error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

import petransfer as pt
from petransfer.data import load_task
from petransfer.errors import UserError
from petransfer.python_arguments import checked_device, naming_arguments
from petransfer.study.train_request import TrainRequest, train_request
from petransfer.training.execution import Execution

PAIRS = [("to walk", "gehen"), ("to run", "rennen")]
ROWS = [{"input": source, "target": target, "more": 1} for source, target in PAIRS]


@pytest.fixture(scope="module")
def adapter() -> pt.Adapter:
    return pt.Adapter.load("nano/english", device="cpu")


@pytest.mark.parametrize(
    "given", [ROWS, pd.DataFrame(ROWS), map(list, PAIRS), iter(ROWS)], ids=["rows", "table", "lists", "iterator"]
)
def test_rows_and_tables_are_scored_like_pairs(given: Any, adapter: pt.Adapter, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    expected = adapter.evaluate(tmp_path / "rows.jsonl").log_prob_per_token
    assert adapter.evaluate(PAIRS).log_prob_per_token == pytest.approx(expected)
    assert adapter.evaluate(given).log_prob_per_token == pytest.approx(expected)


def test_a_column_of_a_table_is_predicted_like_a_list(adapter: pt.Adapter) -> None:
    assert adapter.predict(pd.DataFrame(ROWS)["input"], 4) == adapter.predict([source for source, _ in PAIRS], 4)
    assert adapter.predict([], 4) == []
    table, (model, tokenizer) = pd.DataFrame(PAIRS), pt.load("nano/english", bits=32, device="cpu")
    for columns in ((table[0], table[1]), (table[0].to_numpy(), iter(table[1]))):
        assert pt.exact_match(model, tokenizer, *columns) == 0


def labelled() -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"input": ["a", "b"], "target": [0, 1]},
        features=datasets.Features(
            {"input": datasets.Value("string"), "target": datasets.ClassLabel(names=["no", "yes"])}
        ),
    )


def test_a_dataset_saved_to_disk_keeps_the_names_of_its_labels(tmp_path: Path) -> None:
    labelled().save_to_disk(str(tmp_path / "rows"))
    data = load_task(
        "lines", None, train=str(tmp_path / "rows"), dev=str(tmp_path / "rows"), test=str(tmp_path / "rows")
    )
    assert [row.target for row in data.load("held-out").test] == ["no", "yes"]


NAN = float("nan")
REFUSED: dict[str, tuple[Callable[[pt.Adapter], Any], str]] = {
    "evaluate: other keys": (lambda one: one.evaluate([{"in": "a", "target": "b"}]), "row 1 has no 'input'"),
    "evaluate: texts": (lambda one: one.evaluate(["ab"]), "row 1 is 'ab' .*pairs of input and target"),
    "evaluate: missing": (lambda one: one.evaluate([*PAIRS, (None, "a")]), "the input of row 3 is missing"),
    "evaluate: NaN": (lambda one: one.evaluate([("a", NAN)]), "the target of row 1 is missing .*nan"),
    "evaluate: one dict": (lambda one: one.evaluate(ROWS[0]), "a dict; give pairs"),
    "evaluate: number": (lambda one: one.evaluate(5), "a int; give pairs"),
    "evaluate: metrics": (lambda one: one.evaluate(PAIRS, metrics=5), "metrics is 5 .*list of names"),
    "evaluate: unknown metric": (lambda one: one.evaluate(PAIRS, metrics="rogue"), "unknown metric 'rogue'"),
    "predict: NaN": (lambda one: one.predict(["a", NAN]), "input 2 is missing"),
    "predict: NA": (lambda one: one.predict([pd.NA]), "input 1 is missing"),
    "predict: None": (lambda one: one.predict([None]), "input 1 is missing"),
    "predict: number": (lambda one: one.predict([1]), r"input 1 is not a text but 1 .*str\(\)"),
    "predict: dict": (lambda one: one.predict([{"a": 1}]), r"input 1 is not a text .*json\.dumps"),
    "predict: table": (lambda one: one.predict(pd.DataFrame(ROWS)), "DataFrame.*list of texts"),
    "predict: nothing": (lambda one: one.predict(None), "NoneType; give a list of texts"),
    "train: table": (lambda one: pt.train("nano/english", pd.DataFrame(ROWS)), "data must be .* DataFrame.*to_json"),
    "train: model": (lambda one: pt.train(5, "rows.csv"), "model is 5 .*path or a name"),
    "train: overrides": (lambda one: pt.train("nano/english", "x.csv", overrides="a=b"), "give a dict"),
    "train: seeds": (lambda one: pt.train("nano/english", "x.csv", seeds=1), r"seeds is 1 .*\[1\]"),
    "train: pairs": (lambda one: pt.train("nano/english", PAIRS), "data must be .* has 2 rows.*DataFrame.*to_json"),
    "train: rows": (lambda one: pt.train("nano/english", ROWS), r"a list.*pandas\.DataFrame\(data\)\.to_json"),
    "train: columns": (lambda one: pt.train("nano/english", {"input": ["a"]}), r"a dict.*DataFrame\(data\)\.to_json"),
    "train: dataset": (lambda one: pt.train("nano/english", labelled()), r"a Dataset.*data\.save_to_disk\('rows'\)"),
    "train: test": (lambda one: pt.train("nano/english", "x.csv", test=labelled()), r"test\.save_to_disk\('rows'\)"),
    "train: dev": (lambda one: pt.train("nano/english", "x.csv", dev=pd.DataFrame(ROWS)), "dev must be .* a DataFrame"),
    "train: other name": (lambda one: pt.train("nano/english", "x.csv", lora_r=4), "'lora_r': did you mean 'rank'"),
    "train: short name": (lambda one: pt.train("nano/english", "x.csv", lr=1), "'lr': did you mean 'learning_rate'"),
    "train: epochs": (lambda one: pt.train("nano/english", "x.csv", epochs="0"), "'epochs' 0: give a number above 0"),
    "train: limits": (lambda one: pt.train("nano/english", "x.csv", max_steps=4, steps=4), "^'max_steps' works only"),
    "Study: shard": (lambda one: pt.Study("smoke", shard="9/8"), "^'shard' 9/8: the first number must be"),
    "Study: stack": (lambda one: pt.Study("smoke").run(stack="many"), "^'stack' many: write a whole number"),
    "fit: bits": (lambda one: pt.fit("nano/english", method="full", bits=4), "use 'bits' 16 or 32, or 'method' lora"),
    "Adapter.evaluate: part": (lambda one: one.evaluate("x.csv"), "(?!.*--)no file x.csv"),
    "Study: recipe": (lambda one: pt.Study(None), "recipe is None .*path or a name"),
    "Study: tracker": (lambda one: pt.Study("smoke").run(log_with="tensorbord"), "'tensorbord': did you mean"),
    "exact_match: order": (lambda one: pt.exact_match([], one, ["a"], ["b"]), r"exact_match\(model, tokenizer, inputs"),
    "train: steps": (lambda one: pt.train("nano/english", "x.csv", steps=2.5), "steps is 2.5"),
    "Study: seeds": (lambda one: pt.Study("smoke", seeds=1), r"seeds is 1 .*\[1\]"),
    "Study: arms": (lambda one: pt.Study("smoke", arms=5), "arms is 5"),
    "load: device": (lambda one: pt.load("nano/english", device="gpu"), "device is 'gpu' .*cpu, cuda"),
    "load: checkpoint": (lambda one: pt.load(None), "checkpoint is None .*path or a name"),
    "fit: card": (lambda one: pt.fit("nano/english", card=12), "card is 12 bytes; write a size such as '12GB'"),
    "fit: checkpoint": (lambda one: pt.fit(3), "checkpoint is 3 .*path or a name"),
    "fit: size and parameters": (lambda one: pt.fit("nano/english", rank=8, match_parameters=10**5),
                                 "^give either 'rank' or 'match_parameters', which sets 'rank'"),
    "fit: tokens and parameters": (lambda one: pt.fit("nano/english", method="prompt", virtual_tokens=8,
                                                      match_parameters=10**5), "'virtual_tokens' or 'match_param"),
    "fit: rank 0": (lambda one: pt.fit("nano/english", rank=0), "rank is 0 .*whole number of at least 1"),
    "fit: no parameters": (lambda one: pt.fit("nano/english", match_parameters=0), "match_parameters is 0 .*least 1"),
    "fit: no tokens": (lambda one: pt.fit("nano/english", method="prompt", virtual_tokens=0), "virtual_tokens is 0 "),
    "fit: rank as text": (lambda one: pt.fit("nano/english", rank="8"), r"rank is '8' \(a str\); give a whole number"),
    "fit: bits as text": (lambda one: pt.fit("nano/english", bits="4"), "'bits' '4': give 4, 8, 16 or 32"),
    "fit: device": (lambda one: pt.fit("nano/english", device="gpu"), r"device is 'gpu' \(a str\); give cuda or cpu"),
    "fit: one length": (lambda one: pt.fit("nano/english", lengths=64), r"lengths is 64 .*such as \(64, 128\)"),
    "fit: three lengths": (lambda one: pt.fit("nano/english", lengths=(1, 2, 3)), "lengths is .*two whole numbers"),
    "fit: length as text": (lambda one: pt.fit("nano/english", lengths=("1", 2)), "the first of lengths is '1'"),
    "fit: batch as text": (lambda one: pt.fit("nano/english", batch_size="8"), "batch_size is '8' .*whole number"),
    "fit: stack": (lambda one: pt.fit("nano/english", stack=1.5), "stack is 1.5 .*whole number of at least 1"),
    "fit: method": (lambda one: pt.fit("nano/english", method=None), "method is None .*a name as text"),
    "fit: optimizer": (lambda one: pt.fit("nano/english", optimizer=None), "optimizer is None .*a name as text"),
    "fit: checkpointing": (lambda one: pt.fit("nano/english", gradient_checkpointing="no"),
                           "gradient_checkpointing is 'no' .*True or False"),
    "fit: no card": (lambda one: pt.fit("nano/english", card=0), "card is 0 bytes; write a size such as '12GB'"),
    "fit: small card": (lambda one: pt.fit("nano/english", card=-8), "card is -8 bytes; write a size such as '12GB'"),
    "fit: card of any type": (lambda one: pt.fit("nano/english", card=True), "card is True .*a size such as '12GB'"),
    "fit: card in a list": (lambda one: pt.fit("nano/english", card=["T4"]), r"card is \['T4'\] .*such as '12GB'"),
    "fit: huge card": (lambda one: pt.fit("nano/english", card=10**15), "card is 1,000,000,000,000,000 bytes; write"),
    "exact_match: batch": (lambda one: pt.exact_match(None, None, ["a"], ["b"], batch_size="8"), "batch_size is '8' "),
    "exact_match: batch 0": (lambda one: pt.exact_match(None, None, ["a"], ["b"], batch_size=0), "0 .*at least 1"),
    "Study: micro-batch": (lambda one: pt.Study("smoke").run(micro_batch=-1), "micro_batch is -1 .*of at least 0"),
    "Study: threads": (lambda one: pt.Study("smoke").run(threads=-1), "threads is -1 .*from 0 to 512"),
    "Study: workers": (lambda one: pt.Study("smoke").run(workers="2"), "workers is '2' .*whole number of at least 0"),
    "Study: fewer workers": (lambda one: pt.Study("smoke").run(workers=-1), "workers is -1 .*of at least 0"),
    "Study: interval": (lambda one: pt.Study("smoke").run(save_every="1"), "save_every is '1' .*number of at least 0"),
    "Study: no interval": (lambda one: pt.Study("smoke").run(save_every=NAN), "save_every is nan .*number of at least"),
    "Study: executor": (lambda one: pt.Study("smoke").run(executor=None), "executor is None .*a name as text"),
    "Study: address": (lambda one: pt.Study("smoke").run(executor="ray", address=1), "address is 1 .*a name as text"),
    "Study: cpu": (lambda one: pt.Study("smoke").run(cpu="no"), "cpu is 'no' .*True or False"),
    "Study: graphs": (lambda one: pt.Study("smoke").run(cuda_graphs="no"), "cuda_graphs is 'no' .*True or False"),
    "Study: repair": (lambda one: pt.Study("smoke").run(repair="no"), "repair is 'no' .*True or False"),
    "train: cpu": (lambda one: pt.train("nano/english", "x.csv", cpu="no"), "cpu is 'no' .*True or False"),
    "train: checkpointing": (lambda one: pt.train("nano/english", "x.csv", gradient_checkpointing=2),
                             "gradient_checkpointing is 2 .*True or False"),
    "Adapter.load: device": (lambda one: pt.Adapter.load("nano/english", device="gpu"), "device is 'gpu'"),
    "Adapter.load: place": (lambda one: pt.Adapter.load(None), "place is None"),
}  # fmt: skip


@pytest.mark.parametrize(("ask", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused_with_a_one_line_error(ask: Any, message: str, adapter: pt.Adapter) -> None:
    with pytest.raises(UserError, match=message) as refused:
        ask(adapter)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("load", [pt.load, pt.Adapter.load])
def test_a_device_that_does_not_exist_is_refused(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"^device is 'cuda' .*, but PyTorch finds no GPU on this machine; give cpu"):
        load("nano/english", device="cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"^device is 'cuda:2' .*, but PyTorch finds 2 GPUs .*; give cuda:0 or cuda:1"):
        load("nano/english", device="cuda:2")
    assert checked_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match=r"^device is 'vulkan' .*, but PyTorch cannot use it on this machine; give cpu"):
        load("nano/english", device="vulkan")


def test_errors_name_arguments_instead_of_options_except_in_commands() -> None:
    with pytest.raises(UserError) as refused, naming_arguments():
        raise UserError("x-- of --lr or --use_fsdp (--micro-batch-size); run `petransfer run --recipe x`")
    output = "x-- of 'learning_rate' or --use_fsdp ('micro_batch'); run `petransfer run --recipe x`"
    assert str(refused.value) == output


def test_train_request_keeps_the_values_of_settings() -> None:
    """A number of rows must stay an int and not become a float, because run ids depend on it."""
    asked = train_request({"dev": 10, "test": 0.1, "steps": "7", "seeds": range(2), "metrics": "rouge", "bits": 4})
    assert asked == TrainRequest(dev=10, test=0.1, steps=7, seeds=(0, 1), metrics=("rouge",), bits=4)
    assert type(asked.dev) is int


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": float("inf")}, "--epochs inf"),
        ({"epochs": NAN}, "--epochs nan"),
        ({"epochs": 0}, "--epochs 0"),
        ({"max_minutes": 0}, "--max-minutes 0"),
        ({"max_minutes": float("inf")}, "--max-minutes inf"),
        ({"early_stopping": -1}, "--early-stopping -1"),
    ],
)
def test_impossible_training_lengths_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_request(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("early_stopping", True), ("folds", True), ("steps", True), ("dev", True), ("rank", False), ("seeds", [True])],
)
def test_true_and_false_are_no_numbers(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} is {re.escape(str(value))} .*give a number, not True"):
        train_request({name: value})
    assert train_request({"packing": True}).packing


def test_numpy_numbers_are_accepted() -> None:
    import numpy as np

    found = Execution(np.int64(4), np.int32(2), np.float32(1.5), log_every=np.int64(5), checkpointing=True)  # type: ignore[arg-type]
    assert found == Execution(4, 2, 1.5, log_every=5, checkpointing=True)
    assert type(found.micro_batch) is int
    options: dict[str, Any] = {
        "bits": np.int64(32),
        "batch_size": np.int64(2),
        "lengths": [np.int64(4), 4],
        "card": 12e9,
    }
    assert pt.fit("nano/english", **options).card == 12 * 10**9


def test_paths_are_accepted_like_names(tiny_t5: Path) -> None:
    assert pt.fit(tiny_t5, bits=32, device="cpu").needed == pt.fit(str(tiny_t5), bits=32, device="cpu").needed
    model, _ = pt.load(tiny_t5, bits=32, device="cpu")
    assert model.config.d_model == 32
