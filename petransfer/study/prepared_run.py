"""A run that is ready to be trained, and the data and the model that it shares with other runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from petransfer.data import SplitData
from petransfer.data.encoded_examples import EncodedSplit, LazilyEncoded
from petransfer.data.encoding import Encoded
from petransfer.methods import computes_narrower, weights_bits
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.encoded_data import encode_data
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.training.distributed import Process
from petransfer.training.stacked import share
from petransfer.training.trackers import RunTrackers


@dataclass
class Base:
    """The data and model that runs on one frozen base share.

    cost: the measured cost of quantisation; None until it is measured.
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
        """Load the base from disk again. The runs of a stack share its tensors, each with its own modules."""
        if device not in self._anew:
            method = self.spec.method
            self._anew[device] = load_checkpoint(
                self.spec.checkpoint,
                weights_bits(method),
                seed=self.spec.seed,
                device=device,
                keep_wide=method.keep_wide,
            ).model
        model: PreTrainedModel = share(self._anew[device])
        return model

    def encoded_for(self, spec: RunSpec) -> EncodedSplit:
        """Return the token ids of the examples for one run; encode them again if its prefix or its steps differ."""
        lazy = isinstance(self.encoded.parts["train"], LazilyEncoded)
        mine, other = ((each.task.prefix, (each.train, each.seed) if lazy else None) for each in (self.spec, spec))
        return self.encoded if mine == other else encode_data(spec, self.data, self.settings.scored_parts)[0]


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to be trained. hollow: the model without values, if processes hold parts of its tensors."""

    spec: RunSpec
    folder: RunFolder
    loaded: Loaded
    parts: dict[str, Sequence[Encoded]]
    model: torch.nn.Module
    trackers: RunTrackers
    hollow: torch.nn.Module | None = None

    @property
    def autocast(self) -> bool:
        """Whether the loop computes the forward pass in bf16; a model in parts has its own computing precision."""
        return self.hollow is None and computes_narrower(self.spec.method)
