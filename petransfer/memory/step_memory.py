"""Predict the memory of a training step by running it on the meta device, where tensors have a shape but no values.

The model, the method and the loss are the same as in training. Every tensor that PyTorch would allocate is counted. The
prediction needs no weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from petransfer.data.encoding import Layout
from petransfer.errors import UserError, reason_of
from petransfer.memory.advice import Unpredictable
from petransfer.memory.cards import BF16_CAPABILITY, USUAL_CAPABILITY
from petransfer.memory.device_kernels import CardKernels, CpuKernels, multiply_8bit_as_on_cpu
from petransfer.memory.meta_autocast import MetaAutocast
from petransfer.memory.meta_model import meta_model
from petransfer.memory.tensor_tracker import Tracker
from petransfer.methods import apply_method, computes_in_bf16, weights_bits
from petransfer.methods.shared.attach import refuse_untrained
from petransfer.models.loading import Loaded
from petransfer.models.quantization import inventory
from petransfer.models.text_part import text_linear_layers
from petransfer.models.wrappers import base_model_of
from petransfer.recipe.run_spec import MethodSpec, Optimizer
from petransfer.training.autocast import autocast_forward
from petransfer.training.batches import IGNORED, Tensors
from petransfer.training.losses import token_loss
from petransfer.training.out_of_memory import enable_gradient_checkpointing
from petransfer.training.packing import packed_size
from petransfer.training.stacked import accumulate, make_stack, shared_copy, shares_passes
from petransfer.training.state import trained_tensors

Device = Literal["cuda", "cpu"]


# cuBLAS allocates a workspace from PyTorch's allocator for each thread that multiplies: one thread for the forward pass
# and one for the backward pass. Its size depends on the compute capability (aten/src/ATen/cuda/CublasHandlePool.cpp).
CUBLAS_THREADS = 2
CUBLAS_BYTES, CUBLAS_BYTES_HOPPER = 8_519_680, 32 * 2**20


@dataclass(frozen=True)
class StepSpec:
    """The training step whose memory is to be predicted.

    Attributes:
        method: The training method, and the bits of the base model's weights.
        batch: Examples in a forward and backward pass.
        input_length: Tokens of the longest input.
        target_length: Tokens of the longest target.
        device: Device of the training.
        optimizer: Variant of AdamW.
        checkpointing: Whether gradient checkpointing is used: activations are recomputed in the backward pass.
        accumulates: Whether the batch is cut into micro-batches, and gradients of earlier micro-batches are held.
        members: Number of adapters that are trained as one stack, each on its own batch.
        capability: Compute capability of the card, such as (8, 6). It determines cuBLAS's workspace, the kernels of
            attention, and whether the card has bf16.
        packing: Whether several examples are put into one row. Only for decoder-only models.
    """

    method: MethodSpec
    batch: int
    input_length: int
    target_length: int
    device: Device = "cuda"
    optimizer: Optimizer = "adamw"
    checkpointing: bool = False
    accumulates: bool = False
    members: int = 1
    capability: tuple[int, int] = USUAL_CAPABILITY
    packing: bool = False

    @property
    def has_bf16(self) -> bool:
        """Whether the device computes in bf16."""
        return self.device == "cpu" or self.capability >= BF16_CAPABILITY

    @property
    def lacks_bf16(self) -> bool:
        """Whether the training needs bf16, as all trainings with less than 32 bits do, and the device lacks it."""
        return self.method.bits < 32 and not self.has_bf16

    @property
    def packed(self) -> tuple[int, int]:
        """Numbers of rows and of tokens per row in a pass with packing, if all examples have the largest length."""
        return packed_size([self.input_length + self.target_length - 1] * self.batch)

    @property
    def workspaces(self) -> int:
        """Bytes of cuBLAS's workspaces on the card. 0 on a CPU."""
        if self.device == "cpu":
            return 0
        large = self.capability == (9, 0) or self.capability[0] == 10
        return CUBLAS_THREADS * (CUBLAS_BYTES_HOPPER if large else CUBLAS_BYTES)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, part by part, at the moment when their sum is largest.

    Attributes:
        weights: The base model's weights, by dtype.
        trained: Tensors that the method adds to the model.
        gradients: Gradients of the trained tensors.
        optimizer: The optimiser's state.
        activations: Tensors that the forward pass keeps for the backward pass.
        logits: All tensors whose last dimension is the vocabulary.
        workspace: Everything else, such as cuBLAS's workspaces and tensors of the backward pass.
        trained_parameters: Number of trained parameters (a count, not bytes).
    """

    weights: dict[str, int]
    trained: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    trained_parameters: int

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch: weights, tensors of the method, and the optimiser's state."""
        return sum(self.weights.values()) + self.trained + self.optimizer

    @property
    def peak(self) -> int:
        """Bytes at the peak of a training step: the sum of all parts."""
        return self.fixed + self.gradients + self.activations + self.logits + self.workspace


