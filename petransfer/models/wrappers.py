"""Get the model inside peft's wrapper, and switch a model to evaluation mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def base_model_of(model: Any) -> Any:
    """Return the transformers model inside peft's wrapper; a model that peft has not wrapped is returned itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Turn dropout off inside the context. Afterwards, also after an error, restore the mode of the model."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
