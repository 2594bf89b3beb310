"""Prepare the batches of a run. On a GPU, a thread prepares the next batch during the current step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from petransfer.training.batches import Batch, BatchSource, Tensors
from petransfer.training.distributed import Process

PreparedBatch = tuple[Batch, list[Tensors]]
Request = tuple[int, int, int]


class BatchFeed:
    """Gives the training loop the batch of each step, cut into micro-batches.

    steps: number of steps of the run.
    ahead: whether a thread prepares the next batch during a step.
    change: function that is applied to every micro-batch, such as padding. None: no change.
    """

    def __init__(self, source: BatchSource, steps: int, process: Process) -> None:
        self._source, self._steps = source, steps
        self._share = process.index, process.count
        # Preparing a batch early does not change it, because a batch depends only on its step.
        self.ahead = self._pinned = process.device.type == "cuda"
        self.change: Callable[[Tensors], Tensors] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._next: tuple[Request, Future[PreparedBatch]] | None = None

    def take(self, step: int, size: int, budget: int) -> PreparedBatch:
        """Return the batch of a step, and its micro-batches of at most `size` examples and `budget` tokens."""
        request = (step, size, budget)
        prepared, self._next = self._next, None
        # After running out of memory the micro-batches are smaller, so the batch that the thread prepared cannot be
        # used. Wait until the thread has finished, because the source can make only one batch at a time.
        if prepared and prepared[0] != request:
            wait([prepared[1]])
            prepared = None
        ready = prepared[1].result() if prepared else self._make(*request)
        if self.ahead and step + 1 < self._steps:
            self._thread = self._thread or ThreadPoolExecutor(1, "feed")
            following = (step + 1, size, budget)
            self._next = following, self._thread.submit(self._make, *following)
        return ready

    def wait(self) -> None:
        """Wait until the thread is idle. Call this before you use an object of the thread, such as a tokenizer."""
        if self._next is not None:
            wait([self._next[1]])

    def close(self) -> None:
        """End the thread if there is one. The next call of `take` starts a new thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._next = None

    def _make(self, step: int, size: int, budget: int) -> PreparedBatch:
        batch = self._source.batch(step, *self._share)
        cuts = batch.micro_batches(size, budget)
        if self.change is not None:
            cuts = [self.change(cut) for cut in cuts]
        if self._pinned:
            cuts = [{name: tensor.pin_memory() for name, tensor in cut.items()} for cut in cuts]
        return batch, cuts
