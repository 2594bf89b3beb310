"""Compute a study's effects from its run folders, and write effects.json."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.atomic_files import write_text
from petransfer.effects.criteria import CRITERIA
from petransfer.effects.seed_counts import SeedDemand
from petransfer.recipe.effect_requests import requested_effects
from petransfer.recipe.metrics import EXACT_MATCH
from petransfer.recipe.schema import EffectPart, Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell

if TYPE_CHECKING:
    from petransfer.effects.kind import EffectKind, HolmResult, Thresholds
    from petransfer.effects.kinds.contrast import Effect

# Increase this when verdicts or sentences for the same runs change, so that an older effects.json is not reused.
JUDGED_VERSION = 12


@dataclass(frozen=True)
class EffectData:
    """The data from which one effect is estimated.

    Attributes:
        family: name of the group of effects that are tested together.
        categories: name of the categories whose test examples alone count. '': all test examples.
    """

    kind: EffectKind
    data: Any
    family: str = ""
    categories: str = ""

    @property
    def names(self) -> dict[str, str]:
        """The entries of effects.json for `family` and `categories`. Empty names have no entry."""
        return {key: name for key in ("family", "categories") if (name := getattr(self, key))}


@dataclass
class CollectedEffects:
    """The data of a recipe's effects.

    Attributes:
        items: the data of each effect that can be estimated.
        missing: a sentence for each effect that cannot be estimated yet.
        waiting: number of effects that cannot be estimated yet, by group of effects that are tested together.
    """

    items: list[EffectData] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    waiting: Counter[str] = field(default_factory=Counter)

    def of(self, name: str) -> list[Any]:
        return [item.data for item in self.items if item.kind.name == name]


def update_effects(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder, *, anew: bool = False) -> dict[str, Any]:
    """Compute the recipe's effects from the finished runs, write effects.json, and return its content.

    Args:
        anew: whether to compute the effects even if effects.json is up to date.

    Returns:
        A dictionary with these keys:
        effects, scales, retentions: one list for each kind of effect.
        tests: number of tested effects, with the declared effects that cannot be estimated yet.
        families: number of tested effects by group. Only if the recipe names groups of effects.
        judged_by: name of the metric. Only if the metric is not exact match.
        notes: notes for the reader.
        sentences: the notes, and one sentence for each effect.
        missing: a sentence for each effect that cannot be estimated.
    """
    done = sorted(cell.run_id for cell in cells if study.run(cell.run_id).scored)
    if not recipe.effects or not done:
        return {"effects": [], "scales": [], "retentions": [], "notes": [], "missing": [], "sentences": []}
    digest = _digest(recipe, cells, study, done)
    path = study.path / "effects.json"
    # Reading the file saves importing statsmodels, which takes seconds.
    kept = None if anew else _read(path)
    if kept is None or kept.get("runs_sha256") != digest:
        content = {"runs_sha256": digest, **_judged(recipe, cells, study)}
        text = json.dumps(content, indent=1, allow_nan=False)
        write_text(path, text + "\n")
        kept = json.loads(text)
    return kept


def _digest(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder, done: list[str]) -> str:
    # The verdicts depend on everything that is hashed here.
    scored = set(done)
    failed = sorted((cell.run_id, study.run(cell.run_id).status()) for cell in cells if cell.run_id not in scored)
    requests = [effect if isinstance(effect, str) else effect.model_dump() for effect in recipe.effects]
    limits = [recipe.margin, recipe.smallest_effect, recipe.learnt]
    seen = [JUDGED_VERSION, requests, limits, done, failed, _elsewhere(recipe, cells, study), recipe.judged_by]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def seed_demand(recipe: Recipe, cells: Sequence[Cell]) -> SeedDemand:
    """Return the numbers of seeds of the effects that a study tests together. More effects need more seeds (Holm).

    If a study has several groups of effects, the group with too few seeds that needs the most seeds is returned.
    """
    unpaired: dict[str, list[tuple[int, int]]] = defaultdict(list)
    paired: dict[str, list[int]] = defaultdict(list)
    effects = requested_effects(recipe)
    for split in dict.fromkeys(cell.split for cell in cells):
        seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
        for cell in cells:
            if cell.split == split:
                seeds[cell.arm, cell.method].add(cell.seed)
        for effect in effects:
            if effect.kind == "methods":
                trained = [arm for arm in effect.arms if {(arm, effect.left), (arm, effect.right)} <= seeds.keys()]
                both = [(seeds[arm, effect.left], seeds[arm, effect.right]) for arm in trained]
                if effect.paired:
                    paired[effect.family] += [len(left & right) for left, right in both]
                else:
                    unpaired[effect.family] += [(len(left), len(right)) for left, right in both]
            elif effect.kind in ("arms", "scale"):
                # the baseline can have another method, such as scratch
                baseline = max((len(found) for (arm, _), found in seeds.items() if arm == effect.right), default=0)
                numbers = [len(found) for (arm, _), found in seeds.items() if arm == effect.left]
                unpaired[effect.family] += [(number, baseline or number) for number in numbers]
    families = dict.fromkeys(effect.family for effect in effects)
    demands = [SeedDemand(tuple(unpaired[family]), tuple(paired[family])) for family in families]
    return max(demands, key=lambda one: (bool(one.line), one.needed), default=SeedDemand())


def check_kinds(recipe: Recipe) -> None:
    """Check that each kind of effect of another package can be imported.

    Raises:
        UserError: A kind is unknown, or its package cannot be imported or has no valid kind.
    """
    names = {effect.kind for effect in recipe.effects if isinstance(effect, EffectPart) and effect.kind}
    if names:
        from petransfer.effects.kind import KINDS  # the built-in kinds take seconds to import

        for name in sorted(names):
            KINDS.lookup(name)


def collect(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder) -> CollectedEffects:
    """Collect the data of the recipe's effects on every split."""
    from petransfer.effects.kind import KINDS, Missing, kinds_in_order
    from petransfer.effects.runs import Runs

    kinds = {request: kind for kind in kinds_in_order() for request in kind.requests}
    runs, found = Runs(recipe, cells, study, recipe.judged_by), CollectedEffects()
    for split in runs.splits:
        for effect in requested_effects(recipe):
            kind = kinds.get(effect.kind) or KINDS.lookup(effect.kind)
            for data in kind.collect(effect, split, runs):
                if isinstance(data, Missing):
                    found.missing.append(data.why)
                    found.waiting[effect.family] += kind.p_value is not None
                else:
                    found.items.append(EffectData(kind, data, effect.family, effect.categories))
    found.items.sort(key=lambda item: (item.kind.order, item.kind.name))
    return found


