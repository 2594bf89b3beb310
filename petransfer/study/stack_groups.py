"""Group runs into stacks (runs that are trained together). Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from petransfer.recipe.run_spec import RunSpec
from petransfer.recipe.stacking import stack_key
from petransfer.study.folders import RunFolder, StudyFolder


class Stackable(Protocol):
    """A run of a study's grid."""

    @property
    def run_id(self) -> str: ...
    @property
    def spec(self) -> RunSpec: ...


CellType = TypeVar("CellType", bound=Stackable)


def stacks_of(cells: Sequence[CellType], most: Mapping[str, int] | int) -> list[list[CellType]]:
    """Group runs into stacks. most: the largest number of runs in a stack, for all runs or by run id."""
    stacks: list[list[CellType]] = []
    filling: dict[RunSpec, list[CellType]] = {}
    for cell in cells:
        room = most if isinstance(most, int) else most.get(cell.run_id, 1)
        key = stack_key(cell.spec)
        stack = filling.get(key) if key is not None else None
        if stack is None or len(stack) >= room:
            stack = []
            stacks.append(stack)
            if key is not None:
                filling[key] = stack
        stack.append(cell)
    return stacks


@dataclass(frozen=True)
class _SavedState:
    """A training state: the step, and the ids of the runs in the stack."""

    step: int
    names: tuple[str, ...]


def resumable_groups(cells: Sequence[CellType], study: StudyFolder) -> list[list[CellType]]:
    """Divide the runs of a stack into groups that can resume together from one step."""
    states = {cell.run_id: _saved_states(cell.spec, study.run(cell.run_id)) for cell in cells}
    found: dict[_SavedState | None, list[CellType]] = {}
    for cell in cells:
        found.setdefault(_usable(cell.run_id, states, study), []).append(cell)
    return list(found.values())


def common_start(specs: Sequence[RunSpec], folders: Sequence[RunFolder]) -> int:
    """Return the newest step for which all runs have a training state. 0 if there is none."""
    steps = [{state.step for state in _saved_states(spec, folder)} for spec, folder in zip(specs, folders, strict=True)]
    return max(set.intersection(*steps), default=0)


def _usable(name: str, states: Mapping[str, Sequence[_SavedState]], study: StudyFolder) -> _SavedState | None:
    for state in states[name]:
        # A stack writes the states of all runs at a step before earlier states are removed. A state is therefore usable
        # if every other run of the stack is done or has a state of this step or of a later one.
        others = [other for other in state.names if other in states and not study.run(other).done]
        if all(any(theirs == state or theirs.step > state.step for theirs in states[other]) for other in others):
            return state
    return None


def _saved_states(spec: RunSpec, folder: RunFolder) -> list[_SavedState]:
    """Return the complete training states of a run, newest first."""
    found = []
    for state in sorted((folder.path / "state").glob("step-*"), reverse=True):
        try:
            meta = json.loads((state / "progress.json").read_text(encoding="utf-8"))
            if meta["identity"] == spec.canonical_json():
                progress = meta["progress"]
                names = progress["notes"].get("stack", [folder.path.name])
                found.append(_SavedState(int(progress["step"]), tuple(names)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a damaged file, or one of a later version
            continue
    return found
