"""Refuse an adapter whose configuration requests too much memory.

peft allocates the memory that adapter_config.json requests before it reads any tensor. A file of a few kilobytes could
request terabytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from petransfer.errors import UserError
from petransfer.sharing.bundle import Bundle

_log = logging.getLogger(__name__)

# An adapter may always have this many parameters (256 MB in fp32), even if its base is small.
ALLOWANCE = 2**26
# A LoRA that lacks at most this many parameters is not refused here. A later check reports which tensors are missing.
SLACK = 2**22


def check_sizes(bundle: Bundle, base: torch.nn.Module) -> frozenset[str]:
    """Refuse an adapter that requests too much memory for its tensors and its base.

    Returns:
        The names of the adapter's tensors that replace the base's embeddings or output head. peft saves these tensors
        after a change of the vocabulary's size.

    Raises:
        UserError: the adapter requests too much memory, or its tensors do not fit the base.
    """
    config = bundle.config
    rows = base.get_input_embeddings().num_embeddings  # type: ignore[operator]
    _check_token_rows(bundle, rows)
    own_embeddings = _own_embeddings(bundle, base)
    kind = config.get("peft_type")
    if kind in ("PROMPT_TUNING", "PREFIX_TUNING"):
        _check_virtual_tokens(bundle)
    elif kind == "VERA":
        _check_vera(bundle, base)
    elif kind == "LORA":
        _check_lora(bundle, base)
    stored = sum(prod(shape) for name, (_, shape) in bundle.tensors.items())
    most = 2 * _parameters(base) + ALLOWANCE
    if stored > most:
        raise _refused(bundle, f"its {stored:,} parameters are more than {most:,}, the limit for this base")
    return own_embeddings


def _check_token_rows(bundle: Bundle, count: int) -> None:
    """Refuse an adapter that trains embedding rows beyond the base's `count` rows."""
    asked = bundle.config.get("trainable_token_indices") or []
    rows = [row for one in (asked.values() if isinstance(asked, dict) else [asked]) for row in one]
    if rows and max(rows) >= count:
        raise UserError(f"{bundle.label} does not fit its base: it trains row {max(rows):,} of {count:,} embeddings")


def resize_vocabulary(bundle: Bundle, base: Any) -> None:
    """Resize the base's embeddings to the size in an adapter that replaces all rows of the embeddings or the head.

    Programs save such an adapter after they added tokens to the tokenizer. If they saved only one of the two tables,
    the new rows of the other table get the mean of its rows. For an adapter that petransfer trained, the base is not
    changed.
    """
    if bundle.spec is not None:
        return
    places = _embedding_places(base)
    rows = {bundle.tensors[name][1] for name in places if name in bundle.tensors}
    now = base.get_input_embeddings().num_embeddings
    if len(rows) != 1 or (shape := next(iter(rows))) == (now, shape[-1]) or len(shape) != 2:
        return
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    if any(end is None or end.weight.shape[1] != shape[1] for end in ends):
        return
    tied = ends[0].weight is ends[1].weight and not bundle.config.get("modules_to_save")
    replaced = {id(weight) for name, weight in places.items() if name in bundle.tensors}
    missing = [] if tied else [at for at, end in enumerate(ends) if id(end.weight) not in replaced]
    base.resize_token_embeddings(shape[0], mean_resizing=False)
    sizes = (f"{now:,}", f"{shape[0]:,}")
    _log.info("the base of %s is resized in memory from %s to %s embeddings, as in training", bundle.label, *sizes)
    for at in missing if shape[0] > now else ():
        weight = (base.get_input_embeddings(), base.get_output_embeddings())[at].weight.data
        weight[now:] = weight[:now].mean(dim=0)
        what = ("embeddings", "output head")[at]
        _log.warning("%s lacks the rows of the %s for its added tokens; they get the mean row", bundle.label, what)


def brings_embeddings(bundle: Bundle, base: Any) -> bool:
    """Return whether an adapter has tensors that replace the base's embeddings or output head."""
    return not _embedding_places(base).keys().isdisjoint(bundle.tensors)


