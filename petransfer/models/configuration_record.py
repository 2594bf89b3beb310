"""Record the fields of a checkpoint's configuration that change the logits, to notice later changes.

This file lists the fields that do not matter, and compares all other fields. Thus unknown fields of new architectures
are compared too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from petransfer.data.layout import OTHER_ENDS
from petransfer.errors import shortened
from petransfer.models.checkpoint_files import generation_config, location, read_configuration, revision
from petransfer.models.loading import Loaded
from petransfer.models.special_tokens import special_ends
from petransfer.models.text_part import is_text
from petransfer.plurals import count
from petransfer.recipe.run_spec import CheckpointSpec

# Names, dtypes and labels; switches of transformers; sizes that are compared with the weights when these are loaded.
_UNUSED = frozenset(
    {
        "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype", "name_or_path", "license",
        "task_specific_params", "finetuning_task", "problem_type", "num_labels", "id2label", "label2id",
        "tokenizer_class", "prefix", "use_cache", "use_bfloat16", "return_dict", "torchscript", "output_attentions",
        "output_hidden_states", "attn_implementation", "experts_implementation", "gradient_checkpointing",
        "chunk_size_feed_forward", "quantization_config", "vocab_size", "n_positions",
    }
    # petransfer decodes greedily, whatever the checkpoint suggests
    | vars(GenerationConfig()).keys()
)  # fmt: skip
# Names of further fields that are not compared here: private fields, dropout, which does not change the logits in
# evaluation, and special tokens, which the entry `tokens` of a record contains. Fields of the initialisation are
# compared only if weights are random.
_UNUSED_PATTERN = re.compile(r"^_|drop|_token_ids?$")
_INITIALISATION = re.compile(r"(^|_)init(ializer)?(_|$)")

# A field that transformers 5 renames in T5's configuration, and its name in messages, which contains both names.
_KNOWN_AS = {"scale_decoder_outputs": "tie_word_embeddings (scale_decoder_outputs)"}
_SHOWN_FIELDS, _SHOWN_CHARACTERS = 3, 60


def configuration_record(checkpoint: CheckpointSpec, loaded: Loaded) -> dict[str, Any]:
    """Return the part of a checkpoint's configuration that its computation uses, as JSON values.

    Returns:
        `fields`: the fields by name, with the defaults of this version of transformers. `tokens`: the special tokens.
        `sha256`: hash of the fields in config.json, which does not depend on the version of transformers.
    """
    at = replace(checkpoint, weights=loaded.commit or checkpoint.weights)
    config, random = read_configuration(at), checkpoint.reinit != "none"
    content, _ = PreTrainedConfig.get_config_dict(location(at), revision=revision(at))
    tokens: dict[str, Any] = {}
    if loaded.tokenizer.eos_token_id is None:  # otherwise the end token is the tokenizer's own
        tokens["eos_token_id"] = _plain(getattr(config, "eos_token_id", None))
    ends = special_ends(config, loaded.tokenizer, generation_config(at))
    tokens[OTHER_ENDS] = sorted({*ends} - {loaded.tokenizer.eos_token_id})
    if loaded.layout.encoder_decoder:
        tokens["decoder_start_token_id"] = loaded.layout.decoder_start_id
        tokens["pad_token_id"] = getattr(config, "pad_token_id", None)  # M2M100 computes position ids from this id
    stored = json.dumps(_used(content, random), sort_keys=True)
    return {
        "fields": _used(config.to_dict(), random),
        "tokens": tokens,
        "sha256": hashlib.sha256(stored.encode()).hexdigest(),
    }


def differing_fields(first: Mapping[str, Any], second: Mapping[str, Any], words: str) -> str | None:
    """Return the fields that differ between two records as text. None if no field differs.

    `words` is the template of a difference, with the places `{name}`, `{first}` and `{second}`.
    """
    found = [*_differences(first["tokens"], second["tokens"])]
    if first["sha256"] != second["sha256"]:
        found += _differences(first["fields"], second["fields"])
    if not found:
        return None
    shown = [
        words.format(name=_KNOWN_AS.get(name, name), first=_shown(one), second=_shown(other))
        for name, one, other in found[:_SHOWN_FIELDS]
    ]
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {count(more, 'other field')}" if more else "")


def _differences(first: Any, second: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(first, dict) and isinstance(second, dict):
        for name in second:
            # versions of transformers add and rename fields, so only fields of both records are compared
            if name in first:
                yield from _differences(first[name], second[name], f"{place}.{name}" if place else name)
    elif first != second:
        yield place, first, second


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), _SHOWN_CHARACTERS)


def _used(content: Mapping[str, Any], random: bool) -> dict[str, Any]:
    """Return the fields that the computation uses. `random`: also fields for random weights."""
    return {
        str(name): _used(value, random) if isinstance(value, Mapping) else _plain(value)
        for name, value in content.items()
        if _is_used(str(name), random)
    }


def _is_used(name: str, random: bool) -> bool:
    if name in _UNUSED or _UNUSED_PATTERN.search(name) or not is_text(name):
        return False
    return random or _INITIALISATION.search(name) is None


def _plain(value: Any) -> Any:
    """Return a value that JSON can contain. Infinity and objects become text."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
