"""Check that an adapter's configuration and tensors agree, before a base is loaded. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from petransfer.errors import UserError, shortened
from petransfer.recipe.layer_patterns import LONGEST_OF_OTHERS, check_pattern, check_syntax
from petransfer.recipe.methods import METHODS
from petransfer.sharing.safe_reading import Tensors

# Keys of adapter_config.json that are refused, because they would import code, fetch a tokenizer, compute with the
# base's weights, or rebuild the base.
FORBIDDEN = (
    "target_parameters",
    "megatron_config",
    "layer_replication",
    "tokenizer_kwargs",
    "loftq_config",
    "corda_config",
    "kasa_config",
)
# Keys of adapters that change only some of the tokens, or that combine several adapters. They cannot be merged.
FORBIDDEN_UNMERGED = ("alora_invocation_tokens", "arrow_config")
# The allowed types of the keys that are read. A key may also be missing or None.
TYPES: dict[str, type | tuple[type, ...]] = {
    "auto_mapping": dict,
    "base_model_name_or_path": str,
    "bias": str,
    "exclude_modules": (str, list),
    "init_lora_weights": (bool, str),
    "layers_pattern": (str, list),
    "layers_to_transform": (int, list),
    "lora_bias": bool,
    "modules_to_save": list,
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "revision": str,
    "target_modules": (str, list),
    "task_type": str,
    "trainable_token_indices": (list, dict),
    "use_dora": bool,
    "use_rslora": bool,
}
DTYPES = ("F32", "F16", "BF16")
# The allowed values of init_lora_weights: initialisations that do not read the base's weights
# when the adapter is loaded. EVA reads them before training only.
STARTS = (True, False, "gaussian", "orthogonal", "eva")
MOST_RANK, MOST_TENSORS = 65_536, 200_000
_NAME = re.compile(r"[\w.-]{1,512}")
# Keys that determine the adapter's size. Their values are limited, because peft allocates the memory before it reads a
# tensor.
SIZES = (
    "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "encoder_hidden_size",
    "num_transformer_submodules",
)  # fmt: skip
# The allowed values of task_type.
TASKS = ("SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION")

# Names of embeddings and output heads in the supported architectures.
EMBEDDINGS = ("shared", "embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "tok_embeddings")

# Methods of peft, apart from the supported ones, that change no weight of the base.
_NEVER_MERGED = ("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "P_TUNING", "XLORA")
_MERGED_BY_PEFT = (
    "merge it with plain peft (merge_and_unload), save the model and its tokenizer with save_pretrained, and name that "
    "folder"
)
_PREFIX = "base_model.model."
# The value of target_modules that peft writes if no layer is adapted.
_NO_LAYER = "dummy-target-modules"


def check(config: Mapping[str, Any], tensors: Tensors, method: str | None) -> None:
    """Raise UserError if an adapter's configuration is unsafe or wrong, or does not describe the tensors.

    Args:
        method: name of the method with which petransfer trained the adapter. None for an adapter of another program,
            which may have patterns that `slow_patterns` checks when the base is known, and may name layers that the
            base does not have.
    """
    is_own = method is not None
    _check_kind(config.get("peft_type"), method)
    _check_config(config)
    _check_patterns(config, is_own)
    _check_tensors(tensors)
    if config["peft_type"] == "LORA":
        _check_lora(config, tensors, is_own)


def _check_kind(kind: Any, method: str | None) -> None:
    """Refuse a kind of adapter that neither petransfer nor the package of the run's method declares."""
    known = sorted({declared.peft_type for declared in METHODS.of_package() if declared.peft_type})
    if kind in known or (method is not None and method in METHODS and kind == METHODS[method].peft_type):
        return
    if method is not None and method not in METHODS:
        advice = f"install the package with the method {shortened(method, 40)!r}"
    else:
        advice = "use it with plain peft" if str(kind) in _NEVER_MERGED else _MERGED_BY_PEFT
    raise _refused(f"peft_type {str(kind)[:40]!r} is not supported (supported: {', '.join(known)}); {advice}")


def _check_config(config: Mapping[str, Any]) -> None:
    _refuse_keys(config)
    for key, kinds in TYPES.items():
        if config.get(key) is not None and not isinstance(config[key], kinds):
            raise _refused(f"{key} is {config[key]!r:.40}")
    if config.get("task_type") not in (None, *TASKS):
        raise _refused(
            f"task_type is {config['task_type']!r:.40}; supported are {', '.join(TASKS)}; use it with plain peft"
        )
    for key in SIZES:
        if config.get(key) is not None and not (type(config[key]) is int and 0 < config[key] <= MOST_RANK):
            raise _refused(f"{key} is {config[key]!r:.40}; it must be a whole number from 1 to {MOST_RANK:,}")
    library = (config.get("auto_mapping") or {"parent_library": "transformers"}).get("parent_library")
    if str(library).split(".")[0] != "transformers":
        raise _refused(f"auto_mapping would import {str(library)[:60]!r}")
    if not _names(config.get("modules_to_save") or []):
        raise _refused("modules_to_save is not a list of names")
    for key, value in config.items():
        if isinstance(value, float | int) and abs(value) >= 1e12:
            raise _refused(f"{key} is {value!r:.40}")
    if any(str(key).startswith("trust_remote") for key in config):
        raise _refused("it has a trust_remote_code setting")
    _check_rows(config)


