"""Kill the processes of a study with SIGKILL at random moments, resume it, and compare it with an unkilled study.

A quarter of the kills happen in the first seconds of a command, before it has written anything or while it writes its
first files. The tests run this module with few kills. The long versions take some minutes each on two cores:

    python -m tests.invariants.kill_and_resume --kills 20 --what run      # the only process
    python -m tests.invariants.kill_and_resume --kills 20 --what worker   # one of two workers
    python -m tests.invariants.kill_and_resume --kills 20 --what driver   # the process that started the workers
    python -m tests.invariants.kill_and_resume --kills 20 --what process  # one of two that train each run together
    python -m tests.invariants.kill_and_resume --kills 20 --what stack    # the only process, with two runs at once
    python -m tests.invariants.kill_and_resume --kills 20 --what launcher # the parent of two that train each run
    python -m tests.invariants.kill_and_resume --kills 20 --what sweep    # a sweep of learning rates
    python -m tests.invariants.kill_and_resume --kills 20 --what pretrain # a pretraining of four checkpoints
    python -m tests.invariants.kill_and_resume --kills 20 --what train    # petransfer train, which stops early
    python -m tests.invariants.kill_and_resume --kills 20 --what early|early-process|early-stack  # with early stopping
    python -m tests.invariants.kill_and_resume --kills 20 --what ray-worker|ray-driver|ray-head

If a study ends before there were enough kills, its folder is removed and it starts again. --forked starts each command
as a fork of a process that has already imported all modules (for run, sweep, stack and pretrain). A kill in the first
second then hits a command that already reads and writes files. --json prints the record as one line of JSON, and --out
appends it to the list in a file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import yaml
from safetensors.torch import load_file

from tests.invariants.forked_command import ForkedCommand
from tests.tiny_models import make_tiny_t5

Process = subprocess.Popen[bytes] | ForkedCommand

RECIPE = """
name: killed
task: {{name: lines, options: {{train: {rows}, dev: 6, test: 6}}}}
family: {{name: tiny, arms: {{english: {base}}}}}
arms: [english, scratch]
methods:
  - {{name: lora, rank: 4, bits: 32}}
seeds: [0, 1]
train: {{steps: {steps}, batch_size: 8, learning_rate: {{lora: 2.0e-3, scratch: 2.0e-2}}}}
"""
PRETRAINING = """
kind: pretrain
name: killed
arms: [brackets]
seeds: [0, 1, 2, 3]
tokens: 6000
noise: {{window: 32}}
train: {{steps: {steps}, batch_size: 4}}
corpora:
  brackets: {{brackets: 8}}
