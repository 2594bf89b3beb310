"""The card of an adapter: README.md with the hub's metadata, usage, origin and limits.

`card_template.md` has the text. Text from files is escaped before it is inserted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from petransfer.data import task_title
from petransfer.errors import UserError
from petransfer.models.registry import registered_arm
from petransfer.recipe.run_spec import RunSpec
from petransfer.report.tables import markdown_text, without_emphasis
from petransfer.sharing.bundle import Bundle, without_records
from petransfer.sharing.bundle_files import RESULT, WEIGHTS
from petransfer.sharing.card_metadata import CardOptions, Licences, metadata, recipe_of, trained_on_all
from petransfer.sharing.provenance_checks import check_result, spec_of_run
from petransfer.sharing.safe_reading import read_json
from petransfer.sharing.usage_code import base_in_words, usage

# A card lists the categories if there are at most CATEGORIES, and the first SENTENCES sentences about effects.
CATEGORIES, SENTENCES = 30, 12
# The line of every card that names the sha256 of the adapter's weights.
OF_ADAPTER = "sha256 of the adapter"

_REINIT = {
    "none": "",
    "all": " All weights of the base are random: the adapter is a control for experiments, not for use.",
    "body": " All weights of the base but its embeddings are random: the adapter is a control for experiments.",
    "embeddings": " The base's embeddings are random.",
}


def card(bundle: Bundle, card_options: CardOptions = CardOptions()) -> str:
    """Return the text of an adapter's card, README.md.

    Raises:
        UserError: petransfer did not make the adapter, or the hub would refuse a value in `card_options`.
    """
    from huggingface_hub import ModelCard

    spec, result = bundle.spec, bundle.result()
    if spec is None or bundle.provenance is None or result is None:
        raise without_records(bundle.label, "make a card from")
    study = _study(bundle)
    data, licences = metadata(bundle, spec, result, title(spec), card_options)
    categories = result["test"].get("categories", {})
    template = (resources.files("petransfer.sharing") / "card_template.md").read_text(encoding="utf-8")
    made = ModelCard.from_template(
        data,
        template_str=template,
        title=markdown_text(title(spec)),
        study=study and markdown_text(study.name).replace("`", "'"),
        base=base_in_words(spec),
        reinit=_REINIT[spec.checkpoint.reinit],
        seeds=_seeds(spec, result, study),
        result=result,
        categories=[(without_emphasis(name), one) for name, one in categories.items()]
        if 1 < len(categories) <= CATEGORIES
        else [],
        usage=usage(spec, bundle.provenance),
        made=[(markdown_text(name), markdown_text(value)) for name, value in _origin(bundle, spec, result).items()],
        sentences=[markdown_text(one) for one in study.sentences[:SENTENCES]] if study else [],
        limits=[markdown_text(line) for line in [*_warnings(bundle), *_limits(spec, result, study, licences)]],
    )
    return str(made).rstrip("\n") + "\n"


def title(spec: RunSpec) -> str:
    """Return the title of an adapter's card: method, base, task, split and seed."""
    where = f"{task_title(spec.task.name)} {spec.task.split}"
    return f"{_kind(spec)} on {spec.checkpoint.name}, {where}, seed {spec.seed}"


def _kind(spec: RunSpec) -> str:
    rank = f" of rank {spec.method.rank}" if spec.method.rank else ""
    return f"{ {'lora': 'LoRA'}.get(spec.method.name, spec.method.name) }{rank}"


@dataclass(frozen=True)
class _Study:
    """The study that an adapter's run belongs to.

    seeds: exact match on dev and on test, in %, by seed.
    sentences: statements about the study's effects.
    """

    name: str
    seeds: dict[int, tuple[float, float]]
    sentences: tuple[str, ...]


def _study(bundle: Bundle) -> _Study | None:
    recipe = recipe_of(bundle)
    if bundle.here is None or bundle.spec is None:
        return _Study(str(recipe["name"]), {}, ()) if recipe.get("name") else None
    study = bundle.here.parent.parent
    seeds = {}
    for path in sorted(study.glob("runs/*/DONE")):
        try:
            spec = spec_of_run(path.parent)
            if _without_seed(spec) == _without_seed(bundle.spec):
                result = read_json(path.parent / RESULT)
                check_result(result)
                seeds[spec.seed] = float(result["dev"]["exact_match"]), float(result["test"]["exact_match"])
        except UserError:  # skip damaged runs
            continue
    name = str(recipe.get("name", study.name))
    return _Study(name, dict(sorted(seeds.items())), _sentences(study / "effects.json"))


