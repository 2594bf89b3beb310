"""Recompute the differences, p values, intervals and ratios of the shipped studies with NumPy and SciPy only.

Nothing of `petransfer.effects` is used. The scores come from the files of the runs. The intervals are drawn at random,
so they agree only to the precision of the draws.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from scipy import special, stats

RESULTS = Path(__file__).parents[2] / "results"
# Kim and Linzen (2020): these 3 of the 21 categories of COGS test new structures. The others test new uses of words.
STRUCTURAL = ["obj_pp_to_subj_pp", "cp_recursion", "pp_recursion"]
STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/effects.json"))


@cache
def scores(
    study: str, arm: str, method: str, split: str, categories: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return correct answers (seeds, examples), categories (examples,), and seeds with their dev scores (2, seeds)."""
    with (RESULTS / study / "table.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["arm"], row["split"]) == (arm, split)]
    methods = {row["method"] for row in rows}
    if method not in methods and len(methods) == 1:
        (method,) = methods
    done = [row for row in rows if row["method"] == method and row["status"] == "done"]
    tables = [
        pyarrow.parquet.read_table(RESULTS / study / "runs" / row["run_id"] / "examples.parquet",
                                   columns=["correct", "category"]) for row in done
    ]  # fmt: skip
    right = np.array([table["correct"].to_numpy() for table in tables], dtype=float)
    dev = np.array([float(row["dev_em"]) for row in done])
    seeds = np.array([int(row["seed"]) for row in done])
    order = np.argsort(seeds, kind="stable")
    category = tables[0]["category"].to_numpy()
    if categories:
        counted = np.isin(category.astype(str), STRUCTURAL) == {"structural": True, "lexical": False}[categories]
        right, category = right[:, counted], category[counted]
    return right[order], category, np.stack([seeds[order], dev[order]])


def permutation_p(left: np.ndarray, right: np.ndarray) -> float:
    """Count all ways to divide the seeds into two groups, and return twice the smaller tail."""
    pool, size = np.concatenate([left, right]), len(left)
    deals = np.array(list(itertools.combinations(range(len(pool)), size)))
    sums = pool[deals].sum(1)
    differences = np.round(sums / size - (pool.sum() - sums) / len(right), 10)
    seen = round(float(left.mean() - right.mean()), 10)
    return min(1.0, 2 * min(np.mean(differences >= seen), np.mean(differences <= seen)))


def paired_p(differences: np.ndarray) -> float:
    """Count all choices of the signs of the differences, and return twice the smaller tail."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    means, seen = np.round(signs @ differences / len(differences), 10), round(float(differences.mean()), 10)
    return min(1.0, 2 * min(np.mean(means >= seen), np.mean(means <= seen)))


def holm(p_values: list[float]) -> list[float]:
    order = np.argsort(p_values, kind="stable")
    found, largest = np.empty(len(p_values)), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        found[at] = largest
    return found.tolist()


def mean_draws(right: np.ndarray, rng: np.random.Generator, draws: int = 12_000) -> np.ndarray:
    """Draw the mean over all possible seeds, from normal log-odds. Each mean is taken over 100 quantiles."""
    shares, examples = right.mean(1), right.shape[1]
    if np.ptp(shares) == 0:
        return np.full(draws, shares.mean())
    odds = np.log((examples * shares + 0.5) / (examples * (1 - shares) + 0.5))
    spread = odds.std(ddof=1) * np.sqrt((len(odds) - 1) / stats.chi2.rvs(len(odds) - 1, size=draws, random_state=rng))
    centre = odds.mean() + spread * rng.standard_normal(draws) / math.sqrt(len(odds))
    quantiles = stats.norm.ppf((np.arange(100) + 0.5) / 100)
    means: np.ndarray = special.expit(centre[:, None] + spread[:, None] * quantiles).mean(1)
    return means


def example_variance(weights: np.ndarray, category: np.ndarray) -> float:
    """Return the variance of the mean of `weights` if examples are drawn with replacement within their category."""
    return (
        sum(
            float(((weights[category == name] - weights[category == name].mean()) ** 2).sum()) for name in set(category)
        )
        / len(weights) ** 2
    )


def sides(study: str, effect: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if effect["arm"]:
        places = [(effect["arm"], effect[side]) for side in ("left_name", "right_name")]
    else:
        places = [(effect[side], effect["method"]) for side in ("left_name", "right_name")]
    where = (effect["split"], effect.get("categories", ""))
    (left, category, dev_left), (right, _, dev_right) = (scores(study, *place, *where) for place in places)
    if effect["paired"]:
        common = sorted(set(dev_left[0]) & set(dev_right[0]))
        rows = [[list(dev[0]).index(seed) for seed in common] for dev in (dev_left, dev_right)]
        left, dev_left, right, dev_right = left[rows[0]], dev_left[:, rows[0]], right[rows[1]], dev_right[:, rows[1]]
    return left, right, category, dev_left[1], dev_right[1]


@cache
def effects_of(study: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / study / "effects.json").read_text())
    return content


@pytest.mark.parametrize("study", STUDIES)
def test_differences_and_p_values_can_be_recomputed(study: str) -> None:
    found = effects_of(study)
    tested: dict[str, dict[int, float]] = {}  # p values by family; Holm's correction covers one family
    for at, effect in enumerate(found["effects"]):
        left, right, _, dev_left, dev_right = sides(study, effect)
        assert effect["difference"] == pytest.approx(100 * (left.mean() - right.mean()), abs=1e-9)
        assert (effect["left"], effect["right"]) == pytest.approx((100 * left.mean(), 100 * right.mean()))
        assert effect["seeds"] == [len(left), len(right)]
        if min(len(left), len(right)) < 2:
            p = 1.0
        elif effect["paired"]:
            p = paired_p(left.mean(1) - right.mean(1))
        else:
            p = permutation_p(left.mean(1), right.mean(1))
        assert effect["p"] == pytest.approx(p, abs=1e-9), effect["name"]
        assert effect["dev"] == pytest.approx([dev_left.mean(), dev_right.mean()])
        learnt = min(dev_left.mean(), dev_right.mean()) >= 90
        assert (effect["p_holm"] is not None) == learnt == (effect["verdict"] != "not learnt")
        if learnt:
            tested.setdefault(effect.get("family", ""), {})[at] = p
    assert not found["scales"]  # otherwise scale effects would count in the correction too
    waiting = effects_without_runs(study)
    assert found["tests"] == sum(map(len, tested.values())) + waiting.total()
    for family, members in tested.items():
        after = [found["effects"][at]["p_holm"] for at in members]
        # an effect without runs can still get any p value, so it counts as 1
        assert after == pytest.approx(holm([*members.values(), *[1.0] * waiting[family]])[: len(members)], abs=1e-9)


def effects_without_runs(study: str) -> Counter[str]:
    """Return the number of declared effects without runs in each family."""
    recipe = yaml.safe_load((RESULTS / study / "recipe.yaml").read_text(encoding="utf-8"))
    declared = [one if isinstance(one, dict) else {"contrast": one} for one in recipe["effects"]]
    families = {(one.get("contrast"), one.get("categories") or ""): one.get("family") or "" for one in declared}
    names = [re.match(r"(\S+)(?: \((\w+)\))? on ", line) for line in effects_of(study)["missing"]]
    return Counter(families[name[1], name[2] or ""] for name in names if name)


@pytest.mark.parametrize("study", STUDIES)
def test_intervals_can_be_recomputed(study: str) -> None:
    rng = np.random.default_rng(20)
    for effect in effects_of(study)["effects"]:
        left, right, category, *_ = sides(study, effect)
        if effect["interval"] is None:
            assert min(len(left), len(right)) < 2
            continue
        two_seeds = min(len(left), len(right)) == 2
        draws = 40 * 2_000 if two_seeds else 12_000
        noise = math.sqrt(example_variance(left.mean(0) - right.mean(0), category)) * rng.standard_normal(draws)
        if effect["paired"]:
            pairs = left.mean(1) - right.mean(1)
            error = pairs.std(ddof=1) / math.sqrt(len(pairs))
            drawn = pairs.mean() + error * stats.t.rvs(len(pairs) - 1, size=draws, random_state=rng)
        else:
            drawn = mean_draws(left, rng, draws) - mean_draws(right, rng, draws)
        difference, found = effect["difference"], (effect["interval"]["low"], effect["interval"]["high"])
        # petransfer computes an interval from 2,000 random draws. With two seeds, the draws have heavy tails, so each
        # computation gives rather different bounds. The test computes the interval 40 times and checks that
        # petransfer's bounds are within the range of these 40 results, or near it.
        repeated = (drawn + noise).reshape(40 if two_seeds else 1, -1)
        bounds = 100 * np.quantile(repeated, [0.025, 0.975], axis=1)
        lows, highs = np.minimum(bounds[0], difference), np.maximum(bounds[1], difference)
        for now, expected in zip(found, (lows, highs), strict=True):
            near = (0.5 * np.ptp(expected) if two_seeds else 0.1 * (highs[0] - lows[0])) + 0.05
            assert expected.min() - near <= now <= expected.max() + near, effect["name"]


@pytest.mark.parametrize("study", STUDIES)
def test_verdicts_follow_from_the_recorded_numbers(study: str) -> None:
    for effect in effects_of(study)["effects"]:
        assert effect["verdict"] == verdict_of(study, effect), effect["name"]


def verdict_of(study: str, effect: dict[str, Any]) -> str:
    """Return the verdict by the rules in the documentation of the statistics."""
    interval, odds, margin = effect["interval"], effect["log_odds"], effect["margin"]
    left, right, *_ = sides(study, effect)
    means = [100 * left.mean(), 100 * right.mean()]

    def both_near_an_end(room: float) -> bool:
        return max(means) <= room or min(means) >= 100 - room

    if min(effect["dev"]) < 90:
        return "not learnt"
    if min(len(left), len(right)) < (6 if effect["paired"] else 4):
        return "inconclusive"
    if both_near_an_end(1):
        return "saturated"
    clear = effect["p_holm"] < 0.05 and not interval["low"] <= 0 <= interval["high"] and abs(effect["difference"]) >= 1
    if clear and odds:  # one side is near 0 or 100 %
        clear = odds["difference"] * effect["difference"] > 0
        clear &= odds["interval"] is None or not odds["interval"]["low"] <= 0 <= odds["interval"]["high"]
    if clear:
        return "holds" if effect["difference"] > 0 else "reversed"
    inside = -margin < interval["low"] and interval["high"] < margin
    if inside and equivalence_p(left.mean(1), right.mean(1), margin / 100, effect["paired"]) < 0.05:
        return "saturated" if both_near_an_end(margin) else "equivalent"
    return "inconclusive"


def equivalence_p(left: np.ndarray, right: np.ndarray, margin: float, paired: bool) -> float:
    """Return the larger p value of two one-sided t tests: Student's for pairs, else Welch's."""
    if paired:
        differences = left - right
        tests = [stats.ttest_1samp(differences, at, alternative=side).pvalue
                 for at, side in ((-margin, "greater"), (margin, "less"))]  # fmt: skip
    else:
        tests = [stats.ttest_ind(left + shift, right, equal_var=False, alternative=side).pvalue
                 for shift, side in ((margin, "greater"), (-margin, "less"))]  # fmt: skip
    return float(max(tests))


@pytest.mark.parametrize("study", [name for name in STUDIES if effects_of(name)["retentions"]])
def test_retention_ratios_can_be_recomputed(study: str) -> None:
    for one in effects_of(study)["retentions"]:
        if one["ratio"] is not None:
            arms = one["name"].split("-", 1)
            places = [(arm, one[side]["name"], one["split"]) for side in ("under", "over") for arm in arms]
            check_ratio(one, [scores(study, *place) for place in places])


def check_ratio(one: dict[str, Any], groups: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Check the ends of Fieller's interval: it has all ratios for which numerator - ratio * denominator may be zero."""
    (a, category, _), (b, _, _), (c, _, _), (d, _, _) = groups
    shared = np.array_equal(b, d)
    assert one["ratio"] == pytest.approx((a.mean() - b.mean()) / (c.mean() - d.mean()))
    t = stats.t.ppf(0.975, min(welch_freedom(a, b), welch_freedom(c, d)))

    def inside(ratio: float) -> bool:
        weights = [(a, 1.0), (c, -ratio)] + ([(b, ratio - 1)] if shared else [(b, -1.0), (d, ratio)])
        variance = sum(weight**2 * side.mean(1).var(ddof=1) / len(side) for side, weight in weights)
        variance += example_variance(sum(weight * side.mean(0) for side, weight in weights), category)
        total = sum(weight * side.mean() for side, weight in weights)
        return bool(abs(total) <= t * math.sqrt(variance))

    low, high = one["interval"]["low"], one["interval"]["high"]
    assert inside(low + 1e-6)
    assert inside(high - 1e-6)
    assert not inside(low - 1e-6)
    assert not inside(high + 1e-6)


def welch_freedom(left: np.ndarray, right: np.ndarray) -> float:
    parts = [(side.mean(1).var(ddof=1) / len(side), len(side) - 1) for side in (left, right)]
    return float(sum(part for part, _ in parts) ** 2 / sum(part**2 / free for part, free in parts))
