"""Measure how often 95 % intervals of a difference of means over seeds contain the true difference.

    python -m benchmarks.coverage --out results/bench/coverage-cpu.json
    python -m benchmarks.coverage --seeds 4 8 --intervals log-odds --out results/bench/coverage-4-8-cpu.json

The simulated scores resemble those in results/. Each arm of the shipped SCAN studies gives three populations of scores:
one with normal log-odds, one with a beta distribution, and the arm's own seeds. The parameters of the first two are
estimated from the arm's seeds. A simulated study draws seeds of an arm and seeds of `scratch` at random, six of each
unless `--seeds` gives two other numbers. For each kind of interval, the script counts the studies whose interval
contains the true difference.

A second part counts false verdicts for two arms with equal means, one of which has a heavy-tailed distribution.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from petransfer.effects.intervals import drawn_seed_means, log_odds_of
from petransfer.effects.statistics import permutation_p

Array = NDArray[np.float64]
Draw = Callable[[tuple[int, int]], Array]

EXAMPLES = 4476  # test examples of SCAN's split opposite_right
STUDIES, SEEDS, DRAWS = 400, 6, 600
SOURCE = ("lora-transfer-nano",)


def shipped_arms(root: Path) -> dict[str, Array]:
    """Read the test exact match of each seed, as a share from 0 to 1, for each arm and method.

    Arms and methods with fewer than six seeds, or with almost the same score for all seeds, are left out.
    """
    found: dict[str, list[float]] = {}
    for study in SOURCE:
        with (root / study / "table.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["test_em"]:
                    name = f"{row['arm']}, {row['method'].split()[0]}"
                    found.setdefault(name, []).append(float(row["test_em"]) / 100)
    arms = {name: np.array(shares) for name, shares in found.items()}
    return {name: shares for name, shares in arms.items() if len(shares) >= SEEDS and shares.std() > 0.003}


def populations(shares: Array, rng: np.random.Generator) -> dict[str, tuple[Draw, float]]:
    """Return functions that draw random scores like the given scores, each with the true mean of its distribution.

    Args:
        shares: (seeds,) the scores of an arm's seeds, as shares from 0 to 1.
        rng: the random number generator that the functions use.

    Returns:
        By name, a function from a shape to an array of shares, and its true mean.
    """
    odds = log_odds_of(shares, EXAMPLES)
    centre, spread = float(odds.mean()), float(odds.std(ddof=1))
    mean, variance = float(shares.mean()), float(shares.var(ddof=1))
    size = mean * (1 - mean) / variance - 1
    true_mean = float(expit(centre + spread * np.random.default_rng(0).standard_normal(400_000)).mean())

    def tested(levels: Array) -> Array:
        return np.asarray(rng.binomial(EXAMPLES, levels) / EXAMPLES, dtype=np.float64)

    return {
        "normal log-odds": (lambda shape: tested(expit(centre + spread * rng.standard_normal(shape))), true_mean),
        "beta": (lambda shape: tested(rng.beta(mean * size, (1 - mean) * size, shape)), mean),
        "the seeds themselves": (lambda shape: rng.choice(shares, shape), mean),
    }


def _bootstrap(side_s: Array, rng: np.random.Generator) -> Array:
    return np.asarray(side_s[rng.integers(len(side_s), size=(DRAWS, len(side_s)))], dtype=np.float64)


def percentile(left: Array, right: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Compute the interval that petransfer used before: a percentile bootstrap with two corrections (Hesterberg 2015).

    The deviations from the mean are multiplied by a factor, and the percentiles come from Student's t distribution.
    """
    drawn = [
        side.mean() + np.sqrt(len(side) / (len(side) - 1)) * (_bootstrap(side, rng).mean(1) - side.mean())
        for side in (left, right)
    ]
    tail = float(stats.norm.cdf(stats.t.ppf(0.025, _welch(left, right)[1])))
    low, high = np.quantile(drawn[0] - drawn[1], [tail, 1 - tail])
    return float(low), float(high)


def welch(left: Array, right: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Compute Welch's t interval."""
    error, free = _welch(left, right)
    half = float(stats.t.ppf(0.975, free)) * error
    return float(left.mean() - right.mean()) - half, float(left.mean() - right.mean()) + half


def _welch(left: Array, right: Array) -> tuple[float, float]:
    parts = [side.var(ddof=1) / len(side) for side in (left, right)]
    total = sum(parts)
    if total == 0:
        return 0.0, len(left) + len(right) - 2.0
    free = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (left, right), strict=True))
    return float(np.sqrt(total)), float(total**2 / free)


