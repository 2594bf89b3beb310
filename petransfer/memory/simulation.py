"""One training step on the meta device: model, method and loss are the real ones, only the numbers are not there.

What PyTorch would allocate is counted operation by operation, so that every architecture that loads can be foreseen,
without its weights. Attention and dropout are what the device would choose, not what the meta device does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import torch
from transformers import PreTrainedModel

from petransfer.data.encoding import Layout
from petransfer.memory.tensor_tracker import Tracker
from petransfer.methods import apply_method, weights_bits
from petransfer.models.control_arms import randomly_initialized
from petransfer.models.loading import DTYPES, Loaded
from petransfer.models.quantization import inventory, quantization_config, refuse_poorly_quantized, require_bitsandbytes
from petransfer.models.support import supported_class
from petransfer.recipe.run_spec import Bits, MethodSpec, Optimizer
from petransfer.training.batches import IGNORED, Tensors
from petransfer.training.losses import token_loss
from petransfer.training.out_of_memory import enable_gradient_checkpointing
from petransfer.training.stacked import stacked_loop as stacked
from petransfer.training.stacked.layers import share
from petransfer.training.state import trained_tensors

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Demand:
    """A forward and backward pass.

    batch: examples in it. input_length, target_length: pieces of the longest. accumulates: the gradients of passes
    before it are there, as when the batch of a step is cut into micro-batches. members: adapters that are trained as
    one stack, each of them on a batch of its own.
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


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, each part as it stands when the sum is largest.

    weights: by dtype, as the loader places them. trained: what the method adds to the model. activations: what the
    backward pass waits for. logits: all tensors as wide as the vocabulary. workspace: what is held beside these.
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
    def peak(self) -> int:
        """The sum."""
        parts = (self.trained, self.gradients, self.optimizer, self.activations, self.logits, self.workspace)
        return sum(self.weights.values()) + sum(parts)


def simulate(config: Any, name: str, demand: Demand, own_head: bool, new_tokens: tuple[int, ...] = ()) -> Memory:
    """What a training step of this architecture takes. own_head: the head is not tied to the embeddings.

    Full fine-tuning at 16 bits is foreseen as at 32: its weights are fp32, its activations are counted too wide.

    Raises:
        UserError: the architecture says no targets, or cannot be trained so.
    """
    loaded = meta_model(config, name, demand.method, own_head, new_tokens)
    weights = inventory(loaded.model).bytes
    base = {id(value) for value in loaded.model.parameters()}
    models = _applied(loaded, demand)
    trained = {
        f"{at}.{name}": value for at, model in enumerate(models) for name, value in trained_tensors(model).items()
    }
    phase = _Phase(_vocabulary(models[0]))
    tracker = Tracker(demand.device, phase.tag)
    held = {id(tensor): tensor for model in models for tensor in (*model.parameters(), *model.buffers())}
    for tensor in held.values():
        tracker.count(tensor, "weights" if id(tensor) in base or not tensor.requires_grad else "trained")
    moments = _held_moments(list(trained.values()), demand)
    for moment in moments:
        tracker.count(moment, "optimizer")
    for value in trained.values():
        if demand.accumulates:
            value.grad = torch.empty_like(value, device="meta")
            tracker.count(value.grad, "gradients")
        hook: Any = value.register_post_accumulate_grad_hook
        hook(lambda held: tracker.retag(held.grad, "gradients"))
    with tracker, _as_on(demand.device, weights_bits(demand.method)):
        _pass(loaded, models, phase, meta_batch(demand, loaded.layout), torch.device(demand.device))
    tracker.add("workspace", _step_workspace(list(trained.values()), demand))
    at = tracker.peak
    return Memory(
        weights=weights,
        trained=at["trained"],
        gradients=at["gradients"],
        optimizer=at["optimizer"],
        activations=at["activations"],
        logits=at["logits"],
        workspace=at["workspace"],
        trained_parameters=sum(value.numel() for value in trained.values()),
    )


