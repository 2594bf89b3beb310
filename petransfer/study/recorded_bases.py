"""Take the hashes of local bases that no longer exist from a study's run folders. Imports no torch."""

from __future__ import annotations

from petransfer.models.registry import SEED
from petransfer.recipe.schema import ArmPart, FamilyPart, Recipe
from petransfer.study.folders import StudyFolder, read_json
from petransfer.user_paths import expanded


def with_recorded_bases(recipe: Recipe, folder: StudyFolder) -> Recipe:
    """Return the recipe with the recorded sha256 of each arm whose local folder is gone.

    The run ids contain these hashes. So a study can be read after a base was removed or moved.

    Args:
        folder: The study's folder. The `spec.json` of each of its runs records the base.
    """
    if not isinstance(recipe.family, FamilyPart):
        return recipe
    arms = dict(recipe.family.arms)
    for name, given in recipe.family.arms.items():
        entry = ArmPart(checkpoint=given) if isinstance(given, str) else given
        if entry.sha256 is None and SEED not in entry.checkpoint and not expanded(entry.checkpoint).exists():
            hashes = _recorded_hashes(folder, expanded(entry.checkpoint).name)
            if len(hashes) == 1:  # of several bases with this folder name, the right one is unknown
                arms[name] = entry.model_copy(update={"sha256": hashes.pop()})
    return recipe.model_copy(update={"family": recipe.family.model_copy(update={"arms": arms})})


def _recorded_hashes(folder: StudyFolder, name: str) -> set[str]:
    """Return the hashes of the local bases that the runs record for folders called `name`."""
    specs = [read_json(folder.run(run_id).path / "spec.json") or {} for run_id in folder.names()]
    bases = [spec["checkpoint"] for spec in specs if isinstance(spec.get("checkpoint"), dict)]
    return {str(base["weights"]) for base in bases if base.get("source") and base.get("name") == name}
