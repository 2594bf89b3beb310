"""Names of the supported experiment trackers. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from petransfer.errors import UserError, unknown

# For each tracker, by its name in Accelerate: (the module that it needs, the package that provides this module).
TRACKERS = {
    "tensorboard": ("tensorboard", "petransfer[tensorboard]"),
    "wandb": ("wandb", "petransfer[wandb]"),
    "mlflow": ("mlflow", "petransfer[mlflow]"),
    "trackio": ("trackio", "petransfer[trackio]"),
    "aim": ("aim", "aim"),
    "clearml": ("clearml", "clearml"),
    "comet_ml": ("comet_ml", "comet_ml"),
    "dvclive": ("dvclive", "dvclive"),
    "swanlab": ("swanlab", "swanlab"),
}


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the tracker names in the values of `--log-with`, split at commas, without duplicates.

    Raises:
        UserError: a tracker is unknown, or its package is not installed.
    """
    found = tuple(dict.fromkeys(name.strip() for given in names for name in given.split(",") if name.strip()))
    for name in found:
        if name not in TRACKERS:
            raise unknown("tracker of --log-with", name, TRACKERS)
        module, package = TRACKERS[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"--log-with {name}: the package {module} is not installed; run `pip install '{package}'`")
    return found
