"""Log a line when an operation takes long."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

# If an operation takes more than this many seconds, a line about it is logged.
SILENCE = 5.0


@contextlib.contextmanager
def calling_if_slow(seconds: float, function: Callable[[], object]) -> Iterator[None]:
    """Call a function if the `with` block takes longer than `seconds`. The function runs in another thread."""
    late = threading.Timer(seconds, function)
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def naming_slow_work(work: str) -> contextlib.AbstractContextManager[None]:
    """Log a line with the text `work` if the `with` block takes longer than `SILENCE` seconds.

    >>> with naming_slow_work("reading the rows of data.csv"):
    ...     pass
    """
    return calling_if_slow(SILENCE, lambda: logger.info(f"{work} ..."))
