"""Get the model inside peft's wrapper, and switch a model to evaluation mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def base_model_of(model: Any) -> Any:
    """Return the transformers model, without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Turn dropout off inside the context. The model's mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