def simulate(config: Any, name: str, step_spec: StepSpec, own_head: bool, new_tokens: tuple[int, ...] = ()) -> Memory:
    """Predict the memory of a training step.

    Args:
        new_tokens: Tokens whose embeddings are trained with `embeddings: new` or `embeddings: used`.

    Raises:
        UserError: The architecture cannot generate text or cannot be trained with these settings, for example because
            an adapted layer gets no gradient.
        Unpredictable: An operation of the architecture needs the values of tensors.
    """
    try:
        return _simulate(config, name, step_spec, own_head, new_tokens)
    except UserError:
        raise
    except Exception as error:  # such as an operation that reads the values of tensors
        raise Unpredictable(
            f"the memory of {name} ({config.model_type}) cannot be predicted: its code does not run on "
            f"tensors without values ({reason_of(error, 90)})"
        ) from error


def _simulate(config: Any, name: str, step_spec: StepSpec, own_head: bool, new_tokens: tuple[int, ...]) -> Memory:
    loaded = meta_model(config, name, step_spec.method, own_head, new_tokens)
    layers = text_linear_layers(loaded.model)
    if step_spec.device == "cpu" and weights_bits(step_spec.method) == 8:
        multiply_8bit_as_on_cpu(loaded.model)
    weights = inventory(loaded.model).bytes
    base = {id(value) for value in loaded.model.parameters()}
    models = _with_method(loaded, step_spec)
    trained = [value for model in models for value in trained_tensors(model).values()]
    phase = _Phase(_vocabulary(models[0]))
    tracker = Tracker(step_spec.device, phase.tag)
    held = {id(tensor): tensor for model in models for tensor in (*model.parameters(), *model.buffers())}
    for tensor in held.values():
        tracker.count(tensor, "weights" if id(tensor) in base or not tensor.requires_grad else "trained")
    moments = _held_moments(trained, step_spec)
    for moment in moments:
        tracker.count(moment, "optimizer")
    reached = _count_gradients(tracker, trained, step_spec.accumulates)
    tracker.add("workspace", step_spec.workspaces)
    with tracker, _kernels(step_spec):
        _run_pass(loaded, models, phase, meta_batch(step_spec, loaded.layout), torch.device(step_spec.device))
    if step_spec.members == 1:
        lost = [name for name, value in trained_tensors(models[0]).items() if id(value) not in reached]
        refuse_untrained(config.model_type, layers, step_spec.method, lost)
    tracker.add("workspace", _update_workspace(trained, step_spec))
    peak = tracker.peak
    return Memory(
        weights=weights,
        trained=peak["trained"],
        gradients=peak["gradients"],
        optimizer=peak["optimizer"],
        activations=peak["activations"],
        logits=peak["logits"],
        workspace=peak["workspace"],
        trained_parameters=sum(value.numel() for value in trained),
    )


def _count_gradients(tracker: Tracker, trained: Sequence[torch.nn.Parameter], accumulates: bool) -> set[int]:
    """Count the memory of the gradients: from the backward pass, and if `accumulates` is set, also of earlier passes.

    Returns:
        A set to which the backward pass adds the `id` of each tensor that gets a gradient.
    """
    reached: set[int] = set()

    def reach(value: Any) -> None:
        reached.add(id(value))
        tracker.retag(value.grad, "gradients")

    for value in trained:
        if accumulates:
            value.grad = torch.empty_like(value, device="meta")
            tracker.count(value.grad, "gradients")
        hook: Any = value.register_post_accumulate_grad_hook
        hook(reach)
    return reached


def _with_method(loaded: Loaded, step_spec: StepSpec) -> list[torch.nn.Module]:
    """Return one model per member of the stack, with the method applied."""
    bases = [loaded.model] if step_spec.members == 1 else [shared_copy(loaded.model) for _ in range(step_spec.members)]
    with torch.device("meta"):
        models = [apply_method(replace(loaded, model=base), step_spec.method, 0) for base in bases]
    for model in models:
        if step_spec.checkpointing:
            enable_gradient_checkpointing(model, **_recomputed_on(step_spec))
        if computes_in_bf16(step_spec.method):
            autocast_forward(model, torch.device(step_spec.device), MetaAutocast(step_spec.device))
        model.train()
    return models


def _kernels(step_spec: StepSpec) -> CardKernels | CpuKernels:
    return CardKernels(step_spec.capability) if step_spec.device == "cuda" else CpuKernels()


def _recomputed_on(step_spec: StepSpec) -> dict[str, Any]:
    """Return the option of `torch.utils.checkpoint` that activates the device's kernels during recomputation."""
    return {"context_fn": lambda: (contextlib.nullcontext(), _recomputation(step_spec))}


