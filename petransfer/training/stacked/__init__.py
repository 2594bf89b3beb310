"""Train several adapters on one base as one stack. The rest of petransfer imports only from this module."""

from petransfer.training.stacked.layers import refuse_layer_drop, shared_copy
from petransfer.training.stacked.stacked_loop import StackedLoop, accumulate, make_stack, shares_passes

__all__ = ["StackedLoop", "accumulate", "make_stack", "refuse_layer_drop", "shared_copy", "shares_passes"]
