"""Group the runs that differ only in the seed, and show the groups and the effects in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import rich.table

from petransfer.effects import reference
from petransfer.effects.criteria import criterion_of
from petransfer.effects.drawing import additions_to
from petransfer.effects.reference import PaperScores, paper_score
from petransfer.effects.wording import bounds, p_value, plain, signed
from petransfer.plurals import count
from petransfer.recipe.metrics import HEADINGS
from petransfer.report import tables
from petransfer.report.meanings import meanings_of
from petransfer.report.run_table import LOSS, RunRow, metrics_of
from petransfer.report.tables import Table, table_of_text
from petransfer.visible_text import visible


@dataclass(frozen=True)
class RunGroup:
    """The runs of one arm and method on one split, one run per seed.

    `paper`: the scores of Orhan (2021), with all weights trained, or None.
    """

    arm: str
    method: str
    split: str
    runs: tuple[RunRow, ...]
    paper: PaperScores | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.split, self.arm, self.method

    @property
    def done(self) -> tuple[RunRow, ...]:
        return tuple(row for row in self.runs if row.status == "done")

    @property
    def dev(self) -> list[float]:
        """Exact match on dev in percent, one value per finished run."""
        return [row.dev for row in self.done if row.dev is not None]

    @property
    def test(self) -> list[float]:
        """Exact match on test in percent, one value per finished run."""
        return [row.test for row in self.done if row.test is not None]

    @property
    def loss(self) -> list[float]:
        """Mean cross-entropy per target token on test in nats, one value per finished run."""
        return [row.test_loss for row in self.done if row.test_loss is not None]


def groups_of(rows: Sequence[RunRow], family: str | None = None) -> list[RunGroup]:
    """Group the rows by split, arm and method.

    family: family of the study's checkpoints, for the scores of Orhan (2021). None leaves these scores out.
    """
    found: dict[tuple[str, str, str], list[RunRow]] = {}
    for row in rows:
        found.setdefault((row.cell.split, row.cell.arm, row.cell.method), []).append(row)
    groups = []
    for (split, arm, method), runs in found.items():
        paper = paper_score(family, arm, runs[0].cell.spec.task.name, split) if family else None
        groups.append(RunGroup(arm, method, split, tuple(runs), paper))
    return groups


COLUMNS = ("split", "arm", "method", "seeds", "dev EM %", "test EM %", LOSS)


def columns_of(groups: Sequence[RunGroup]) -> tuple[str, ...]:
    return (*COLUMNS, "paper EM %") if _in_paper(groups) else COLUMNS


def _in_paper(groups: Sequence[RunGroup]) -> bool:
    return any(group.paper for group in groups)


def table_of(groups: Sequence[RunGroup]) -> list[tuple[str, ...]]:
    """Return one table row per group: means over seeds, with the lowest and the highest seed in brackets."""
    with_paper = _in_paper(groups)
    return [
        (
            group.split,
            group.arm,
            group.method,
            _seeds(group),
            _spread(group.dev, 1),
            _spread(group.test, 1),
            _spread(group.loss, 3),
            *([_paper(group)] if with_paper else []),
        )
        for group in groups
    ]


def metrics_table(groups: Sequence[RunGroup]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of a table of test metrics other than exact match.

    Values are means over seeds, 0 to 100. There are no rows if no run has such a metric.
    """
    done = [group for group in groups if group.done]
    measured = metrics_of([row for group in done for row in group.done])
    lines = [
        (
            group.arm,
            group.method,
            _seeds(group),
            *(_spread([row.scores[name] for row in group.done if name in row.scores], 1) for name in measured),
        )
        for group in done
    ]
    return ("arm", "method", "seeds", *(HEADINGS[name] for name in measured)), lines if measured else []


def terminal_table(groups: Sequence[RunGroup], title: str) -> rich.table.Table:
    table = rich.table.Table(title=title, title_justify="left")
    for at, name in enumerate(columns_of(groups)):
        table.add_column(name, justify="right" if at > 2 else "left", no_wrap=True)
    for line in table_of(groups):
        table.add_row(*line)
    return table


def incomplete_note(groups: Sequence[RunGroup]) -> str:
    """Return a note on the runs without a test score, and on the failed runs with the first error. '' without them."""
    unscored = sum(row.test is None for group in groups for row in group.done)
    was = "was" if unscored == 1 else "were"
    texts = [f"{count(unscored, 'finished run')} {was} not scored on the test set"] if unscored else []
    failed = [row for group in groups for row in group.runs if row.status == "failed"]
    return ". ".join([*texts, *([_failed_text(failed)] if failed else [])])


def _failed_text(failed: Sequence[RunRow]) -> str:
    """Return the number of failed runs, with the first error."""
    cell = failed[0].cell
    where = f"{cell.arm}, {cell.method}, {cell.split}, seed {cell.seed}"
    failure = " ".join((failed[0].failure or "").split())
    return f"{count(len(failed), 'run')} failed. The first failed run is {where}: {failure}"


