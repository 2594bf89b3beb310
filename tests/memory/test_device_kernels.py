"""Attention on the meta device keeps the tensors that a real device keeps for the backward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from benchmarks.gpu.memory_caps import LENGTHS, QLORA
from benchmarks.gpu.random_models import shape_of
from petransfer.memory.device_kernels import CardKernels, CpuKernels
from petransfer.memory.step_memory import StepSpec, simulate
from petransfer.memory.tensor_tracker import Tracker
from petransfer.models.quantization import require_bitsandbytes

MEASURED = Path(__file__).parents[2] / "results/bench/gpu-h200/b.json"
QUERIES = 2 * 4 * 32 * 8  # elements of the queries: 2 examples, 4 heads, 32 tokens, heads of size 8
WEIGHTS = 2 * 4 * 32 * 32  # number of attention weights


def heads(count: int = 4, size: int = 8, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return queries, keys or values with the strides that they have in a model: (2, heads, 32, size)."""
    made = torch.empty(2, 32, count, size, dtype=dtype, device="meta", requires_grad=True)
    return made.transpose(1, 2)


def mask(last_dimension_first: bool = False, dtype: torch.dtype = torch.bfloat16, keys: int = 32) -> torch.Tensor:
    """Return a mask (2, 4, 32, keys). With `last_dimension_first`, its last dimension does not have the stride 1."""
    if last_dimension_first:
        return torch.empty(2, 32, keys, 4, dtype=dtype, device="meta").permute(0, 3, 1, 2)
    return torch.empty(2, 4, 32, keys, dtype=dtype, device="meta")


