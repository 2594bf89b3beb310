"""Hostile and damaged recipes: `plan` and `run` refuse them fast, in one line, with exit code 2, and write nothing."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petransfer.cli import main
from petransfer.errors import UserError
from petransfer.recipe.layer_patterns import check_pattern
from petransfer.recipe.loading import find_recipe, load_recipe
from petransfer.recipe.methods import Option
from petransfer.recipe.yaml_text import parse_yaml
from petransfer.study.grid import expand

BASE: dict[str, Any] = {
    "name": "small", "description": "a study",
    "task": {"name": "scan", "splits": ["right"], "options": {"dev_size": 40}},
    "family": {"name": "mine", "arms": {"english": "nano/english", "code": {"checkpoint": "nano/code"}}},
    "arms": ["english", "scratch"],
    "methods": [
        {"name": "lora", "rank": 4, "bits": 32, "targets": ["q", "v"], "layers": [0]}, {"name": "full", "bits": 32},
    ],
    "seeds": [0, 1],
    "train": {"steps": 10, "batch_size": 4, "learning_rate": {"lora": 1e-3, "full": 1e-3}, "early_stopping": None},
    "effects": ["english-scratch", {"retention": "english-scratch", "under": "lora", "over": "full"}],
}  # fmt: skip


def bomb(levels: int) -> str:
    """Return a few lines of YAML that stand for 10 ** `levels` values."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, levels)]
    return "\n".join(lines)