def _judged(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder) -> dict[str, Any]:
    from petransfer.effects.kind import Thresholds, kinds_in_order
    from petransfer.effects.kinds.scale import other_examples_note

    found, limits = collect(recipe, cells, study), Thresholds.of(recipe)
    criterion = CRITERIA[recipe.judged_by]
    families = _families(found, limits)
    content: dict[str, list[Any]] = {kind.key: [] for kind in kinds_in_order()}
    lines = []
    for item, family in zip(found.items, families, strict=True):
        effect = asdict(item.kind.judge(item.data, family, limits)) | item.names
        content[item.kind.key].append(effect)
        lines.append(item.kind.sentence(json.loads(json.dumps(effect)), criterion))
    tests = {item.family: family.tests for item, family in zip(found.items, families, strict=True)}
    tests = {name: waiting for name, waiting in found.waiting.items() if waiting} | tests
    _add_paper(content["effects"], recipe, limits)
    done = [cell for cell in cells if study.run(cell.run_id).scored]
    other_examples = other_examples_note(found.of("scale"))
    possible = (criterion.note, other_examples, few_pretrainings_note(done), several_cpus_note(cells, study))
    notes = [note for note in possible if note]
    return {
        **({} if recipe.judged_by == EXACT_MATCH else {"judged_by": recipe.judged_by}),
        "tests": sum(tests.values()),
        **({"families": tests} if any(tests) else {}),
        **content,
        "notes": notes,
        "missing": found.missing,
        "sentences": [*notes, *lines],
    }


def _families(collected: CollectedEffects, limits: Thresholds) -> list[HolmResult]:
    """Adjust the p values of each group of effects (Holm). Declared effects without runs count as tested, too."""
    from petransfer.effects.kind import HolmResult
    from petransfer.effects.statistics import holm

    items = collected.items
    p_values = [item.kind.p_value(item.data, limits) if item.kind.p_value else None for item in items]
    found: dict[int, HolmResult] = {}
    for name in dict.fromkeys(item.family for item in items):
        members = [at for at, item in enumerate(items) if item.family == name]
        waiting = collected.waiting[name]
        tests = sum(p_values[at] is not None for at in members) + waiting
        adjusted = holm([p_values[at] for at in members], waiting)
        found |= {at: HolmResult(p, tests) for at, p in zip(members, adjusted, strict=True)}
    return [found[at] for at in range(len(items))]


