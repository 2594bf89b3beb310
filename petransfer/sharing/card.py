"""The card of an adapter: README.md with the hub's metadata, how to use it, what it was made from, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.data import task_info, task_title
from petransfer.errors import UserError
from petransfer.models.registry import ArmEntry, is_embedded, registry
from petransfer.recipe.run_spec import CheckpointSpec, RunSpec
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.bundle_files import RECIPE, RESULT, WEIGHTS
from petransfer.sharing.licences import NAMES, derived
from petransfer.sharing.safe_reading import read_json, read_text, read_yaml
from petransfer.sharing.usage_code import base_in_words, usage

SPLITS = {"dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Wishes:
    """What only the person who shares knows. licence, language: of the data or of the whole. tags: more of them."""

    licence: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def card(bundle: Bundle, wishes: Wishes = Wishes()) -> str:
    """README.md, whose metadata huggingface_hub wrote.

    Raises:
        UserError: the adapter was not made by petransfer, or a wish is no metadata's.
    """
    spec, result = bundle.spec, bundle.result()
    if spec is None or bundle.provenance is None or result is None:
        raise UserError(f"{bundle.label} has no provenance and results to make a card from; see info")
    study = _study(bundle)
    parts = [
        f"---\n{_metadata(bundle, spec, result, wishes)}\n---\n# {title(spec)}\n",
        _opening(spec, study),
        "## How well it does\n\n" + _results(spec, result, study),
        "## How to use it\n\n" + usage(spec, bundle.provenance),
        "## How it was made\n\n" + _table(_made(bundle, spec, result)),
        "## Verdicts of its study\n\n" + _verdicts(study),
        "## Limits\n\n" + _limits(spec, result, study, _licences(bundle, spec, wishes)),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def title(spec: RunSpec) -> str:
    """What the adapter is called."""
    where = f"{task_title(spec.task.name)} {spec.task.split}"
    return f"{_kind(spec)} on {spec.checkpoint.name}, {where}, seed {spec.seed}"


def _kind(spec: RunSpec) -> str:
    rank = f" of rank {spec.method.rank}" if spec.method.rank else ""
    return f"{ {'lora': 'LoRA'}.get(spec.method.name, spec.method.name) }{rank}"


def entry_of(checkpoint: CheckpointSpec) -> ArmEntry | None:
    """What the registry says of a checkpoint."""
    arms = (arm for family in registry().families.values() for arm in family.arms.values())
    return next((arm for arm in arms if arm.checkpoint == checkpoint.name), None)


def on_hub_by_name(checkpoint: CheckpointSpec) -> bool:
    """Whether a spec's name, of which the place is not known, is a hub id: folders and the embedded have a sha256."""
    return not is_embedded(checkpoint.name) and len(checkpoint.weights) != 64


def _metadata(bundle: Bundle, spec: RunSpec, result: Mapping[str, Any], wishes: Wishes) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    _, _, licence = _licences(bundle, spec, wishes)
    info = task_info(spec.task.name)
    hub = on_hub_by_name(spec.checkpoint)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=spec.task.name,
            dataset_name=f"{task_title(spec.task.name)} {spec.task.split}",
            dataset_config=spec.task.split,
            dataset_split=split,
            dataset_args={"examples": result[part]["examples"], "seed": spec.seed},
            metric_type="exact_match",
            metric_name="Exact match, %",
            metric_value=result[part]["exact_match"],
        )
        for part, split in SPLITS.items()
    ]
    try:
        data = ModelCardData(
            base_model=spec.checkpoint.name if hub else None,
            base_model_relation="adapter" if hub else None,
            library_name="peft",
            license=licence or "other",
            license_name=None if licence else "see-limits",
            datasets=_datasets(bundle, spec) or None,
            language=list(wishes.language) or (list(info.languages) if info and info.languages else None),
            pipeline_tag="text-generation",
            tags=["petransfer", spec.method.name, spec.task.name, *wishes.tags],
            model_name=title(spec),
            eval_results=results,
        )
    except ValueError as error:
        raise UserError(f"the card's metadata are refused ({str(error).splitlines()[0][:160]})") from None
    text: str = data.to_yaml()
    return text


