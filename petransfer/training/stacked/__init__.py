"""Train several adapters on one base as one stack. The rest of petransfer imports only from this module."""

from petransfer.training.stacked.layers import refuse_layer_drop, share
from petransfer.training.stacked.stacked_loop import StackedLoop, accumulate, joins, make_stack

__all__ = ["StackedLoop", "accumulate", "joins", "make_stack", "refuse_layer_drop", "share"]