TEXTS = {
    "alias bomb": (bomb(9), "after its aliases are expanded"),
    "merged bomb": ("a: &a {x: 1}\nb: &b {<<: *a, y: *a}\nname: *b", "no recipe of petransfer"),
    "self-reference": ("name: &n [*n]", "contains itself"),
    "mapping in itself": ("task: &t {name: scan, options: *t}", "contains itself"),
    "deep lists": ("name: " + "[" * 100_000, "nested more than"),
    "deep mappings": ("{a: " * 5000, "nested more than"),
    "duplicate key": (f"{yaml.safe_dump(BASE)}\nseeds: [7]", "'seeds' twice"),
    "duplicate inner key": ("train: {steps: 1, steps: 2}", "'steps' twice"),
    "a million seeds": (f"seeds: [{','.join(map(str, range(1_000_000)))}]", "characters"),
    "many seeds": (f"seeds: [{','.join(map(str, range(300_000)))}]", "after its aliases are expanded"),
    "a long number": (f"seeds: [{'9' * 5000}]", "9 in line 1, a number of more than 4,300 digits; correct it"),
    "a long hexadecimal number": (f"name: 0x{'f' * 5000}", "thousands of digits"),
    "an impossible date": ("name: 2026-99-99", "2026-99-99 in line 1, which is not a date; correct it"),
    "a python object": ("name: !!python/object/apply:os.system [ls]", "has the tag !!python/object/apply:os.system"),
    "a python name": ("name: !!python/name:os.system", "has the tag !!python/name:os.system in line 1"),
    "a set, which has no order": ("arms: !!set {english, scratch}", "has the tag !!set in line 1"),
    "bytes": ("name: !!binary aGVsbG8=", "has the tag !!binary"),
    "a range that is a number in sixties": (
        "name: a\nseeds: [1:30]",
        "1:30 in line 2, which YAML reads as the number 90",
    ),
    "an octal number": ("seeds: [010]", "010 in line 1, which YAML reads as the number 8"),
    "a no-break space before a key": (
        "name: a\ntask:\n\xa0\xa0 name: lines",
        "no-break space or an invisible character in line 3; use normal",
    ),
    "a no-break space in deeper indentation": (
        "task:\n  options:\n  \xa0 dev: 8\n  name: a",
        "no-break space or an invisible character in line 3",
    ),
    "a no-break space behind a colon": (
        "task:\n  name:\xa0lines\n  options: {dev: 8}",
        "invisible character in line 2; use normal spaces",
    ),
    "a no-break space in braces": ("train: {steps:\xa05}", "no-break space or an invisible character in line 1"),
    "a zero-width space": ("name: mine\u200b", "invisible character in line 1"),
    "a decimal comma in braces": (
        "name: a\ntrain: {steps: 5, learning_rate: 0,001}",
        "decimal comma (0,001) in line 2; write 0.001",
    ),
    "a decimal comma": ("train:\n  learning_rate: 0,5", "decimal comma (0,5) in line 2; write 0.5"),
    "a dash": (
        "train: {learning_rate: 1.0e\u20133}",
        "dash in a number (1.0e\u20133) in line 1; use the hyphen-minus",
    ),
    "curly quotes": ("name: “mine”", '(“mine”) in line 1; write straight quotes: "mine"'),
    "curly quotes around a colon": ("name: “mine: two”", "write straight quotes"),
    "backslashes": ('name: a\ntask: {options: {train: "C:\\Users\\x.csv"}}', "put a path with backslashes in single"),
    "a null character": ('name: "a\\0b"', "name"),
    "a list": ("- 1\n- 2", "not a mapping"),
    "a number as key": ("1: 2\nname: a", ""),
    "bytes as a key": ("? !!binary aGVsbG8=\n: 2", ""),
    "a list as key": ("? [1, 2]\n: 2", ""),
}
CHANGES: dict[str, tuple[str, Any, str]] = {
    "a seed of 2**63": ("seeds.0", 2**63, "too large"),
    "a seed of 2**32": ("seeds.0", 2**32, "less than or equal"),
    "a negative seed": ("seeds.0", -1, "greater than or equal"),
    "a seed twice": ("seeds", [3, 3], "twice"),
    "a split twice": ("task.splits", ["right", "right"], "right is given twice"),
    "a method twice": ("methods", [{"name": "lora"}] * 2, "lora r16 16-bit is given twice"),
    "an arm twice": ("arms", ["english", "english"], "english is given twice"),
    "a grid of a million runs": ("seeds", list(range(19_999)), "at most 20,000"),
    "a device as data": ("data_dir", "/dev/zero", "not a folder"),
    "a parent folder as a name": ("name", "..", "name"),
    "a path as a name": ("name", "../../etc", "name"),
    "a name of 5,000 letters": ("name", "a" * 5000, "at most 100 characters"),
    "a family of 5,000 letters": ("family", "a" * 5000, "unknown family"),
    "an arm of 5,000 letters": ("arms", ["a" * 5000], "at most 200 characters"),
    "a task of 5,000 letters": ("task.name", "a" * 5000, "at most 200 characters"),
    "an escape sequence as an arm": ("arms", ["\x1b[31mred"], "control characters"),
    "a catastrophic pattern": ("methods.0.targets", "(a+)+$", "repeats a group"),
    "a pattern of many stars": ("methods.0.targets", ".*.*.*.*.*x", "more than 4"),
    "an unbalanced pattern": ("methods.0.targets", "(q|v", "not a regular expression"),
    "an unbalanced bracket": ("methods.0.targets", "([", "not a regular expression"),
    "no targets": ("methods.0.targets", [], "targets is empty"),
    "an endless number of steps": ("train.steps", 10**18, "less than or equal"),
    "an infinite learning rate": ("train.learning_rate", float("inf"), "finite"),
    "steps of a method of 5,000 letters": ("train.steps", {"a" * 5000: None}, "train.steps.aaa"),
    "a rate of a method of 5,000 letters": ("train.learning_rate", {"a" * 5000: None}, "train.learning_rate.aaa"),
    "an option of 5,000 letters": ("task.options", {"a" * 5000: None}, "task.options.aaa"),
    "an unknown key of 5,000 letters": ("train", {**BASE["train"], "a" * 5000: 1}, "unknown key 'train.aaa"),
    "no learning rate": ("train.learning_rate", float("nan"), "finite"),
    "a study called ..": ("effects", [{"scale": "english-scratch", "study": ".."}], "not the name of a study"),
    "a study elsewhere": ("effects", [{"scale": "english-scratch", "study": "/etc"}], "no recipe.yaml"),
    "a device as a study": ("effects", [{"scale": "english-scratch", "study": "/dev/zero"}], "no recipe.yaml"),
}


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return BASE with one value replaced."""
    content: Any = copy.deepcopy(BASE)
    at = content
    *outer, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in outer:
        at = at[key]
    at[last] = value
    found: dict[str, Any] = content
    return found


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command that must end with a user error, and return its message."""
    monkeypatch.setattr(sys, "argv", ["petransfer", *arguments])
    started = time.process_time()
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2, error[-2000:]
    assert time.process_time() - started < 10  # seconds of CPU time, including the import of libraries
    assert "Traceback" not in error
    return error


def test_usual_characters_in_a_recipe_are_accepted() -> None:
    text = "a: [0,1]\nb: '“x”'\nc: mot\xa0x\nd: {e: 1, 2: 3}\nf: it\u2019s \u2013 so\ng: '0,5'\nh: -1.0e-3\n"
    assert parse_yaml(text, by_hand=True) == parse_yaml(text)


