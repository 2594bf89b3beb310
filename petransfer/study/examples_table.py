"""Write examples.parquet, the outcomes of a run's test examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyarrow
import pyarrow.parquet

from petransfer.atomic_files import replacing

if TYPE_CHECKING:  # bundles are made without importing torch
    from petransfer.data import Example
    from petransfer.evaluation.exact_match import Evaluation

_TEXTS = ("prediction", "input", "target")
# Encodings of columns in which hardly any value occurs twice. They need half of the space of parquet's defaults.
_ENCODINGS = {"index": "DELTA_BINARY_PACKED", "margin": "BYTE_STREAM_SPLIT", "log_prob": "BYTE_STREAM_SPLIT"}


def write_examples(
    evaluation: Evaluation,
    examples: Sequence[Example] | None,
    answers: Sequence[str] | None,
    path: Path,
    of_labels: bool = False,
) -> None:
    """Write examples.parquet with one row per example.

    Args:
        examples: the examples with their texts. None: no texts are written.
        answers: predicted label or text for each example. None if no metric was computed.
        of_labels: whether targets are labels. Then the target of every example is written, else only the targets of
            examples with a generated text.
    """
    names = ["index", "category", "correct", "margin", "log_prob", "tokens", "tokens_correct"]
    names += ["prediction"] if examples is not None else []
    names += ["semantic_correct"] if evaluation.semantic else []
    columns = {name: [getattr(row, name) for row in evaluation.scored] for name in names}
    for name in ("input", "target") if examples is not None else ():
        texts = zip(evaluation.scored, examples or (), strict=True)
        whole = of_labels and name == "target"
        columns[name] = [
            getattr(example, name) if whole or row.prediction is not None else None for row, example in texts
        ]
    text = pyarrow.string()
    arrays = {name: pyarrow.array(values, text if name in _TEXTS else None) for name, values in columns.items()}
    table = pyarrow.table(arrays | ({} if answers is None else {"answer": pyarrow.array(answers, text)}))
    with replacing(path) as partial:
        write_table(table, partial)


def write_table(table: pyarrow.Table, target: Path | BinaryIO) -> None:
    """Write a table of examples as parquet, in little space.

    Args:
        target: a path, or a binary file that is open for writing.
    """
    encodings = {name: encoding for name, encoding in _ENCODINGS.items() if name in table.column_names}
    others = [name for name in table.column_names if name not in encodings]
    pyarrow.parquet.write_table(
        table, target, compression="zstd", use_dictionary=others, column_encoding=encodings or None
    )
