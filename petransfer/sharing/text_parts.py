"""Yield the texts of a request in parts, during generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from petransfer.evaluation.generation import Generation
from petransfer.sharing.request_batches import Prompts, RequestBatches, before_stop

Part = tuple[int, str, list[Generation] | None]
"""The index of a prompt, the next part of its text, and in the last part the complete texts of all prompts."""


async def generated_parts(batches: RequestBatches, prompts: Prompts) -> AsyncGenerator[Part, None]:
    """Generate a text for each prompt, and yield the texts in parts.

    The joined parts of a prompt are the complete text. The last part also has the list of all complete texts.

    Raises:
        Busy: too many prompts are waiting.
        UserError: a prompt is refused, for example because it is too long.
        RunError: generation failed.
    """
    queue: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()
    task = asyncio.create_task(batches.generate(prompts, lambda at, text: queue.put_nowait((at, text))))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    sent = [""] * len(prompts.texts)
    try:
        while (event := await queue.get()) is not None:
            at, text = event
            if (more := _new(text, sent[at], prompts.stop)) is not None:
                sent[at] += more
                yield at, more, None
        found = await task
        for at, one in enumerate(found):
            if one.text != sent[at] and one.text.startswith(sent[at]):
                yield at, one.text.removeprefix(sent[at]), None
        yield 0, "", found
    finally:
        task.cancel()


def _new(text: str, sent: str, stop: Sequence[str] = ()) -> str | None:
    """Return the next part of a text, after the part `sent`. None if there is nothing to send yet."""
    certain = before_stop(text, stop)
    if certain is None:
        # The next token can change spaces at the end, and characters whose bytes are not complete.
        certain = _without_start_of(stop, text.rstrip("\ufffd").rstrip())
    return certain.removeprefix(sent) if certain.startswith(sent) and certain != sent else None


def _without_start_of(stop: Sequence[str], text: str) -> str:
    """Return a text without an end that can be the beginning of a stop text."""
    held = (count for one in stop for count in range(len(one) - 1, 0, -1) if text.endswith(one[:count]))
    return text[: len(text) - max(held, default=0)]
