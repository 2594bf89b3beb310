"""Refuse runs whose model or tokenizer does not support the data, before anything is written."""

from __future__ import annotations

from dataclasses import replace

from petransfer.models.hub_access import refuse_unreachable
from petransfer.models.registry import is_embedded
from petransfer.study.study import StudyGrid
from petransfer.user_paths import expanded


def refuse_unusable_models(grid: StudyGrid) -> None:
    """Refuse runs on chats without a chat template, and runs with unsupported packing.

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


def refuse_unusable_files(grid: StudyGrid, scored: tuple[str, ...] = ("dev", "test")) -> None:
    """Refuse unfinished runs with unusable rows or a damaged checkpoint.

    Raises:
        UserError: Rows cannot be used and the recipe does not skip them, or a file of the checkpoint is wrong.
    """
    specs = [cell.spec for cell in grid.waiting]
    # the benchmarks are known to fit the checkpoints that ship with petransfer
    specs = [spec for spec in specs if spec.task.name == "lines" or not is_embedded(spec.checkpoint.name)]
    if not specs:
        return
    from petransfer.models.complete_weights import refuse_damaged_files  # these imports load torch, which is slow
    from petransfer.study.encoded_data import encoded_task

    for checkpoint in dict.fromkeys(spec.checkpoint for spec in specs):
        refuse_damaged_files(checkpoint)
    data_dir = expanded(grid.recipe.data_dir).resolve() if grid.recipe.data_dir else None
    checked: set[object] = set()
    for spec in specs:
        method, train = spec.method, spec.train
        sizes = (method.virtual_tokens, method.match_parameters)
        about = (method.name, *sizes, method.embeddings, train.packing, train.early_stopping)
        key = (replace(spec.checkpoint, reinit="none"), spec.task, about)
        if key not in checked:
            checked.add(key)
            encoded_task(spec, data_dir, scored)
