"""The public Python API for studies and training. Importing this module does not import torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.effects.study_effects import check_kinds
from petransfer.errors import RunError, UserError
from petransfer.models.thread_turns import import_transformers, training_lock
from petransfer.plurals import count
from petransfer.python_arguments import checked_bool, checked_list, checked_names, checked_path, naming_arguments
from petransfer.study.run_study import check_processes, execute_study, prepare_study
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.study import StudyGrid, as_overrides, load_grid
from petransfer.training.execution import Execution
from petransfer.training.tracker_names import check_trackers
from petransfer.user_paths import expanded

if TYPE_CHECKING:
    from pandas import DataFrame

    from petransfer.sharing.adapter import Adapter

logger = logging.getLogger(__name__)


class Study:
    """A recipe's grid of runs, with its results, effects and report.

    Args:
        recipe: Name of a shipped recipe, YAML file, folder of an existing study, or recipe as a dict.
        seeds: Seeds of the runs, in place of all seeds in the recipe (`seeds` and `more_seeds`).
        arms: Arms (kinds of pretraining), in place of the recipe's arms.
        family: Family of checkpoints (one checkpoint per arm), in place of the recipe's family.
        out: Folder of the study. Default: `results/<name of the recipe>`.
        data_dir: Folder with the benchmark's files, as published by the benchmark's authors.
        shard: One part of the runs, such as `2/8` (part 2 of 8).
        **overrides: Other keys of the recipe. A nested dict changes single keys: `train={"steps": 500}`.

    Raises:
        UserError: The recipe is unknown or not valid.

    Example:
        >>> study = Study("smoke", arms=["english"], seeds=[0, 1], out="results/two-seeds", train={"steps": 6})
        >>> study
        Study('smoke', 2 runs, 0 done, results/two-seeds)
        >>> study.plan()[["arm", "split", "seed", "steps", "status"]].values.tolist()
        [['english', 'jump_around_right', 0, 6, 'waiting'], ['english', 'jump_around_right', 1, 6, 'waiting']]
        >>> results = study.run(workers=2)  # doctest: +SKIP
        >>> study.report()  # doctest: +SKIP
        PosixPath('results/two-seeds/report.html')
    """

    @naming_arguments()
    def __init__(
        self,
        recipe: str | Path | Mapping[str, Any],
        *,
        seeds: Iterable[int] | None = None,
        arms: Iterable[str] | None = None,
        family: str | Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        data_dir: str | Path | None = None,
        shard: str | None = None,
        **overrides: Any,
    ) -> None:
        options = {
            "seeds": None if seeds is None else checked_list(seeds, "seeds"),
            "arms": None if arms is None else list(checked_names(arms, "arms")),
            "family": family,
            "data_dir": data_dir,
        }
        folder = _checked_folder(out)
        recipe = recipe if isinstance(recipe, Mapping) else checked_path(recipe, "recipe")
        self.grid: StudyGrid = load_grid(recipe, list(as_overrides(overrides)), options, folder, shard)
        check_kinds(self.grid.recipe)

    @classmethod
    def of_grid(cls, grid: StudyGrid) -> Study:
        """Create a study from a grid of runs, such as the result of `load_grid`."""
        study = cls.__new__(cls)
        study.grid = grid
        return study

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.grid.folder.path

    def __repr__(self) -> str:
        runs, waiting = len(self.grid.selected), len(self.grid.waiting)
        return f"Study({self.grid.recipe.name!r}, {count(runs, 'run')}, {runs - waiting} done, {self.folder})"

    @naming_arguments()
    def plan(self) -> DataFrame:
        """List the runs of the grid. Nothing is loaded or downloaded.

        Returns:
            One row per run: run_id, arm, method, split, seed, steps and status (`waiting`, `running`, `interrupted`,
            `failed`, `done` or `damaged`). A damaged run is finished, but its files are damaged.
        """
        from pandas import DataFrame

        grid = self.grid
        rows = [
            {
                "run_id": cell.run_id,
                "arm": cell.arm,
                "method": cell.method,
                "split": cell.split,
                "seed": cell.seed,
                "steps": cell.spec.train.steps,
                "status": grid.folder.run(cell.run_id).status(),
            }
            for cell in grid.selected
        ]
        return DataFrame(rows)

    @naming_arguments()
    @training_lock()
    def run(
        self,
        *,
        workers: int = 0,
        stack: int | str = "auto",
        executor: str = "local",
        address: str | None = None,
        cpu: bool = False,
        force: bool = False,
        by_generation: bool = False,
        micro_batch: int = 0,
        threads: int = 0,
        save_every: float = 60.0,
        gradient_checkpointing: bool = False,
        cuda_graphs: bool = False,
        log_with: str | Sequence[str] = (),
        repair: bool = False,
        dev_only: bool = False,
        progress: Callable[[], None] = lambda: None,
    ) -> DataFrame:
        """Run every experiment of the study. Finished runs are skipped; interrupted runs resume.

        Args:
            workers: Number of runs at the same time, one process per run. 0: chosen automatically.
            stack: Number of runs that are trained together on one copy of the base model, or `auto` or `off`.
            executor: `local` for this machine, `ray` for a Ray cluster.
            address: Address of the Ray cluster.
            cpu: Use the CPU even if there is a GPU.
            force: Ignore failed memory and quantisation checks.
            by_generation: Score the test set by generating every answer, instead of by one forward pass per example.
            micro_batch: Examples in one forward pass. 0: chosen automatically.
            threads: CPU threads of each process. 0: chosen automatically.
            save_every: Seconds between two saves of the training state. An interrupted run resumes from the last save.
            gradient_checkpointing: Recompute activations in the backward pass, which saves memory.
            cuda_graphs: Replay training steps as CUDA graphs, which makes small models faster on a GPU. Only at 32 or
                16 bits, and without stacks.
            log_with: Experiment trackers to log each run to: `tensorboard`, `wandb`, `mlflow`, `trackio` and others.
            repair: Delete and repeat the finished runs whose files are damaged.
            dev_only: Skip the test set and save no adapters. A later call without it trains these runs again.
            progress: Function that is called several times a second during the runs. It can call `plan()` for the
                status of each run.

        Returns:
            The table of results; see `results`.

        Raises:
            UserError: A run cannot be executed with these arguments, or an argument has the wrong type.
            RunError: Runs failed or were interrupted. The other runs are finished, and calling `run` again resumes.
        """
        import_transformers()
        execution = Execution(
            micro_batch, threads, save_every, self.grid.log_every, False, gradient_checkpointing, cuda_graphs
        )
        trackers = check_trackers(checked_names(log_with, "log_with"))
        settings = Settings(
            execution, cpu=cpu, force=force, by_generation=by_generation, dev_only=dev_only, log_with=trackers
        )
        scheduling = Scheduling(workers, executor, address, str(stack)).without_stacks_if(cuda_graphs, "--cuda-graphs")
        check_processes(self.grid, scheduling, 1)
        if checked_bool(repair, "repair"):
            self.grid.repair()
        prepared = prepare_study(self.grid, settings, scheduling)
        self.grid.folder.open(self.grid.recipe)
        anew = bool(self.grid.waiting)
        outcome = execute_study(prepared, progress) if anew else None
        if not dev_only:
            write_results(self.grid, anew=anew)
        if outcome:
            _raise_for(outcome, len(self.grid.selected))
        for damage in self.grid.damaged.values():
            raise RunError(f"a finished run is damaged: {damage}; run the study again with repair=True")
        return self.results()

    def results(self) -> DataFrame:
        """Read the results of the study's runs.

        Returns:
            One row per run: run_id, arm, method, split, seed, status, exact match on dev and test in percent, the mean
            log-probability per token of the test targets in nats, the number of trained parameters, and other metrics
            in percent.
        """
        from pandas import DataFrame

        from petransfer.report import run_table

        return DataFrame(run_table.as_json(run_table.rows_of(self.grid.selected, self.grid.folder)))

    @naming_arguments()
    def effects(self) -> DataFrame:
        """Estimate the effects that the recipe requests, from the finished runs.

        An effect is a difference between arms or between methods.

        Returns:
            One row for each effect and split, with difference and interval in percentage points, p-value and verdict.
        """
        from pandas import DataFrame

        from petransfer.effects.study_effects import update_effects

        grid = self.grid
        return DataFrame(update_effects(grid.recipe, grid.cells, grid.folder)["effects"])

    @naming_arguments()
    def report(self) -> Path:
        """Write report.html, table.csv, table.md, table.tex, plots/ and effects.json into the study's folder.

        Returns:
            The path of report.html.

        Raises:
            UserError: No run is finished.
        """
        from petransfer.report.study_report import write_report

        return write_report(self.grid).path


@training_lock()
def train(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    cpu: bool = False,
    force: bool = False,
    gradient_checkpointing: bool = False,
    progress: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Adapter:
    """Train a model on your own data until it stops improving on dev.

    Trainings in several threads of a process run one after another.

    Args:
        model: Hub id, folder, or checkpoint shipped with petransfer, such as `nano/english`.
        data: File (tsv, csv, json, jsonl, parquet), folder, or hub id of a dataset.
        out: Folder for the results. Default: `results/<data>-<model>`. A number is added to this name if the folder
            already contains a training run with other settings.
        overrides: Other keys of the recipe, such as `{"train": {"warmup": 0.1}}`.
        cpu: Use the CPU even if there is a GPU.
        force: Ignore failed memory and quantisation checks.
        gradient_checkpointing: Recompute activations in the backward pass, which saves memory.
        progress: Function that is called several times a second during training.
        **settings: Fields of `petransfer.study.quick_recipe.TrainRequest`: method, rank, bits, steps, epochs,
            max_steps, early_stopping, max_minutes, learning_rate, batch_size, packing, max_length, prefix, seeds, dev,
            test, input_column, target_column, template, metrics, skip_bad_rows, add_tokens, source_language,
            target_language, folds.

    Returns:
        The adapter. With several seeds: the adapter that is best on dev. With `folds` (cross-validation): an adapter
        trained on all rows; the file folds.json in the study's folder has the scores of the folds.

    Raises:
        UserError: The model, the data or a setting is not valid, or the model does not fit the card.
        RunError: Training failed or was interrupted. Calling `train` again resumes it.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "pairs.tsv").write_text("to walk\\tgehen\\nto run\\trennen\\nto see\\tsehen\\n" * 4)
        >>> adapter = train("nano/english", folder / "pairs.tsv", steps=4, out=folder / "out", cpu=True)
        >>> len(adapter.predict(["to walk"], max_new_tokens=4))
        1
    """
    import_transformers()
    from petransfer.memory.cards import this_card
    from petransfer.sharing.adapter import Adapter
    from petransfer.study.cross_validation import cross_validation
    from petransfer.study.train_request import train_request
    from petransfer.study.train_study import memory_if_predictable, refuse_too_large, train_study
    from petransfer.study.train_summary import summaries

    request = train_request(settings)
    cpu, force = checked_bool(cpu, "cpu"), checked_bool(force, "force")
    gradient_checkpointing = checked_bool(gradient_checkpointing, "gradient_checkpointing")
    folder = _checked_folder(out)
    _refuse_overrides(overrides)
    model_and_data = checked_path(model, "model"), checked_path(data, "data")
    card = None if cpu else this_card()
    has_bf16 = card is not None and card.has_bf16
    arguments = (*model_and_data, request, list(as_overrides(overrides or {})), folder, has_bf16)
    validation = cross_validation(*arguments) if request.folds is not None else None
    training = validation.folds[0] if validation else train_study(*arguments)
    if training.note:
        logger.info(training.note)
    if card is not None and (fit := memory_if_predictable(training.grid, card, gradient_checkpointing)):
        refuse_too_large(training.grid, fit, force)

    def run(grid: StudyGrid, dev_only: bool = False) -> None:
        Study.of_grid(grid).run(
            cpu=cpu,
            force=force,
            gradient_checkpointing=gradient_checkpointing,
            dev_only=dev_only,
            progress=progress,
        )

    if validation:
        scores = validation.run(lambda grid: run(grid, dev_only=True), logger.info)
        training = validation.last_training(scores)
    run(training.grid)
    best = summaries(training.grid)[0]
    return Adapter.load(best.folder.path, device="cpu" if cpu else None)


def _checked_folder(out: str | Path | None) -> Path | None:
    """Return the output folder that the argument `out` names. None: the default folder."""
    return None if out is None else expanded(checked_path(out, "out"))


def _refuse_overrides(overrides: object) -> None:
    """Raise UserError if the argument `overrides` is not a dict."""
    if not isinstance(overrides, Mapping | None):
        raise UserError(f"overrides is {overrides!r:.40}; give a dict, such as {{'train': {{'warmup': 0.1}}}}")


def write_results(grid: StudyGrid, *, anew: bool = False) -> dict[str, Any]:
    """Write table.csv and effects.json from the finished runs, and return the content of effects.json.

    Args:
        grid: The runs of the study.
        anew: Whether runs were executed just now. effects.json is then computed again in any case: a repeated run keeps
            its run id but can have other scores, so the file could wrongly seem up to date.
    """
    from petransfer.effects.study_effects import update_effects
    from petransfer.report import run_table

    with grid.folder.locked():  # another shard may write these files at the same moment
        rows = run_table.rows_of(grid.cells, grid.folder)
        run_table.write_csv(rows, grid.folder.path / "table.csv", grid.recipe.family_name)
        return update_effects(grid.recipe, grid.cells, grid.folder, anew=anew)


def _raise_for(outcome: Any, runs: int) -> None:
    """Raise RunError unless all runs of the study are finished."""
    if outcome.interrupted:
        raise RunError("stopped; run the study again to resume it")
    if outcome.failures:
        first_id, first = next(iter(outcome.failures.items()))
        raise RunError(f"{len(outcome.failures)} of {count(runs, 'run')} failed; run {first_id}: {first}")
    if outcome.elsewhere:
        raise RunError(f"another process is executing {outcome.elsewhere:,} of {count(runs, 'run')}")