def few_pretrainings_note(cells: Sequence[Cell]) -> str:
    """Return a note on the arms with fewer pretrained checkpoints than seeds. '' if there are none.

    An arm with one seed and one checkpoint is also noted.

    Args:
        cells: the runs that count.
    """
    weights: dict[str, set[tuple[str, str]]] = {}
    seeds: dict[str, set[int]] = {}
    for cell in cells:
        checkpoint = cell.spec.checkpoint
        if checkpoint.reinit not in {"all", "body"}:
            # `weights` is a hash for a local folder. For a hub id it is only a revision such as `main`, so that two
            # checkpoints can have the same revision. The id tells them apart.
            name = "" if checkpoint.source else checkpoint.name
            weights.setdefault(cell.arm, set()).add((name, checkpoint.weights))
            seeds.setdefault(cell.arm, set()).add(cell.seed)
    single = [arm for arm, found in weights.items() if len(found) == 1]
    shared = [
        f"{arm} ({len(found)} checkpoints, {len(seeds[arm])} seeds)"
        for arm, found in weights.items()
        if 1 < len(found) < len(seeds[arm])
    ]
    notes = []
    if single:
        arms = "The arm" if len(single) == 1 else "Each of the arms"
        notes.append(
            f"{arms} {', '.join(single)} has only one pretrained checkpoint. The seeds change the fine-tuning, not the "
            "pretraining. A difference between arms can therefore come from the pretraining data or from chance in "
            "that one pretraining."
        )
    if shared:
        notes.append(
            f"Several seeds have the same pretrained checkpoint: {', '.join(shared)}. Such seeds are not independent: "
            "intervals are too narrow, and p values too small."
        )
    return " ".join(notes)


def several_cpus_note(cells: Sequence[Cell], study: StudyFolder) -> str:
    """Return a note if the runs were made on different models of CPU, or on a CPU and a GPU. '' otherwise."""
    results = [study.run(cell.run_id).result() for cell in cells]
    environments = [found.get("environment") or {} for found in results if found]
    made_on = [(str(one.get("device", "cpu")), str(one.get("cpu") or "")) for one in environments]
    runs = Counter(cpu if device.startswith("cpu") else device for device, cpu in made_on)
    if len(runs) < 2:
        return ""
    what = "CPU" if all(device.startswith("cpu") for device, _ in made_on) else "device"
    # Old versions of petransfer did not record the CPU. An unknown CPU counts as one more model.
    kinds = sorted((-count, cpu or "not recorded") for cpu, count in runs.items())
    counts = "; ".join(f"{cpu}: {-count} run{'s' * (count < -1)}" for count, cpu in kinds)
    return (
        f"The runs were made on different {what}s ({counts}). The same run can give other scores on another {what}, so "
        f"a difference between arms may partly come from the {what}."
    )


def _add_paper(effects: list[dict[str, Any]], recipe: Recipe, limits: Thresholds) -> None:
    """Add the entry `paper` to each effect: the effect in Orhan (2021), or None."""
    from petransfer.data.task_registry import categories_in
    from petransfer.effects.kinds.contrast import judge
    from petransfer.effects.pairs import Contrast
    from petransfer.effects.reference import nearest_paper_family, paper_contrast

    # The paper has exact match only. The p values of its contrasts are adjusted together (Holm).
    family = nearest_paper_family(recipe.family_name)
    found: dict[tuple[str, str], Contrast] = {}
    for effect in effects:
        if not effect["arm"] and recipe.judged_by == EXACT_MATCH:
            names = (effect["left_name"], effect["right_name"])
            categories = categories_in(recipe.task.name, effect.get("categories", ""))
            contrast = paper_contrast(family, *names, recipe.task.name, effect["split"], categories)
            if contrast is not None:
                found[effect["name"], effect["split"]] = contrast
    judged = dict(zip(found, judge(list(found.values()), limits), strict=True))
    for effect in effects:
        theirs = None if effect["arm"] else judged.get((effect["name"], effect["split"]))
        effect["paper"] = {"family": family, **_published(theirs)} if theirs else None


def _published(effect: Effect) -> dict[str, Any]:
    keys = ("difference", "interval", "left", "right", "seeds", "p", "p_holm", "smallest_p", "verdict")
    return {key: value for key, value in asdict(effect).items() if key in keys}


def _elsewhere(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder) -> list[list[str]]:
    """Return the ids of the finished runs of each other study that is compared, and a mark if its rows differ."""
    names = {effect.study for effect in requested_effects(recipe) if effect.study}
    if not names:
        return []
    from petransfer.effects.runs import hash_of_rows, runs_of

    own = hash_of_rows(cells)
    others = [runs_of(name, study.path) for name in sorted(names)]
    return [
        [
            *sorted(cell.run_id for cell in other.cells if other.folder.run(cell.run_id).scored),
            *([] if hash_of_rows(other.cells) == own else ["other rows"]),
        ]
        if other
        else []
        for other in others
    ]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if _is_readable(content) else None


def _is_readable(content: Any) -> bool:
    """Return whether the content of effects.json has the lists that are read from it."""
    from petransfer.effects.kind import kinds_in_order

    texts, effects = ("sentences", "notes", "missing"), [kind.key for kind in kinds_in_order()]
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in (*texts, *effects)):
        return False
    return all(isinstance(text, str) for key in texts for text in content[key]) and all(
        isinstance(effect, dict) for key in effects for effect in content[key]
    )
