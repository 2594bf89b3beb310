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
    """A trained adapter on its base model. `Adapter.load` makes one.

    Fully fine-tuned models, merged models and base checkpoints can be loaded too. They predict and evaluate, but there
    is no adapter to push, merge or verify.

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
        """Open an adapter. Its files are checked immediately; its base model is loaded when it is first needed.

        Args:
            place: a run's folder, the folder of a study with one finished run, an adapter's own folder, a bundle
                (`.petransfer.zip`), a model's folder, `nano/<arm>`, or a hub id `owner/name[@revision]`. The adapter
                may be petransfer's or plain peft's.
            run: the first characters of a run's id, for a study with several runs.
            checkpoint: the base model, if it cannot be found by the name in the adapter.
            revision: a commit or branch of the base that replaces the one in the adapter.
            data_dir: a folder with data files, for `evaluate` and `verify`.
            device: a device such as `cpu` or `cuda:1`; by default the GPU if there is one.
            any_base: accept a base whose weights differ from those in training.

        Raises:
            UserError: there is no adapter, or it is refused: a file is damaged or missing, or would run code.
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
        weakref.finalize(adapter, files.close)  # files from a zip or the hub are in a temporary folder
        return adapter

    def __repr__(self) -> str:
        return f"<petransfer.Adapter {self.label} ({self.kind})>"

    @property
    def label(self) -> str:
        """The place that the adapter was loaded from."""
        return self._source.label

    @property
    def kind(self) -> str:
        """`adapter`, `model` (fully fine-tuned or merged by petransfer) or `checkpoint` (any other model)."""
        return self._source.kind

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The loaded model with its tokenizer, prefix and template.

        Raises:
            UserError: the base cannot be found, does not fit into memory, or has other weights than the adapter was
                trained on.
        """
        if self._source.kind != "adapter":
            return whole_predictor(self._source, self._where)
        ((_, _, predictor),) = put_together([self._source.adapter()], self._where).each()
        return predictor

    def predict(self, texts: Iterable[str], max_new_tokens: int = 512) -> list[str]:
        """Generate a text greedily for each input.

        Args:
            texts: the inputs without the prefix, which is added automatically. If the adapter's template names several
                columns, each input is a JSON object with them.
            max_new_tokens: the longest generated text, in tokens.

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

        Rows of a file that the adapter was trained on are counted, and scored separately from the others.

        Args:
            data: a file of rows, pairs of input and target, a benchmark's `task/split` such as `scan/add_jump`, or
                None for the adapter's own task.
            part: `dev` or `test`. None means `test`, or all rows of a file.
            by_generation: generate every text and score it, in place of one forward pass per example.
            metrics: metrics such as `rouge`, in addition to those of the adapter's own task.

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
            repo: `user/name`. A new repository is private unless `public`.
            licence: the adapter's licence, if it cannot be derived from those of the base and the data.
            language: the language of the data, such as `en`.
            tags: further tags of the card.
            message: the message of the commit.

        Raises:
            UserError: the hub cannot be reached or refuses, or a file names a folder of this machine or has a token.
        """
        files = contents(self._source.adapter(), Wishes(licence, tuple(language), tuple(tags)))
        return hub.push(repo, files, public, message)

    def merge(self, folder: str | Path, *, bits: Bits | None = None, separate_head: bool = False) -> Merged:
        """Merge the adapter into its base's weights and save the model to a new folder.

        Args:
            folder: the new folder, which plain transformers and `Adapter.load` can load.
            bits: bits of the saved weights, 32 or 16; by default 16 unless the adapter was trained on a 32-bit base.
            separate_head: for T5 in llama.cpp, save the output head as a tensor of its own.

        Returns:
            The change of the logits and related figures.

        Raises:
            UserError: the folder exists, or the method cannot be merged.
            RunError: the merged model computes other logits; nothing is saved.
        """
        return merge(self._source.adapter(), Path(folder), self._where, bits, separate_head)

    def verify(self, *, evaluate: bool = True, plain: bool = False, bits: Bits | None = None) -> list[Check]:
        """Check files, base, tokenizer and bits against the provenance, and evaluate again to check the claimed scores.

        Args:
            evaluate: evaluate again, which needs the data and takes most of the time.
            plain: also generate texts with plain transformers and peft, and compare them with petransfer's.
            bits: load the base with this number of bits; by default as in training.

        Returns:
            One entry for each check, with `what`, `passed` and `line`.

        Raises:
            UserError: petransfer did not make the adapter, or its base or data are not available.
        """
        return list(verify(self._source.adapter(), self._where, bits, evaluate, plain))
