"""Collect the prompts of concurrent requests and generate them in batches, one batch at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from petransfer.errors import RunError, UserError
from petransfer.evaluation.generation import Generation
from petransfer.evaluation.predictor import Predictor

# The largest number of prompts in a batch, and of waiting prompts; further ones are refused.
BATCH, WAITING = 64, 4096


class Busy(Exception):
    """Raised when too many prompts are waiting."""


@dataclass(frozen=True)
class Model:
    """A served adapter or model. activate: called before the predictor is used."""

    predictor: Predictor
    activate: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class _Job:
    model: str
    prompt: str
    max_tokens: int
    result: asyncio.Future[Generation]


class RequestBatches:
    """Generate texts for one prompt after another; waiting prompts of the same kind are generated together.

    Args:
        models: the served models, by name.
        batch: the largest number of prompts in a batch.
        waiting: the largest number of waiting prompts.
    """

    def __init__(self, models: Mapping[str, Model], batch: int = BATCH, waiting: int = WAITING) -> None:
        self.models, self.batch, self.waiting = models, batch, waiting
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    async def generate(self, model: str, prompts: Sequence[str], max_tokens: int) -> list[Generation]:
        """Wait for the generated texts of the given prompts.

        Raises:
            Busy: too many prompts are waiting.
            UserError: a prompt is refused.
            RunError: generation failed.
        """
        if len(self._jobs) + len(prompts) > self.waiting:
            raise Busy
        loop = asyncio.get_running_loop()
        jobs = [_Job(model, prompt, max_tokens, loop.create_future()) for prompt in prompts]
        self._jobs.extend(jobs)
        self._arrived.set()
        found = await asyncio.gather(*(job.result for job in jobs), return_exceptions=True)
        error = next((one for one in found if isinstance(one, BaseException)), None)
        if error is not None:
            raise error
        return [one for one in found if isinstance(one, Generation)]

    async def run(self) -> None:
        """Generate until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            while self._jobs:
                jobs = self._next()
                found = await loop.run_in_executor(self._thread, self._answers, jobs)
                for job, one in zip(jobs, found, strict=True):
                    if job.result.done():  # the client has disconnected
                        continue
                    if isinstance(one, Generation):
                        job.result.set_result(one)
                    else:
                        job.result.set_exception(one)
            self._arrived.clear()

    def close(self) -> None:
        """Stop after the current batch."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> list[_Job]:
        """Take the first waiting prompt, and others of the same model and limit; the rest keep their order."""
        first = self._jobs[0]
        chosen: list[_Job] = []
        left: deque[_Job] = deque()
        for job in self._jobs:
            same = (job.model, job.max_tokens) == (first.model, first.max_tokens)
            (chosen if same and len(chosen) < self.batch else left).append(job)
        self._jobs = left
        return chosen

    def _answers(self, jobs: Sequence[_Job]) -> list[Generation | Exception]:
        """Generate for a batch. If it fails, each prompt is tried alone, so that one cannot make the others fail."""
        model = self.models[jobs[0].model]
        try:
            model.activate()
            return [*model.predictor.generations([job.prompt for job in jobs], jobs[0].max_tokens)]
        except Exception as error:
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._answers([job])]
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            return [error if isinstance(error, UserError) else RunError(f"generation failed: {reason}")]