def _refuse_keys(config: Mapping[str, Any]) -> None:
    asked = [key for key in FORBIDDEN if config.get(key)]
    if asked:
        raise _refused(f"{asked[0]} is set, and petransfer does not allow this key; if you trust it, {_MERGED_BY_PEFT}")
    unmerged = [key for key in FORBIDDEN_UNMERGED if config.get(key)]
    if unmerged:
        raise _refused(f"{unmerged[0]} is set, which petransfer does not support; use it with plain peft")


def _check_rows(config: Mapping[str, Any]) -> None:
    rows = config.get("trainable_token_indices") or []
    lists = list(rows.values()) if isinstance(rows, dict) else [rows]
    if not all(isinstance(one, list) and all(type(row) is int and row >= 0 for row in one) for one in lists):
        raise _refused("trainable_token_indices is not a list of rows")
    if any(len(set(one)) != len(one) for one in lists):
        raise _refused("trainable_token_indices names a row twice")


def _check_tensors(tensors: Tensors) -> None:
    if not tensors:
        raise UserError("adapter_model.safetensors holds no tensor; get the adapter again")
    if len(tensors) > MOST_TENSORS:
        raise _refused(f"{len(tensors):,} tensors are more than an adapter has")
    for name, (dtype, shape) in tensors.items():
        if dtype not in DTYPES:
            raise _refused(f"the tensor {_short(name)} is of {dtype}; adapters are of {', '.join(DTYPES)}")
        if not shape or 0 in shape:
            raise _refused(
                f"the tensor {_short(name)} is empty, as DeepSpeed and FSDP save it before all parts are gathered; "
                "gather the parts and save the adapter again"
            )


def _check_lora(config: Mapping[str, Any], tensors: Tensors, is_own: bool) -> None:
    _check_lora_config(config)
    targets = config["target_modules"]
    matched: set[str] = set()
    for name, (_, shape) in tensors.items():
        if not name.startswith(_PREFIX):
            raise _refused(f"the tensor {_short(name)} lies outside the base ({_PREFIX}...)")
        module = name.removesuffix(".weight").removesuffix(".base_layer")
        if name.endswith(".weight") and module.rsplit(".", 1)[-1] in EMBEDDINGS and len(shape) == 2:
            continue  # peft saves resized embeddings; `check_sizes` compares them with the base's
        module, check_shape = _part(name, config)
        if check_shape is None:
            raise _refused(f"the tensor {_short(name)} is no part of the adapter that adapter_config.json describes")
        wrong = check_shape(shape)
        if wrong:
            raise _refused(f"the tensor {_short(name)} has the shape {list(shape)}; {wrong}")
        if ".lora_" in name:
            names = _targets_of(module, targets)
            if not names:
                raise _refused(f"target_modules does not name {_short(module)}, for which there is a tensor")
            matched |= names
    _check_pairs(tensors, bool(config.get("use_dora")))
    idle = [] if isinstance(targets, str) else sorted(set(targets) - matched - {_NO_LAYER})
    # other programs often list the layer names of several architectures, and `exclude_modules` removes layers from the
    # list
    if idle and (is_own or not matched):
        raise _refused(f"target_modules names {_short(idle[0])}, for which there is no tensor")


