"""Check that a saved adapter or model has the logits of the trained model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

import petransfer.models.bitsandbytes_import  # noqa: F401 - must be imported before peft

# isort: split
from peft import PeftModel
from transformers import PreTrainedModel

from petransfer.data.encoding import Encoded, Layout
from petransfer.errors import RunError
from petransfer.methods.shared.compute_dtype import compute_as_in_training
from petransfer.models.wrappers import evaluating
from petransfer.recipe.run_spec import MethodSpec
from petransfer.training.batches import IGNORED, Tensors, collate
from petransfer.training.losses import logits_at_labels
from petransfer.training.out_of_memory import OutOfMemory, raising_out_of_memory, release_cached_memory

EXAMPLES = 4
# For each number of bits, the largest difference between two logits that counts as rounding, as a share of the largest
# logit. An error in saving changes logits much more: by more than a third of the largest logit if the position
# embeddings are missing.
TOLERANCE = {32: 1e-3, 16: 5e-2, 8: 5e-2, 4: 5e-2}

logger = logging.getLogger(__name__)


def check_reloaded(
    trained: Any,
    folder: Path,
    method: MethodSpec,
    examples: Sequence[Encoded],
    layout: Layout,
    autocast: bool,
    load_base: Callable[[torch.device], PreTrainedModel],
) -> bool:
    """Load the saved tensors into a new model and compare its logits with those of the trained model.

    Args:
        folder: the saved `adapter/`, or `model/` after full fine-tuning.
        examples: examples to compare. Only the first `EXAMPLES` are used.
        autocast: whether the trained model computes its forward pass in bf16.
        load_base: function that loads a new copy of the adapter's base on a device.

    Returns:
        Whether the logits were compared. False if the memory was too small for a second model.

    Raises:
        RunError: the logits differ by more than rounding. The message names the tensors that differ.
    """
    device = next(trained.parameters()).device
    batch = collate(examples[:EXAMPLES], layout)
    expected = _logits(trained, batch, autocast)
    for place in dict.fromkeys((device, torch.device("cpu"))):
        if place.type == "cpu" and _bytes(trained) > 0.8 * psutil.virtual_memory().available:
            continue
        try:
            with raising_out_of_memory():
                fresh = _load(trained, folder, method, place, load_base)
                _compare(trained, fresh, expected, _logits(fresh, batch, autocast), folder, TOLERANCE[method.bits])
                return True
        except OutOfMemory:
            release_cached_memory()
    logger.warning("%s was not checked: there is not enough memory to load it beside the trained model", folder)
    return False


def _load(
    trained: Any, folder: Path, method: MethodSpec, device: torch.device, load_base: Callable[..., PreTrainedModel]
) -> Any:
    if not hasattr(trained, "peft_config"):
        return type(trained).from_pretrained(folder, dtype=torch.float32).to(device).eval()
    model: Any = PeftModel.from_pretrained(load_base(device), str(folder))
    compute_as_in_training(model, method.bits)
    return model.to(device).eval()


@torch.no_grad()
def _logits(model: Any, batch: Tensors, autocast: bool) -> torch.Tensor:
    """Return the logits at the positions that have a label: (positions, vocabulary), on the CPU."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        logits_btv = logits_at_labels(model, batch)
    return logits_btv[batch["labels"] != IGNORED].float().cpu()


def _compare(
    trained: Any, fresh: Any, expected: torch.Tensor, found: torch.Tensor, folder: Path, tolerance: float
) -> None:
    """Raise RunError if the logits `found` of the loaded model `fresh` differ from `expected` by more than rounding."""
    largest = float(expected.abs().max())
    difference = float((expected - found).abs().max())
    if difference <= tolerance * largest:
        return
    names = differing_tensors(trained, fresh, tolerance)
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise RunError(
        f"{folder} differs from the trained model: loaded again, its logits differ by {difference:.2g} where the "
        f"largest is {largest:.2g}; tensors that differ: {listed or 'none'}"
    )


def differing_tensors(trained: torch.nn.Module, fresh: torch.nn.Module, tolerance: float) -> list[str]:
    """Return the names of the tensors that differ, or that exist in only one of the two models.

    `tolerance` is the largest allowed difference, as a share of the trained tensor's largest absolute value.
    """
    left, right = _tensors(trained), _tensors(fresh)
    names = sorted(left.keys() ^ right.keys())
    for name in sorted(left.keys() & right.keys()):
        one, other = left[name].detach().cpu(), right[name].detach().cpu()
        if one.shape != other.shape:
            names.append(name)
        elif one.numel() and not one.is_meta:
            one, other = one.double(), other.double()
            if not float((one - other).abs().max()) <= tolerance * float(one.abs().max()):
                names.append(name)
    return names


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _bytes(model: torch.nn.Module) -> int:
    return sum(value.nbytes for value in model.parameters())
