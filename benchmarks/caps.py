"""Find the largest micro-batch that trains if a process may use only a part of a GPU's memory (the cap).

Each cap is measured in a new process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks.memory import Cell, in_a_new_process
from petransfer.errors import UserError
from petransfer.memory.cards import gigabytes, parse_card


def sizes(text: str | None) -> list[int]:
    """Convert a list of sizes such as `6GB,12GB` to bytes; [] if `text` is None.

    Raises:
        UserError: A part of the text is not a size, there is no GPU, or a size is not between the memory of a CUDA
            context and the memory of the GPU.
    """
    if text is None:
        return []
    import torch

    from petransfer.memory.planner import CONTEXT

    if not torch.cuda.is_available():
        raise UserError("--cap limits a process to a part of a GPU's memory, but there is no GPU here; leave it out")
    total = torch.cuda.get_device_properties(0).total_memory
    found = []
    for part in text.split(","):
        try:
            found.append(parse_card(part).bytes)
        except UserError:
            raise UserError(f"--cap {part}: write a size such as 12GB") from None
        if not CONTEXT < found[-1] <= total:
            has = f"{gigabytes(CONTEXT)} and the {gigabytes(total)} that this GPU has"
            raise UserError(f"--cap {part}: use a size between {has}")
    return found


def row(cell: Cell, cap: int) -> dict[str, Any]:
    """Measure the largest micro-batch, up to the cell's batch, that trains in `cap` bytes of the GPU's memory.

    Returns:
        `cap`, `checkpointing`, `micro_batch`, `foreseen` (the micro-batch that `fit` predicts), `device`, and `peak`:
        the largest number of allocated bytes, or None if not even one example can be trained.
    """
    found: dict[str, Any] = in_a_new_process("benchmarks.caps", str(cap), json.dumps(asdict(cell)))
    return found


def most(trains: Callable[[int], bool], limit: int) -> int:
    """Return the largest number up to `limit` with which training fits. 0 if none fits.

    If a number trains, all smaller numbers are assumed to train too.
    """
    good, bad = 0, limit + 1
    while bad - good > 1:
        at = (good + bad) // 2 if bad <= limit else min(max(1, 2 * good), limit)
        good, bad = (at, bad) if trains(at) else (good, at)
    return good


def _here(cell: Cell, cap: int) -> dict[str, Any]:
    """Measure a cell in this process. For the result, see `row`."""
    import torch

    from petransfer.memory.measured import Trial, load_for
    from petransfer.memory.planner import CONTEXT, plan
    from petransfer.models.architecture import configuration
    from petransfer.models.registry import checkpoint_spec
    from petransfer.training.out_of_memory import is_out_of_memory

    spec, step_spec = checkpoint_spec(cell.folder), cell.step_spec("cuda")
    config, own_head = configuration(spec)
    foreseen = plan(config, spec, step_spec, own_head, cap)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((cap - CONTEXT) / total)  # PyTorch does not count the CUDA context
    peaks: dict[int, int] = {}
    trial: list[Trial] = []

    def trains(count: int) -> bool:
        try:
            trial[:] = trial or [Trial(load_for(spec, foreseen.step_spec), foreseen.step_spec)]
            torch.cuda.reset_peak_memory_stats()
            for _ in range(2):
                trial[0].step(trial[0].batch(count))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            peaks[count] = torch.cuda.max_memory_allocated()
            return True
        if trial:
            trial[0].optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return False

    largest = most(trains, cell.batch)
    return {
        "cap": cap,
        "checkpointing": foreseen.step_spec.checkpointing,
        "micro_batch": largest,
        "foreseen": foreseen.step_spec.batch if foreseen.fits else 0,
        "peak": peaks.get(largest),
        "device": torch.cuda.get_device_name(),
    }


if __name__ == "__main__":
    print(json.dumps(_here(Cell(**json.loads(sys.argv[2])), int(sys.argv[1]))))
