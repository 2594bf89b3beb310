"""Refuse runs on chats whose model takes none, before anything is written."""

from __future__ import annotations

from petransfer.models.hub_access import refuse_unreachable
from petransfer.study.study import StudyGrid


def refuse_chats(grid: StudyGrid) -> None:
    """Refuse waiting runs on chats whose tokenizer has no chat template. Only tokenizers are loaded.

    Raises:
        UserError: The model is an encoder-decoder, its tokenizer has no chat template, or the hub cannot be reached.
    """
    specs = [cell.spec for cell in grid.waiting if cell.spec.task.options.get("chat") == "template"]
    if not specs:
        return
    from petransfer.data.chat import chat_layout  # imports transformers
    from petransfer.models.architecture import configuration
    from petransfer.models.loading import tokenizer_and_layout

    refuse_unreachable(spec.checkpoint for spec in specs)
    for checkpoint in dict.fromkeys(spec.checkpoint for spec in specs):
        config, _ = configuration(checkpoint)
        chat_layout(*tokenizer_and_layout(checkpoint, config), "template")
