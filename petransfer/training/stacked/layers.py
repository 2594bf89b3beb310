"""Compute the batches of several adapters on one frozen base at once.

The adapters form a stack. A member of the stack is a complete peft model with one adapter. All members share the frozen
tensors. In training, an additional model, the trunk, computes the batches of all members together. Each row of the
joined batch goes through the adapter of its member.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.nn import functional

from petransfer.errors import RunError, UserError

ADAPTER = "default"  # peft's default name of an adapter


def shared_copy(model: Any) -> Any:
    """Return a copy of a model with new modules and shared parameters, buffers and quantisation states."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False), *vars(module).values()]
        for value in held:
            if isinstance(value, torch.Tensor) or type(value).__name__ in ("QuantState", "MatmulLtState"):
                memo[id(value)] = value
    return copy.deepcopy(model, memo)


def refuse_layer_drop(config: Any) -> None:
    """Raise UserError for a model with layerdrop."""
    # A skipped layer would be skipped for all members.
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0.0):
            raise UserError(f"a model with {name} above 0 cannot be stacked; use --stack off")


class Stack:
    """Several peft models with one adapter each (the members), and the model that computes all batches (the trunk).

    hidden_only: whether the trunk returns the input of the output head instead of logits.
    """

    def __init__(self, trunk: Any, members: Sequence[Any], *, hidden_only: bool) -> None:
        refuse_layer_drop(trunk.config)
        self.trunk, self.members, self.hidden_only = trunk, list(members), hidden_only
        if hidden_only:
            trunk.get_output_embeddings().forward = lambda hidden: hidden
            if hasattr(trunk, "final_logits_bias"):
                trunk.final_logits_bias = trunk.final_logits_bias.new_zeros(())
        self._layers = _insert_layers(trunk, [member.get_base_model() for member in members])
        self.dropout = MemberDropout(len(self.members), next(trunk.parameters()).device)

    def drop(self, at: int) -> None:
        """Remove the member with the index `at`."""
        for layer in self._layers:
            layer.drop(at)
        self.dropout.drop(at)
        del self.members[at]

    def run(self, batch: Mapping[str, torch.Tensor], widths: Sequence[Mapping[int, int]]) -> torch.Tensor:
        """Return the logits (members x rows, target, v) or, with `hidden_only`, the input of the head (..., d).

        Args:
            batch: rows of all members, one member after the other, padded to one width.
            widths: for each member, a mapping from the padded width to the member's own width, in tokens.
        """
        self.trunk.train()
        with self.dropout.own(widths):
            given: torch.Tensor = self.trunk(**batch, use_cache=False).logits
        return given


def _insert_layers(trunk: torch.nn.Module, bases: Sequence[torch.nn.Module]) -> list[Layer]:
    """Replace the trunk's layers that have an adapter or trained rows in a member. Return the new layers."""
    found: dict[tuple[int, ...], Layer] = {}
    names: list[str] = []
    for base in bases:
        for name, module in base.named_modules(remove_duplicate=False):
            inside = any(name.startswith(f"{outer}.") for outer in names)
            if isinstance(module, LoraLayer | AuxiliaryTrainingWrapper) and not inside and name not in names:
                names.append(name)
    for name in names:
        modules = [base.get_submodule(name) for base in bases]
        key = tuple(map(id, modules))
        if key not in found:
            found[key] = _layer(trunk.get_submodule(name), modules)
        parent, _, last = name.rpartition(".")
        setattr(trunk.get_submodule(parent), last, found[key])
    return list(found.values())


def _layer(base: torch.nn.Module, modules: Sequence[torch.nn.Module]) -> Layer:
    plain = [isinstance(module, LoraLayer) and set(module.lora_A) == {ADAPTER} for module in modules]
    return StackedLora(base, modules) if all(plain) else SeparateModules(base, modules)


