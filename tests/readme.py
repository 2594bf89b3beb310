"""The README with every figure that it takes from results/ as it stands there.

A table beneath `<!-- groups: STUDY -->` or `<!-- verdicts: STUDY -->` is that of the study's table.md, that beneath
`<!-- support -->` says which architectures tests/models/test_coverage.py tries. After `<!-- from: STUDY -->` a
word or figure in a sentence is marked by what it is: `<!-- english, lora, dev -->95.9`.
tests/test_readme.py compares; this writes:

    python -m tests.readme
"""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from petransfer.recipe.effect_requests import matching
from tests.models.architectures import support

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

TABLE = re.compile(r"(<!-- (groups|verdicts): (\S+) -->\n)(.*?)(?=\n\n)", flags=re.DOTALL)
SUPPORT = re.compile(r"(<!-- support -->\n)(.*?)(?=\n\n)", flags=re.DOTALL)
FIGURE = re.compile(
    r"(?P<mark><!-- (?:from: (?P<study>\S+)|(?P<name>[\w-]+), (?P<method>[\w -]+), (?P<what>\w+)) -->)(?P<said>\S*\w)?"
)


def corrected(text: str) -> str:
    """The text with its tables and figures put right.

    Raises:
        KeyError, LookupError: a mark names what the study does not have.
    """
    study = ""

    def right(found: re.Match[str]) -> str:
        nonlocal study
        if found["study"]:
            study = found["study"]
            return found[0]
        return found["mark"] + figure(study, found["name"], found["method"], found["what"])

    text = SUPPORT.sub(lambda found: found[1] + support(), text)
    return FIGURE.sub(right, TABLE.sub(lambda found: found[1] + _table(found[3], found[2]), text))


def _table(study: str, kind: str) -> str:
    blocks = (ROOT / "results" / study / "table.md").read_text().strip().split("\n\n")
    start = {"groups": "| split", "verdicts": "| effect"}[kind]
    (found,) = [block for block in blocks if block.startswith(start)]
    return found


def figure(study: str, name: str, method: str, what: str) -> str:
    """What a mark stands for.

    name: an effect, of which there are `points`, `low`, `high`, `p` (after Holm), `verdict` and `kept` (retention, %);
    an arm, of which there are `dev`, `test` (means over seeds, % EM), `seeds` and `trained` (parameters); or `effects`,
    which are counted: `all`, or those of a verdict such as `holds`. method: by words of its label.
    """
    effects = _effects(study)
    mine = [one for one in effects["effects"] if _is(method, one["method"])]
    if name == "effects":
        return str(len(mine) if what == "all" else sum(one["verdict"] == what for one in mine))
    if what == "kept":
        ratio = _one(effects["retentions"], name, lambda one: one["under"]["name"], method)["ratio"]
        return "undefined" if ratio is None else f"{100 * ratio:.0f}"
    if what in _OF_EFFECT:
        return _OF_EFFECT[what](_one(mine, name, lambda one: one["method"], method))
    runs = [run for run in _runs(study) if run["arm"] == name and run["dev_em"] and _is(method, run["method"])]
    return _OF_ARM[what](runs)


_OF_EFFECT: dict[str, Callable[[dict[str, Any]], str]] = {
    "points": lambda one: f"{one['difference']:+.1f}",
    "low": lambda one: f"{one['interval']['low']:+.1f}",
    "high": lambda one: f"{one['interval']['high']:+.1f}",
    "p": lambda one: f"{one['p_holm']:.3f}",
    "verdict": lambda one: str(one["verdict"]),
}
_OF_ARM: dict[str, Callable[[list[dict[str, str]]], str]] = {
    "dev": lambda runs: f"{fmean(float(run['dev_em']) for run in runs):.1f}",
    "test": lambda runs: f"{fmean(float(run['test_em']) for run in runs):.1f}",
    "seeds": lambda runs: str(len(runs)),
    "trained": lambda runs: f"{int(runs[0]['trained']):,}",
}


def _is(words: str, label: str) -> bool:
    return bool(matching(words, [label]))


def _one(found: list[dict[str, Any]], name: str, label: Callable[[dict[str, Any]], str], method: str) -> dict[str, Any]:
    (one,) = [one for one in found if one["name"] == name and _is(method, label(one))]
    return one


@functools.cache
def _effects(study: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "results" / study / "effects.json").read_text())
    return content


@functools.cache
def _runs(study: str) -> list[dict[str, str]]:
    with (ROOT / "results" / study / "table.csv").open() as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    README.write_text(corrected(README.read_text(encoding="utf-8")), encoding="utf-8")
