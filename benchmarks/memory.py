"""Compare the memory of a LoRA step by petransfer with that of the usual path.

The usual path is transformers with bitsandbytes and peft's `prepare_model_for_kbit_training`. Each side is measured in
a new process.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from petransfer.memory.step_memory import StepSpec

Side = Literal["petransfer", "usual"]
SIDES: tuple[Side, ...] = ("petransfer", "usual")
# NF4 with double quantisation (Dettmers et al. 2023): 4 bits per weight, a scale of 8 bits for each 64 weights, and a
# scale of 32 bits for each 256 of these scales.
BITS_A_WEIGHT = {4: 4 + 8 / 64 + 32 / (64 * 256), 8: 8.0, 16: 16.0, 32: 32.0}


@dataclass(frozen=True)
class Cell:
    """A training step to measure: LoRA of rank 16 on all linear layers, one forward and backward pass, and AdamW.

    Attributes:
        folder: The folder of the checkpoint.
        bits: Bits per weight of the frozen base.
        batch: Examples in the step.
        input_length, target_length: The lengths of each input and of each target in tokens.
        checkpointing: Whether gradient checkpointing is on.
    """

    folder: str
    bits: int
    batch: int
    input_length: int
    target_length: int
    checkpointing: bool

    def step_spec(self, device: str) -> StepSpec:
        """Return the step as a `StepSpec`, which is what the planner needs. device: `cpu` or `cuda`."""
        from petransfer.memory.step_memory import StepSpec
        from petransfer.recipe.run_spec import MethodSpec

        method = MethodSpec("lora", bits=self.bits, rank=16, alpha=32.0)  # type: ignore[arg-type]
        lengths = (self.input_length, self.target_length)
        return StepSpec(method, self.batch, *lengths, device, checkpointing=self.checkpointing)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Taken:
    """The measured memory of one side, in bytes.

    weights: the base's weights with their quantisation scales. peak: the maximum in a step. host: the maximum of the
    process's own memory, without the files that are mapped into it; None if the system does not report it. device: the
    name of the GPU or the kind of CPU.
    """

    side: Side
    weights: int
    peak: int
    host: int | None
    device: str


def measure(cell: Cell, side: Side) -> Taken:
    """Measure one side (`petransfer` or `usual`) in a new process, so that other measurements do not affect it."""
    return Taken(**_of(side, cell))


def loading(cell: Cell) -> int | None:
    """Return by how many bytes the process's own memory grows at most while petransfer loads the base.

    On a CPU, the weights themselves are part of this memory. None if the system does not report it.
    """
    found: int | None = _of("loading", cell)
    return found


def _of(what: str, cell: Cell) -> Any:
    return in_a_new_process("benchmarks.memory", what, json.dumps(asdict(cell)))


def in_a_new_process(module: str, what: str, content: str) -> Any:
    """Run `python -m module what content` and return the JSON in the last line that it prints.

    Raises:
        RuntimeError: the process fails.
    """
    command = [sys.executable, "-m", module, what, content]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed: {done.stderr.strip().splitlines()[-1][:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def theoretical(parameters: int, bits: int) -> int:
    """Return the bytes that a number of weights take if all of them have the given bits."""
    return int(parameters * BITS_A_WEIGHT[bits] / 8)


def _here(side: Side, cell: Cell) -> Taken:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with HostMemory() as host:
        weights, peak = (_ours if side == "petransfer" else _usual)(cell, device)
    return Taken(
        side, weights, peak, host.most, torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    )


def _load_here(cell: Cell) -> int | None:
    import torch

    from petransfer.models.loading import load_checkpoint
    from petransfer.models.registry import checkpoint_spec

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.zeros(1, device=device)
    before = own_memory()
    with HostMemory() as host:
        load_checkpoint(checkpoint_spec(cell.folder), cell.bits, device=device)  # type: ignore[arg-type]
    return None if host.most is None or before is None else host.most - before


def own_memory() -> int | None:
    """Return the bytes of this process's own memory, without the files that are mapped into it.

    None if the system does not report them.
    """
    status = Path("/proc/self/status")
    lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")] if status.exists() else []
    return int(lines[0].split()[1]) * 1024 if lines else None


class HostMemory:
    """A context manager that measures the process's own memory 50 times a second while the `with` block runs.

    most: the maximum in bytes; None if the system does not report it.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> HostMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while (now := own_memory()) is not None:
            self.most = max(self.most or 0, now)
            if self._end.wait(0.02):
                return


def _ours(cell: Cell, device: str) -> tuple[int, int]:
    from petransfer.memory.measured import measure as trained
    from petransfer.models.registry import checkpoint_spec

    taken = trained(checkpoint_spec(cell.folder), cell.step_spec(device))
    return sum(taken.weights.values()), taken.peak


def _usual(cell: Cell, device: str) -> tuple[int, int]:
    """Train by the usual path, as peft's documentation describes it. Return the bytes of the weights and the peak."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

    from petransfer.memory.measured import peak_of
    from petransfer.models.quantization import inventory

    config = AutoConfig.from_pretrained(cell.folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if cell.bits == 8
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    )
    model: Any = auto.from_pretrained(
        cell.folder, quantization_config=settings, device_map={"": device}, dtype=torch.bfloat16
    )
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=cell.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    weights = sum(inventory(model).bytes.values())
    task = "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"
    model = get_peft_model(model, LoraConfig(task_type=task, r=16, lora_alpha=32, target_modules="all-linear"))
    model.train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-5, fused=True)
    source = torch.ones(cell.batch, cell.input_length, dtype=torch.long, device=device)
    target = torch.ones(cell.batch, cell.target_length, dtype=torch.long, device=device)
    mask = torch.ones_like(source)
    mask[0, -1] = 0

    def step() -> None:
        model(input_ids=source, attention_mask=mask, labels=target).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    trained = [value for value in model.parameters() if value.requires_grad]
    fixed = weights + 12 * sum(value.numel() for value in trained)
    return weights, peak_of(step, fixed, torch.device(device))


if __name__ == "__main__":
    _what, _cell = sys.argv[1], Cell(**json.loads(sys.argv[2]))
    print(json.dumps(_load_here(_cell) if _what == "loading" else asdict(_here(_what, _cell))))  # type: ignore[arg-type]