class Layer(torch.nn.Module):
    """A layer of the trunk that applies the adapters of all members."""

    def __init__(self, base: torch.nn.Module, members: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.base = base
        self.members: list[Any] = list(members)  # a plain list, so that torch does not register their parameters

    @property
    def weight(self) -> Any:
        """Weight of the base layer. Models read its dtype."""
        return self.base.weight

    def drop(self, at: int) -> None:
        del self.members[at]


class SeparateModules(Layer):
    """Applies the module of each member to the rows of that member."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        parts = rows.chunk(len(self.members))
        return torch.cat([module(part) for module, part in zip(self.members, parts, strict=True)])


class StackedLora(Layer):
    """Applies the LoRA pairs (A and B) of all members in two batched products."""

    def __init__(self, base: torch.nn.Module, members: Sequence[torch.nn.Module]) -> None:
        super().__init__(base, members)
        self._scales: torch.Tensor | None = None

    def drop(self, at: int) -> None:
        super().drop(at)
        self._scales = None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        # The frozen layer is computed once for the rows of all members.
        result: torch.Tensor = self.base(rows)
        count = len(self.members)
        dropped = self.members[0].lora_dropout[ADAPTER](rows)
        in_kni = dropped.reshape(count, -1, dropped.shape[-1])
        down_kri, up_kor = self._matrices(in_kni.dtype)
        if self._scales is None:
            scales = [layer.scaling[ADAPTER] for layer in self.members]
            self._scales = torch.tensor(scales, dtype=in_kni.dtype, device=rows.device)[:, None, None]
        low_knr = torch.bmm(in_kni, down_kri.transpose(1, 2)) * self._scales
        out_kno = result.reshape(count, -1, result.shape[-1])
        return torch.baddbmm(out_kno, low_knr.to(result.dtype), up_kor.to(result.dtype).transpose(1, 2)).view_as(result)

    def _matrices(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        downs = [layer.lora_A[ADAPTER].weight for layer in self.members]
        ups = [layer.lora_B[ADAPTER].weight for layer in self.members]
        # Smaller A and B are padded with zeros to the largest rank.
        rank = max(len(down) for down in downs)
        if any(len(down) < rank for down in downs):
            downs = [functional.pad(down, (0, 0, 0, rank - len(down))) for down in downs]
            ups = [functional.pad(up, (0, rank - up.shape[1])) for up in ups]
        return torch.stack(downs).to(dtype), torch.stack(ups).to(dtype)


class MemberDropout:
    """Gives each member of a stack the dropout of a separate run."""

    def __init__(self, count: int, device: torch.device) -> None:
        at = device.index or 0
        self._generator = torch.cuda.default_generators[at] if device.type == "cuda" else torch.default_generator
        # One random state per member.
        self._states: list[torch.Tensor] = [self._generator.get_state() for _ in range(count)]
        self._widths: Sequence[Mapping[int, int]] = ()

    def drop(self, at: int) -> None:
        del self._states[at]

    def seed(self, seeds: Sequence[int]) -> None:
        """Set each member's random state from its seed, at the beginning of a step."""
        for at, seed in enumerate(seeds):
            torch.manual_seed(seed)
            self._states[at] = self._generator.get_state()

    @contextlib.contextmanager
    def own(self, widths: Sequence[Mapping[int, int]]) -> Iterator[None]:
        """Draw each member's dropout as in a separate run, during the `with` block. For `widths`, see `Stack.run`."""
        self._widths = widths
        drop, attend, rand = functional.dropout, functional.scaled_dot_product_attention, torch.rand

        def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
            if not training or p == 0:
                return drop(input, p, training, inplace)
            dims = (1,) if input.dim() == 3 else (2, 3) if input.dim() == 4 else ()
            # After `narrow` the tensor is not contiguous, and CUDA draws dropout in another order for such tensors.
            return self._each(lambda part: drop(part.contiguous(), p), [(input, dims)], dims)

        def attention(
            query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, **options: Any
        ) -> torch.Tensor:
            if dropout_p == 0:
                return attend(query, key, value, attn_mask=attn_mask, **options)
            mask = None if attn_mask is None else attn_mask.expand(len(query), *attn_mask.shape[1:])
            inputs = [(query, (2,)), (key, (2,)), (value, (2,)), *([] if mask is None else [(mask, (2, 3))])]
            settings = {**options, "dropout_p": dropout_p}
            return self._each(lambda *parts: attend(*parts, **settings), inputs, (2,))

        # BART-like models call `torch.rand` even if layerdrop is 0.
        def uniform(*size: Any, **options: Any) -> torch.Tensor:
            drawn = [self._with(at, lambda: rand(*size, **options)) for at in range(len(self._states))]
            return drawn[0]

        with (
            _replaced(functional, "dropout", dropout),
            _replaced(functional, "scaled_dot_product_attention", attention),
            _replaced(torch, "rand", uniform),
        ):
            yield

    def _each(
        self,
        function: Callable[..., torch.Tensor],
        inputs: Sequence[tuple[torch.Tensor, tuple[int, ...]]],
        dims: tuple[int, ...],
    ) -> torch.Tensor:
        """Apply `function` to the rows of each member without padding, then pad and join the results.

        Args:
            inputs: pairs of a tensor and its padded dimensions.
            dims: padded dimensions of the result.
        """
        count, first = len(self._states), inputs[0][0]
        if any(len(tensor) % count for tensor, _ in inputs):
            raise RunError("this architecture mixes the rows of a batch and cannot be stacked; use --stack off")
        chunks = [[(part, padded) for part in tensor.chunk(count)] for tensor, padded in inputs]
        given = []
        for at in range(count):
            parts = [self._cut(*column[at], at) for column in chunks]
            result = self._with(at, lambda parts=parts: function(*parts))  # type: ignore[misc]
            given.append(_padded(result, {dim: first.shape[dim] for dim in dims}))
        return torch.cat(given)

    def _cut(self, part: torch.Tensor, dims: tuple[int, ...], at: int) -> torch.Tensor:
        for dim in dims:
            width = self._widths[at].get(part.shape[dim], part.shape[dim])
            part = part.narrow(dim, 0, width)
        return part

    def _with(self, at: int, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        self._generator.set_state(self._states[at])
        result = function()
        self._states[at] = self._generator.get_state()
        return result


@contextlib.contextmanager
def _replaced(module: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of a Python module during the `with` block."""
    # Replacing layers is not enough, because some architectures call dropout as a function. A torch function mode would
    # slow down every operation of the pass.
    original = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, original)


def _padded(tensor: torch.Tensor, sizes: Mapping[int, int]) -> torch.Tensor:
    """Append zeros up to the given size of each dimension."""
    missing = [0, 0] * tensor.dim()
    for dim, size in sizes.items():
        missing[2 * (tensor.dim() - 1 - dim) + 1] = size - tensor.shape[dim]
    return functional.pad(tensor, missing) if any(missing) else tensor