def _embedding_places(base: Any) -> dict[str, torch.nn.Parameter]:
    """Return the base's embeddings and output head by the names that peft gives their tensors in an adapter."""
    ends = {id(end.weight) for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None}
    names = {name: value for name, value in base.named_parameters(remove_duplicate=False) if id(value) in ends}
    # if a LoRA adapts the embeddings or the head, peft wraps them and saves their own weights under this other name
    wrapped = {f"{name.removesuffix('weight')}base_layer.weight": value for name, value in names.items()}
    return {f"base_model.model.{name}": value for name, value in (names | wrapped).items()}


def _own_embeddings(bundle: Bundle, base: Any) -> frozenset[str]:
    """Return the names of the adapter's tensors that replace the base's embeddings or output head."""
    places = {name: tuple(value.shape) for name, value in _embedding_places(base).items()}
    found = frozenset(places) & bundle.tensors.keys()
    for name in sorted(found):
        shape = bundle.tensors[name][1]
        if shape != places[name]:
            raise UserError(
                f"{bundle.label} does not fit its base: its embeddings are {list(shape)} and those of the base "
                f"{list(places[name])}; resize the base as it was for training, save it, and name it with --checkpoint"
            )
    return found


def _check_virtual_tokens(bundle: Bundle) -> None:
    config = bundle.config
    tokens, width = config.get("num_virtual_tokens"), config.get("token_dim")
    if not isinstance(tokens, int) or not isinstance(width, int):
        raise _refused(bundle, "num_virtual_tokens and token_dim are not set")
    if config["peft_type"] == "PREFIX_TUNING":
        expected = tokens * width * 2 * int(config.get("num_layers") or 1)
    else:
        sides = config.get("num_transformer_submodules") or (2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1)
        expected = tokens * width * int(sides)
    stored = sum(prod(shape) for _, shape in bundle.tensors.values())
    if expected != stored:
        raise _refused(bundle, f"adapter_config.json describes {expected:,} parameters, and its file holds {stored:,}")


def _check_vera(bundle: Bundle, base: Any) -> None:
    rank = bundle.config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise _refused(bundle, f"r is {rank!r:.40}; a rank is a whole number from 1")
    sizes = [shape for _, shape in _targets(bundle, base)]
    wanted = rank * (max((out for out, _ in sizes), default=0) + max((width for _, width in sizes), default=0))
    most = _parameters(base) + ALLOWANCE
    if wanted > most:
        raise _refused(bundle, f"a rank of {rank:,} needs projections of {wanted:,} numbers; the limit is {most:,}")


def _check_lora(bundle: Bundle, base: Any) -> None:
    """Refuse a LoRA with far more parameters on this base than in its file."""
    ranks: dict[str, int] = bundle.config.get("rank_pattern") or {}
    wanted = 0
    for name, shape in _targets(bundle, base):
        rank = ranks.get(get_pattern_key(ranks.keys(), name), bundle.config["r"])
        wanted += rank * sum(shape)
    stored = sum(prod(shape) for _, shape in bundle.tensors.values())
    if wanted > 4 * stored + SLACK:
        why = f"on this base it would have {wanted:,} parameters, and its file holds {stored:,}"
        raise UserError(f"{bundle.label} does not fit its base: {why}: tensors are missing")


def _targets(bundle: Bundle, base: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name, output features and input features of each adapted layer."""
    config, targets = _Attributes(bundle.config), bundle.config.get("target_modules")
    every = targets is None or (isinstance(targets, str) and targets.lower() == "all-linear")
    for name, module in base.named_modules():
        shape = _shape(module)
        if shape is not None and (every or check_target_module_exists(config, name)):
            yield name, shape


def _shape(module: Any) -> tuple[int, int] | None:
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.out_features, module.in_features
    if isinstance(module, torch.nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if type(module).__name__ == "Conv1D":
        return module.nf, module.weight.shape[0]
    return None


class _Attributes:
    """An adapter's configuration as an object for peft. A missing key is None."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> None:
        return None


def _parameters(base: torch.nn.Module) -> int:
    return sum(value.numel() for value in base.parameters())


def _refused(bundle: Bundle, why: str) -> UserError:
    return UserError(f"{bundle.label} is refused: {why}")
