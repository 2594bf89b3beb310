"""Load a whole model: fully fine-tuned, merged, or a base checkpoint."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from petransfer.data.encoding import Layout
from petransfer.errors import UserError
from petransfer.evaluation.predictor import Predictor
from petransfer.models.checkpoint_files import one_line_errors, read_configuration, tokenizer_file
from petransfer.models.complete_weights import load_complete, refuse_damaged_files
from petransfer.models.hashes import is_on_hub
from petransfer.models.loading import Loaded, load_checkpoint, tokenizer_and_layout
from petransfer.models.registry import checkpoint_spec, is_embedded
from petransfer.models.special_tokens import untrained_layout
from petransfer.models.support import supported_class
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.sharing.base import (
    LoadOptions,
    as_trained_from,
    default_bits,
    default_device,
    refuse_other_token_ids,
)
from petransfer.sharing.bundle import Bundle, is_hub_id
from petransfer.sharing.bundle_files import PROVENANCE, has_sha256
from petransfer.sharing.provenance_checks import spec_in
from petransfer.sharing.safe_reading import read_json
from petransfer.sharing.sources import ModelSource


def whole_predictor(source: ModelSource, load_options: LoadOptions, like: Bundle | None = None) -> Predictor:
    """Load a whole model or a base checkpoint, and return its predictor.

    Args:
        like: an adapter or a model. A base checkpoint gets inputs with the prefix, template and chat format of `like`.
            Default: the records of petransfer in the checkpoint's hub repository; without records, the inputs are
            unchanged. A whole model uses its own prefix, template and chat format.

    Raises:
        UserError: the model or its tokenizer cannot be loaded.
    """
    device = load_options.device or default_device()
    if load_options.revision and not (source.checkpoint and is_hub_id(source.label)):
        raise UserError(f"--revision belongs to a base on the hub, and {source.label} is a whole model; leave it out")
    if source.checkpoint is not None:
        spec = (
            checkpoint_spec(f"{source.label}@{load_options.revision}") if load_options.revision else source.checkpoint
        )
        loaded = load_checkpoint(spec, default_bits(device), device=device)
        like = like or _record_on_hub(spec, source.label)
        form = (like.prefix(), like.template(), like.chat()) if like else ("", "", "")
        is_trained = like is not None and like.spec is not None
        layout = loaded.layout if is_trained else untrained_layout(loaded.layout, loaded.model)
        return Predictor(loaded.model.eval(), replace(loaded, layout=layout), *form)
    assert source.bundle is not None
    assert source.bundle.spec is not None
    assert source.folder is not None
    bundle = source.bundle
    if not load_options.any_base:
        _refuse_changed(source.folder, bundle)
    loaded = _load_whole(source.folder, bundle, load_options, device)
    return Predictor(loaded.model, loaded, bundle.prefix(), bundle.template(), bundle.chat())


def _record_on_hub(checkpoint: CheckpointSpec, label: str) -> Bundle | None:
    """Return the record of a whole model that petransfer trained, if its repository on the hub has one."""
    path = tokenizer_file(checkpoint, PROVENANCE) if is_on_hub(checkpoint) else None
    if path is None:
        return None
    provenance = read_json(path)
    return Bundle(label, {PROVENANCE: path}, {}, {}, provenance, spec_in(provenance), None)


def _weights_folder(folder: Path) -> Path:
    return folder / "model" if (folder / "model").is_dir() else folder


def _refuse_changed(folder: Path, bundle: Bundle) -> None:
    """Refuse a run's model if its configuration or weights were changed after training."""
    saved = (bundle.provenance or {}).get("files") or {}
    for name, expected in saved.items():
        if name != "config.json" and not re.fullmatch(r"[\w.-]+\.safetensors", name):
            continue
        path = _weights_folder(folder) / name
        if not path.is_file() or not has_sha256(path, expected):
            raise UserError(
                f"{path} is not the file that the run saved; restore it, train again, or use it as it is with "
                "--any-base"
            )


def _load_whole(folder: Path, bundle: Bundle, load_options: LoadOptions, device: str) -> Loaded:
    """Load the model that a run or a merge saved."""
    assert bundle.spec is not None
    made, weights = bundle.spec.checkpoint, _weights_folder(folder)
    own = CheckpointSpec(
        weights.name, source=str(weights), source_language=made.source_language, target_language=made.target_language
    )
    with one_line_errors(own):
        refuse_damaged_files(own)
        config = read_configuration(own)
        auto = supported_class(config, bundle.label)
        dtype = "auto" if _is_merged(bundle) else "float32"
        model = load_complete(auto, str(weights), dtype=dtype).to(device).eval()
    if (weights / "tokenizer_config.json").is_file() and (load_options.checkpoint is None or _is_merged(bundle)):
        tokenizer, layout = tokenizer_and_layout(own, config)
        return Loaded(model, tokenizer, layout, None, ())
    # Runs of older versions, and runs of checkpoints that ship with petransfer, have no tokenizer.
    tokenizer, layout = _base_tokenizer(bundle, config, load_options.checkpoint)
    loaded = Loaded(model, tokenizer, layout, None, ())
    recorded = (bundle.provenance or {}).get("base") or {}
    refuse_other_token_ids(recorded, loaded, bundle.spec.checkpoint.name, load_options)
    return loaded


def _is_merged(bundle: Bundle) -> bool:
    return "merged" in (bundle.provenance or {})


def _base_tokenizer(
    bundle: Bundle, config: PreTrainedConfig, checkpoint: str | None
) -> tuple[PreTrainedTokenizerBase, Layout]:
    assert bundle.spec is not None
    made = bundle.spec.checkpoint
    local = bundle.local_spec()
    here = local.checkpoint if local else None
    if checkpoint is None and here and here.source and not Path(here.source).exists():
        raise UserError(
            f"{bundle.label} has no tokenizer, and its base is gone: there is no folder {here.source}; name the base's "
            "new place with --checkpoint"
        )
    if checkpoint is not None:
        found = as_trained_from(checkpoint_spec(checkpoint), here or made)
    elif here is None and re.fullmatch("[0-9a-f]{64}", made.weights) and not is_embedded(made.name):
        raise UserError(f"{bundle.label} has no tokenizer, and its base was a local folder; name it with --checkpoint")
    else:
        found = here or as_trained_from(checkpoint_spec(made.name), made)
    return tokenizer_and_layout(found, config)
