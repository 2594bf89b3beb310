"""Collect the prompts of concurrent requests and generate them in batches, one batch at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain

from petransfer.data.chat import quoted_note
from petransfer.errors import RunError, UserError, reason_of
from petransfer.evaluation.generation import Generation
from petransfer.evaluation.predictor import Predictor
from petransfer.evaluation.text_stream import OnText

_log = logging.getLogger(__name__)

# The largest number of prompts in a batch, and of waiting prompts. If more prompts arrive, they are refused.
BATCH, WAITING = 64, 4096


class Busy(Exception):
    """Raised when too many prompts are waiting."""


@dataclass(frozen=True)
class ServedModel:
    """A served adapter or model.

    predictor: generates from plain texts.
    activate: a function that makes this adapter active. It is called before each batch.
    chat: generates from JSON lists of messages. None for a model without chats.
    """

    predictor: Predictor
    activate: Callable[[], None] = field(default=lambda: None)
    chat: Predictor | None = None


@dataclass(frozen=True)
class Prompts:
    """The prompts of one request.

    model: name of the served model.
    max_tokens: largest number of generated tokens per prompt.
    is_chat: whether each prompt is a JSON list of messages, not a plain text.
    stop: texts before which a generated text ends.
    """

    model: str
    texts: Sequence[str]
    max_tokens: int
    is_chat: bool = False
    stop: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[str, int, bool]:
        """Model, token limit and chat format. All prompts in a batch have equal `kind`."""
        return self.model, self.max_tokens, self.is_chat


@dataclass(frozen=True)
class _Job:
    request: Prompts
    prompt: str
    result: asyncio.Future[Generation]
    on_text: Callable[[str], None] | None


class RequestBatches:
    """A queue of prompts. While `run` is running, texts are generated in batches.

    Args:
        models: the served models, by name.
        batch: largest number of prompts in a batch.
        waiting: largest number of waiting prompts.
    """

    def __init__(self, models: Mapping[str, ServedModel], batch: int = BATCH, waiting: int = WAITING) -> None:
        self.models, self.batch, self.waiting = models, batch, waiting
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")

    async def generate(self, request: Prompts, on_text: OnText | None = None) -> list[Generation]:
        """Put the prompts of a request into the queue, and return the generated texts in order.

        Args:
            on_text: called in the event loop after each token, with the prompt's index and the text up to this token.

        Raises:
            Busy: too many prompts are waiting.
            UserError: a prompt is refused, for example because it is too long.
            RunError: generation failed.
        """
        if len(self._jobs) + len(request.texts) > self.waiting:
            raise Busy
        loop = asyncio.get_running_loop()

        def listener(at: int) -> Callable[[str], None] | None:
            return None if on_text is None else lambda text: _call_soon(loop, on_text, at, text)

        jobs = [_Job(request, text, loop.create_future(), listener(at)) for at, text in enumerate(request.texts)]
        self._jobs.extend(jobs)
        self._arrived.set()
        found = await asyncio.gather(*(job.result for job in jobs), return_exceptions=True)
        for at, error in enumerate(found, start=1):
            if isinstance(error, UserError) and len(jobs) > 1:
                raise UserError(f"prompt {at} of {len(jobs):,}: {error}")
            if isinstance(error, BaseException):
                raise error
        return [_ended(one, request.stop) for one in found if isinstance(one, Generation)]

    async def run(self) -> None:
        """Generate texts for waiting prompts until this task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            while self._jobs:
                jobs = self._next()
                if not jobs:
                    continue
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
        """Wait for the current batch, and stop the thread that generates."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> list[_Job]:
        """Remove the next batch from the queue and return it."""
        # Prompts of clients that have disconnected have a finished result. They are dropped, so the batch can be empty.
        waiting = [job for job in self._jobs if not job.result.done()]
        # A batch has the first waiting prompt and others of its kind. All other prompts keep their order.
        chosen = [job for job in waiting if job.request.kind == waiting[0].request.kind][: self.batch]
        taken = set(map(id, chosen))
        self._jobs = deque(job for job in waiting if id(job) not in taken)
        return chosen

    def _answers(self, jobs: Sequence[_Job]) -> list[Generation | Exception]:
        """Return the generated text, or the error, for each prompt of a batch."""
        request = jobs[0].request
        model = self.models[request.model]
        predictor = model.chat if request.is_chat and model.chat else model.predictor
        listened = any(job.on_text for job in jobs)
        try:
            model.activate()
            prompts = [job.prompt for job in jobs]
            found = [*predictor.generations(prompts, request.max_tokens, _to_jobs(jobs) if listened else None)]
            quoted = list(filter(None, predictor.quoted_special_tokens(prompts)))
            for note in quoted_note(len(quoted), len(prompts), chain(*quoted)):
                _log.warning(note)
            return [*found]
        except Exception as error:
            # Each prompt is tried alone, because a single bad prompt makes the complete batch fail.
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._answers([job])]
            reason = reason_of(error, 160)
            return [error if isinstance(error, UserError) else RunError(f"generation failed: {reason}")]


def before_stop(text: str, stop: Iterable[str]) -> str | None:
    """Return the part of a text before its first stop text. None if it contains no stop text."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else None


def _ended(found: Generation, stop: tuple[str, ...]) -> Generation:
    text = before_stop(found.text, stop)
    return found if text is None else replace(found, text=text, ended=True)


def _to_jobs(jobs: Sequence[_Job]) -> OnText:
    def on_text(at: int, text: str) -> None:
        listener = jobs[at].on_text
        if listener is not None:
            listener(text)

    return on_text


def _call_soon(loop: asyncio.AbstractEventLoop, on_text: OnText, at: int, text: str) -> None:
    with contextlib.suppress(RuntimeError):  # the server has stopped
        loop.call_soon_threadsafe(on_text, at, text)