def _check_lora_config(config: Mapping[str, Any]) -> None:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= MOST_RANK:
        raise _refused(f"r is {rank!r:.40}; a rank is a whole number from 1 to {MOST_RANK:,}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise _refused(f"lora_alpha is {alpha!r:.40}")
    targets = config.get("target_modules")
    if not targets or not (isinstance(targets, str) or _names(targets)):
        raise _refused("target_modules is neither a list of layers' names nor a pattern")
    patterns = [config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}]
    for value in patterns[0].values():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST_RANK:
            raise _refused(f"rank_pattern holds {value!r:.40}")
    if not all(isinstance(value, int | float) for value in patterns[1].values()):
        raise _refused("alpha_pattern contains a value that is not a number")
    if config.get("init_lora_weights", True) not in STARTS:
        raise _refused(
            f"init_lora_weights is {config['init_lora_weights']!r:.40}, which computes with the base's weights when "
            f"it is loaded; {_MERGED_BY_PEFT}"
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise _refused(f"bias is {config['bias']!r:.40}")


def _check_patterns(config: Mapping[str, Any], is_own: bool) -> None:
    """Refuse wrong patterns for layer names, and in petransfer's own adapters those that could take hours."""
    # peft matches these patterns with layer names, for every method.
    texts = [config.get(key) for key in ("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules")]
    patterns = [one for one in texts if isinstance(one, str) and one]
    listed = config.get("layers_pattern")
    patterns += listed if isinstance(listed, list) else []
    for key in ("rank_pattern", "alpha_pattern"):
        patterns += list(config.get(key) or {})
    for text in patterns:
        _check_pattern(text, is_own)
    for name in config.get("modules_to_save") or []:  # peft makes a pattern of each name
        if not _NAME.fullmatch(name):
            raise _refused(f"modules_to_save holds {_short(name)}, which is not the name of a layer")


def _check_pattern(text: Any, is_own: bool) -> None:
    if not isinstance(text, str):
        raise _refused(f"a pattern is {text!r:.40}, not text")
    try:
        if is_own:
            check_pattern(text)
        else:
            check_syntax(text, LONGEST_OF_OTHERS)
    except ValueError as error:
        raise _refused(str(error)) from None


_ShapeCheck = Callable[[tuple[int, ...]], str | None]
"""Function that returns an error text for a wrong shape, else None."""


def _part(name: str, config: Mapping[str, Any]) -> tuple[str, _ShapeCheck | None]:
    """Return the name of a tensor's module, and a function that checks the tensor's shape.

    The function is None for a tensor that the configuration does not describe.
    """
    inner = name.removeprefix(_PREFIX)
    for end, check in _shape_checks(config).items():
        if inner.endswith(f".{end}"):
            return inner.removesuffix(f".{end}"), check
    if config.get("bias", "none") != "none" and inner.endswith("bias"):
        return inner, lambda shape: None
    parts = inner.split(".")
    modules = [".".join(parts[:length]) for length in range(1, len(parts))]
    # peft takes the names in `modules_to_save` as ends: `norm` is also the end of `input_layernorm`
    is_copy = any(module.endswith(end) for module in modules for end in config.get("modules_to_save") or [])
    return inner, (lambda shape: None) if is_copy else None


def _shape_checks(config: Mapping[str, Any]) -> dict[str, _ShapeCheck]:
    """Return a check of the shape for each end of a tensor's name that an adapter's configuration allows."""
    ranks = {config["r"], *(config.get("rank_pattern") or {}).values()}

    def ranked(axis: int) -> _ShapeCheck:
        def wrong(shape: tuple[int, ...]) -> str | None:
            return None if len(shape) >= 2 and shape[axis] in ranks else f"the rank is {config['r']}"

        return wrong

    def flat(shape: tuple[int, ...]) -> str | None:
        return None if len(shape) == 1 else "it has one axis"

    def rows(shape: tuple[int, ...]) -> str | None:
        indices = config.get("trainable_token_indices") or []
        counts = {len(listed) for listed in (indices.values() if isinstance(indices, dict) else [indices])}
        fits = len(shape) == 2 and shape[0] in counts
        return None if fits else f"the number of trained rows must be one of {sorted(counts)}"

    checks: dict[str, _ShapeCheck] = {
        "lora_A.weight": ranked(0),
        "lora_B.weight": ranked(1),
        "lora_embedding_A": ranked(0),
        "lora_embedding_B": ranked(1),
    }
    if config.get("use_dora"):
        checks["lora_magnitude_vector"] = flat
        checks["lora_magnitude_vector.weight"] = flat
    if config.get("lora_bias"):
        checks["lora_B.bias"] = flat
    if config.get("trainable_token_indices"):
        checks["token_adapter.trainable_tokens_delta"] = rows
        checks["trainable_tokens_delta"] = rows
    return checks


def _targets_of(module: str, targets: Any) -> set[str]:
    """Return the entries of target_modules that match a module's name."""
    # A pattern is not matched here: peft will match it.
    if isinstance(targets, str):
        return {targets}
    return {one for one in targets if module == one or module.endswith(f".{one}")}


def _check_pairs(tensors: Tensors, dora: bool) -> None:
    for name in tensors:
        layer = name.removesuffix("lora_A.weight")
        if (
            dora
            and layer != name
            and not {f"{layer}lora_magnitude_vector{end}" for end in ("", ".weight")} & set(tensors)
        ):
            raise _refused(f"use_dora is set, and the tensor {_short(name)} has no lora_magnitude_vector beside it")
        for one, other in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
            for end, partner in ((one, other), (other, one)):
                if name.endswith(f".{end}") and name.removesuffix(end) + partner not in tensors:
                    raise _refused(f"the tensor {_short(name)} has no {partner} beside it")


def _names(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value for value in values)


def _refused(why: str) -> UserError:
    return UserError(f"the adapter is refused: {why}")


def _short(name: str) -> str:
    return repr(shortened(name, 100))