@pytest.mark.parametrize("case", [*TEXTS, *CHANGES])
def test_plan_and_run_refuse_a_bad_recipe_in_one_line_and_write_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if case in TEXTS:
        text, shown = TEXTS[case]
    else:
        place, value, shown = CHANGES[case]
        text = yaml.safe_dump(changed(place, value))
    (tmp_path / "hostile.yaml").write_text(text)
    errors = {refused([verb, "--recipe", "hostile.yaml"], capsys, monkeypatch) for verb in ("plan", "run")}
    (error,) = errors
    assert shown in error
    assert len(error.strip().splitlines()) == 1
    assert len(error) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.yaml"]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--seeds", "0-999999999"], "at most 20,000 seeds"),
        (["--seeds", "0-" + "9" * 30], "write whole numbers"),
        (["--seeds", "9" * 5000], "write whole numbers"),
        (["--seeds", "0,0"], "given twice"),
        (["--set", f"train.steps={'9' * 5000}"], "more than 4,300 digits"),
        (["--set", f"{'a.' * 5000}b=1"], "levels deep"),
        (["--set", "train={steps: 1, steps: 2}"], "twice"),
    ],
)
def test_impossible_values_of_options_are_refused(
    arguments: list[str],
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in "plan", "run":
        error = refused([verb, "--recipe", "lora-scan", *arguments], capsys, monkeypatch)
        assert shown in error
        assert len(error) < 1000
    assert list(tmp_path.iterdir()) == []


def test_thousands_of_threads_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--threads" in refused(["run", "--recipe", "lora-scan", "--threads", "5000"], capsys, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_name_longer_than_any_file_name_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "5,000 characters" in refused(["plan", "--recipe", "a" * 5000], capsys, monkeypatch)


def test_quoted_text_and_plain_numbers_are_read() -> None:
    assert parse_yaml("a: '1:30'\nb: \"010\"\nc: [0, 1e3, 0.5, 10, -1]\nd: !!str 10\n") == {
        "a": "1:30", "b": "010", "c": [0, "1e3", 0.5, 10, -1], "d": "10",
    }  # fmt: skip


def test_aliases_of_a_sensible_size_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n") == {
        "a": {"x": 1}, "b": [{"x": 1}] * 2, "c": {"x": 1, "y": 2},
    }  # fmt: skip


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 2**70), st.floats(), st.text(max_size=20),
    st.sampled_from(["", "..", "a" * 5000, "\x1b[1m", "english", "lora", "scan", "=1", "%s{}", "1e999", "(a+)+", "-"]),
)  # fmt: skip
KEYS = SCALARS.filter(lambda value: not (isinstance(value, float) and math.isnan(value)))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
PLACES = [
    "name", "description", "task", "task.name", "task.splits", "task.prefix", "task.options", "task.options.dev_size",
    "task.metrics", "family", "family.name", "family.arms", "family.arms.code", "arms", "arms.0", "methods",
    "methods.0", "methods.0.name", "methods.0.rank", "methods.0.targets", "methods.0.layers", "methods.0.bits",
    "methods.0.dropout", "methods.0.unheard_of", "seeds", "seeds.0", "train", "train.steps", "train.learning_rate",
    "train.learning_rate.lora", "train.batch_size", "train.early_stopping", "effects", "effects.0", "effects.1",
    "effects.1.under", "effects.1.study", "margin", "judge_by", "data_dir", "unheard_of",
]  # fmt: skip


@settings(max_examples=150, deadline=5000, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_of_any_key_is_planned_or_refused(
    place: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(changed(place, value), allow_unicode=True), encoding="utf-8")
    message = refusal(lambda: expand(load_recipe(str(path))))
    assert len(message) < 2000


def refusal(action: Callable[[], object]) -> str:
    """Return the message of the UserError that an action raises, or ''. Other errors are not caught."""
    try:
        action()
    except UserError as error:
        return str(error) or "no message"
    return ""


@settings(max_examples=100, deadline=5000, suppress_health_check=list(HealthCheck))
@given(text=st.text(alphabet="abt:&*-?[]{}!|>%#'\"\n ,0123x<\t", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert refusal(lambda: parse_yaml(text)) != "no message"


@pytest.mark.parametrize(
    "name", ["\u540d" * 100, "a/" * 3000], ids=["of-characters-of-several-bytes", "of-many-folders"]
)
def test_a_name_that_is_too_long_for_the_file_system_is_refused(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "File name too long" in refused(["plan", "--recipe", name], capsys, monkeypatch)
    with pytest.raises(UserError, match="too long"):
        find_recipe(name)


@pytest.mark.parametrize(
    "pattern",
    [
        ".?" * 40 + "X",
        "(.|.)" * 40 + "X",
        "(?:q|.q|q.)(.|..)" * 20 + "$",
        "(a|(a|(a|(a|b))))" * 12,
        "(.|.|.)" * 8 + ".*.*.*X",
    ],
)
def test_a_pattern_whose_alternatives_take_hours_to_match_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="too many alternatives"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|k|v|o|wi_0|wi_1|wo)$",
        r"(?:encoder|decoder)\.block\.(0|1|2|3|10|23)\.layer\.(0|1)\.(SelfAttention|EncDecAttention)\.(q|v)",
        r".*?decoder.*?layers?\.([0-9]|1[0-9])\..*(fc1|fc2)",
        r"[?|(]+x\?\|",
    ],
)
def test_a_usual_pattern_is_accepted(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400])
def test_an_option_that_is_no_finite_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Option(0.5, "a share").checked("share", value)
