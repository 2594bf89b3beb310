"""Several adapters on one frozen base: each row of a batch belongs to one member and goes through its adapter.

Every member is a complete peft model that shares its frozen tensors with the other members. It is initialised, saved
and evaluated like any other model. Only in training one additional model, the trunk, computes all members' batches at
once.
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


def share(model: Any) -> Any:
    """Return a copy with new modules that shares the tensors, buffers and quantisation states of the model."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False), *vars(module).values()]
        for value in held:
            if isinstance(value, torch.Tensor) or type(value).__name__ in ("QuantState", "MatmulLtState"):
                memo[id(value)] = value
    return copy.deepcopy(model, memo)


def refuse_layer_drop(config: Any) -> None:
    """Raise UserError for a model with layerdrop, because it would skip a random layer for all members at once."""
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0.0):
            raise UserError(f"a model with {name} above 0 cannot be stacked; use --stack off")


class Stack:
    """The members and their trunk. hidden_only: the trunk returns the input of the head instead of logits."""

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
        """Remove member `at`."""
        for layer in self._layers:
            layer.drop(at)
        self.dropout.drop(at)
        del self.members[at]

    def run(self, batch: Mapping[str, torch.Tensor], widths: Sequence[Mapping[int, int]]) -> torch.Tensor:
        """Return logits (members x rows, target, v) or, with `hidden_only`, the input of the head (..., d).

        Args:
            batch: the members' rows, one member after the other, padded to one width.
            widths: for each member, a mapping from the padded width to the width of the member's own tensors.
        """
        self.trunk.train()
        with self.dropout.own(widths):
            given: torch.Tensor = self.trunk(**batch, use_cache=False).logits
        return given


def _insert_layers(trunk: torch.nn.Module, bases: Sequence[torch.nn.Module]) -> list[Layer]:
    """Put a stacked layer into the trunk at each layer where a member has an adapter or trained rows."""
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
    """Replaces a layer of the base in the trunk."""

    def __init__(self, base: torch.nn.Module, members: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.base = base
        self.members: list[Any] = list(members)  # a plain list, so that their parameters are not registered

    @property
    def weight(self) -> Any:
        """The weight of the base layer; models read its dtype."""
        return self.base.weight

    def drop(self, at: int) -> None:
        """Remove member `at`."""
        del self.members[at]


class SeparateModules(Layer):
    """Applies every member's own module to its own rows."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        parts = rows.chunk(len(self.members))
        return torch.cat([module(part) for module, part in zip(self.members, parts, strict=True)])


class StackedLora(Layer):
    """Computes the frozen layer once for all rows, and all A and all B in one batched product each.

    Smaller ranks are padded with zeros.
    """

    def __init__(self, base: torch.nn.Module, members: Sequence[torch.nn.Module]) -> None:
        super().__init__(base, members)
        self._scales: torch.Tensor | None = None

    def drop(self, at: int) -> None:
        super().drop(at)
        self._scales = None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
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
        rank = max(len(down) for down in downs)
        if any(len(down) < rank for down in downs):
            downs = [functional.pad(down, (0, 0, 0, rank - len(down))) for down in downs]
            ups = [functional.pad(up, (0, rank - up.shape[1])) for up in ups]
        return torch.stack(downs).to(dtype), torch.stack(ups).to(dtype)


class MemberDropout:
    """Keeps a random state for every member, so that its dropout is the same as in a separate run."""

    def __init__(self, count: int, device: torch.device) -> None:
        at = device.index or 0
        self._generator = torch.cuda.default_generators[at] if device.type == "cuda" else torch.default_generator
        self._states: list[torch.Tensor] = [self._generator.get_state() for _ in range(count)]
        self._widths: Sequence[Mapping[int, int]] = ()

    def drop(self, at: int) -> None:
        """Remove member `at`."""
        del self._states[at]

    def seed(self, seeds: Sequence[int]) -> None:
        """Set each member's random state at the beginning of a step."""
        for at, seed in enumerate(seeds):
            torch.manual_seed(seed)
            self._states[at] = self._generator.get_state()

    @contextlib.contextmanager
    def own(self, widths: Sequence[Mapping[int, int]]) -> Iterator[None]:
        """Draw dropout for each member from its own state and in the shape of its own tensors within this context."""
        self._widths = widths
        drop, attend, rand = functional.dropout, functional.scaled_dot_product_attention, torch.rand

        def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
            if not training or p == 0:
                return drop(input, p, training, inplace)
            dims = (1,) if input.dim() == 3 else (2, 3) if input.dim() == 4 else ()
            # CUDA's kernel draws in another order for rows with gaps between them, as a narrowed tensor has
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

        def uniform(*size: Any, **options: Any) -> torch.Tensor:  # BART-like models call it even if layerdrop is 0
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
        """Apply `function` to every member's own rows without padding, then pad and join the results.

        Args:
            function: called once for each member.
            inputs: tensors, each with its padded dimensions.
            dims: the padded dimensions of the result.
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
    """Replace a function of torch while the trunk runs, because architectures call dropout as a function, not a layer.

    A torch function mode would have the same effect, but it slows down every operation of the pass.
    """
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
