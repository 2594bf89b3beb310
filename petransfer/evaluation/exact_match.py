"""Compute exact match with one forward pass per example.

Texts are generated only for near-ties, and for a random sample that checks the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from petransfer.data.encoding import Encoded, encode_examples
from petransfer.data.logical_forms import Semantics
from petransfer.data.task import Example
from petransfer.errors import UserError
from petransfer.evaluation.generation import Generation, generations, virtual_tokens
from petransfer.evaluation.one_pass import ScoredExample, score
from petransfer.evaluation.semantic_match import SemanticMatches, compare_meanings
from petransfer.models.lengths import length_check
from petransfer.models.loading import Loaded
from petransfer.models.special_tokens import layout_of
from petransfer.models.text_part import vocabulary_size
from petransfer.models.thread_turns import torch_state_lock
from petransfer.models.wrappers import base_model_of, evaluating
from petransfer.plurals import count
from petransfer.python_arguments import checked_integer, checked_list, text_pairs

AUDITED = 32


@dataclass(frozen=True)
class Evaluation:
    """The outcome of each example, and the result of the check by generated texts.

    Attributes:
        scored: outcomes in the order of the examples.
        near_ties: number of examples that one forward pass cannot decide. Their texts were generated.
        audited: number of other examples whose texts were generated, to check the forward pass.
        disagreements: number of audited examples whose text contradicts the forward pass. It should be 0.
        semantic: result of the comparison of meanings. None for tasks that do not compare meanings.
        by_generation: whether generated texts decided all outcomes.
    """

    scored: tuple[ScoredExample, ...]
    near_ties: int
    audited: int
    disagreements: int
    semantic: SemanticMatches | None = None
    by_generation: bool = False

    @property
    def exact_match(self) -> float:
        """The share of examples whose greedily generated text equals the target, from 0 to 1."""
        return sum(row.correct for row in self.scored) / len(self.scored)


def exact_match(
    model: torch.nn.Module,
    tokenizer: Any,
    inputs: Iterable[str],
    targets: Iterable[str],
    *,
    batch_size: int = 256,
) -> float:
    """Compute exact match with one forward pass per example.

    Exact match is the share of inputs for which greedy decoding generates exactly the target. The result is not an
    estimate: texts are generated for near-ties. Generation defaults of the model have no influence.

    Args:
        model: a transformers encoder-decoder or decoder-only model, with or without a peft adapter, on any device.
            A decoder-only model reads the input, a line break, then the target.
        tokenizer: tokenizer of the model.
        inputs: input texts, including a prefix that the model expects.
        targets: expected texts, one for each input.
        batch_size: examples per forward pass. It is halved when memory runs out.

    Returns:
        A share from 0 to 1.

    Raises:
        UserError: there are no examples, the numbers of inputs and targets differ, one of them is not text, the
            tokenizer cannot represent a target, or an example is too long for the model.

    Example:
        >>> import petransfer
        >>> model, tokenizer = petransfer.load("nano/english", bits=32)
        >>> petransfer.exact_match(model, tokenizer, ["to walk", "to run"], ["gehen", "rennen"])
        0.0
    """
    if isinstance(inputs, str) or isinstance(targets, str):
        raise UserError("exact_match needs lists of texts; write [text] for one text")
    batch_size = checked_integer(batch_size, "batch_size")
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"the model is a {type(model).__name__}; write exact_match(model, tokenizer, inputs, targets)")
    inputs, targets = checked_list(inputs, "inputs"), checked_list(targets, "targets")
    if len(inputs) != len(targets):
        given, wanted = count(len(inputs), "input"), count(len(targets), "target")
        raise UserError(f"exact_match got {given} and {wanted}; give one target for each input")
    if not inputs:
        raise UserError("exact_match got no examples; give at least one input and its target")
    base = base_model_of(model)
    loaded = Loaded(base, tokenizer, layout_of(base.config, tokenizer, base.generation_config), None, ())
    pairs = text_pairs(zip(inputs, targets, strict=True))
    rows = [Example(at, *pair, "all") for at, pair in enumerate(pairs)]
    encoded = encode_examples(rows, "", tokenizer, loaded.layout)
    too_long = length_check(base.config, type(base).__name__, 0, virtual_tokens(model), vocabulary_size(base.config))
    for at, row in enumerate(encoded, start=1):
        if problem := too_long(row):
            raise UserError(f"example {at} cannot be scored: {problem}; leave it out")
    with torch_state_lock():
        return evaluate(model, loaded, rows, encoded, batch_size=batch_size, audited=0).exact_match


def evaluate(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 256,
    audited: int = AUDITED,
    seed: int = 0,
    semantics: Semantics | None = None,
    by_generation: bool = False,
) -> Evaluation:
    """Score every example with one forward pass, and generate texts for near-ties and a random sample.

    Args:
        encoded: token ids of the examples.
        batch_size: examples per forward pass. It is halved when memory runs out.
        audited: number of examples in the random sample, without near-ties.
        seed: seed of the random sample.
        semantics: compares the meanings of text and target. None means that only strings are compared.
        by_generation: whether to generate a text for every example. The texts then decide the outcomes.
    """
    with evaluating(model):
        scored = score(model, loaded, examples, encoded, batch_size)
        ties, sample = _to_generate(scored, len(scored) if by_generation else audited, seed)
        limit = max(len(row.target_ids) for row in encoded) * (2 if semantics else 1) + 8
        both = [*ties, *sample]
        found = generations(model, loaded, [encoded[at].input_ids for at in both], [limit] * len(both))
        generated = dict(zip(both, found, strict=True))
        for at, one in generated.items():
            scored[at] = replace(scored[at], prediction=one.text)
        for at in ties:
            scored[at] = replace(scored[at], correct=generated[at].text == examples[at].target)
        semantic = (
            _judge_meaning(model, loaded, examples, encoded, scored, semantics, batch_size) if semantics else None
        )
        disagreements = sum(_disagree(scored[at], examples[at].target, generated[at], semantics) for at in sample)
        if by_generation:
            scored = [
                _as_generated(row, examples[at].target, generated[at], semantics) for at, row in enumerate(scored)
            ]
            semantic = semantic and replace(
                semantic, same=tuple(bool(row.semantic_correct) for row in scored if not row.correct)
            )
    return Evaluation(tuple(scored), len(ties), len(sample), disagreements, semantic, by_generation)


def _to_generate(scored: Sequence[ScoredExample], audited: int, seed: int) -> tuple[list[int], list[int]]:
    ties = [at for at, row in enumerate(scored) if row.near_tie]
    others = [at for at, row in enumerate(scored) if not row.near_tie]
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:audited].tolist()
    return ties, [others[at] for at in drawn]


def _means_the_same(target: str, generated: Generation, semantics: Semantics) -> bool:
    return generated.ended and semantics.same(target, generated.text)


def _as_generated(row: ScoredExample, target: str, generated: Generation, semantics: Semantics | None) -> ScoredExample:
    correct = generated.text == target
    semantic = correct or _means_the_same(target, generated, semantics) if semantics else None
    return replace(row, correct=correct, semantic_correct=semantic)


def _disagree(row: ScoredExample, target: str, generated: Generation, semantics: Semantics | None) -> bool:
    if row.correct != (generated.text == target):
        return True
    return semantics is not None and row.semantic_correct != _means_the_same(target, generated, semantics)


def _judge_meaning(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    scored: list[ScoredExample],
    semantics: Semantics,
    batch_size: int,
) -> SemanticMatches:
    """Set `semantic_correct` of all outcomes in `scored`, in place."""
    # If the text equals the target exactly, `semantic_correct` is True without a comparison of meanings.
    missed = [at for at, row in enumerate(scored) if not row.correct]
    of = [examples[at] for at in missed]
    semantic = compare_meanings(model, loaded, of, [encoded[at] for at in missed], semantics, batch_size)
    same = dict(zip(missed, semantic.same, strict=True))
    scored[:] = [replace(row, semantic_correct=same.get(at, True)) for at, row in enumerate(scored)]
    return semantic


def summary(evaluation: Evaluation) -> dict[str, object]:
    """Return the entry of result.json for dev or test.

    Exact match, semantic exact match and token accuracy are in per cent. The log-probability per token is in nats.
    """
    groups: dict[str, list[ScoredExample]] = {}
    for row in evaluation.scored:
        groups.setdefault(row.category, []).append(row)
    tokens = sum(row.tokens for row in evaluation.scored)
    semantic = evaluation.semantic
    return {
        **_percentages(evaluation.scored),
        "log_prob_per_token": sum(row.log_prob for row in evaluation.scored) / tokens,
        "token_accuracy": 100 * sum(row.tokens_correct for row in evaluation.scored) / tokens,
        "categories": {name: _percentages(rows) for name, rows in sorted(groups.items())},
        "near_ties": evaluation.near_ties,
        "audited": evaluation.audited,
        "disagreements": evaluation.disagreements,
        **({"by_generation": True} if evaluation.by_generation else {}),
        **({"generated": semantic.generated, "unfinished": semantic.unfinished} if semantic else {}),
    }


def _percentages(rows: Sequence[ScoredExample]) -> dict[str, float]:
    """Return exact match and semantic exact match in per cent, and the number of examples."""
    found = {"exact_match": 100 * sum(row.correct for row in rows) / len(rows)}
    if all(row.semantic_correct is not None for row in rows):
        found["semantic_exact_match"] = 100 * sum(bool(row.semantic_correct) for row in rows) / len(rows)
    return found | {"examples": len(rows)}