def _sentences(path: Path) -> tuple[str, ...]:
    """Return the sentences in effects.json. Empty without this file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return ()
    found = read_json(path).get("sentences", [])
    if not isinstance(found, list):
        raise UserError(f"{path} is damaged (sentences is no list); delete it, and `petransfer report` writes it again")
    return tuple(map(str, found))


def _without_seed(spec: RunSpec) -> str:
    """Return the settings of a run without the seed, for comparison with other runs."""
    content = json.loads(spec.canonical_json())
    del content["seed"]
    return json.dumps(content, sort_keys=True)


def _seeds(spec: RunSpec, result: Mapping[str, Any], study: _Study | None) -> list[dict[str, Any]]:
    own = (result["dev"]["exact_match"], result["test"]["exact_match"])
    found = {**(study.seeds if study else {}), spec.seed: own}
    return [
        {"seed": seed, "own": seed == spec.seed, "dev": dev, "test": test}
        for seed, (dev, test) in sorted(found.items())
    ]


def _origin(bundle: Bundle, spec: RunSpec, result: Mapping[str, Any]) -> dict[str, str]:
    method, train, base = spec.method, spec.train, (bundle.provenance or {}).get("base", {})
    made_on = result.get("environment", {})
    targets = method.targets if isinstance(method.targets, str) else ", ".join(method.targets)
    versions = ", ".join(f"{name} {version}" for name, version in made_on.get("packages", {}).items())
    files = (bundle.provenance or {}).get("files", {})
    return {
        "run": f"`{spec.run_id}`",
        "base": f"`{spec.checkpoint.name}`" + (f" at commit `{base['commit']}`" if base.get("commit") else ""),
        **{f"sha256 of the base's {name}": f"`{one}`" for name, one in (base.get("weights_sha256") or {}).items()},
        OF_ADAPTER: f"`{files.get(WEIGHTS, '')}`",
        "method": f"{_kind(spec)}, alpha {method.alpha:g}, dropout {method.dropout:g}, on {targets}",
        "embeddings": method.embeddings,
        "bits of the base": str(method.bits),
        "trained parameters": f"{result.get('trained_parameters', 0):,} of {result.get('parameters', 0):,}",
        "steps, examples per step": f"{train.steps:,}, {train.batch_size}",
        "peak learning rate, schedule, warm-up": f"{train.learning_rate:g}, {train.schedule}, {train.warmup:g}",
        "optimizer, weight decay, clipping": f"{train.optimizer}, {train.weight_decay:g}, {train.max_grad_norm:g}",
        "prefix of inputs": repr(spec.task.prefix) if spec.task.prefix else "none",
        "training": f"{result.get('train_seconds', 0):,.0f} s on {made_on.get('device', 'an unnamed device')}",
        "made with": versions,
    }


def _warnings(bundle: Bundle) -> list[str]:
    """Return a warning if the adapter was scored on its training rows."""
    unseen = "Its scores are on rows that it was trained on; they do not show how good it is on new rows."
    return [unseen] if trained_on_all(bundle) else []


def _limits(spec: RunSpec, result: Mapping[str, Any], study: _Study | None, licences: Licences) -> list[str]:
    entry = registered_arm(spec.checkpoint.name)
    seeds = len({*(study.seeds if study else ()), spec.seed})
    lines = [
        f"It was trained and tested on one task only ({task_title(spec.task.name)}, {spec.task.split}); its output "
        "for other inputs has not been tested.",
        f"{'One seed' if seeds == 1 else f'{seeds} seeds'}: other seeds can differ by tens of points.",
    ]
    if spec.method.bits < 16:
        lines.append(
            f"Its base model was quantised to {spec.method.bits} bits; with an unquantised base model, its output can "
            "differ."
        )
    if entry and entry.contamination != "none":
        lines.append(f"Pretraining data of the base model: {entry.contamination}.")
    if result["test"].get("disagreements"):
        lines.append(f"{result['test']['disagreements']} audited texts contradict the figure above.")
    known = f"of the base: {licences.base or 'not known'}; of the data: {licences.data or 'not known'}"
    whole = licences.adapter
    made = f"of the adapter: {whole or 'not stated; choose one with --licence before you share it'}"
    return [*lines, f"Licences: {known}; {made}."]