def paper_note(groups: Sequence[RunGroup], family: str) -> str:
    """Return a note on the scores of Orhan (2021) and on differences from our experiments.

    The note is '' if the paper has no scores. `family`: family of the study's checkpoints.
    """
    inside = [group for group in groups if group.paper]
    if not inside:
        return ""
    task = inside[0].runs[0].cell.spec.task.name
    return reference.paper_note([family], task, [inside[0].split], {group.arm for group in inside})


def results_table(groups: Sequence[RunGroup]) -> Table:
    """Return the table of scores, with one row per group of runs."""
    more = (LOSS, "paper EM %", "seeds")
    return table_of_text(columns_of(groups), table_of(groups), names=3, more=more, label="Exact match by group")


def effects_as_table(effects: dict[str, Any]) -> Table:
    """Return the table of our effects and the effects in Orhan (2021)."""
    more = ("paper: points", "paper: p (Holm)")
    return table_of_text(effect_columns(effects), effects_table(effects), names=3, more=more, label="Effects")


def markdown(groups: Sequence[RunGroup], effects: dict[str, Any], family: str = "", unswept_note: str = "") -> str:
    """Return the tables of a report as Markdown.

    Args:
        groups: groups of runs.
        effects: content of effects.json.
        family: family of the study's checkpoints. '' leaves out the note on Orhan (2021).
        unswept_note: a note on learning rates that were not swept, or ''.
    """
    results = results_table(groups)
    parts = [tables.markdown(results), _legend(results)]
    parts += [f"{tables.markdown_text(note)}."] if (note := incomplete_note(groups)) else []
    parts += [tables.markdown_text(unswept_note)] if unswept_note else []
    parts += [paper_note(groups, family)] if family and _in_paper(groups) else []
    if effects["effects"]:
        about = effects_as_table(effects).without_empty_columns()
        parts += [tables.markdown(about), _legend(about, known=results)]
    sentences = [*effects["sentences"], *effects.get("missing", ())]
    parts += ["\n".join(f"- {tables.markdown_text(sentence)}" for sentence in sentences)] if sentences else []
    return "\n\n".join(parts) + "\n"


def _legend(table: Table, known: Table | None = None) -> str:
    """Return the meanings of the table's headings and of words in its cells, as a Markdown list.

    known: a table above, whose meanings are left out.
    """
    above = meanings_of(known.named_cells) if known else ()
    lines = [line for line in meanings_of(table.named_cells) if line not in above]
    return "\n".join(f"- {tables.markdown_text(line)}" for line in lines)


def effect_columns(effects: dict[str, Any]) -> tuple[str, ...]:
    points_of = f"points of {criterion_of(effects).short}"
    return ("effect", "split", "under", points_of, "p (Holm)", "verdict", "paper: points", "paper: p (Holm)")


def effects_table(effects: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return one table row per effect: our effect and the effect in Orhan (2021), with intervals."""
    lines: list[tuple[str, ...]] = []
    for effect, addition in zip(effects["effects"], additions_to(effects["effects"]), strict=True):
        paper = effect.get("paper")
        theirs = (points(paper), p_value(paper["p_holm"])) if paper else ("", "")
        place = effect["arm"] or effect["method"]
        ours = (points(effect), p_value(effect["p_holm"]), _verdict(effect))
        lines.append((f"{effect['name']}{addition}", effect["split"], place, *ours, *theirs))
    return lines


def _verdict(effect: dict[str, Any]) -> str:
    """Return the verdict as text. Dev scores in percent follow `not learnt`."""
    dev = effect.get("dev")
    if effect["verdict"] != "not learnt" or not dev:
        return str(effect["verdict"])
    return f"not learnt (dev: {dev[0]:.1f} against {dev[1]:.1f})"


def points(effect: dict[str, Any]) -> str:
    """Format the difference and the interval of an effect, such as `+3.1 [-1.2, +12.2]`."""
    return f"{signed(effect['difference'])}{bounds(effect['interval'])}"


def latex(groups: Sequence[RunGroup], effects: dict[str, Any]) -> str:
    """Return the tables of groups and effects as LaTeX."""
    parts = [tables.latex(results_table(groups))]
    # a LaTeX comment
    parts += [f"% {visible(note)}"] if (note := incomplete_note(groups)) else []
    if effects["effects"]:
        parts += ["", tables.latex(effects_as_table(effects).without_empty_columns())]
    return "\n".join([*parts, ""])


def _seeds(group: RunGroup) -> str:
    done, requested = len(group.done), len(group.runs)
    return str(done) if done == requested else f"{done} of {requested}"


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    if not all(map(math.isfinite, values)):
        return f"not finite in {sum(not math.isfinite(value) for value in values)} of {len(values)}"
    if len(values) == 1:
        return plain(values[0], digits)
    return f"{plain(fmean(values), digits)} ({plain(min(values), digits)} to {plain(max(values), digits)})"


def _paper(group: RunGroup) -> str:
    return _spread([100 * share for share in group.paper.shares], 1) if group.paper else ""