def kept(kernels: Any, *tensors: torch.Tensor, **options: Any) -> int:
    """Return the bytes that attention keeps for the backward pass. Each storage is counted once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with kernels, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = functional.scaled_dot_product_attention(*tensors, **options)
    assert (out.shape, out.dtype) == (tensors[0].shape, tensors[0].dtype)
    return sum(storage.nbytes() for storage in storages.values())


def test_a_fused_kernel_keeps_its_inputs_its_output_and_one_number_per_query() -> None:
    expected = 2 * (4 * QUERIES + WEIGHTS) + 4 * QUERIES // 8
    assert kept(CardKernels(), heads(), heads(), heads(), attn_mask=mask(), dropout_p=0.1) == expected


def test_attention_without_a_fused_kernel_keeps_its_tensors_in_fp32() -> None:
    """The strides of T5's mask prevent fused kernels.

    Attention then keeps the inputs in fp32, the attention weights before and after dropout, and the mask of dropout.
    """
    strided = mask(last_dimension_first=True)
    inputs, weights = 3 * 4 * QUERIES, 4 * WEIGHTS
    assert kept(CardKernels(), heads(), heads(), heads(), attn_mask=strided) == inputs + weights
    with_dropout = inputs + 2 * weights + WEIGHTS
    assert kept(CardKernels(), heads(), heads(), heads(), attn_mask=strided, dropout_p=0.1) == with_dropout


@pytest.mark.parametrize(
    ("made", "options", "fused"),
    [
        ({"size": 8}, {}, True),
        ({"size": 12}, {}, False),  # 24 bytes
        ({"size": 12, "dtype": torch.float32}, {}, True),  # 48 bytes
        ({"size": 12}, {"attn_mask": None}, True),  # FlashAttention pads the heads
        ({"size": 12, "dtype": torch.float32}, {"attn_mask": None}, True),
        ({"size": 6, "dtype": torch.float32}, {"attn_mask": None}, False),  # FlashAttention takes no fp32
    ],
)
def test_the_size_of_a_head_determines_whether_a_fused_kernel_is_used(made: Any, options: Any, fused: bool) -> None:
    dtype = made.get("dtype", torch.bfloat16)
    options = {"attn_mask": mask(dtype=dtype)} | options
    found = kept(CardKernels(), heads(**made), heads(**made), heads(**made), **options)
    numbers = 2 * 4 * 32 * (4 * made["size"])  # queries, keys, values and output
    numbers += WEIGHTS if options["attn_mask"] is not None else 0
    assert (found == dtype.itemsize * numbers + 4 * QUERIES // 8) is fused


def test_fewer_key_heads_are_repeated_only_without_a_fused_kernel() -> None:
    few = 2 * QUERIES // 2
    expected = 2 * (2 * QUERIES + few) + 4 * QUERIES // 8
    assert kept(CardKernels(), heads(), heads(2), heads(2), enable_gqa=True) == expected
    wide = {"dtype": torch.float32}
    inputs, weights = 3 * 4 * QUERIES, 4 * WEIGHTS
    assert kept(CardKernels(), heads(**wide), heads(2, **wide), heads(2, **wide), enable_gqa=True) == inputs + weights


def test_a_kernel_keeps_the_converted_copy_of_a_mask_that_it_cannot_use() -> None:
    kernel = 2 * 4 * QUERIES + 4 * QUERIES // 8
    assert kept(CardKernels(), heads(), heads(), heads(), attn_mask=mask(dtype=torch.bool)) == kernel + 2 * WEIGHTS
    keys, values = heads()[:, :, :27], heads()[:, :, :27]
    # the length of the mask's rows must be a multiple of 8: 32 in place of 27
    assert kept(CardKernels(), heads(), keys, values, attn_mask=mask(keys=27)) == kernel + 2 * WEIGHTS


@pytest.mark.parametrize(("keys", "t5"), [(32, False), (27, False), (32, True)])
def test_a_trained_mask_gets_a_gradient(keys: int, t5: bool) -> None:
    bias = mask(t5, keys=keys).requires_grad_()
    with CardKernels():
        out = functional.scaled_dot_product_attention(
            heads(), heads()[:, :, :keys], heads()[:, :, :keys], attn_mask=bias, dropout_p=0.1
        )
    assert [value.shape for value in torch.autograd.grad(out.sum(), [bias])] == [bias.shape]


@pytest.mark.parametrize("kernels", [CardKernels, CpuKernels])
def test_the_heads_of_the_output_are_joined_without_a_copy(kernels: Any) -> None:
    with kernels():
        out = functional.scaled_dot_product_attention(heads(), heads(), heads(), attn_mask=mask())
    real = [torch.empty(2, 32, 4, 8).transpose(1, 2) for _ in range(3)]
    on_cpu = functional.scaled_dot_product_attention(*real)
    assert out.stride() == on_cpu.stride()
    assert out.transpose(1, 2).is_contiguous()


def _measurements() -> list[Any]:
    """Return the peaks of T5-3B and T5-11B measured on an H200. All but the two quickest are marked as `slow`."""
    quick = {("google-t5/t5-11b", 16), ("google-t5/t5-3b", 8)}
    rows = [row for row in json.loads(MEASURED.read_text())["records"] if row.get("peak")]
    return [
        pytest.param(
            row,
            id=f"{row['checkpoint']}-{row['micro_batch']}",
            marks=() if (row["checkpoint"], row["micro_batch"]) in quick else pytest.mark.slow,
        )
        for row in rows
    ]


@pytest.mark.parametrize("row", _measurements())
def test_predicted_peaks_are_close_to_the_peaks_measured_on_a_card(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.17 was used, in which the last dimension of T5's mask does not have the stride 1."""
    from transformers.integrations import sdpa_attention

    made = sdpa_attention.create_position_bias_mask

    def with_the_layout_of_the_bias(position_bias: torch.Tensor, *rest: Any) -> torch.Tensor:
        bias: torch.Tensor = made(position_bias, *rest)
        return bias if position_bias.stride(-1) == 1 else bias.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    monkeypatch.setattr(sdpa_attention, "create_position_bias_mask", with_the_layout_of_the_bias)
    config, own_head = shape_of(row["checkpoint"])
    step_spec = StepSpec(
        QLORA, row["micro_batch"], *LENGTHS, device="cuda", checkpointing=row["checkpointing"], capability=(9, 0)
    )
    predicted = simulate(config, row["checkpoint"], step_spec, own_head).peak
    assert predicted == pytest.approx(row["peak"], rel=0.015)


@pytest.mark.parametrize(
    ("operation", "temporary"), [("int8_scaled_mm", 6 * 32 * 128), ("int8_vectorwise_quant", 3 * 32 * 64)]
)
def test_products_with_8bit_weights_need_temporary_tensors(operation: str, temporary: int) -> None:
    """The product is computed in int32 and converted to fp16.

    Before the product, the absolute values in fp16 are compared with a threshold.
    """
    require_bitsandbytes(8)
    rows, weights = (torch.empty(count, 64, dtype=torch.int8, device="meta") for count in (32, 128))
    scales = [torch.empty(count, device="meta") for count in (32, 128)]
    given = {"int8_scaled_mm": (rows, weights, *scales), "int8_vectorwise_quant": (rows.to(torch.float16),)}
    tracker = Tracker("cuda", lambda tensor: "results")
    for tensor in given[operation]:
        tracker.count(tensor, "given")
    with tracker:
        getattr(torch.ops.bitsandbytes, operation).default(*given[operation])
    assert tracker.peak["workspace"] == temporary