"""
# Early stopping by the loss, with a cooldown. Few evaluations lower the loss by 20 %, so that runs stop early.
EARLY = {"patience": 2, "every": 6, "cooldown": 2, "metric": "loss", "min_delta": 20}
RUNS = 4
# Share of the kills that hit a command in its first seconds.
EARLY_SHARE, EARLY_SECONDS, EARLY_SECONDS_FORKED = 0.25, 4.0, 1.0
TIMES = {"once": 1, "twice": 2, "thrice": 3, "four times": 4}
VERBS = ("walk", "run", "look", "jump", "turn", "see")
ROWS = [f"{verb} {word}\t{' '.join([verb] * count)}\n" for verb in VERBS for word, count in TIMES.items()]


@dataclass(frozen=True)
class Way:
    """How a study is executed and which of its processes are killed.

    options: options of the command. victims: returns the processes that may be killed, from the started process.
    ray: whether the study runs on Ray. steps: training steps per kill, so that training does not end too soon.
    verb: the petransfer command. early: whether the runs stop early.
    """

    options: tuple[str, ...]
    victims: Callable[[psutil.Process], list[psutil.Process]]
    ray: bool = False
    steps: int = 10
    verb: str = "run"
    early: bool = False


def _itself(process: psutil.Process) -> list[psutil.Process]:
    return [process]


def _workers(process: psutil.Process) -> list[psutil.Process]:
    return _with("spawn_main", process.children())


def _sharing(process: psutil.Process) -> list[psutil.Process]:
    return _with("petransfer", process.children())


def _ray_workers(_: psutil.Process) -> list[psutil.Process]:
    return _with("ray::_carry_out", psutil.Process().children(recursive=True))


def _ray_head(_: psutil.Process) -> list[psutil.Process]:
    return _with("gcs_server", psutil.Process().children(recursive=True))


def _with(word: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if word in process.name() or any(word in part for part in process.cmdline()):
                found.append(process)
    return found


WAYS = {
    "run": Way(("--workers", "1"), _itself),
    "sweep": Way(("--workers", "1", "--factors", "1"), _itself, verb="sweep"),
    "stack": Way(("--workers", "1", "--stack", "2"), _itself),
    "pretrain": Way(("--workers", "1", "--no-compile"), _itself, verb="pretrain"),
    "worker": Way(("--workers", "2"), _workers),
    "driver": Way(("--workers", "2"), _itself),
    "process": Way(("--processes", "2"), _sharing),
    "launcher": Way(("--processes", "2"), _itself),
    "train": Way((), _itself, verb="train", early=True),
    "early": Way(("--workers", "1"), _itself, early=True),
    "early-process": Way(("--processes", "2"), _sharing, early=True),
    "early-stack": Way(("--workers", "1", "--stack", "2"), _itself, early=True),
    "ray-worker": Way(("--executor", "ray"), _ray_workers, ray=True),
    "ray-driver": Way(("--executor", "ray"), _itself, ray=True),
    "ray-head": Way(("--executor", "ray"), _ray_head, ray=True, steps=40),  # the workers continue for a while
}


class Cluster:
    """A local Ray cluster of two nodes with one core each. It is started again after its head was killed."""

    def __init__(self, wanted: bool) -> None:
        self.cluster: Any = None
        self.wanted = wanted

    def options(self) -> list[str]:
        """Return the option with the cluster's address, or [] without Ray. Start the cluster if it is not running."""
        if not self.wanted:
            return []
        if self.cluster is None or not _ray_head(psutil.Process()):
            from ray.cluster_utils import Cluster as LocalCluster

            self.stop()
            self.cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 0})
            for _ in range(2):
                self.cluster.add_node(num_cpus=1)
        return ["--address", str(self.cluster.address)]

    def stop(self) -> None:
        """Stop the cluster, even if its head was killed."""
        if self.cluster is not None:
            with contextlib.suppress(Exception):  # fails if the head was killed
                self.cluster.shutdown()
            self.cluster = None


def command(recipe: Path, out: Path, options: list[str], verb: str = "run") -> list[str]:
    """Return the command that runs the study, with one thread per process and a training state after every step."""
    if verb == "train":
        return _train_command(recipe, out)
    fixed = ["--threads", "1", "--save-every", "0", "--cpu"]
    return [sys.executable, "-m", "petransfer", verb, "--recipe", str(recipe), "--out", str(out), *fixed, *options]


def _train_command(recipe: Path, out: Path) -> list[str]:
    """Return the command that trains on the recipe's rows with its number of steps and four seeds."""
    train = yaml.safe_load(recipe.read_text())["train"]
    stopping = [f"--set=train.early_stopping.{key}={value}" for key, value in train["early_stopping"].items()]
    fixed = ["--dev", "6", "--test", "6", "--seeds", "0-3", "--rank", "4", "--save-every", "0", "--cpu"]
    line = [
        sys.executable,
        "-m",
        "petransfer",
        "train",
        str(recipe.with_name("base")),
        str(recipe.with_name("rows.tsv")),
    ]
    return [*line, "--out", str(out), "--max-steps", str(train["steps"]), *fixed, *stopping]


