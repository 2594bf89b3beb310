"""Whether two of ReCOGS's logical forms say the same: the semantic exact match of Wu et al. (2023, arXiv:2303.13716).

A form is a set of conjuncts, parted by `;` or `AND`, over variables that are numbers. Two forms are the same where one
renaming of the variables, one to one, makes their sets equal: neither the order nor the names say anything.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Conjunct = tuple[str, tuple[str, ...]]
"""A predicate, with its `*` where it is definite, and its variables."""

_PART = re.compile("AND|;")
_CONJUNCT = re.compile(r"(\*?[^*(),;]+)\(([0-9]+(?:,[0-9]+)*)\)")
_OPEN = re.compile(r"(\*?[^*(),;]+)\((?:[0-9]+(?:,(?:[0-9]+)?)*)?")


@dataclass(frozen=True)
class Semantics:
    """How a task tells that an answer means what the target means.

    same: from (target, answer). may_become: from (target, the beginning of an answer), whether some continuation could
        be the same; False only where none can.
    """

    same: Callable[[str, str], bool]
    may_become: Callable[[str, str], bool]


def conjuncts(form: str) -> frozenset[Conjunct] | None:
    """The conjuncts of a form, blanks and repetitions left out; None where a part of it is no conjunct.

    >>> sorted(conjuncts("* dog ( 1 ) ; run ( 2 ) AND agent ( 2 , 1 )"))
    [('*dog', ('1',)), ('agent', ('2', '1')), ('run', ('2',))]
    """
    found = [_CONJUNCT.fullmatch(part) for part in _PART.split(form.replace(" ", ""))]
    if not all(found):
        return None
    return frozenset((match[1], tuple(match[2].split(","))) for match in found if match)


def same_meaning(target: str, answer: str) -> bool:
    """Whether the two forms are equal but for the order of conjuncts, their repetition and the names of variables.

    The authors also let two variables of the answer stand for one of the target; here they may not. What is no form
    over numbered variables, such as the lambda terms of single verbs, is compared as a set of strings.
    """
    wanted, said = conjuncts(target), conjuncts(answer)
    if wanted is None or said is None:
        return wanted is said and _parts(target) == _parts(answer)
    return wanted == said or (_shape(wanted) == _shape(said) and _isomorphic(wanted, said))


def may_become(target: str, beginning: str) -> bool:
    """Whether an answer that begins so could still be the same: each predicate must be one of the target's, no more
    often than there, the last one perhaps only begun, and there must be no more variables than there.
    """
    wanted = conjuncts(target)
    if wanted is None:
        return True
    # a cut through the sign between two conjuncts
    *whole, last = _PART.split(re.sub(r"(?<=\))AN?$", "", beginning.replace(" ", "")))
    found = [_CONJUNCT.fullmatch(part) for part in whole]
    if not all(found):
        return False
    said = {(match[1], tuple(match[2].split(","))) for match in found if match}
    if match := _CONJUNCT.fullmatch(last):
        said.add((match[1], tuple(match[2].split(","))))
    elif match := _OPEN.fullmatch(last):
        if not any(name == match[1] for name, _ in wanted):
            return False
    elif not any(name.startswith(last) for name, _ in wanted):
        return False
    return len(_variables(said)) <= len(_variables(wanted)) and _shape(said) <= _shape(wanted)


RECOGS = Semantics(same_meaning, may_become)


def _parts(form: str) -> set[str]:
    return set(_PART.split(form.replace(" ", "")))


def _variables(form: Iterable[Conjunct]) -> set[str]:
    return {variable for _, variables in form for variable in variables}


def _shape(form: Iterable[Conjunct]) -> Counter[tuple[str, int]]:
    """How often each predicate stands with how many variables."""
    return Counter((name, len(variables)) for name, variables in form)


Node = tuple[int, str]
Colours = Mapping[Node, int]


def _isomorphic(one: frozenset[Conjunct], other: frozenset[Conjunct]) -> bool:
    """Whether some bijection of variables takes `one` to `other`."""
    joined = [(name, tuple((side, v) for v in vs)) for side, form in enumerate((one, other)) for name, vs in form]
    return _match(joined, dict.fromkeys({node for _, nodes in joined for node in nodes}, 0))


def _match(joined: list[tuple[str, tuple[Node, ...]]], colours: Colours) -> bool:
    """Refines the colours until they tell no more variables apart, then tries each partner for one that has several.

    Only variables of one colour can stand for each other, so that the search never tries what the neighbours forbid.
    """
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
    (first, *_), partners = several
    new = max(colours.values()) + 1
    return any(_match(joined, {**colours, first: new, partner: new}) for partner in partners)


def _refine(joined: list[tuple[str, tuple[Node, ...]]], colours: Colours) -> Colours:
    """Colours by what conjuncts a variable stands in, where in them, and with what colours; until that is stable."""
    while True:
        seen: dict[Node, list[tuple[str, int, tuple[int, ...]]]] = defaultdict(list)
        for name, nodes in joined:
            around = tuple(colours[node] for node in nodes)
            for place, node in enumerate(nodes):
                seen[node].append((name, place, around))
        signs = {node: (colours[node], tuple(sorted(seen[node]))) for node in colours}
        rank = {sign: place for place, sign in enumerate(sorted(set(signs.values())))}
        if len(rank) == len(set(colours.values())):
            return colours
        colours = {node: rank[sign] for node, sign in signs.items()}
