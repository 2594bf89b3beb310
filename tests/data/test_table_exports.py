"""Tables as spreadsheets and other programs write them: odd column names, headers, quotes, and short or long rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petransfer.data import LinesTask, load_task
from petransfer.errors import UserError

pytestmark = pytest.mark.usefixtures("elsewhere")

PAIRS = [(f"say {n}", f"word {n}") for n in range(30)]


def read(train: str, **options: Any) -> tuple[list[tuple[str, str]], str]:
    """Return the rows of a file as (input, target) in order, and the notes for the user as one text."""
    task = load_task("lines", None, train=train, **options)
    assert isinstance(task, LinesTask)
    data = task.load("held-out")
    rows = sorted((*data.train, *data.dev, *data.test), key=lambda row: row.index)
    return [(row.input, row.target) for row in rows], "\n".join(task.notes())


def categories(train: str, **options: Any) -> set[str]:
    data = load_task("lines", None, train=train, **options).load("held-out")
    return {row.category for row in (*data.train, *data.dev, *data.test)}


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8", newline="")
    return name


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("text,category", {"input": "text", "target": "category"}),
        ("category,label", {"input": "category", "target": "label"}),
        ("category,label", {"template": "about {category}", "target": "label"}),
    ],
)
def test_a_column_called_category_can_be_the_text(head: str, options: dict[str, str], elsewhere: Path) -> None:
    file = write("a.csv", f"{head}\n" + "".join(f"{a},{b}\n" for a, b in PAIRS))
    rows, _ = read(file, **options)
    assert rows == [(f"about {a}" if "template" in options else a, b) for a, b in PAIRS]
    assert categories(file, **options) == {"all"}
    with pytest.raises(UserError, match="takes the column 'text' for two things"):
        read(file, input="text", target="label", category="text")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([f"c{n}" for n in range(1500)], "more than 1,000 different values"),
        (["Food", "food"] * 15, "'Food' (15 rows) and 'food' (15 rows) differ in case or blanks alone"),
    ],
)
def test_a_column_category_that_cannot_group_rows_is_left_out(values: list[str], reason: str, elsewhere: Path) -> None:
    body = "".join(f"say {n},word {n},{value}\n" for n, value in enumerate(values))
    file = write("a.csv", f"input,target,category\n{body}")
    rows, notes = read(file)
    assert rows == [(f"say {n}", f"word {n}") for n in range(len(values))]
    assert categories(file) == {"all"}
    assert "not grouped by the column 'category'" in notes
    assert reason in notes
    named = write("b.csv", f"input,target,kind\n{body}")
    with pytest.raises(UserError, match=r"kind|write them alike"):  # the user asked for these categories
        read(named, category="kind")


def test_a_column_category_of_lists_is_left_out(elsewhere: Path) -> None:
    rows = "".join(f'{{"input": "{a}", "target": "{b}", "category": ["x", "y"]}}\n' for a, b in PAIRS)
    found, notes = read(write("a.jsonl", rows))
    assert found == PAIRS
    assert "not grouped by the column 'category': the category is a list" in notes