def main(kills: int, seed: int = 0, what: str = "run", steps: int = 0, forked: bool = False) -> dict[str, Any]:
    """Run, kill and compare studies, in as many rounds as `kills` needs.

    Returns:
        A record with the kills that hit a running study, the rounds, the runs per round, the steps per run, and the
        seconds.
    """
    rng, way, started = random.Random(seed), WAYS[what], time.monotonic()
    steps = steps or max(40, way.steps * kills)
    # the processes of a cluster whose head was killed end after a few seconds, not after a minute
    os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"  # noqa: SIM112 - the name that Ray reads
    cluster = Cluster(way.ray)
    with tempfile.TemporaryDirectory() as name, contextlib.closing(_Stopping(cluster)):
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        (folder / "rows.tsv").write_text("".join(ROWS))
        text = PRETRAINING if way.verb == "pretrain" else RECIPE
        base = make_tiny_t5(folder / "base")
        content = yaml.safe_load(text.format(rows=folder / "rows.tsv", base=base, steps=steps))
        content["train"] |= {"early_stopping": EARLY} if way.early else {}
        recipe.write_text(yaml.safe_dump(content, sort_keys=False))
        same = {"--processes", "--stack", "--factors", "--no-compile"} & {*way.options}
        alone = list(way.options) if same else ["--workers", "1"]
        code, message = to_its_end(command(recipe, folder / "whole", alone, way.verb), forked)
        assert code == 0, message
        if way.early:
            results = [json.loads(path.read_text()) for path in (folder / "whole").rglob("result.json")]
            assert any(result["steps"] < steps for result in results), "no run stopped early; take more steps"

        def one_round(left: int) -> int:
            cut = folder / "cut"
            struck = strike(left, way, cluster, recipe, cut, rng, forked)
            end(way, cluster, recipe, cut, forked)
            compare(folder / "whole", cut)
            shutil.rmtree(cut)
            return struck

        rounds = until(kills, one_round)
    seconds = round(time.monotonic() - started)
    return {
        "what": what, "kills": sum(rounds), "rounds": len(rounds), "runs": RUNS, "steps": steps, "seed": seed,
        "seconds": seconds, "forked": forked,
    }  # fmt: skip


def until(kills: int, one_round: Callable[[int], int]) -> list[int]:
    """Repeat rounds until there are enough kills, and return the number of kills in each round.

    one_round: a function that kills at most the given number of times, and returns the number of kills.

    Raises:
        AssertionError: a round ended without a kill.
    """
    rounds: list[int] = []
    while sum(rounds) < kills:
        rounds.append(one_round(kills - sum(rounds)))
        assert rounds[-1], f"{sum(rounds)} of {kills} kills: all runs were finished before a kill; take more steps"
    assert sum(rounds) == kills, rounds
    return rounds


def end(way: Way, cluster: Cluster, recipe: Path, out: Path, forked: bool = False) -> None:
    """Run the study to its end."""
    for _ in range(10):  # child processes of a killed process may keep their claims on runs for a while
        code, message = to_its_end(command(recipe, out, [*way.options, *cluster.options()], way.verb), forked)
        if code == 0:
            return
        time.sleep(3)
    raise AssertionError(message)


def to_its_end(line: list[str], forked: bool) -> tuple[int, str]:
    """Run a command. Return its exit code and the end of its output."""
    if forked:
        with tempfile.TemporaryDirectory() as folder:
            forked_command = ForkedCommand(line[3:], Path(folder), Path(folder) / "output.log")
            return forked_command.wait(), forked_command.message()
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr[-2000:]


class _Stopping:
    def __init__(self, cluster: Cluster) -> None:
        self.close = cluster.stop


def strike(
    kills: int, way: Way, cluster: Cluster, recipe: Path, out: Path, rng: random.Random, forked: bool = False
) -> int:
    """Kill until there are enough kills or all runs are finished. Restart the command when it has ended."""
    struck = 0
    while struck < kills and not finished(out):
        line = command(recipe, out, [*way.options, *cluster.options()], way.verb)
        with _started(line, recipe.parent if forked else None) as driver:
            if way.victims is _itself and rng.random() < EARLY_SHARE:
                struck += _kill_early(driver, rng.uniform(0, EARLY_SECONDS_FORKED if forked else EARLY_SECONDS))
            while struck < kills and driver.poll() is None:
                struck += _kill_one(driver, way, out, rng)
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(1 if way.victims is _itself else 90)
    return struck


def _kill_early(driver: Process, seconds: float) -> int:
    """Kill a command after `seconds` seconds. Return 1 if it was still running, else 0."""
    time.sleep(seconds)
    if driver.poll() is not None:
        return 0
    driver.kill()
    driver.wait()
    return 1


