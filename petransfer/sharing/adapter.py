"""The public `Adapter`: load a trained adapter, predict, evaluate, push, merge and verify."""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from petransfer.data.chat import quoted_note
from petransfer.errors import UserError
from petransfer.evaluation.cut_texts import CutTexts
from petransfer.evaluation.predictor import Predictor
from petransfer.models.thread_turns import torch_state_lock
from petransfer.python_arguments import (
    checked_device,
    checked_names,
    checked_path,
    checked_texts,
    naming_arguments,
    text_pairs,
)
from petransfer.recipe.run_spec import Bits
from petransfer.sharing import hub
from petransfer.sharing.base import LoadOptions
from petransfer.sharing.bundle import checked_bundle
from petransfer.sharing.card_metadata import checked_card_options
from petransfer.sharing.combined_adapters import load_adapters
from petransfer.sharing.merge import Merged, merge
from petransfer.sharing.pack import contents
from petransfer.sharing.scoring import EvaluationRequest, Scores, side_by_side
from petransfer.sharing.sources import ModelSource, opened_source
from petransfer.sharing.task_data import Pairs, named_columns
from petransfer.sharing.verify import Check, verify
from petransfer.sharing.whole_models import whole_predictor
from petransfer.user_paths import expanded

if TYPE_CHECKING:
    from pandas import DataFrame

logger = logging.getLogger(__name__)


