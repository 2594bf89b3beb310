"""Write tutorials/transcripts.md: run what a new user tries, in a terminal of 80 columns, and record what is printed.

    python docs/record_transcripts.py

The commands run one after the other on the CPU with one thread, in a temporary folder. It takes about ten minutes.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import random
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from petransfer.study.durations import duration
from petransfer.training.cpu.processor import processor

PAGE = Path(__file__).parent / "tutorials" / "transcripts.md"
COLUMNS, LINES = 80, 40
MODEL = "nano/english"


@dataclass(frozen=True)
class Try:
    """An example of the first use of petransfer: a data file, and the commands for it.

    Attributes:
        title: The heading on the page.
        text: An introduction for the reader.
        file: The name of the data file.
        rows: Function that returns the lines of the file, each as a list of cells.
        commands: The arguments of `petransfer` for each command, as a user writes them.
    """

    title: str
    text: str
    file: str
    rows: Callable[[], Iterable[Iterable[str]]]
    commands: list[str]


def ten_rows() -> list[list[str]]:
    """Return ten rows that turn words into letters."""
    moves = {"walk": "W", "turn left": "L", "turn right": "R", "jump": "J", "run": "U"}
    pairs = [("walk", "jump"), ("run", "walk"), ("jump", "turn left"), ("turn right", "run"), ("walk", "turn left")]
    single = [[text, letter] for text, letter in moves.items()]
    return [*single, *([f"{one} and {two}", f"{moves[one]} {moves[two]}"] for one, two in pairs)]


def dates() -> list[list[str]]:
    """Return 500 dates as text, with the same dates in ISO 8601."""
    drawn, found = random.Random(0), dict[str, str]()
    while len(found) < 500:
        day = date(1950, 1, 1) + timedelta(days=drawn.randrange(30_000))
        found[f"{day.day} {day:%B %Y}"] = day.isoformat()
    return [["input", "target"], *([text, iso] for text, iso in found.items())]


def reviews() -> list[list[str]]:
    """Return 300 short reviews, each with one of three labels, in columns with other names than usual."""
    words = {
        "good": ("superb", "pleasant", "lovely", "excellent"),
        "bad": ("awful", "broken", "horrible", "terrible"),
        "mixed": ("ordinary", "average", "acceptable", "plain"),
    }
    things, drawn, rows = ("meal", "film", "room", "train", "book"), random.Random(0), []
    for number in range(300):
        label = list(words)[number % 3]
        one, two = drawn.sample(words[label], 2)
        rows.append([f"the {drawn.choice(things)} number {number} was {one} and {two}", label])
    return [["review", "label"], *rows]


def chats() -> list[list[str]]:
    """Return 200 chats of two turns, as JSON. In each turn, the user asks to turn a device on or off."""
    drawn = random.Random(0)
    asked = ("turn the {} {}", "please turn the {} {}", "I want the {} {}", "can you turn the {} {}", "the {} {} now")
    things = ("lamp", "radio", "heater", "fan", "oven", "door", "light", "music", "water", "window")
    rows = []
    for _ in range(200):
        chat = []
        for before in ("", "and "):
            thing, state = drawn.choice(things), drawn.choice(("on", "off"))
            chat.append({"role": "user", "content": before + drawn.choice(asked).format(thing, state)})
            chat.append({"role": "assistant", "content": f"{state}: {thing}"})
        rows.append(chat)
    return [[json.dumps({"messages": row})] for row in rows]


TRIES = (
    Try(
        "Ten rows in a tsv file",
        "Ten rows are too few to learn from. The output says so, and suggests what to do.",
        "pairs.tsv",
        ten_rows,
        [f"train {MODEL} pairs.tsv"],
    ),
    Try(
        "500 rows of dates",
        "The file has 500 rows such as `3 March 2021,2021-03-03`, with the column names `input` and `target`. Training "
        "stops by itself, and the adapter is used at once.",
        "dates.csv",
        dates,
        [f"train {MODEL} dates.csv", "predict results/dates-english '3 March 2021' '14 July 1999'"],
    ),
    Try(
        "300 texts with three labels",
        "The columns have other names than input and target: `review` and `label`. If there are only a few different "
        "targets, they are treated as labels, and accuracy and macro-F1 are computed too.",
        "reviews.csv",
        reviews,
        [
            f"train {MODEL} reviews.csv --input-column review --target-column label",
            "predict results/reviews-english 'the soup number 7 was lovely and superb'",
        ],
    ),
    Try(
        "Chats",
        "Each row has a list of `messages`. `nano/english` has no chat template, so the first command fails with exit "
        "code 2, names two ways to continue, and writes nothing. The second command takes one of them.",
        "chats.jsonl",
        chats,
        [
            f"train {MODEL} chats.jsonl",
            f"train {MODEL} chats.jsonl --set task.options.chat=plain",
            "predict results/chats-english 'please turn the radio off'",
        ],
    ),
    Try(
        "Few rows: cross-validation",
        "With 60 reviews there are only 6 rows to choose the best step and 6 to score. `--folds 5` scores every row "
        "once, by a model that was not trained on it. The last run trains on all rows.",
        "few.csv",
        lambda: reviews()[:61],
        [
            f"train {MODEL} few.csv --input-column review --target-column label --folds 5",
            "predict results/few-english-5-folds 'the soup number 7 was horrible and broken'",
        ],
    ),
)

HEAD = (
    "This page shows what a new user sees. Each section is a file of data, the commands for it, and what they printed "
    "in a terminal of 80 columns. All commands train the model `nano/english`, which ships with petransfer, on a CPU. "
    "While a command trains, one line shows the progress. It disappears at the end; the page shows it once, as it was "
    "in the middle of the training.",
    "The page was written by `python docs/record_transcripts.py` on {machine}, with one thread. All commands together "
    "took {took}.",
)
WIDTH = 130  # maximum number of characters in a line of the page


@dataclass
class Screen:
    """A simulated terminal. It supports the outputs of rich and petransfer: text, line breaks, and erased lines.

    Attributes:
        lines: The lines of the terminal.
        row, column: The position of the cursor.
        bars: Every state of the lines with a progress bar.
    """

    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    bars: list[str] = field(default_factory=list)

    def write(self, text: str) -> None:
        """Process the output of a program."""
        for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]|[^\x1b\r\n]+", text):
            if part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif part == "\r":
                self.column = 0
            elif part.startswith("\x1b"):
                self._control(part)
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
                self.column += len(part)
                if self.lines[self.row].startswith("["):
                    self.bars.append(self.lines[self.row])

    def _control(self, sequence: str) -> None:
        number = int(sequence[2:-1]) if sequence[2:-1].isdigit() else 0
        if sequence.endswith("K"):  # erase the line, or its end
            self.lines[self.row] = "" if number == 2 else self.lines[self.row][: self.column]
        elif sequence.endswith("A"):
            self.row = max(0, self.row - max(1, number))

    @property
    def text(self) -> str:
        """The lines that are visible at the end, without spaces at their ends."""
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


def record(arguments: str, folder: Path) -> str:
    """Run a command in a terminal and return it with its output, as a block of a page.

    Args:
        arguments: The arguments of `petransfer`, as a user writes them.
        folder: The current folder of the command.
    """
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "petransfer", *shlex.split(arguments)]
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        screen, output = Screen(), b""
        while part := _read(terminal):
            output += part
        screen.write(output.decode("utf-8", "replace"))
    os.close(terminal)
    lines = [f"$ petransfer {arguments}", *_with_bar(screen)]
    code = f"(exit code {process.returncode})\n" if process.returncode else ""
    return "\n".join(lines) + "\n" + code


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the program has ended
        return b""


def _with_bar(screen: Screen) -> list[str]:
    """Return the lines of a screen, with one state of the progress bar before the lines about the finished training."""
    lines = screen.text.split("\n")
    bars = [bar for bar in screen.bars if "dev" in bar] or screen.bars
    at = next((number for number, line in enumerate(lines) if line.startswith("trained and scored")), None)
    if at is not None and bars:
        lines.insert(at, bars[len(bars) // 2])
    return lines


def page(tries: Iterable[Try], folder: Path) -> str:
    """Run all commands and return the page."""
    began, parts = time.monotonic(), []
    for one in tries:
        _write_rows(folder / one.file, one.rows())
        outputs = "\n".join(record(command, folder) for command in one.commands)
        parts.append(f"\n## {one.title}\n\n{textwrap.fill(one.text, WIDTH)}\n\n```text\n{outputs}```\n")
        print(one.title, f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    about = {"machine": processor().partition(",")[0], "took": duration(time.monotonic() - began)}
    head = "\n\n".join(textwrap.fill(part.format(**about), WIDTH, break_on_hyphens=False) for part in HEAD)
    return f"# Terminal transcripts\n\n{head}\n" + "".join(parts)


def _write_rows(path: Path, rows: Iterable[Iterable[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows(rows)
        else:
            file.writelines("\t".join(row) + "\n" for row in rows)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(page(TRIES, Path(name)), encoding="utf-8")
