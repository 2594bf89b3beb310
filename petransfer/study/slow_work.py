"""Say what a command does while it prints nothing else."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)

# Seconds of silence after which a user begins to wonder.
SILENCE = 5.0


@contextlib.contextmanager
def naming_slow_work(work: str) -> Iterator[None]:
    """Log what is being done if the `with` block takes longer than `SILENCE` seconds.

    >>> with naming_slow_work("reading the rows of data.csv"):
    ...     pass
    """
    late = threading.Timer(SILENCE, logger.info, [f"{work} ..."])
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()