class Adapter:
    """A trained adapter on its base model. Open it with `Adapter.load`.

    `load` also opens fully fine-tuned models, merged models and base checkpoints. For these, `push`, `merge` and
    `verify` raise UserError.

    Example:
        >>> import petransfer
        >>> base = petransfer.Adapter.load("nano/english", device="cpu")
        >>> base.kind
        'checkpoint'
        >>> len(base.predict(["to walk", "to run"], max_new_tokens=4))
        2
        >>> base.evaluate([("to walk", "gehen"), ("to run", "rennen")]).exact_match
        0.0
    """

    def __init__(self, source: ModelSource, load_options: LoadOptions) -> None:
        self._source, self._load_options = source, load_options

    @classmethod
    @naming_arguments()
    def load(
        cls,
        place: str | Path,
        *,
        run: str | None = None,
        checkpoint: str | Path | None = None,
        revision: str | None = None,
        data_dir: str | Path | None = None,
        device: str | None = None,
        any_base: bool = False,
    ) -> Adapter:
        """Open an adapter and check its files. The base model is loaded later, at its first use.

        Args:
            place: the folder of a run, study, adapter or model; a bundle (`.petransfer.zip`); `nano/<arm>`; or a hub id
                `owner/name[@revision]`. Adapters of plain peft can be opened too.
            run: first characters of a run's id. Needed for a study with several finished runs.
            checkpoint: hub id or folder of the base model. Default: the base that the adapter's files name.
            revision: commit or branch of the base on the hub. Default: the commit used in training.
            data_dir: folder with data files, for `evaluate` and `verify`.
            device: a device such as `cpu` or `cuda:1`. Default: the GPU if there is one.
            any_base: accept a base whose weights, configuration or tokenizer differ from those used in training.

        Raises:
            UserError: there is no adapter at `place`, or a file is missing, damaged, or could run code.
        """
        place_on = None if data_dir is None else expanded(checked_path(data_dir, "data_dir"))
        base = None if checkpoint is None else checked_path(checkpoint, "checkpoint")
        load_options = LoadOptions(base, revision, place_on, checked_device(device), any_base)
        files = contextlib.ExitStack()
        try:
            source = files.enter_context(opened_source(checked_path(place, "place"), run))
            if source.kind == "adapter":
                checked_bundle(source.adapter())
        except BaseException:
            files.close()
            raise
        adapter = cls(source, load_options)
        weakref.finalize(adapter, files.close)  # removes the temporary folder of files from a zip or the hub
        return adapter

    def __repr__(self) -> str:
        return f"<petransfer.Adapter {self.label} ({self.kind})>"

    @property
    def label(self) -> str:
        """Folder, file name or hub id of the adapter."""
        return self._source.label

    @property
    def kind(self) -> str:
        """`adapter`, `model` (fully fine-tuned or merged by petransfer) or `checkpoint` (any other model)."""
        return self._source.kind

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The loaded model with its tokenizer, prefix and template.

        Raises:
            UserError: the base cannot be found, does not fit into memory, or differs from the base used in training.
        """
        if self._source.kind != "adapter":
            return whole_predictor(self._source, self._load_options)
        ((_, _, predictor),) = load_adapters([self._source.adapter()], self._load_options).each()
        return predictor

    @naming_arguments()
    def predict(self, texts: Iterable[str], max_new_tokens: int = 512, *, chat: bool = False) -> list[str]:
        """Generate a text greedily for each input.

        Args:
            texts: inputs without the task's prefix, which is added automatically, as is the line break after the input
                of a decoder-only model. For an adapter trained with a template, each input is a JSON object with the
                template's columns as keys. An adapter or a model that petransfer did not train gets each input exactly
                as it is given.
            max_new_tokens: largest number of tokens of a generated text. A warning is logged if texts are cut at it.
            chat: write each input with the model's chat template, even if the model was not trained on chats.

        Returns:
            One text per input, in order.

        Raises:
            UserError: `texts` is one string, an input is too long for the model, the base cannot be loaded, or `chat`
                is given and there is no chat template.
        """
        given = checked_texts(texts)
        predictor = self.predictor.for_chats(by_default=True) if chat else self.predictor
        if predictor is None:
            raise UserError(f"the tokenizer of {self.label} has no chat template; leave chat=True out")
        with torch_state_lock():
            found = predictor.generations(given, max_new_tokens)
        cut = CutTexts(max_new_tokens)
        cut.add(found)
        quoted = list(filter(None, predictor.quoted_special_tokens(given)))
        for note in (*quoted_note(len(quoted), len(given), chain(*quoted)), *cut.notes("max_new_tokens=")):
            logger.warning(note)
        return [one.text for one in found]

    @naming_arguments()
    def evaluate(
        self,
        data: str | Path | Pairs | Sequence[Mapping[str, str]] | DataFrame | None = None,
        *,
        part: str | None = None,
        by_generation: bool = False,
        metrics: Sequence[str] = (),
        input_column: str | None = None,
        target_column: str | None = None,
        template: str | None = None,
    ) -> Scores:
        """Compute exact match and other metrics on the adapter's own task or on other data.

        Args:
            data: a file, a dataset, pairs of input and target, rows with the keys `input` and `target`, a DataFrame
                with these columns, or a benchmark's `task/split` such as `scan/add_jump`. The inputs of pairs and rows
                have the form that `predict` takes. None means the adapter's own task.
            part: `dev` or `test`. Default: all rows of a file, the split `test` of a dataset, else `test`. Pairs have
                no parts; leave it out for them.
            by_generation: score generated texts. Default: score the predictions of one forward pass per example.
            metrics: names of additional metrics, such as `rouge`.
            input_column, target_column: names of the columns of a file or dataset. Default: as in the training.
            template: text with columns in braces that makes each input of a file or dataset, such as
                `"summarize: {document}"`. Default: as in the training.

        Returns:
            The scores. With `data`, exact match is also given separately for examples used in training and for all
            others.

        Raises:
            UserError: the data or the base is not available, the tokenizer cannot represent a target, `part` is
                unknown or given with pairs, or columns are named without a file or dataset.
        """
        columns = named_columns(input_column, target_column, template)
        asked = data if data is None else str(data) if isinstance(data, str | Path) else text_pairs(data)
        request = EvaluationRequest(
            asked, part, by_generation, metrics=checked_names(metrics, "metrics"), columns=columns
        )
        with torch_state_lock():
            (scores,) = side_by_side([self._source], self._load_options, request)
        return scores

    @naming_arguments()
    def push(
        self,
        repo: str,
        *,
        public: bool = False,
        licence: str | None = None,
        language: Sequence[str] = (),
        tags: Sequence[str] = (),
        message: str = "Add an adapter by petransfer",
    ) -> hub.PushResult:
        """Upload the adapter with its card, provenance and results to the Hugging Face Hub, in one commit.

        Args:
            repo: `user/name`.
            public: make a new repository public. Default: private.
            licence: the adapter's licence. Default: derived from the licences of the base and the data.
            language: languages of the data, such as `en`.
            tags: additional tags for the card.
            message: the commit message.

        Raises:
            UserError: the hub cannot be reached or refuses the upload, `licence` or `language` is not valid, or a file
                contains an access token or a path of this machine.
        """
        card_options = checked_card_options(licence, checked_names(language, "language"), checked_names(tags, "tags"))
        files = contents(self._source.adapter(), card_options)
        return hub.push(repo, files, public, message)

    @naming_arguments()
    def merge(self, folder: str | Path, *, bits: Bits | None = None, separate_head: bool = False) -> Merged:
        """Merge the adapter into its base's weights and save the model to a new folder.

        Args:
            folder: the new folder, for plain transformers and for `Adapter.load`.
            bits: bits of the saved weights, 32 or 16. Default: 32 after training with a 32-bit base, else 16.
            separate_head: save T5's output head as a separate tensor, which llama.cpp needs.

        Returns:
            The change of the logits by merging, and the saved model's exact match on dev.

        Raises:
            UserError: the folder exists, or the method cannot be merged.
            RunError: merging or saving changed the logits too much. Nothing is saved.
        """
        return merge(self._source.adapter(), expanded(folder), self._load_options, bits, separate_head)

    @naming_arguments()
    def verify(self, *, evaluate: bool = True, plain: bool = False, bits: Bits | None = None) -> list[Check]:
        """Check the files, base, tokenizer, bits and scores against petransfer.json.

        Args:
            evaluate: evaluate again to check the scores. This needs the data and takes most of the time.
            plain: also compare the generated texts with those of plain transformers and peft.
            bits: bits of the loaded base. Default: as in training.

        Returns:
            One entry per check: `what` was checked, whether it `passed`, and the result as one `line` of text.

        Raises:
            UserError: petransfer did not make the adapter, or its base or data are not available.
        """
        return list(verify(self._source.adapter(), self._load_options, bits, evaluate, plain))
