"""Runs that are ready to be trained, and the data and the model that several runs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from petransfer.data import SplitData
from petransfer.data.encoded_examples import EncodedSplit, LazilyEncoded
from petransfer.data.encoding import Encoded
from petransfer.methods import computes_in_bf16, weights_bits
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.encoded_data import encode_data
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.training.distributed import Process
from petransfer.training.stacked import shared_copy
from petransfer.training.trackers import RunTrackers


@dataclass
class LoadedBase:
    """The data and the loaded checkpoint that the runs of a stack share.

    Attributes:
        started: The time when loading began, in seconds of `time.monotonic`.
        spec: The run for which the data was encoded.
        cost: The measured cost of quantisation. None before the measurement.
    """

    settings: Settings
    process: Process
    data: SplitData
    loaded: Loaded
    started: float
    spec: RunSpec
    encoded: EncodedSplit
    cost: dict[str, Any] | None = None
    _anew: dict[torch.device, PreTrainedModel] = field(default_factory=dict)

    def load_anew(self, device: torch.device) -> PreTrainedModel:
        """Return a copy of the model with weights read from the disk.

        The weights are read once per device. Every call returns new modules that share the weights.
        """
        if device not in self._anew:
            method = self.spec.method
            self._anew[device] = load_checkpoint(
                self.spec.checkpoint,
                weights_bits(method),
                seed=self.spec.seed,
                device=device,
                keep_wide=method.keep_wide,
            ).model
        model: PreTrainedModel = shared_copy(self._anew[device])
        return model

    def encoded_for(self, spec: RunSpec) -> EncodedSplit:
        """Return the encoded examples of one run."""
        # The examples are encoded again for another prefix. Training examples that are encoded on demand also depend on
        # the training settings and the seed, because other rows are then used.
        lazy = isinstance(self.encoded.parts["train"], LazilyEncoded)
        mine, other = ((each.task.prefix, (each.train, each.seed) if lazy else None) for each in (self.spec, spec))
        return self.encoded if mine == other else encode_data(spec, self.data, self.settings.scored_parts)[0]


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to be trained.

    Attributes:
        parts: The token ids of `train`, `dev` and, if evaluated, `test`.
        model: The model with the method applied.
        empty_copy: With FSDP, a copy of the model on the meta device. Otherwise None.
    """

    spec: RunSpec
    folder: RunFolder
    loaded: Loaded
    parts: dict[str, Sequence[Encoded]]
    model: torch.nn.Module
    trackers: RunTrackers
    empty_copy: torch.nn.Module | None = None

    @property
    def autocast(self) -> bool:
        """Whether the training loop uses autocast to bf16."""
        # with FSDP, the model itself sets the dtype of the computation
        return self.empty_copy is None and computes_in_bf16(self.spec.method)