def bca(left: Array, right: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Compute the interval of the bias-corrected and accelerated bootstrap (Efron 1987) with SciPy."""
    if left.std() == right.std() == 0:
        return welch(left, right, rng)
    found = stats.bootstrap(
        (left, right), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=DRAWS, rng=rng, method="BCa"
    ).confidence_interval
    return float(found.low), float(found.high)


def studentised(left: Array, right: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Compute the interval of the studentised bootstrap, which resamples the statistic of Welch's t test."""
    drawn = [_bootstrap(side, rng) for side in (left, right)]
    errors = np.sqrt(sum(side.var(1, ddof=1) / side.shape[1] for side in drawn))
    difference = float(left.mean() - right.mean())
    low, high = np.quantile(
        (drawn[0].mean(1) - drawn[1].mean(1) - difference) / np.maximum(errors, 1e-9), [0.025, 0.975]
    )
    error = _welch(left, right)[0]
    return difference - float(high) * error, difference - float(low) * error


def log_odds(left: Array, right: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Compute the interval that petransfer uses: quantiles of means that `drawn_seed_means` draws."""
    drawn = [drawn_seed_means(side, EXAMPLES, DRAWS, rng) for side in (left, right)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return float(low), float(high)


INTERVALS = {"percentile": percentile, "welch": welch, "bca": bca, "studentised": studentised, "log-odds": log_odds}


def coverage(root: Path, seeds: tuple[int, int], intervals: Sequence[str]) -> list[dict[str, Any]]:
    """Return the coverage and the median width of each kind of interval, for each arm and population.

    The coverage is a share from 0 to 1, the width is in percentage points.

    Args:
        root: the folder with the shipped studies.
        seeds: numbers of seeds of an arm and of `scratch` in a simulated study.
        intervals: kinds of intervals, names in `INTERVALS`.
    """
    rng = np.random.default_rng(0)
    arms = shipped_arms(root)
    scratch = populations(arms["scratch, full"], rng)
    found = []
    for name, shares in arms.items():
        if name == "scratch, full":
            continue
        for kind, (draw, mean) in populations(shares, rng).items():
            draw_right, mean_right = scratch[kind]
            left_rs, right_rs = draw((STUDIES, seeds[0])), draw_right((STUDIES, seeds[1]))
            row: dict[str, Any] = {"arm": name, "population": kind, "difference": 100 * (mean - mean_right)}
            for interval in intervals:
                ends = np.array([INTERVALS[interval](*pair, rng) for pair in zip(left_rs, right_rs, strict=True)])
                covered = (ends[:, 0] <= mean - mean_right) & (mean - mean_right <= ends[:, 1])
                row[interval] = {
                    "coverage": float(covered.mean()), "width": float(100 * np.median(ends[:, 1] - ends[:, 0]))
                }  # fmt: skip
            found.append(row)
            print(name, kind, {key: row[key]["coverage"] for key in intervals}, flush=True)
    return found


def false_verdicts(seeds: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the shares of simulated studies that find a difference between two arms although their means are equal.

    They are counted for the permutation test alone (p < 0.05), and for the permutation test together with an interval
    that excludes zero.

    Args:
        seeds: numbers of seeds of the arm with a heavy-tailed distribution and of the other arm.
    """
    rng = np.random.default_rng(1)
    found = []
    for spread in (1.0, 2.0, 3.0):
        centre = float(np.log(0.05 / 0.95)) - spread**2 / 3
        mean = float(expit(centre + spread * rng.standard_normal(400_000)).mean())
        counts = dict.fromkeys(("permutation", "and percentile", "and log-odds"), 0)
        for _ in range(STUDIES):
            left = rng.binomial(EXAMPLES, expit(centre + spread * rng.standard_normal(seeds[0]))) / EXAMPLES
            right = rng.binomial(EXAMPLES, rng.beta(mean * 200, (1 - mean) * 200, seeds[1])) / EXAMPLES
            if permutation_p(left, right) < 0.05:
                counts["permutation"] += 1
                for key, function in (("and percentile", percentile), ("and log-odds", log_odds)):
                    low, high = function(left, right, rng)
                    counts[key] += not low <= 0 <= high
        row = {"mean %": 100 * mean, "spread of the log-odds": spread}
        found.append(row | {key: count / STUDIES for key, count in counts.items()})
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Run the simulation and write its results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/bench/coverage-cpu.json"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, nargs=2, default=[SEEDS, SEEDS], metavar=("ARM", "SCRATCH"))
    parser.add_argument("--intervals", nargs="+", choices=INTERVALS, default=list(INTERVALS))
    arguments = parser.parse_args()
    seeds = arguments.seeds[0], arguments.seeds[1]
    rows = coverage(arguments.results, seeds, arguments.intervals)
    summary = {
        kind: {
            interval: {
                "mean": float(np.mean([row[interval]["coverage"] for row in mine])),
                "least": float(min(row[interval]["coverage"] for row in mine)),
            }
            for interval in arguments.intervals
        }
        for kind in dict.fromkeys(row["population"] for row in rows)
        for mine in [[row for row in rows if row["population"] == kind]]
    }
    content = {
        "command": shlex.join(["python", "-m", "benchmarks.coverage", *sys.argv[1:]]),
        "machine": platform.machine(),
        "studies": STUDIES, "seeds": arguments.seeds, "draws": DRAWS, "examples": EXAMPLES,
        "coverage": summary, "arms": rows, "false verdicts": false_verdicts(seeds),
    }  # fmt: skip
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
