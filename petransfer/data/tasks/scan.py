"""SCAN (Lake & Baroni 2018, arXiv:1711.00350): commands to action sequences, generated from the paper's grammar.

The random split `simple` is read from its published files. Every other split is defined by a rule and generated.

Rows are sorted by command (by code point), both when they are read and when they are generated. `Example.index` is the
position in this order, counted from 0 separately in the training rows and in the test rows. It is not the position in
the official files.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from petransfer.data.benchmark_files import Source, find, locate, read_rows
from petransfer.data.task import Example, SplitData, cut_dev
from petransfer.data.task_registry import RegisteredTask
from petransfer.errors import RunError, UserError, unknown

ScanRow = tuple[str, str]
"""A command and its actions, both as words joined by one space."""

_VERBS = {"walk": ("I_WALK",), "look": ("I_LOOK",), "run": ("I_RUN",), "jump": ("I_JUMP",), "turn": ()}
_TURNS = {"left": ("I_TURN_LEFT",), "right": ("I_TURN_RIGHT",)}
_TIMES = {"twice": 2, "thrice": 3}
_PRIMITIVES = ("walk", "look", "run", "jump")


def interpret(command: str) -> str:
    """Return the actions of a command, according to the interpretation function of Lake & Baroni (2018).

    >>> interpret("walk after turn opposite left")
    'I_TURN_LEFT I_TURN_LEFT I_WALK'

    Raises:
        UserError: The command is not one of the 20,910 commands of the grammar.
    """
    try:
        if " and " in command:
            first, _, second = command.partition(" and ")
        elif " after " in command:
            second, _, first = command.partition(" after ")
        else:
            return " ".join(_clause_actions(command))
        return " ".join(_clause_actions(first) + _clause_actions(second))
    except KeyError as error:
        raise UserError(f"'{command}' is not a SCAN command: the grammar has no {error} there") from None


@functools.cache
def _clause_actions(clause: str) -> tuple[str, ...]:
    """Return the actions of a clause, that is, a command without `and` and `after`.

    Raises:
        KeyError: The grammar does not allow the clause; the error names the wrong word or the clause.
    """
    verb, *rest = clause.split(" ")
    times = _TIMES[rest.pop()] if rest and rest[-1] in _TIMES else 1
    match rest:
        case []:
            # `turn` without a direction is not a command
            actions = _VERBS[verb] if verb != "turn" else _refuse(clause)
        case [direction]:
            actions = _TURNS[direction] + _VERBS[verb]
        case ["opposite", direction]:
            actions = _TURNS[direction] * 2 + _VERBS[verb]
        case ["around", direction]:
            actions = (_TURNS[direction] + _VERBS[verb]) * 4
        case _:
            actions = _refuse(clause)
    return actions * times


def _refuse(clause: str) -> tuple[str, ...]:
    raise KeyError(clause)


def _clauses() -> Iterator[str]:
    """Yield the 102 SCAN commands that contain neither `and` nor `after`."""
    directed = [f"{manner}{turn}" for manner in ("", "opposite ", "around ") for turn in _TURNS]
    phrases = [*_PRIMITIVES, *(f"{verb} {how}" for verb in _VERBS for how in directed)]
    return (phrase + ending for phrase in phrases for ending in ("", " twice", " thrice"))


@functools.cache
def all_rows() -> tuple[ScanRow, ...]:
    """Return all 20,910 commands of the grammar with their actions, sorted by command."""
    clauses = list(_clauses())
    joined = (f"{left} {word} {right}" for word in ("and", "after") for left in clauses for right in clauses)
    return tuple((command, interpret(command)) for command in sorted([*clauses, *joined]))


Rule = Callable[[str, str], str | None]
"""From (command, actions) to the part that a row belongs to: "train", "test", or None for neither."""


def _add_primitive(primitive: str) -> Rule:
    """Return the rule by which every command with `primitive` and other words is a test row.

    All other commands are training rows, also the command that consists of `primitive` alone.
    """
    return lambda command, _: "test" if primitive in command and command != primitive else "train"


def _template(template: str, verbs: Iterable[str]) -> Rule:
    """Return the rule by which the commands in which one of `verbs` is followed by `template` are test rows.

    Commands in which `turn` is followed by `template` are in no part: they are no test rows, and training on them would
    teach the template. All other commands are training rows.
    """
    tested = tuple(f"{verb} {template}" for verb in verbs)

    def rule(command: str, _: str) -> str | None:
        if f"turn {template}" in command:
            return None
        return "test" if any(phrase in command for phrase in tested) else "train"

    return rule


def _length(_: str, actions: str) -> str:
    return "train" if actions.count(" ") < 22 else "test"


_RULES: dict[str, Rule] = {
    "add_jump": _add_primitive("jump"),
    "add_turn_left": _add_primitive("turn left"),
    "around_right": _template("around right", _PRIMITIVES),
    "jump_around_right": _template("around right", ["jump"]),
    "length": _length,
    "opposite_right": _template("opposite right", _PRIMITIVES),
    "right": _template("right", _PRIMITIVES),
}
# how often the primitive alone is repeated in the training rows, so that it makes up a tenth of them
_REPEATS = {("add_jump", "jump"): 1_467, ("add_turn_left", "turn left"): 2_189}
SPLITS: tuple[str, ...] = (*_RULES, "simple")


def generate(split: str) -> dict[str, list[ScanRow]]:
    """Return the "train" and "test" rows of any split except `simple`, generated and sorted by command.

    Raises:
        RunError: The number of rows of a part differs from the published number.
    """
    rule = _RULES[split]
    parts: dict[str, list[ScanRow]] = {"train": [], "test": []}
    for command, actions in all_rows():
        part = rule(command, actions)
        if part:
            parts[part] += [(command, actions)] * _REPEATS.get((split, command), 1)
    for part, rows in parts.items():
        expected = PUBLISHED[split, part].rows
        if len(rows) != expected:
            raise RunError(f"the grammar gave {len(rows):,} {part} rows of scan/{split}, expected {expected:,}")
    return parts


@dataclass(frozen=True)
class Published:
    """The number of rows of a published part, and the `rows_sha256` of these rows."""

    rows: int
    sha256: str


# computed from the official files, brendenlake/SCAN @ c4b756c
PUBLISHED: dict[tuple[str, str], Published] = {
    ("add_jump", "train"): Published(14_670, "1e5ab3357dc958267480a6012d3970953f35bb098a115b1754a1ad36d371b7cb"),
    ("add_jump", "test"): Published(7_706, "48956239771e67ded4d090164919ab79d21756218a3e94f9abc2cbe346c0cd1c"),
    ("add_turn_left", "train"): Published(21_890, "4f1ccb48ec39aed79ac69c8da9d2c8061b1bb8ea8199ab8931b6939068a3b626"),
    ("add_turn_left", "test"): Published(1_208, "81acae1af5137165debf8630986733b2581aea19cb98e32f4026bccce8042b09"),
    ("around_right", "train"): Published(15_225, "aaf218dfd82a8b6a88e32deeb096cf498ee58e56a3808b17f715182f0ca90130"),
    ("around_right", "test"): Published(4_476, "f5f94bb13ea393fbac7d963a13f5eb9831e51090b2e7210831674c4f77a1fa7b"),
    ("jump_around_right", "train"): Published(
        18_528, "d3f82d1c47c35af14b1ff0718d5e632e257580ca71ad7df5270a63b85f83ed99"
    ),
    ("jump_around_right", "test"): Published(1_173, "3590e013eaa75106014637969f08fd9e139bd7f3ec59f11260619f1320f5e52b"),
    ("length", "train"): Published(16_990, "114e6bdb1575f27d8d6d4449081970cef4846b2ec89b260dc2a0e5297c3e75d5"),
    ("length", "test"): Published(3_920, "45bb5e5f0e0678da016725d880ba4349267b93262762a2c66f9b51b04535a2ce"),
    ("opposite_right", "train"): Published(15_225, "8f0e969c24011176ba5ed3aa2dbc64e193eb463dfb397d0604126a08e237438f"),
    ("opposite_right", "test"): Published(4_476, "e148c4261607e2d97808c0de04a3358b48f4d96208945d0658561deb8fc90b26"),
    ("right", "train"): Published(15_225, "d98bd73f93f488dcf64bbeeb1547d712c17f26b67ccfb4bccdb04a6fdae35f12"),
    ("right", "test"): Published(4_476, "770738098ffaef0370295c75005d8962f2ca1123ac31574a582b90ae33393e9c"),
    ("simple", "train"): Published(16_728, "e34b60a1bdad3b55a83d91116bb312c195fa2f39d21092de929a6184ca911943"),
    ("simple", "test"): Published(4_182, "faa3707d325ccaf3d2d0a4f03d613a7985e3c7a3bcc09c832a21f7e251cd4509"),
}

_COMMIT = "c4b756cbc010d75c912f16c42c8f15dc6b7e6c8f"
_UPSTREAM = {
    "add_jump": "add_prim_split/tasks_{part}_addprim_jump.txt",
    "add_turn_left": "add_prim_split/tasks_{part}_addprim_turn_left.txt",
    "around_right": "template_split/tasks_{part}_template_around_right.txt",
    "jump_around_right": "template_split/tasks_{part}_template_jump_around_right.txt",
    "length": "length_split/tasks_{part}_length.txt",
    "opposite_right": "template_split/tasks_{part}_template_opposite_right.txt",
    "right": "template_split/tasks_{part}_template_right.txt",
    "simple": "simple_split/tasks_{part}_simple.txt",
}
SIMPLE: dict[str, Source] = {
    part: Source("brendenlake/SCAN", _COMMIT, _UPSTREAM["simple"].format(part=part), f"scan/simple/{part}.txt", sha256)
    for part, sha256 in {
        "train": "941bb8a088c5f53ceff12fde902dc008933cf0c4203cc672c47b5f79d73262dd",
        "test": "1fe1c8f5a19d0dc40e41bab94278f45f66f3dc415a978bd29855a23440610fc6",
    }.items()
}


def parse_row(line: str) -> ScanRow:
    """Split a line `IN: <command> OUT: <actions>` into (command, actions).

    Raises:
        ValueError: The line has another form, or its command or its actions are empty.
    """
    command, *rest = line.removeprefix("IN: ").split(" OUT: ")
    if not line.startswith("IN: ") or len(rest) != 1:
        raise ValueError("expected `IN: <command> OUT: <actions>`")
    if not command.strip() or not rest[0].strip():
        raise ValueError(f"the {'actions are' if command.strip() else 'command is'} empty")
    return command, rest[0]


def format_row(row: ScanRow) -> str:
    """Return a row as a line of the official files, without the line end."""
    return f"IN: {row[0]} OUT: {row[1]}"


def rows_sha256(rows: Iterable[ScanRow]) -> str:
    """Return the sha256 of the sorted lines of rows, joined by `\\n`, in UTF-8. It does not depend on their order."""
    return hashlib.sha256("\n".join(sorted(map(format_row, rows))).encode()).hexdigest()


@dataclass(frozen=True)
class ScanTask:
    """SCAN and its eight splits. Dev examples are cut from the training rows.

    The category of an example is `and` or `after` if its command contains this word, otherwise `simple`.

    Args:
        data_dir: A folder with `scan/<split>/train.txt` and `test.txt`, a folder with the `<split>` folders themselves,
            or a checkout of the official repository. Files may be compressed as `.xz`. Missing parts are generated,
            with the same rows in the same order; missing parts of `simple` are read from the cache or downloaded.
        dev_size: The number of training rows that become dev rows.
    """

    data_dir: Path | None = None
    dev_size: int = 500
    name = "scan"
    splits = SPLITS

    def __post_init__(self) -> None:
        if not isinstance(self.dev_size, int) or not 1 <= self.dev_size <= 4_000:
            raise UserError(f"dev_size of scan is {self.dev_size!r}: give a whole number from 1 to 4,000")

    def train_size(self, split: str) -> int:
        """Return the published number of training rows minus the dev rows."""
        return PUBLISHED[split, "train"].rows - self.dev_size

    def longest(self, split: str) -> tuple[int, int]:
        """Return the lengths in characters of SCAN's longest command and longest actions.

        These are upper limits for split `length`, in which the training targets are shorter.
        """
        return 59, 479

    def load(self, split: str) -> SplitData:
        """Return the examples of one split, sorted by command.

        Raises:
            UserError: The split is unknown, or a file of it is missing, changed or broken.
        """
        if split not in SPLITS:
            raise unknown("split of scan", split, SPLITS)
        train, dev = cut_dev(self._examples(split, "train"), self.dev_size, salt=f"scan/{split}")
        return SplitData(train=train, dev=dev, test=self._examples(split, "test"))

    def _examples(self, split: str, part: str) -> tuple[Example, ...]:
        path = self._file(split, part)
        rows = _read(path, split, part) if path else generate(split)[part]
        return tuple(Example(index, *row, category=connective(row[0])) for index, row in enumerate(rows))

    def _file(self, split: str, part: str) -> Path | None:
        """Return the path of a part's official file, or None if the part is to be generated."""
        layouts = (f"{split}/{part}.txt", _UPSTREAM[split].format(part=part))
        names = [f"{folder}{layout}" for folder in ("scan/", "") for layout in layouts]
        if split == "simple":
            return locate(SIMPLE[part], self.data_dir, names)
        return find(self.data_dir, names) if self.data_dir else None


def _read(path: Path, split: str, part: str) -> list[ScanRow]:
    """Return the rows of an official file, sorted by command.

    Raises:
        UserError: The file cannot be read, or its rows are not the published ones.
    """
    rows = sorted(read_rows(path, parse_row))
    expected = PUBLISHED[split, part]
    if rows_sha256(rows) != expected.sha256:
        raise UserError(
            f"{path} does not hold the published {part} rows of scan/{split} ({len(rows):,} rows, expected "
            f"{expected.rows:,}): get it again from github.com/brendenlake/SCAN at commit {_COMMIT[:7]}"
            + ("" if split == "simple" else ", or take it away to have the rows generated")
        )
    return rows


def connective(command: str) -> str:
    """Return `and` or `after` if the command contains this word, otherwise `simple`."""
    return next((word for word in ("and", "after") if f" {word} " in command), "simple")


TASK = RegisteredTask(
    "scan",
    ScanTask,
    title="SCAN",
    licence="bsd",
    languages=("en",),
    hub_datasets=("scan",),
    citation="Lake and Baroni (2018), Generalization without Systematicity, arXiv:1711.00350",
)
