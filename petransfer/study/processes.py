"""Which of the processes that a launcher started together this one is. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from petransfer.errors import UserError

# As `accelerate launch`, torchrun and the common MPIs say it; the first that is set counts.
_INDEX = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# Ways of Accelerate's in which no process holds all tensors.
_SPLIT = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}


@dataclass(frozen=True)
class Place:
    """Process `index` of `count`, counted from 0. Process 0 leads: it alone claims, writes and prints."""

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that speaks."""
        return self.index == 0

    @property
    def shared(self) -> bool:
        """Whether there are others."""
        return self.count > 1


def refuse_split_tensors() -> None:
    """Raises UserError where Accelerate's launcher was told to split the tensors themselves among the processes."""
    for name, said in _SPLIT.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1"):
            raise UserError(
                f"Accelerate is configured for {said}, which splits the tensors; petransfer shares out batches and "
                "keeps the model whole: launch with --multi_gpu, or see `petransfer fit` for what takes less memory"
            )


def this_place() -> Place:
    """Where the environment puts this process; alone where it says nothing."""
    index, count = (_first(names) for names in (_INDEX, _COUNT))
    return Place(index, count) if index is not None and count is not None and 0 <= index < count else Place()


def _first(names: tuple[str, ...]) -> int | None:
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdigit()), None)