@contextlib.contextmanager
def _recomputation(step_spec: StepSpec) -> Iterator[None]:
    # the backward pass suspends each `TorchFunctionMode` of the forward pass
    with _kernels(step_spec), contextlib.ExitStack() as stack:
        if computes_in_bf16(step_spec.method):
            stack.enter_context(MetaAutocast(step_spec.device))
        yield


def _run_pass(
    loaded: Loaded, models: Sequence[torch.nn.Module], phase: _Phase, batch: Tensors, device: torch.device
) -> None:
    """Run the forward and the backward pass of each model in `models`."""
    if len(models) == 1 or not shares_passes(device):
        for model in models:
            phase.backward = False
            loss = token_loss(model, batch)
            phase.backward = True
            torch.autograd.backward(loss)
        return
    with torch.device("meta"):
        stack = make_stack(loaded.model, models)
    forward = stack.run

    def run(joined: Any, widths: Any) -> torch.Tensor:
        given = forward(joined, widths)
        phase.backward = True
        return given

    stack.run = run  # type: ignore[method-assign, assignment]
    accumulate(stack, [batch] * len(models), [1] * len(models), loaded.layout)


@dataclass
class _Phase:
    """Chooses the tag of a new tensor, such as `logits`.

    vocabulary: number of tokens of the vocabulary.
    backward: whether the backward pass has begun.
    """

    vocabulary: int
    backward: bool = False

    def tag(self, tensor: torch.Tensor) -> str:
        """Return the memory category of a tensor: `logits`, `activations` or `workspace`."""
        if tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary:
            return "logits"
        return "workspace" if self.backward else "activations"


def _held_moments(trained: Sequence[torch.Tensor], step_spec: StepSpec) -> list[torch.Tensor]:
    """Return the tensors of the optimiser's state that are on the device at one time."""
    held = [_moments(value, step_spec.optimizer) for value in trained]
    if step_spec.optimizer == "paged-adamw-8bit" and step_spec.device == "cuda":
        # bitsandbytes' paged optimiser keeps moments of 100,000 numbers or more in the host's memory; the card holds
        # only the moments of the tensor that is being updated
        paged = [index for index, value in enumerate(trained) if value.numel() >= 100_000]
        largest = max(paged, key=lambda index: trained[index].numel(), default=None)
        for index in paged:
            held[index] = held[index] if index == largest else held[index][2:]  # the scales always stay on the card
    return [moment for moments in held for moment in moments]


def _moments(value: torch.Tensor, optimizer: Optimizer) -> list[torch.Tensor]:
    """Return AdamW's two moments for a tensor. 8-bit moments have one scale per 256 numbers."""
    if optimizer == "adamw" or value.numel() < 4096:  # bitsandbytes does not quantise the moments of small tensors
        return [torch.empty_like(value, device="meta") for _ in range(2)]
    codes = [torch.empty(value.shape, dtype=torch.uint8, device="meta") for _ in range(2)]
    scales = [torch.empty(math.ceil(value.numel() / 256), device="meta") for _ in range(2)]
    return codes + scales


def _update_workspace(trained: Sequence[torch.Tensor], step_spec: StepSpec) -> int:
    """Return the bytes that the optimiser needs while it updates its largest tensor."""
    if step_spec.optimizer == "adamw" or step_spec.device == "cuda":
        return 0
    # Plain AdamW is fused, and 8-bit AdamW on a GPU is one kernel: the two need no extra bytes. On a CPU, bitsandbytes
    # makes fp32 copies of the two moments, the gradient, the weight and the update (measured).
    return 5 * 4 * max(value.numel() for value in trained)


def meta_batch(step_spec: StepSpec, layout: Layout) -> Tensors:
    """Return a micro-batch of the longest examples on the meta device, as `collate` or `collate_packed` makes it."""
    if layout.encoder_decoder:
        source = torch.ones(step_spec.batch, step_spec.input_length, dtype=torch.long, device="meta")
        target = torch.ones(step_spec.batch, step_spec.target_length, dtype=torch.long, device="meta")
        return {
            "input_ids": source,
            "attention_mask": torch.ones_like(source),
            "decoder_input_ids": target,
            "labels": torch.full_like(target, IGNORED),
        }
    length = step_spec.input_length + step_spec.target_length - 1
    if step_spec.packing:
        rows, width = step_spec.packed
        ids = torch.ones(rows, width, dtype=torch.long, device="meta")
        positions = (torch.arange(width, device="meta") % length).repeat(rows, 1)
        return {"input_ids": ids, "position_ids": positions, "labels": torch.full_like(ids, IGNORED)}
    joined = torch.ones(step_spec.batch, length, dtype=torch.long, device="meta")
    return {"input_ids": joined, "attention_mask": torch.ones_like(joined), "labels": torch.full_like(joined, IGNORED)}


def _vocabulary(model: torch.nn.Module) -> int:
    return int(base_model_of(model).get_output_embeddings().weight.shape[0])
