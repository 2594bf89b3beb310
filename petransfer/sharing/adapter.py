"""The public `Adapter`: load a trained adapter, predict, evaluate, push, merge and verify."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

from petransfer.errors import UserError
from petransfer.evaluation.predictor import Predictor
from petransfer.recipe.run_spec import Bits
from petransfer.sharing import hub
from petransfer.sharing.base import Where
from petransfer.sharing.bundle import checked
from petransfer.sharing.card_metadata import Wishes
from petransfer.sharing.combined_adapters import put_together
from petransfer.sharing.merge import Merged, merge
from petransfer.sharing.pack import contents
from petransfer.sharing.scoring import Request, Scores, side_by_side
from petransfer.sharing.sources import Source, opened_source
from petransfer.sharing.task_data import Pairs
from petransfer.sharing.verify import Check, verify
from petransfer.sharing.whole_models import whole_predictor


class Adapter:
    """A trained adapter on its base model. Open it with `Adapter.load`.

    Fully fine-tuned models, merged models and base checkpoints can be loaded too. `predict` and `evaluate` work with
    them, but `push`, `merge` and `verify` raise UserError, because these three need an adapter.

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

    def __init__(self, source: Source, where: Where) -> None:
        self._source, self._where = source, where

    @classmethod
    def load(
        cls,
        place: str | Path,
        *,
        run: str | None = None,
        checkpoint: str | None = None,
        revision: str | None = None,
        data_dir: str | Path | None = None,
        device: str | None = None,
        any_base: bool = False,
    ) -> Adapter:
        """Open an adapter and check its files. The base model is not loaded until a method needs it.

        Args:
            place: a run's folder, the folder of a study with one finished run, an adapter's own folder, a bundle
                (`.petransfer.zip`), a model's folder, `nano/<arm>`, or a hub id `owner/name[@revision]`. The adapter
                may have been trained with petransfer or with plain peft.
            run: the first characters of the run's id; needed if `place` is a study with several finished runs.
            checkpoint: the base model, if it cannot be found by the name that the adapter's files give.
            revision: a commit or branch of the base, in place of the revision that the adapter's files give.
            data_dir: a folder with data files, of a benchmark or the user's own, for `evaluate` and `verify`.
            device: a device such as `cpu` or `cuda:1`; by default the GPU if there is one.
            any_base: accept a base whose weights or configuration differ from those that were used in training.

        Raises:
            UserError: there is no adapter at `place`, or a file is missing, is damaged, or could run code when it is
                loaded.
        """
        place_on = None if data_dir is None else Path(data_dir).expanduser()
        files = contextlib.ExitStack()
        try:
            source = files.enter_context(opened_source(str(place), run))
            if source.kind == "adapter":
                checked(source.adapter())
        except BaseException:
            files.close()
            raise
        adapter = cls(source, Where(checkpoint, revision, place_on, device, any_base))
        weakref.finalize(adapter, files.close)  # removes the temporary folder of files from a zip or the hub
        return adapter

    def __repr__(self) -> str:
        return f"<petransfer.Adapter {self.label} ({self.kind})>"

    @property
    def label(self) -> str:
        """The folder, file name or hub id that the adapter was loaded from."""
        return self._source.label

    @property
    def kind(self) -> str:
        """`adapter`, `model` (fully fine-tuned or merged by petransfer) or `checkpoint` (any other model)."""
        return self._source.kind

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The loaded model with its tokenizer, prefix and template.

        Raises:
            UserError: the base cannot be found, does not fit into memory, or differs from the base that the adapter was
                trained on.
        """
        if self._source.kind != "adapter":
            return whole_predictor(self._source, self._where)
        ((_, _, predictor),) = put_together([self._source.adapter()], self._where).each()
        return predictor

    def predict(self, texts: Iterable[str], max_new_tokens: int = 512) -> list[str]:
        """Generate a text greedily for each input.

        Args:
            texts: the inputs. Leave out the task's prefix, such as `translate: `, which is added automatically. If the
                adapter was trained with a template that joins several columns to one input, each input is a JSON object
                whose keys are these columns.
            max_new_tokens: the largest number of tokens of a generated text.

        Returns:
            One text for each input, in order.

        Raises:
            UserError: `texts` is one string, an input is too long for the model, or the base cannot be loaded.
        """
        if isinstance(texts, str):
            raise UserError("predict takes a list of texts; write predict([text]) for one text")
        return self.predictor(list(texts), max_new_tokens)

    def evaluate(
        self,
        data: str | Path | Pairs | None = None,
        *,
        part: str | None = None,
        by_generation: bool = False,
        metrics: Sequence[str] = (),
    ) -> Scores:
        """Compute exact match, and other metrics, on a file, on pairs, on a benchmark, or on the adapter's own task.

        If `data` is given, the result also gives exact match separately for the examples that were used in training and
        for the other examples.

        Args:
            data: a file of rows, pairs of input and target, a benchmark's `task/split` such as `scan/add_jump`, or
                None for the adapter's own task.
            part: `dev` or `test`. None means all rows of a file, and `test` for a benchmark or the adapter's own task.
                If `data` are pairs, `part` is ignored.
            by_generation: generate a text for every example and score these texts, in place of the predictions of one
                forward pass per example.
            metrics: names of metrics such as `rouge`, in addition to the metrics of the adapter's own task.

        Raises:
            UserError: the data or the base is not available, or the tokenizer cannot represent a target.
        """
        asked = str(data) if isinstance(data, Path) else data
        (scores,) = side_by_side(
            [self._source], self._where, Request(asked, part, by_generation, metrics=tuple(metrics))
        )
        return scores

    def push(
        self,
        repo: str,
        *,
        public: bool = False,
        licence: str | None = None,
        language: Sequence[str] = (),
        tags: Sequence[str] = (),
        message: str = "Add an adapter by petransfer",
    ) -> hub.Pushed:
        """Upload the adapter with its card, provenance and results to the Hugging Face Hub, in one commit.

        Args:
            repo: `user/name`. A new repository is private unless `public` is True.
            licence: the adapter's licence. None derives it from the licences of the base and the data.
            language: the languages of the data, such as `en`.
            tags: additional tags for the card.
            message: the commit message.

        Raises:
            UserError: the hub cannot be reached or refuses the upload, or a file contains an access token or the path
                of a folder of this machine.
        """
        files = contents(self._source.adapter(), Wishes(licence, tuple(language), tuple(tags)))
        return hub.push(repo, files, public, message)

    def merge(self, folder: str | Path, *, bits: Bits | None = None, separate_head: bool = False) -> Merged:
        """Merge the adapter into its base's weights and save the model to a new folder.

        Args:
            folder: the new folder, which plain transformers and `Adapter.load` can load.
            bits: bits of the saved weights, 32 or 16. None means 32 if the base had 32 bits in training, else 16.
            separate_head: save T5's output head as a separate tensor, which llama.cpp needs.

        Returns:
            How much merging changed the logits, and the saved model's exact match on dev.

        Raises:
            UserError: the folder exists, or the method cannot be merged.
            RunError: merging or saving changed the logits too much; nothing is saved.
        """
        return merge(self._source.adapter(), Path(folder), self._where, bits, separate_head)

    def verify(self, *, evaluate: bool = True, plain: bool = False, bits: Bits | None = None) -> list[Check]:
        """Check the files, base, tokenizer and bits against petransfer.json, and evaluate again to check the scores.

        Args:
            evaluate: evaluate again, which needs the data and takes most of the time.
            plain: also generate texts with plain transformers and peft, and compare them with petransfer's.
            bits: load the base with this number of bits; by default as in training.

        Returns:
            One entry per check: `what` was checked, whether it `passed`, and the result as one `line` of text.

        Raises:
            UserError: petransfer did not make the adapter, or its base or data are not available.
        """
        return list(verify(self._source.adapter(), self._where, bits, evaluate, plain))