@contextlib.contextmanager
def _started(line: list[str], folder: Path | None = None) -> Iterator[Process]:
    """Start a command. If `folder` is given, start it as a fork that writes its output there."""
    driver: Process
    if folder is None:
        driver = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    else:
        driver = ForkedCommand(line[3:], folder, folder / "output.log")  # without `python -m petransfer`
    try:
        yield driver
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def _kill_one(driver: Process, way: Way, out: Path, rng: random.Random) -> int:
    """Wait until the study makes progress, wait a random time, and kill a process. Return the number of kills (0 or 1).

    The files of the study must change 1, 8 or 24 times. However slow the machine is, the kills then happen while a run
    writes its first files, in its first steps, and later.
    """
    for _ in range(rng.choice((1, 8, 24))):
        before = _traces(out)
        while driver.poll() is None and _traces(out) == before:
            time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.0))
    if driver.poll() is not None:
        return 0
    with contextlib.suppress(psutil.Error):
        victims = way.victims(psutil.Process(driver.pid))
        if victims:
            victim = rng.choice(victims)
            victim.kill()
            if victim.pid == driver.pid:  # psutil would take the exit code, which `driver.poll` still needs
                driver.wait()
            else:
                psutil.wait_procs([victim], timeout=5)
            return 1
    return 0


def finished(study: Path) -> bool:
    """Return whether all runs are finished. The runs of a sweep are in a subfolder."""
    return len(list(study.rglob("DONE"))) == RUNS


def _traces(out: Path) -> set[str]:
    # os.walk, unlike glob, does not fail if a folder is removed in the meantime
    return {os.path.join(folder, name) for folder, _, names in os.walk(out) if "runs" in folder for name in names}


def compare(whole: Path, cut: Path) -> None:
    """Check that two studies have equal files, weights, scores, examples and metrics."""
    assert _names(whole) == _names(cut), (_names(whole), _names(cut))
    for run in sorted(path.parent for path in whole.rglob("DONE")):
        other = cut / run.relative_to(whole)
        for weights in run.glob("*/*.safetensors"):
            left, right = load_file(weights), load_file(other / weights.relative_to(run))
            assert left.keys() == right.keys()
            assert all(bool((left[key] == right[key]).all()) for key in left), weights
        results = [json.loads((folder / "result.json").read_text()) for folder in (run, other)]
        parts = ("dev", "test", "steps", "best_step", "stop_reason")
        numbers = [{part: result.get(part) for part in parts} for result in results]
        assert numbers[0] == numbers[1]
        lines = [
            [{**json.loads(line), "seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for folder in (run, other)
        ]
        assert lines[0] == lines[1], run
        if not (run / "examples.parquet").is_file():  # a sweep scores no test set
            continue
        tables = [pyarrow.parquet.read_table(folder / "examples.parquet") for folder in (run, other)]
        assert tables[0].equals(tables[1])


def _names(study: Path) -> set[str]:
    # `.claim-owner` remains after a worker was killed, because it counts killed workers
    return {str(path.relative_to(study)) for path in study.rglob("*") if path.name != ".claim-owner"}


def machine() -> dict[str, Any]:
    """Return the processor, cores, load and torch version of this machine."""
    import torch

    from benchmarks.sides import hardware

    found = hardware(torch.device("cpu"))
    return {name: found[name] for name in ("processor", "cores", "load", "torch")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", choices=[*WAYS], default="run")
    parser.add_argument("--steps", type=int, default=0, help="of every run; 0 takes as many as suit the kills")
    parser.add_argument("--forked", action="store_true", help="start commands by a fork, without imports")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    made = main(arguments.kills, arguments.seed, arguments.what, arguments.steps, arguments.forked)
    record = {**made, **machine()}
    if arguments.out:
        before = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
        arguments.out.write_text(json.dumps([*before, record], indent=1) + "\n")
    message = f"{record['kills']} kills ({arguments.what}) in {record['rounds']} rounds: nothing lost, nothing doubled"
    print(json.dumps(record) if arguments.json else message)
