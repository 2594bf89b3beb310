"""What the runs of a grid take of a card, before any of it is downloaded."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from petransfer.data import load_task
from petransfer.errors import UserError
from petransfer.memory.advice import TURNED_ON, Words, it_would
from petransfer.models.registry import is_embedded
from petransfer.recipe.run_spec import MethodSpec, RunSpec
from petransfer.recipe.stacking import MOST_STACKED, kind

if TYPE_CHECKING:
    from petransfer.memory.planner import Fit
    from petransfer.memory.simulation import Demand

# T5's pieces are longer in prose (4 characters) and about so long in SCAN's and COGS's targets.
CHARACTERS_A_PIECE = 1.6

# The embedded family's stacks of MOST_STACKED runs, of SCAN, COGS or SLOG in batches of up to 32, take 3 to 5 GB by the
# planner: on a card of so many bytes it need not be asked.
ROOMY, USUAL_BATCH = 8 * 2**30, 32


_DRAWN = {"none": "", "embeddings": " (new embeddings)", "body": " (random body)", "all": " (from scratch)"}


@dataclass(frozen=True)
class Place:
    """A training that occurs in a grid, once for all its seeds, by itself or in a stack.

    problem: why nothing could be foreseen.
    """

    name: str
    spec: RunSpec
    fit: Fit | None
    problem: str = ""

    def line(self, words: Words) -> str:
        """For people. words: of the verb that they called."""
        if self.fit is None:
            return f"{self.name}: {self.problem}"
        size = f"{self.fit.needed / 2**30:.1f} GB"
        count = self.fit.demand.batch
        cut = "" if count == self.fit.batch else f", {count} example{'s' if count > 1 else ''} at once"
        if self.fit.fits:
            again = f", {TURNED_ON}" if self.fit.turned_on else ""
            return f"{self.name}: {size} of {(self.fit.card or 0) / 2**30:.4g}{cut}{again}"
        return f"{self.name}: {size} with one example, does not fit{it_would(self.fit.advice, words)}"


def foresee(
    specs: Sequence[RunSpec], card: int, checkpointing: bool = False, stacked: Mapping[str, int] | None = None
) -> list[Place]:
    """One place for each checkpoint, method and batch of the grid; an embedded checkpoint by itself fits everywhere.

    stacked: of runs that are trained as one, how many, by run id. Imports torch only where there is a place.
    """
    found: dict[tuple[object, ...], Place] = {}
    for spec in specs:
        members = (stacked or {}).get(spec.run_id, 1)
        checkpoint = spec.checkpoint
        start = (checkpoint.name, checkpoint.tokenizer, checkpoint.reinit)
        key = (*start, spec.method, spec.train.batch_size, spec.task.name, members)
        if key not in found and not _surely_fits(spec, card, members):
            found[key] = _place(spec, card, checkpointing, members)
    return list(found.values())


def _place(spec: RunSpec, card: int, checkpointing: bool, members: int) -> Place:
    from petransfer.memory.planner import plan

    name = f"{spec.checkpoint.name}{_DRAWN[spec.checkpoint.reinit]}, {in_words(spec.method)}, {spec.method.bits} bits"
    name += f", {members} stacked" if members > 1 else ""
    demand = replace(demand_of(spec, checkpointing), members=members)
    try:
        config, own_head = _architecture(spec)
        return Place(name, spec, plan(config, spec.checkpoint, demand, own_head, card))
    except UserError as error:
        return Place(name, spec, None, str(error))


def _architecture(spec: RunSpec) -> tuple[Any, bool]:
    """The configuration of a run's checkpoint and whether it has a head of its own.

    Raises:
        UserError: there is none to be had.
    """
    from petransfer.models.architecture import configuration
    from petransfer.models.library_output import silence_libraries

    silence_libraries()
    return configuration(spec.checkpoint)


def needs_checkpointing(spec: RunSpec, card: int) -> bool:
    """Whether a run by itself has room on a card only with its activations computed again, if at all."""
    from petransfer.memory import planner

    if _surely_fits(spec, card, 1):
        return False
    try:
        config, own_head = _architecture(spec)
        return planner.needs_checkpointing(config, spec.checkpoint, demand_of(spec, False), own_head, card)
    except UserError:
        return False


def _surely_fits(spec: RunSpec, card: int, members: int) -> bool:
    """Whether the planner, for which torch is imported, need not be asked."""
    usual = card >= ROOMY and members <= MOST_STACKED and spec.train.batch_size <= USUAL_BATCH
    return is_embedded(spec.checkpoint.name) and (members == 1 or usual)


def on_host(spec: RunSpec, checkpointing: bool = False) -> int:
    """Bytes of tensors where a run is trained on a CPU, or twice its weights, as while they are read, if that is more.

    0 where nothing can be foreseen, and for embedded checkpoints, which are small.
    """
    from petransfer.memory.planner import plan
    from petransfer.training.out_of_memory import PACKED_EXAMPLES

    if is_embedded(spec.checkpoint.name):
        return 0
    demand = demand_of(spec, checkpointing, "cpu")
    cut = replace(demand, batch=min(demand.batch, PACKED_EXAMPLES), accumulates=demand.batch > PACKED_EXAMPLES)
    try:
        config, own_head = _architecture(spec)
        memory = plan(config, spec.checkpoint, cut, own_head, None).memory
    except UserError:
        return 0
    return max(memory.peak, 2 * sum(memory.weights.values()))


def rooms(specs: Sequence[RunSpec], card: int) -> dict[str, int]:
    """For each run, by its id, how many such runs fit a card as one stack; 1 where nothing can be foreseen."""
    counts: dict[RunSpec, list[RunSpec]] = {}
    found: dict[str, int] = {}
    for spec in specs:
        key = kind(spec)
        found[spec.run_id] = 1
        if key is not None:
            counts.setdefault(key, []).append(spec)
    for alike in counts.values():
        widest = max(alike, key=lambda spec: spec.method.rank)
        most = min(len(alike), MOST_STACKED)
        room = most if most == 1 or _surely_fits(widest, card, most) else _room(widest, card, most)
        found |= {spec.run_id: room for spec in alike}
    return found


def _room(spec: RunSpec, card: int, most: int) -> int:
    from petransfer.memory.planner import largest_stack
    from petransfer.training.stacked.layers import refuse_layer_drop

    try:
        config, own_head = _architecture(spec)
        refuse_layer_drop(config)
        return largest_stack(config, spec.checkpoint, demand_of(spec, checkpointing=False), own_head, card, most)
    except UserError:
        return 1


def in_words(method: MethodSpec) -> str:
    """A method and its size, for people."""
    if method.name == "full":
        return "all weights"
    size = f" r{method.rank}" if method.rank else f" of {method.virtual_tokens} tokens" if method.virtual_tokens else ""
    size = f" of about {method.match_parameters:,} parameters" if method.match_parameters else size
    return f"{ {'lora': 'LoRA'}.get(method.name, method.name) }{size}"


def find_sizes(specs: Sequence[RunSpec], data_dir: Path | None = None) -> None:
    """Looks whether `match_parameters` can be met by every checkpoint, before anything is trained.

    Raises:
        UserError: it cannot, by one.
    """
    wanted: dict[tuple[object, ...], RunSpec] = {}
    for spec in specs:
        if spec.method.match_parameters:  # which rows of the embeddings are trained follows from the task
            task = spec.task if spec.method.embeddings == "new" else None
            wanted.setdefault((spec.checkpoint, spec.method, task), spec)
    if not wanted:
        return
    from petransfer.memory.simulation import meta_model
    from petransfer.methods import with_size
    from petransfer.models.architecture import configuration

    for spec in wanted.values():
        config, own_head = configuration(spec.checkpoint)
        wide = replace(spec.method, bits=32)
        pieces = met_new_tokens(spec, config, data_dir)
        with_size(meta_model(config, spec.checkpoint.name, wide, own_head, pieces), wide)


def met_new_tokens(spec: RunSpec, config: Any, data_dir: Path | None = None) -> tuple[int, ...]:
    """The pieces whose rows a run trains under `embeddings: new`: those without pretraining that its training meets.

    config: the checkpoint's.
    """
    from petransfer.data.encoded_examples import encode_part
    from petransfer.models.checkpoint_files import new_tokens
    from petransfer.models.loading import tokenizer_and_layout
    from petransfer.training.batches import met

    new = new_tokens(spec.checkpoint, config.vocab_size) if spec.method.embeddings == "new" else ()
    if not new:
        return ()
    rows = load_task(spec.task.name, data_dir, **spec.task.arguments).load(spec.task.split).train
    tokenizer, layout = tokenizer_and_layout(spec.checkpoint, config)
    train = spec.train
    used = functools.partial(met, len(rows), train.batch_size, train.steps, spec.seed)
    found = encode_part(rows, spec.task.prefix, tokenizer, layout, used=used).token_ids
    return tuple(token for token in new if token in found)


def demand_of(spec: RunSpec, checkpointing: bool, device: Literal["cuda", "cpu"] = "cuda") -> Demand:
    """What a run asks of memory: its method, and a batch of the longest input and target that it is trained on."""
    from petransfer.memory.simulation import Demand

    task = load_task(spec.task.name, None, **spec.task.arguments)
    characters = task.longest(spec.task.split)
    source, target = (int(count / CHARACTERS_A_PIECE) + 2 for count in characters)
    source += len(spec.task.prefix) // 4
    train = spec.train
    return Demand(spec.method, train.batch_size, source, target, device, train.optimizer, checkpointing)


def this_card() -> int | None:
    """The bytes of this machine's first NVIDIA card, None where there is none; asks the driver, not torch."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    first = done.stdout.strip().split("\n")[0].strip()
    return int(first) * 2**20 if done.returncode == 0 and first.isdigit() else None