def _datasets(bundle: Bundle, spec: RunSpec) -> list[str]:
    """Ids on the hub."""
    info = task_info(spec.task.name)
    if info and info.published:
        return list(info.hub_datasets)
    train = str(((_recipe(bundle).get("task") or {}).get("options") or {}).get("train", ""))
    name = train.partition("@")[0]
    owner, slash, rest = name.partition("/")
    return [name] if slash and owner not in ("", ".", "..", "~") and "/" not in rest and "." not in rest else []


def _recipe(bundle: Bundle) -> dict[str, Any]:
    return read_yaml(read_text(bundle.files[RECIPE]), RECIPE) if RECIPE in bundle.files else {}


def _licences(bundle: Bundle, spec: RunSpec, wishes: Wishes) -> tuple[str | None, str | None, str | None]:
    """Of the base, of the data, and of the adapter; None where one is not known."""
    entry = entry_of(spec.checkpoint)
    base = NAMES.get(entry.licence, entry.licence) if entry else _licence_on_hub(spec, bundle)
    if spec.checkpoint.reinit == "all":
        base = "cc0-1.0"  # nothing of the checkpoint is in it but its shape
    info = task_info(spec.task.name)
    data = info.licence if info else None
    return base, data, wishes.licence or derived(base, data)


def _licence_on_hub(spec: RunSpec, bundle: Bundle) -> str | None:
    """What the base's own card says, where it is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    if not on_hub_by_name(spec.checkpoint):
        return None
    commit = (bundle.provenance or {}).get("base", {}).get("commit")
    found = try_to_load_from_cache(spec.checkpoint.name, "README.md", revision=commit or spec.checkpoint.weights)
    if not isinstance(found, str):
        return None
    from petransfer.sharing.safe_reading import card_data

    said = card_data(read_text(Path(found))).get("license")
    return said if isinstance(said, str) else None


@dataclass(frozen=True)
class _Study:
    """What stands beside a run. seeds: dev and test EM of the runs that differ in their seed alone."""

    name: str
    seeds: dict[int, tuple[float, float]]
    sentences: tuple[str, ...]


def _study(bundle: Bundle) -> _Study | None:
    recipe = _recipe(bundle)
    if bundle.here is None or bundle.spec is None:
        return _Study(str(recipe["name"]), {}, ()) if recipe.get("name") else None
    study = bundle.here.parent.parent
    seeds = {}
    for path in sorted(study.glob("runs/*/DONE")):
        try:
            spec = RunSpec.from_dict(read_json(path.parent / "spec.json"))
        except (KeyError, TypeError, UserError):
            continue
        if _but_seed(spec) == _but_seed(bundle.spec):
            result = read_json(path.parent / RESULT)
            seeds[spec.seed] = (result["dev"]["exact_match"], result["test"]["exact_match"])
    effects = read_json(study / "effects.json") if (study / "effects.json").is_file() else {}
    name = str(recipe.get("name", study.name))
    return _Study(name, dict(sorted(seeds.items())), tuple(effects.get("sentences", ())))


def _but_seed(spec: RunSpec) -> str:
    content = json.loads(spec.canonical_json())
    del content["seed"]
    return json.dumps(content, sort_keys=True)


def _opening(spec: RunSpec, study: _Study | None) -> str:
    reinit = {
        "none": "",
        "all": " All weights of the base were drawn at random: it is a control, not a model for use.",
        "body": " All weights of the base but its embeddings were drawn at random: it is a control.",
        "embeddings": " The base's embeddings were drawn anew.",
    }[spec.checkpoint.reinit]
    about = f", of the study `{study.name}`" if study else ""
    return f"An adapter by petransfer{about}. Its base is {base_in_words(spec)}.{reinit}\n"


def _results(spec: RunSpec, result: Mapping[str, Any], study: _Study | None) -> str:
    lines = ["| seed | dev EM % | test EM % |", "| --- | ---: | ---: |"]
    own = (result["dev"]["exact_match"], result["test"]["exact_match"])
    seeds = {**(study.seeds if study else {}), spec.seed: own}
    for seed, (dev, test) in sorted(seeds.items()):
        mark = " (this adapter)" if seed == spec.seed and len(seeds) > 1 else ""
        lines.append(f"| {seed}{mark} | {dev:.2f} | {test:.2f} |")
    counts = f"{result['dev']['examples']:,} dev and {result['test']['examples']:,} test examples"
    lines += ["", f"EM (exact match): the greedy answer is the target's string. {counts}. Log-probability per target"]
    lines += [f"token on test: {result['test']['log_prob_per_token']:.3f} nats."]
    categories = result["test"].get("categories", {})
    if 1 < len(categories) <= 30:
        lines += ["", "| category | test EM % | examples |", "| --- | ---: | ---: |"]
        lines += [f"| {name} | {one['exact_match']:.2f} | {one['examples']} |" for name, one in categories.items()]
    return "\n".join(lines)


def _made(bundle: Bundle, spec: RunSpec, result: Mapping[str, Any]) -> dict[str, str]:
    method, train, base = spec.method, spec.train, (bundle.provenance or {}).get("base", {})
    made_on = result.get("environment", {})
    targets = method.targets if isinstance(method.targets, str) else ", ".join(method.targets)
    versions = ", ".join(f"{name} {version}" for name, version in made_on.get("packages", {}).items())
    files = (bundle.provenance or {}).get("files", {})
    return {
        "run": f"`{spec.run_id}`",
        "base": f"`{spec.checkpoint.name}`" + (f" at commit `{base['commit']}`" if base.get("commit") else ""),
        **{f"sha256 of the base's {name}": f"`{one}`" for name, one in (base.get("weights_sha256") or {}).items()},
        "sha256 of the adapter": f"`{files.get(WEIGHTS, '')}`",
        "method": f"{_kind(spec)}, alpha {method.alpha:g}, dropout {method.dropout:g}, on {targets}",
        "embeddings": method.embeddings,
        "bits of the base": str(method.bits),
        "trained parameters": f"{result.get('trained_parameters', 0):,} of {result.get('parameters', 0):,}",
        "steps, examples a step": f"{train.steps:,}, {train.batch_size}",
        "peak rate, schedule, warm-up": f"{train.learning_rate:g}, {train.schedule}, {train.warmup:g}",
        "optimiser, decay, clipping": f"{train.optimizer}, {train.weight_decay:g}, {train.max_grad_norm:g}",
        "prefix of inputs": repr(spec.task.prefix) if spec.task.prefix else "none",
        "training": f"{result.get('train_seconds', 0):,.0f} s on {made_on.get('device', 'an unnamed device')}",
        "made with": versions,
    }


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _verdicts(study: _Study | None) -> str:
    if not study or not study.sentences:
        return "None: it is of no study that judged effects, or the study is not at hand."
    return "\n".join(f"- {sentence}" for sentence in study.sentences[:12])


def _limits(
    spec: RunSpec, result: Mapping[str, Any], study: _Study | None, licences: tuple[str | None, str | None, str | None]
) -> str:
    base, data, whole = licences
    entry = entry_of(spec.checkpoint)
    seeds = len({*(study.seeds if study else ()), spec.seed})
    lines = [
        f"- It was trained on one task ({task_title(spec.task.name)}, {spec.task.split}) and tested on "
        "no other; what it says to other inputs means nothing.",
        f"- {'One seed' if seeds == 1 else f'{seeds} seeds'}: other seeds can differ by tens of points.",
    ]
    if spec.method.bits < 16:
        lines.append(f"- Its base was quantised to {spec.method.bits} bits; on a wider one its answers are not those.")
    if entry and entry.contamination != "none":
        lines.append(f"- What its base had read: {entry.contamination}.")
    if result["test"].get("disagreements"):
        lines.append(f"- {result['test']['disagreements']} audited answers disagree with the figure above.")
    said = f"of the base {base or 'not known'}, of the data {data or 'not known'}"
    made = f"so of the adapter {whole}" if whole else "so that of the adapter must be settled by who shares it"
    return "\n".join([*lines, f"- Licence: {said}; {made}."])
