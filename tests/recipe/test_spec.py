"""Run ids: equal settings give the same id on every machine, and every changed setting gives another id."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petransfer.recipe.run_spec import CheckpointSpec, EarlyStopping, MethodSpec, RunSpec, TaskSpec, TrainSpec

SPEC = RunSpec(
    checkpoint=CheckpointSpec("owner/model", "main"),
    task=TaskSpec("scan", "add_jump", "say: ", (("dev_size", 40),)),
    method=MethodSpec("lora", 16, 8, 16.0, 0.1, ("q", "v"), "frozen"),
    train=TrainSpec(100, 32, 1e-3),
    seed=7,
)

CHANGES: dict[str, Any] = {
    "checkpoint.name": "owner/other",
    "checkpoint.weights": "v2",
    "checkpoint.reinit": "all",
    "checkpoint.tokenizer": "owner/other",
    "checkpoint.added_tokens": ("{", "}"),
    "checkpoint.source_language": "deu_Latn",
    "checkpoint.target_language": "fra_Latn",
    "task.name": "cogs",
    "task.split": "simple",
    "task.prefix": "say:",
    "task.options": (("dev_size", 41),),
    "task.metrics": ("bleu",),
    "method.name": "full",
    "method.bits": 32,
    "method.rank": 9,
    "method.alpha": 16.5,
    "method.dropout": 0.0,
    "method.targets": ("v", "q"),
    "method.embeddings": "trained",
    "method.keep_wide": ("wo",),
    "method.layers": (0, 1),
    "method.rate_ratio": 16.0,
    "method.virtual_tokens": 20,
    "method.match_parameters": 100_000,
    "method.options": {"block_size": 4},
    "train.steps": 101,
    "train.batch_size": 31,
    "train.learning_rate": 2e-3,
    "train.warmup": 0.0,
    "train.schedule": "cosine",
    "train.final": 0.1,
    "train.rate_scaling": "rms",
    "train.weight_decay": 0.01,
    "train.max_grad_norm": 0.0,
    "train.betas": (0.9, 0.98),
    "seed": 8,
    "train.optimizer": "adamw-8bit",
    "train.packing": True,
    "train.early_stopping": EarlyStopping(patience=4),
    "version": 99,
}


def leaves(spec: object, at: str = "") -> list[str]:
    """Return the dotted names of all fields."""
    found = []
    for field in fields(spec):  # type: ignore[arg-type]
        value = getattr(spec, field.name)
        found += leaves(value, f"{at}{field.name}.") if is_dataclass(value) else [at + field.name]
    return found


def changed(field: str, value: Any) -> RunSpec:
    """Return SPEC with one field replaced."""
    part, _, name = field.rpartition(".")
    return replace(SPEC, **({part: replace(getattr(SPEC, part), **{name: value})} if part else {name: value}))


def test_the_run_id_of_a_spec_never_changes() -> None:
    """Results are found by run id. If this id changes, existing run folders are lost, so a new version is needed."""
    assert SPEC.run_id == "8b63c650c9cb"


PLACES: dict[str, Any] = {
    "checkpoint.source": "/somewhere/else",
    "checkpoint.tokenizer_source": "/somewhere/else",
    "task.source": (("train", "pairs.tsv"),),
}


@pytest.mark.parametrize("field", PLACES)
def test_paths_on_this_machine_are_not_part_of_the_run_id(field: str) -> None:
    moved = changed(field, PLACES[field])
    assert moved != SPEC
    assert moved.run_id == SPEC.run_id


def test_every_field_is_listed_in_changes_or_places() -> None:
    assert set(leaves(SPEC)) == {*CHANGES, *PLACES}


@pytest.mark.parametrize("field", list(CHANGES))
def test_every_field_except_paths_changes_the_run_id(field: str) -> None:
    other = changed(field, CHANGES[field])
    assert other != SPEC
    assert other.run_id != SPEC.run_id


@pytest.mark.parametrize("field", ["task.options", "method.options"])
def test_the_order_of_options_does_not_change_the_run_id(field: str) -> None:
    options = {"dev_size": 40, "block_size": 4, "seed": 1}
    turned = dict(reversed(options.items()))
    assert list(turned) != list(options)
    assert changed(field, options).run_id == changed(field, turned).run_id != SPEC.run_id


def test_no_two_changes_give_the_same_run_id() -> None:
    assert len({changed(field, value).run_id for field, value in CHANGES.items()}) == len(CHANGES)


@given(st.floats(min_value=1e-12, max_value=9), st.floats(min_value=1e-12, max_value=9))
def test_run_ids_are_equal_exactly_if_the_learning_rates_are(one: float, other: float) -> None:
    ids = [changed("train.learning_rate", rate).run_id for rate in (one, other)]
    assert (ids[0] == ids[1]) == (one == other)


NUMBERS = st.integers(min_value=0, max_value=10**6) | st.floats(min_value=0, max_value=1e6)
OPTIONS = st.dictionaries(st.text(), st.text() | st.integers(0, 9)).map(lambda found: tuple(sorted(found.items())))
SPECS = st.builds(
    RunSpec,
    checkpoint=st.builds(
        CheckpointSpec,
        st.text(),
        st.text(),
        st.sampled_from(["none", "embeddings", "body", "all"]),
        st.none() | st.text(),
    ),
    task=st.builds(
        TaskSpec,
        st.text(),
        st.text(),
        st.text(),
        OPTIONS,
        st.lists(st.sampled_from(["bleu", "accuracy"])).map(tuple),
        OPTIONS,
    ),
    method=st.builds(
        MethodSpec,
        st.sampled_from(["lora", "full"]),
        st.sampled_from([4, 8, 16, 32]),
        st.integers(0, 64),
        NUMBERS,
        NUMBERS,
        st.text() | st.lists(st.text()).map(tuple),
        st.sampled_from(["frozen", "new", "trained"]),
    ),
    train=st.builds(
        TrainSpec,
        st.integers(1),
        st.integers(1),
        NUMBERS,
        warmup=NUMBERS,
        final=NUMBERS,
        weight_decay=NUMBERS,
        max_grad_norm=NUMBERS,
        betas=st.tuples(NUMBERS, NUMBERS),
    ),
    seed=st.integers(0),
)


@given(SPECS)
def test_a_spec_can_be_restored_from_json(spec: RunSpec) -> None:
    back = RunSpec.from_dict(json.loads(json.dumps(spec.as_dict())))
    assert back == spec
    assert back.run_id == spec.run_id
    assert back.canonical_json() == spec.canonical_json()


@pytest.mark.parametrize(
    "field", [
        "method.alpha", "method.dropout", "train.learning_rate", "train.warmup", "train.final", "train.weight_decay",
        "train.max_grad_norm",
    ],
)  # fmt: skip
def test_an_integer_and_the_equal_float_give_the_same_run_id(field: str) -> None:
    whole, real = changed(field, 1), changed(field, 1.0)
    assert whole.run_id == real.run_id
    part, name = field.split(".")
    content = real.as_dict()
    content[part][name] = 1
    assert RunSpec.from_dict(content).run_id == real.run_id


def test_integer_betas_give_the_run_id_of_equal_float_betas() -> None:
    assert changed("train.betas", (0, 1)).run_id == changed("train.betas", (0.0, 1.0)).run_id


def test_the_canonical_json_is_sorted_and_has_no_spaces() -> None:
    text = SPEC.canonical_json()
    assert " " not in text.replace("say: ", "")
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text


def test_early_stopping_is_part_of_the_run_id_only_if_it_is_used() -> None:
    train = TrainSpec(steps=8, batch_size=4, learning_rate=1e-3)
    plain = RunSpec(CheckpointSpec("x"), TaskSpec("scan", "simple"), MethodSpec("lora"), train, 0)
    early = replace(plain, train=replace(train, early_stopping=EarlyStopping(patience=3)))
    assert "early_stopping" not in plain.canonical_json()
    assert early.run_id != plain.run_id
    assert RunSpec.from_dict(early.as_dict()) == early
    assert RunSpec.from_dict(plain.as_dict()) == plain
    assert early.run_id == "c01ac79c9374", "a cooldown of 0, which was added later, does not change the id"
    cooled = replace(plain, train=replace(train, early_stopping=EarlyStopping(patience=3, cooldown=2)))
    assert cooled.run_id != early.run_id
    assert RunSpec.from_dict(cooled.as_dict()) == cooled
