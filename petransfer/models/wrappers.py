"""The model inside peft's wrapper, and a model's evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def base_model_of(model: Any) -> Any:
    """Return the transformers model inside peft's wrapper; a model that peft has not wrapped is returned itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Turn dropout off inside the context, and restore the model's mode afterwards, also after an error."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
