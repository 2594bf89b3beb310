"""Keep progress bars and warnings of libraries out of petransfer's output."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


def silence_libraries() -> None:
    """Turn off progress bars and unhelpful warnings of libraries. Errors are still shown."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # peft repeats this warning for each text that is generated with prompt tuning or prefix tuning
    warnings.filterwarnings("ignore", message="Position ids are not supported")
    # peft warns about norm layers, although it computes their adapters correctly
    warnings.filterwarnings("ignore", message="Unsupported layer type")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("accelerate", "bitsandbytes.autograd._functions"):  # the second warns at each 8-bit matrix product
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Turn off the progress bars of transformers inside the context."""
    import transformers

    enabled = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers.logging.enable_progress_bar()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Turn off the progress bars and warnings of transformers inside the context, such as tables of missing weights."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with without_progress_bars():
            yield
    finally:
        transformers.logging.set_verbosity(level)
