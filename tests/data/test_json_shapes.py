"""JSON files in the forms that pandas and jq write, and csv files whose first line names the delimiter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from petransfer.data import LinesTask
from petransfer.errors import UserError
from tests.data.test_chat import every

pytestmark = pytest.mark.usefixtures("elsewhere")

ROWS = [{"input": f"in {n}", "target": f"out {n}"} for n in range(12)]
COLUMNS = {key: [row[key] for row in ROWS] for key in ("input", "target")}
SHAPES: dict[str, Any] = {
    "columns": {key: {str(n): value for n, value in enumerate(values)} for key, values in COLUMNS.items()},
    "index": {str(n): row for n, row in enumerate(ROWS)},
    "split": {"columns": ["input", "target"], "index": list(range(12)), "data": [list(row.values()) for row in ROWS]},
    "table": {"schema": {"fields": [{"name": "input"}]}, "data": ROWS},
    "lists": COLUMNS,
    "one list": {"version": "1.1", "data": ROWS},
    "one split": {"train": ROWS},
}


def read(text: str, name: str = "x.json") -> list[tuple[str, str]]:
    Path(name).write_text(text, encoding="utf-8")
    return [(row.input, row.target) for row in every(LinesTask(train=name))]


@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "indented"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_json_object_with_all_rows_is_read(shape: str, indent: int | None) -> None:
    assert read(json.dumps(SHAPES[shape], indent=indent)) == [(row["input"], row["target"]) for row in ROWS]


def test_json_files_of_pandas_are_read() -> None:
    import pandas as pd

    for orient in ("columns", "index", "split", "table", "records"):
        text = pd.DataFrame(ROWS).to_json(orient=orient)
        assert text is not None
        assert len(read(text)) == 12


def test_indented_objects_one_after_another_are_read() -> None:
    assert read("\n".join(json.dumps(row, indent=2) for row in ROWS)) == [(r["input"], r["target"]) for r in ROWS]
    broken = "\n".join([json.dumps(row, indent=2) for row in ROWS] + ['{\n "input": x}'])
    with pytest.raises(UserError, match=r"x\.json: object 13 is not valid JSON"):
        read(broken)


def test_several_splits_in_one_object_are_refused_with_a_command() -> None:
    with pytest.raises(UserError, match=r"the lists 'train', 'test'; write each list .*`jq -c '\.train\[\]' x\.json"):
        read(json.dumps({"train": ROWS, "test": ROWS}))


def test_an_object_whose_values_would_be_lost_is_refused() -> None:
    with pytest.raises(UserError, match="the lists 'data', 'test'; write each list"):
        read(json.dumps({"data": ROWS, "test": ROWS}))
    rows = [["in", "out"], ["in", "out", "more"]]
    with pytest.raises(UserError, match=r"x\.json: row 2 in 'data' has 3 values for 2 columns"):
        read(json.dumps({"columns": ["input", "target"], "data": rows}))
    for columns in (["input", "target", "target"], [["input", "a"], ["target", "b"]]):
        with pytest.raises(UserError, match="the names in 'columns' are not different texts"):
            read(json.dumps({"columns": columns, "data": [["a", "b", "c"][: len(columns)]]}))


def test_a_row_with_nested_values_is_not_read_as_a_whole_table() -> None:
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "tools": []}
    from petransfer.data.rows.json_rows import read_json
    from petransfer.data.rows.source import find_source

    rows = [talk, {"translation": {"en": "a", "de": "b"}}, {"input": "a", "target": "b"}]
    for row in rows:
        Path("x.jsonl").write_text(json.dumps(row) + "\n")
        assert [record.values for record in read_json(find_source("x.jsonl", None))] == [row]
    Path("x.jsonl").write_text('{"input": "a",\n' + json.dumps(rows[2]))
    first, second = read_json(find_source("x.jsonl", None))
    assert first.problem is not None
    assert second.values == rows[2]


@pytest.mark.parametrize("line", ["sep=;", "SEP=;", '"sep=;"'])
def test_the_first_line_can_name_the_delimiter(line: str) -> None:
    body = "".join(f"in, {n};out {n}\n" for n in range(12))
    assert read(f"\ufeff{line}\ninput;target\n{body}", "x.csv")[0] == ("in, 0", "out 0")
    # the file's first line decides, even if another delimiter would also fit
    assert read(f"{line}\ninput;target;a,b\n" + body.replace("\n", ";1\n"), "y.csv")[0] == ("in, 0", "out 0")
