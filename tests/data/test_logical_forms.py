"""Comparing the meanings of logical forms of ReCOGS: renamed, shuffled and changed forms, and brute force."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petransfer.data.logical_forms import Conjunct, conjuncts, may_become, same_meaning

FORM = (
    "* dog ( 1 ) ; cat ( 4 ) ; see ( 2 ) AND agent ( 2 , 1 ) AND theme ( 2 , 4 ) AND nmod . in ( 4 , 7 ) AND car ( 7 )"
)


def written(form: set[Conjunct] | frozenset[Conjunct], order: random.Random) -> str:
    """Return a form as text, with its conjuncts in random order, separated by `;` or `AND`."""
    parts = [f"{name} ( {' , '.join(variables)} )" for name, variables in sorted(form)]
    order.shuffle(parts)
    text = parts[0]
    for part in parts[1:]:
        text += f" {order.choice([';', 'AND'])} {part}"
    return text


def renamed(form: frozenset[Conjunct], names: dict[str, str]) -> frozenset[Conjunct]:
    return frozenset((name, tuple(names[variable] for variable in variables)) for name, variables in form)


variables = st.sampled_from("012345")
one = st.tuples(st.sampled_from(["dog", "*dog", "see"]), st.tuples(variables))
two = st.tuples(st.sampled_from(["agent", "theme", "nmod.in"]), st.tuples(variables, variables))
forms = st.frozensets(one | two, min_size=1, max_size=8)


@given(form=forms, seed=st.integers(0, 10**6))
def test_renaming_and_shuffling_do_not_change_the_meaning(form: frozenset[Conjunct], seed: int) -> None:
    order = random.Random(seed)
    used = sorted({variable for _, variables in form for variable in variables})
    names = dict(zip(used, map(str, order.sample(range(90), len(used))), strict=True))
    message = written(renamed(form, names), order)
    assert same_meaning(written(form, order), message)
    # every beginning of the text can still become the target
    assert all(may_become(written(form, order), message[:cut]) for cut in range(len(message) + 1))


@settings(max_examples=300)
@given(one=forms, other=forms)
def test_same_meaning_agrees_with_brute_force_over_all_renamings(
    one: frozenset[Conjunct], other: frozenset[Conjunct]
) -> None:
    left, right = (sorted({v for _, variables in form for v in variables}) for form in (one, other))
    found = len(left) == len(right) and any(
        renamed(one, dict(zip(left, names, strict=True))) == other for names in itertools.permutations(right)
    )
    order = random.Random(0)
    assert same_meaning(written(one, order), written(other, order)) == found


def cycle(*members: int) -> set[Conjunct]:
    return {("next", (str(left), str(right))) for left, right in zip(members, (*members[1:], members[0]), strict=True)}


def test_one_cycle_of_six_differs_from_two_cycles_of_three() -> None:
    order = random.Random(0)
    assert not same_meaning(written(cycle(0, 1, 2, 3, 4, 5), order), written(cycle(0, 1, 2) | cycle(3, 4, 5), order))
    assert same_meaning(
        written(cycle(0, 1, 2) | cycle(3, 4, 5), order), written(cycle(9, 1, 4) | cycle(3, 7, 5), order)
    )


def test_forms_with_many_variables_of_one_kind_are_compared() -> None:
    # this test would not end if all renamings of the variables were tried
    order = random.Random(0)
    many = {("dog", (str(at),)) for at in range(60)} | {("agent", (str(at), str(at + 1))) for at in range(0, 60, 2)}
    flipped = (many - {("agent", ("0", "1"))}) | {("agent", ("1", "2"))}
    assert same_meaning(written(many, order), written({*many}, order))
    assert not same_meaning(written(many, order), written(flipped, order))


@pytest.mark.parametrize(
    "answer",
    [
        FORM.replace("agent", "theme"),
        FORM.replace("agent ( 2 , 1 )", "agent ( 1 , 2 )"),
        FORM.replace("cat", "hat"),
        FORM.replace("* dog", "dog"),
        FORM.replace("in", "on"),
        FORM.replace("theme ( 2 , 4 )", "theme ( 2 , 1 )"),
        FORM.replace("4", "1"),
        FORM.replace(" AND car ( 7 )", ""),
        FORM + " AND car ( 9 )",
        FORM + " AND",
        FORM + " )",
        FORM.replace("( 7 )", "( x )"),
        FORM.replace("cat ( 4 )", "cat 4"),
        "",
    ],
)
def test_another_role_predicate_or_variable_changes_the_meaning(answer: str) -> None:
    assert answer != FORM
    assert same_meaning(FORM, FORM)
    assert not same_meaning(FORM, answer)
    assert not same_meaning(answer, FORM)


@pytest.mark.parametrize(
    "beginning",
    [
        "cow",
        "* cat ( 1",
        "* dog ( 1 ) ; dog ( 2 )",
        "* dog ( 1 ) ; * dog ( 2 )",
        "see ( 1 ) ; cat ( 2 ) ; * dog ( 3 ) ; agent ( 5 , 6 )",
        "* dog 1",
        "( ",
        "dog ( 1 ) )",
    ],
)
def test_may_become_rejects_beginnings_that_cannot_be_completed(beginning: str) -> None:
    assert not may_become(FORM, beginning)


def test_repeated_conjuncts_are_ignored_and_lambda_terms_are_compared_as_strings() -> None:
    assert same_meaning(FORM, FORM + " AND car ( 7 )")
    term = "LAMBDA a . LAMBDA e . roll ( e ) AND agent ( e , a )"
    assert conjuncts(term) is None
    assert same_meaning(term, "agent ( e , a ) AND LAMBDA a . LAMBDA e . roll ( e )")
    assert not same_meaning(term, term.replace("( e , a )", "( a , e )"))
    assert not same_meaning(term, FORM)
    assert may_become(term, "anything")
