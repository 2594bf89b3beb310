"""SCAN generated from its grammar, compared with the hashes of the official files and, if present, the files."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petransfer.data import load_task
from petransfer.data.tasks.scan import PUBLISHED, all_rows, format_row, generate, interpret, parse_row, rows_sha256
from petransfer.errors import UserError

DATA = Path(os.environ.get("PETRANSFER_DATA", Path(__file__).parents[3] / "shared" / "data"))
GENERATED = sorted({split for split, _ in PUBLISHED} - {"simple"})
needs_data = pytest.mark.skipif(not (DATA / "scan").is_dir(), reason="the official files are not at hand")

DIRECTIONS = st.sampled_from(["left", "right"])
VERBS = st.sampled_from(["walk", "look", "run", "jump"])
CLAUSES = st.one_of(
    VERBS,
    st.builds("{} {}".format, st.one_of(VERBS, st.just("turn")), DIRECTIONS),
    st.builds(
        "{} {} {}".format, st.one_of(VERBS, st.just("turn")), st.sampled_from(["opposite", "around"]), DIRECTIONS
    ),
)


def test_the_grammar_generates_every_command_once() -> None:
    rows = all_rows()
    assert len(rows) == len({command for command, _ in rows}) == 20_910


@pytest.mark.parametrize("split", GENERATED)
def test_generated_rows_have_the_published_counts_and_hashes(split: str) -> None:
    for part, rows in generate(split).items():
        assert len(rows) == PUBLISHED[split, part].rows
        assert rows_sha256(rows) == PUBLISHED[split, part].sha256
        assert [command for command, _ in rows] == sorted(command for command, _ in rows)


@needs_data
@pytest.mark.parametrize("split", [*GENERATED, "simple"])
def test_the_official_files_give_the_generated_examples(split: str) -> None:
    # the split `simple` cannot be generated, so only its numbers of rows are compared
    official = load_task("scan", DATA).load(split)
    assert len(official.train) + len(official.dev) == PUBLISHED[split, "train"].rows
    assert len(official.test) == PUBLISHED[split, "test"].rows
    if split != "simple":
        assert official == load_task("scan").load(split)


@pytest.mark.parametrize(("split", "bare", "times"), [("add_jump", "jump", 1467), ("add_turn_left", "turn left", 2189)])
def test_the_bare_primitive_is_over_represented_in_train_only(split: str, bare: str, times: int) -> None:
    data = load_task("scan").load(split)
    assert Counter(row.input for row in data.train)[bare] == times
    assert bare not in {row.input for row in (*data.dev, *data.test)}


@pytest.mark.parametrize("split", GENERATED)
def test_dev_is_cut_from_train_and_is_the_same_at_every_load(split: str) -> None:
    data = load_task("scan").load(split)
    parts = [{row.input for row in part} for part in (data.train, data.dev, data.test)]
    assert len(data.dev) == 500
    assert not parts[0] & parts[1]
    assert not parts[2] & (parts[0] | parts[1])
    assert data.dev == load_task("scan").load(split).dev
    assert data.dev[:300] != load_task("scan", dev_size=300).load(split).dev


@given(clause=CLAUSES, other=CLAUSES)
def test_repetitions_and_conjunctions_are_interpreted_as_in_the_paper(clause: str, other: str) -> None:
    one, two = interpret(clause).split(), interpret(other).split()
    assert interpret(f"{clause} twice").split() == one * 2
    assert interpret(f"{clause} thrice").split() == one * 3
    assert interpret(f"{clause} and {other}").split() == one + two
    assert interpret(f"{clause} after {other}").split() == two + one


@given(verb=VERBS, side=DIRECTIONS)
def test_turns_are_interpreted_as_in_the_paper(verb: str, side: str) -> None:
    turn, act = f"I_TURN_{side.upper()}", f"I_{verb.upper()}"
    assert interpret(f"{verb} {side}").split() == [turn, act]
    assert interpret(f"{verb} opposite {side}").split() == [turn, turn, act]
    assert interpret(f"{verb} around {side}").split() == [turn, act] * 4
    assert interpret(f"turn around {side}").split() == [turn] * 4


@given(row=st.sampled_from(all_rows()))
def test_a_row_is_read_as_it_was_written(row: tuple[str, str]) -> None:
    assert parse_row(format_row(row)) == row


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("IN: jump", "expected `IN"),
        ("jump OUT: I_JUMP", "expected `IN"),
        ("IN: jump OUT:  ", "actions are empty"),
        ("IN: a OUT: b OUT: c", "expected `IN"),
    ],
)
def test_a_broken_row_is_refused_with_its_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "scan" / "length"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text(f"IN: jump OUT: I_JUMP\n{line}\n")
    with pytest.raises(UserError, match=rf"train\.txt:2: .*{message}"):
        load_task("scan", tmp_path).load("length")


def test_a_changed_official_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "length"
    folder.mkdir()
    rows = [format_row(row) for row in generate("length")["train"]]
    (folder / "train.txt").write_text("\n".join([*rows[:-1], "IN: jump OUT: I_WALK"]) + "\n")
    with pytest.raises(UserError, match="does not hold the published train rows"):
        load_task("scan", tmp_path).load("length")


def test_wrong_names_and_options_are_refused_with_advice() -> None:
    with pytest.raises(UserError, match="did you mean 'add_jump'"):
        load_task("scan").load("add_jmp")
    with pytest.raises(UserError, match="did you mean 'scan'"):
        load_task("scn")
    with pytest.raises(UserError, match="did you mean 'dev_size'"):
        load_task("scan", dev_sise=3)
    with pytest.raises(UserError, match="dev_size of scan is -1"):
        load_task("scan", dev_size=-1)
    with pytest.raises(UserError, match="from 1 to 4,000"):
        load_task("scan", dev_size=12_000)


@pytest.mark.parametrize(("name", "split"), [("scan", "add_jmp"), ("scan-mcd", "mcd4")])
def test_an_unknown_split_is_refused(name: str, split: str) -> None:
    task = load_task(name)
    for use in (task.load, task.train_size):
        with pytest.raises(UserError, match=f"unknown split of {name} '{split}'"):
            use(split)