def _applied(loaded: Loaded, demand: Demand) -> list[torch.nn.Module]:
    """The model with the method on it, for each member of a stack."""
    bases = [loaded.model] if demand.members == 1 else [share(loaded.model) for _ in range(demand.members)]
    with torch.device("meta"):
        models = [apply_method(replace(loaded, model=base), demand.method, 0) for base in bases]
    for model in models:
        if demand.checkpointing:
            enable_gradient_checkpointing(model)
        model.train()
    return models


def _pass(
    loaded: Loaded, models: Sequence[torch.nn.Module], phase: _Phase, batch: Tensors, device: torch.device
) -> None:
    """Forward and backward."""
    if len(models) == 1 or not stacked.joins(device):
        for model in models:
            phase.backward = False
            loss = token_loss(model, batch)
            phase.backward = True
            torch.autograd.backward(loss)
        return
    with torch.device("meta"):
        stack = stacked.make_stack(loaded.model, models)
    forward = stack.run

    def run(joined: Any, widths: Any) -> torch.Tensor:
        given = forward(joined, widths)
        phase.backward = True
        return given

    stack.run = run  # type: ignore[method-assign, assignment]
    stacked.accumulate(stack, [batch] * len(models), [1] * len(models), loaded.layout)


@dataclass
class _Phase:
    """What a tensor is that is made now."""

    vocabulary: int
    backward: bool = False

    def tag(self, tensor: torch.Tensor) -> str:
        """Logits by their width, whoever makes them; else what the forward pass leaves, or the backward pass uses."""
        if tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary:
            return "logits"
        return "workspace" if self.backward else "activations"


def meta_model(config: Any, name: str, method: MethodSpec, own_head: bool, new_tokens: tuple[int, ...] = ()) -> Loaded:
    """The model as `load` would make it, on the meta device and without its tokenizer."""
    auto = supported_class(config, name)
    bits = weights_bits(method)
    with torch.device("meta"):
        model = randomly_initialized(auto, config, own_head).to(DTYPES.get(bits, torch.bfloat16))
    if bits in (4, 8):
        _quantise(model, bits, method.keep_wide)
        refuse_poorly_quantized(model, name, bits, method.keep_wide)
    layout = Layout(bool(config.is_encoder_decoder), 0, 1)
    return Loaded(model.requires_grad_(False), None, layout, None, new_tokens)


def _quantise(model: PreTrainedModel, bits: Bits, keep_wide: Sequence[str]) -> None:
    require_bitsandbytes(bits)
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    replace_with_bnb_linear(model, [*get_keys_to_not_convert(model), *keep_wide], quantization_config(bits))
    import bitsandbytes as bnb

    # bitsandbytes keeps its first map for all later calls, which must not be one without numbers
    bnb.functional.name2qmap.setdefault("dynamic", bnb.functional.create_dynamic_map())
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            wide = torch.empty(module.out_features, module.in_features, dtype=torch.bfloat16, device="meta")
            kind = bnb.nn.Params4bit if bits == 4 else bnb.nn.Int8Params
            module.weight = kind(wide, requires_grad=False, **module.weight.__dict__)._quantize("meta")
            if module.bias is not None:
                module.bias = torch.nn.Parameter(module.bias.to(torch.bfloat16), requires_grad=False)
            if bits == 8:  # whether activations have outliers depends on their values
                module.state.threshold = 0.0


def _held_moments(trained: Sequence[torch.Tensor], demand: Demand) -> list[torch.Tensor]:
    """What the device must hold of the optimiser's state: of paged moments those of the tensor that is being updated.

    bitsandbytes takes pages for tensors of 100,000 numbers and more, the driver moves them out of the card's way.
    """
    found = [_moments(value, demand.optimizer) for value in trained]
    if demand.optimizer == "paged-adamw-8bit" and demand.device == "cuda":
        paged = [at for at, value in enumerate(trained) if value.numel() >= 100_000]
        largest = max(paged, key=lambda at: trained[at].numel(), default=None)
        for at in paged:
            found[at] = found[at] if at == largest else found[at][2:]  # the scales have no pages
    return [moment for moments in found for moment in moments]


