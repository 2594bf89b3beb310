"""Refuse runs whose model does not support chats or packed examples, before anything is written."""

from __future__ import annotations

from petransfer.models.hub_access import refuse_unreachable
from petransfer.study.study import StudyGrid


def refuse_unusable_models(grid: StudyGrid) -> None:
    """Refuse unfinished runs on chats or with packing, if their model has no chat template or does not support packing.

    Only configurations and tokenizers are loaded.

    Raises:
        UserError: A model has no chat template or does not support packing, or the hub cannot be reached.
    """
    specs = [cell.spec for cell in grid.waiting]
    on_chats = [spec for spec in specs if spec.task.options.get("chat") == "template"]
    packed = [spec for spec in specs if spec.train.packing]
    if not on_chats and not packed:
        return
    from petransfer.data.chat import chat_layout  # these imports load transformers and torch, which is slow
    from petransfer.models.architecture import configuration
    from petransfer.models.loading import tokenizer_and_layout
    from petransfer.training.packing import refuse_packing

    refuse_unreachable(spec.checkpoint for spec in (*on_chats, *packed))
    for spec in packed:
        refuse_packing(spec, configuration(spec.checkpoint)[0])
    for checkpoint in dict.fromkeys(spec.checkpoint for spec in on_chats):
        config, _ = configuration(checkpoint)
        chat_layout(*tokenizer_and_layout(checkpoint, config), "template")
