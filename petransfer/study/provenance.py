"""The content of petransfer.json: how an adapter was made. Contains no local paths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from petransfer.data import Example, SplitData
from petransfer.evaluation.exact_match import Evaluation
from petransfer.evaluation.metric_checks import declared
from petransfer.models.configuration_record import configuration_record
from petransfer.models.hashes import tensors_sha256, token_ids_record, tokenizer_hashes, weight_hashes
from petransfer.models.loading import Loaded
from petransfer.models.quantization import inventory
from petransfer.models.registry import file_sha256
from petransfer.recipe.run_spec import RunSpec, without_local_fields

NAME = "petransfer.json"
PARTS = ("train", "dev", "test")
# Labels that are longer than this in total are not recorded: petransfer.json must stay small.
MOST_LABEL_CHARACTERS = 50_000


def provenance(
    spec: RunSpec, loaded: Loaded, data: SplitData, evaluations: dict[str, Evaluation], model: torch.nn.Module
) -> dict[str, Any]:
    """Return the content of petransfer.json without the hashes of the adapter's files.

    Some entries:
        base: The checkpoint: commit, hashes of weights and tokenizer, configuration, bytes of the weights by dtype.
        data_sha256: A hash of the inputs and targets of each part.
        claims: Exact match in per cent for each evaluated part.
        labels: The labels that the adapter was trained to choose from. Missing for runs without a metric of labels.
    """
    labels = _labels(spec, data)
    return {
        "run_id": spec.run_id,
        "spec": without_local_fields(spec.as_dict()),
        "base": {
            "commit": loaded.commit,
            "weights_sha256": weight_hashes(spec.checkpoint, loaded.commit),
            "tensors_sha256": tensors_sha256(spec.checkpoint, loaded.commit),
            "configuration": configuration_record(spec.checkpoint, loaded),
            **tokenizer_hashes(loaded.tokenizer, with_template=spec.task.options.get("chat") == "template"),
            "token_ids": token_ids_record(loaded.tokenizer),
            "bytes": inventory(model).bytes,
        },
        "encoder_decoder": loaded.layout.encoder_decoder,
        "data_sha256": {part: examples_sha256(getattr(data, part)) for part in PARTS},
        "claims": {
            part: {"exact_match": 100 * evaluation.exact_match, "examples": len(evaluation.scored)}
            for part, evaluation in evaluations.items()
        },
        **({"labels": labels} if labels else {}),
    }


def _labels(spec: RunSpec, data: SplitData) -> list[str]:
    """Return the labels of a run with a metric of labels. Empty for other runs."""
    of_labels = any(metric.of_labels for metric in declared(spec.task.metrics))
    return list(data.labels) if of_labels and sum(map(len, data.labels)) <= MOST_LABEL_CHARACTERS else []


def with_file_hashes(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` with the sha256 of every file in an adapter's folder.

    The base checkpoint's commit is first written to adapter_config.json.
    """
    _pin_revision(folder / "adapter_config.json", content["base"]["commit"])
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return content | {"files": files}


def examples_sha256(examples: Iterable[Example]) -> str:
    """Return the sha256 of the inputs and targets of all examples, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.input, example.target]).encode() + b"\n")
    return digest.hexdigest()


def _pin_revision(config: Path, commit: str | None) -> None:
    """Write the base checkpoint's commit to adapter_config.json, because peft omits the commit."""
    if commit is None or not config.is_file():
        return
    content = json.loads(config.read_text(encoding="utf-8"))
    content["revision"] = commit
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