def _moments(value: torch.Tensor, optimizer: Optimizer) -> list[torch.Tensor]:
    """AdamW's two numbers for each trained one, in its own dtype, or in 8 bits with a scale for 256 of them."""
    if optimizer == "adamw" or value.numel() < 4096:  # bitsandbytes keeps small tensors wide
        return [torch.empty_like(value, device="meta") for _ in range(2)]
    codes = [torch.empty(value.shape, dtype=torch.uint8, device="meta") for _ in range(2)]
    scales = [torch.empty(math.ceil(value.numel() / 256), device="meta") for _ in range(2)]
    return codes + scales


def _step_workspace(trained: list[torch.Tensor], demand: Demand) -> int:
    """What the optimiser holds while it updates its largest tensor.

    AdamW is fused. In 8 bits it is one kernel on a GPU; on a CPU bitsandbytes widens the moments, the gradient and the
    weight and makes the update beside them: five tensors in fp32, measured.
    """
    if demand.optimizer == "adamw" or demand.device == "cuda":
        return 0
    return 5 * 4 * max(value.numel() for value in trained)


def meta_batch(demand: Demand, layout: Layout) -> Tensors:
    """A micro-batch as `collate` makes it, of the longest examples."""
    if layout.encoder_decoder:
        source = torch.ones(demand.batch, demand.input_length, dtype=torch.long, device="meta")
        target = torch.ones(demand.batch, demand.target_length, dtype=torch.long, device="meta")
        return {
            "input_ids": source,
            "attention_mask": torch.ones_like(source),
            "decoder_input_ids": target,
            "labels": torch.full_like(target, IGNORED),
        }
    length = demand.input_length + demand.target_length - 1
    joined = torch.ones(demand.batch, length, dtype=torch.long, device="meta")
    return {"input_ids": joined, "attention_mask": torch.ones_like(joined), "labels": torch.full_like(joined, IGNORED)}


def _vocabulary(model: torch.nn.Module) -> int:
    base: Any = model
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    assert isinstance(base, PreTrainedModel)
    return int(base.get_output_embeddings().weight.shape[0])


@contextlib.contextmanager
def _as_on(device: Device, bits: Bits) -> Iterator[None]:
    """Lets the meta device take the kernels that `device` would take."""
    with contextlib.ExitStack() as patches:
        if device == "cpu":
            if bits == 8:
                patches.enter_context(_matmul_8bit())
        else:
            functional = torch.nn.functional
            patches.enter_context(mock.patch.object(functional, "scaled_dot_product_attention", _fused_attention))
            patches.enter_context(mock.patch.object(functional, "dropout", _fused_dropout))
        yield


def _matmul_8bit() -> Any:
    """Lets LLM.int8 multiply as on a CPU, by weights that are made wide."""
    import bitsandbytes as bnb
    from bitsandbytes.autograd._functions import MatMul8bitFp

    def matmul(a: Any, b: Any, out: Any = None, state: Any = None, threshold: float = 0, bias: Any = None) -> Any:
        return MatMul8bitFp.apply(a, b, out, bias, state)

    return mock.patch.object(bnb, "matmul", matmul)


def _fused_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    result: torch.Tensor = _FusedDropout.apply(input) if training and p > 0 else input  # type: ignore[no-untyped-call]
    return result


class _FusedDropout(torch.autograd.Function):
    """On a GPU the mask is one byte an element."""

    @staticmethod
    def forward(ctx: Any, input: Any) -> Any:
        ctx.save_for_backward(torch.empty_like(input, dtype=torch.bool))
        return torch.empty_like(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.empty_like(gradients[0])


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """A fused kernel: keeps its inputs, its output and one fp32 number a row, and never holds the scores."""
    result: torch.Tensor = _Fused.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return result


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
        out = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
        rows = math.ceil(query.shape[-2] / 32) * 32
        sums = torch.empty((*query.shape[:2], rows), dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, mask, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, mask, _, _ = ctx.saved_tensors
        of_mask = torch.empty_like(mask) if mask is not None and ctx.needs_input_grad[3] else None
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_mask
