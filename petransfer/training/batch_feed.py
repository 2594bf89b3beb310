"""What the loop trains on, step by step: on a GPU a batch is cut and pinned while the one before it is worked on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

from accelerate import Accelerator

from petransfer.training.batches import Batch, BatchSource, Tensors

Ready = tuple[Batch, list[Tensors]]
Asked = tuple[int, int, int]


class BatchFeed:
    """The batches of `steps` steps with their micro-batches.

    ahead: whether a thread makes the next one meanwhile; it is the same batch, for it depends on its step alone.
    """

    def __init__(self, source: BatchSource, steps: int, accelerator: Accelerator) -> None:
        self._source, self._steps = source, steps
        self._share = accelerator.process_index, accelerator.num_processes
        self.ahead = self._pinned = accelerator.device.type == "cuda"
        self._thread: ThreadPoolExecutor | None = None
        self._next: tuple[Asked, Future[Ready]] | None = None

    def take(self, step: int, size: int, budget: int) -> Ready:
        """The batch of a step, cut as `Batch.micro_batches` does."""
        asked = (step, size, budget)
        made, self._next = self._next, None
        if made and made[0] != asked:  # after running out of memory; the source is asked for one batch at a time
            wait([made[1]])
            made = None
        ready = made[1].result() if made else self._make(*asked)
        if self.ahead and step + 1 < self._steps:
            self._thread = self._thread or ThreadPoolExecutor(1, "feed")
            following = (step + 1, size, budget)
            self._next = following, self._thread.submit(self._make, *following)
        return ready

    def wait(self) -> None:
        """Waits for the thread: what it uses, such as a tokenizer, may not be for two threads at once."""
        if self._next is not None:
            wait([self._next[1]])

    def close(self) -> None:
        """Ends the thread, if there is one; `take` begins another."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._next = None

    def _make(self, step: int, size: int, budget: int) -> Ready:
        batch = self._source.batch(step, *self._share)
        cuts = batch.micro_batches(size, budget)
        if self._pinned:
            cuts = [{name: tensor.pin_memory() for name, tensor in cut.items()} for cut in cuts]
        return batch, cuts
