"""Compare the meaning of two logical forms of ReCOGS: semantic exact match of Wu et al. (2023, arXiv:2303.13716).

A logical form is a set of conjuncts such as `agent ( 2 , 1 )`, separated by `;` or `AND`. The numbers are variables.
Two forms have one meaning if a one-to-one renaming of the variables makes their sets of conjuncts equal.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Conjunct = tuple[str, tuple[str, ...]]
"""A predicate and its variables. A definite predicate begins with `*`."""

_PART = re.compile("AND|;")
_CONJUNCT = re.compile(r"(\*?[^*(),;]+)\(([0-9]+(?:,[0-9]+)*)\)")
_OPEN = re.compile(r"(\*?[^*(),;]+)\((?:[0-9]+(?:,(?:[0-9]+)?)*)?")


@dataclass(frozen=True)
class Semantics:
    """Functions that compare the meaning of a prediction with the meaning of the target.

    Args:
        same: Function of (target, prediction). True: the meanings are equal.
        may_become: Function of (target, beginning of a prediction). False: no continuation of the beginning can have
            the target's meaning.
    """

    same: Callable[[str, str], bool]
    may_become: Callable[[str, str], bool]


def conjuncts(form: str) -> frozenset[Conjunct] | None:
    """Return the set of conjuncts of a logical form, without blanks.

    None if a part of the form is not a conjunct.

    >>> sorted(conjuncts("* dog ( 1 ) ; run ( 2 ) AND agent ( 2 , 1 )"))
    [('*dog', ('1',)), ('agent', ('2', '1')), ('run', ('2',))]
    """
    found = [_CONJUNCT.fullmatch(part) for part in _PART.split(form.replace(" ", ""))]
    if not all(found):
        return None
    return frozenset((match[1], tuple(match[2].split(","))) for match in found if match)


def same_meaning(target: str, answer: str) -> bool:
    """Return whether two logical forms differ only in order, repeated conjuncts and names of variables.

    Forms with other parts, such as the lambda terms of single verbs, are compared as sets of strings. Unlike Wu et al.,
    this function does not accept a prediction that splits one variable of the target into two.
    """
    wanted, predicted = conjuncts(target), conjuncts(answer)
    if wanted is None or predicted is None:
        return wanted is predicted and _parts(target) == _parts(answer)
    return wanted == predicted or (_shape(wanted) == _shape(predicted) and _isomorphic(wanted, predicted))


def may_become(target: str, beginning: str) -> bool:
    """Return whether a prediction that begins with `beginning` can still have the target's meaning.

    The last conjunct of `beginning` can be incomplete.
    """
    wanted = conjuncts(target)
    # if the target is not a set of conjuncts, no beginning can be excluded
    if wanted is None:
        return True
    # the beginning may end inside the `AND` between two conjuncts
    *whole, last = _PART.split(re.sub(r"(?<=\))AN?$", "", beginning.replace(" ", "")))
    found = [_CONJUNCT.fullmatch(part) for part in whole]
    if not all(found):
        return False
    predicted = {(match[1], tuple(match[2].split(","))) for match in found if match}
    if match := _CONJUNCT.fullmatch(last):
        predicted.add((match[1], tuple(match[2].split(","))))
    elif match := _OPEN.fullmatch(last):
        if not any(name == match[1] for name, _ in wanted):
            return False
    elif not any(name.startswith(last) for name, _ in wanted):
        return False
    # if there are already too many variables, or too many conjuncts of a predicate, no continuation can correct that
    return len(_variables(predicted)) <= len(_variables(wanted)) and _shape(predicted) <= _shape(wanted)


RECOGS = Semantics(same_meaning, may_become)


def _parts(form: str) -> set[str]:
    return set(_PART.split(form.replace(" ", "")))


def _variables(form: Iterable[Conjunct]) -> set[str]:
    return {variable for _, variables in form for variable in variables}


def _shape(form: Iterable[Conjunct]) -> Counter[tuple[str, int]]:
    """Count the conjuncts of a form by predicate and number of variables."""
    return Counter((name, len(variables)) for name, variables in form)


Node = tuple[int, str]
Colours = Mapping[Node, int]


def _isomorphic(one: frozenset[Conjunct], other: frozenset[Conjunct]) -> bool:
    """Return whether a one-to-one renaming of variables makes two forms equal."""
    joined = [(name, tuple((side, v) for v in vs)) for side, form in enumerate((one, other)) for name, vs in form]
    return _match(joined, dict.fromkeys({node for _, nodes in joined for node in nodes}, 0))


def _match(joined: list[tuple[str, tuple[Node, ...]]], colours: Colours) -> bool:
    """Return whether two logical forms become equal when variables of equal colour are matched."""
    # each variable in `joined` is a pair: 0 or 1 for the form, and the variable's name
    colours = _refine(joined, colours)
    classes: dict[int, tuple[list[Node], list[Node]]] = defaultdict(lambda: ([], []))
    for node, colour in colours.items():
        classes[colour][node[0]].append(node)
    if any(len(left) != len(right) for left, right in classes.values()):
        return False
    several = min((pair for pair in classes.values() if len(pair[0]) > 1), key=lambda pair: len(pair[0]), default=None)
    if several is None:
        sides: tuple[set[object], set[object]] = (set(), set())
        for name, nodes in joined:
            sides[nodes[0][0]].add((name, tuple(colours[node] for node in nodes)))
        return sides[0] == sides[1]
    # try to match one variable of the left form with each variable of the same colour in the right form
    (first, *_), partners = several
    new = max(colours.values()) + 1
    return any(_match(joined, {**colours, first: new, partner: new}) for partner in partners)


def _refine(joined: list[tuple[str, tuple[Node, ...]]], colours: Colours) -> Colours:
    """Split the colours of variables until variables of one colour occur in the same kinds of conjuncts."""
    while True:
        seen: dict[Node, list[tuple[str, int, tuple[int, ...]]]] = defaultdict(list)
        for name, nodes in joined:
            # a variable's new colour depends on its old colour, and on its position and the colours in its conjuncts
            around = tuple(colours[node] for node in nodes)
            for place, node in enumerate(nodes):
                seen[node].append((name, place, around))
        signs = {node: (colours[node], tuple(sorted(seen[node]))) for node in colours}
        rank = {sign: place for place, sign in enumerate(sorted(set(signs.values())))}
        if len(rank) == len(set(colours.values())):
            return colours
        colours = {node: rank[sign] for node, sign in signs.items()}
