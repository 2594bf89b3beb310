"""The verb `pretrain`: pretrain a family of checkpoints that differ only in their corpus."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from petransfer.cli.display import Display, View, report_outcome
from petransfer.cli.options import Arms, Cpu, CudaGraphs, Json, Seeds, Sets, parse_names, parse_seeds
from petransfer.cli.table_layout import print_table
from petransfer.cli.terminal_text import print_text
from petransfer.errors import UserError
from petransfer.memory.cards import this_card
from petransfer.plurals import count
from petransfer.pretraining import run_table as tables
from petransfer.pretraining.grid import check_settings, expand_pretraining, refuse_missing_corpora
from petransfer.recipe.loading import load_pretraining
from petransfer.study.folders import StudyFolder
from petransfer.study.launched_processes import launched_process
from petransfer.training.execution import MOST_THREADS, Execution, refuse_missing_gpu
from petransfer.user_paths import expanded


def pretrain(
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Name of a pretraining recipe, or a YAML file.")
    ] = "nano",
    corpora: Annotated[
        Path | None,
        typer.Option(
            "--corpora",
            help="Folder with the corpora. Default: `corpora_dir` of the recipe, or else the current folder.",
        ),
    ] = None,
    sets: Sets = None,
    arms: Arms = None,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", help="Model sizes, separated by commas: nano,micro. Default: as in the recipe."),
    ] = None,
    seeds: Seeds = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder. Default: pretrained/<recipe>.")] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of runs at the same time. They divide the cores among themselves.")
    ] = 1,
    threads: Annotated[
        int, typer.Option(min=0, max=MOST_THREADS, help="CPU threads of each run. 0: chosen automatically.")
    ] = 0,
    save_every: Annotated[
        float,
        typer.Option(
            min=0.0, help="Seconds between two saves of the training state. An interrupted run resumes from it."
        ),
    ] = 120.0,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Whether to compile the model, so that long runs are faster. Default: yes if there is a compiler.",
        ),
    ] = None,
    cuda_graphs: CudaGraphs = False,
    cpu: Cpu = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Show what would be trained, and stop before training.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pretrain a checkpoint for each arm (kind of pretraining, such as english) of a recipe, by span corruption.

    Each arm gets one checkpoint per size and seed. Finished runs are skipped; interrupted runs resume.
    """
    options = {
        "arms": parse_names(arms),
        "sizes": parse_names(sizes),
        "seeds": None if seeds is None else parse_seeds(seeds),
        "corpora_dir": corpora,
    }
    if launched_process().shared:
        raise UserError("pretrain does not share a run among processes; start it without a launcher and use --workers")
    content = load_pretraining(recipe, sets or [], options)
    cells = expand_pretraining(content)
    folder = StudyFolder(out or Path("pretrained") / content.name)
    check_settings(cells, folder)

    def read() -> Sequence[tables.PretrainingRow]:
        return tables.rows_of(cells, folder)

    def end() -> None:
        if as_json:
            print(json.dumps({"pretraining": content.name, "runs": tables.as_json(read())}, indent=1))
        else:
            print_table(tables.terminal_table(read(), content.name))

    if plan_only:
        folder.check(content.name)
        end()
        return
    card = None if cpu else this_card()
    if card:
        card.check_bits(content.bits)
    if cuda_graphs:
        refuse_missing_gpu(on_gpu=card is not None)
    root = expanded(content.corpora_dir or Path())
    refuse_missing_corpora(folder.unfinished(cells), root)
    folder.open(content)
    started = time.monotonic()
    with Display(View(content.name, read, tables.plain_line, _label), quiet=as_json) as tick:
        from petransfer.pretraining.grid import Pretrain
        from petransfer.study.local_executor import execute

        # for a small model, CUDA graphs save about as much time as compiling, and need no time to compile
        compiles = not cuda_graphs and any(map(shutil.which, ("g++", "clang++", "c++")))
        execution = Execution(
            threads=threads,
            save_every=save_every,
            compile=compiles if compiled is None else compiled,
            cuda_graphs=cuda_graphs,
        )
        job = Pretrain(execution, root, cpu)
        outcome = execute(cells, folder, job, workers, threads, tick)
    end()
    code = report_outcome(outcome, len(cells))
    if code:
        raise typer.Exit(code)
    minutes = (time.monotonic() - started) / 60
    print_text(
        f"{count(len(cells), 'checkpoint')} done in {minutes:.1f} minutes; see {folder.path}/runs", file=sys.stderr
    )


def _label(row: tables.PretrainingRow) -> dict[str, str]:
    return {"arm": row.cell.arm, "size": row.cell.size, "seed": f"seed {row.cell.seed}"}
