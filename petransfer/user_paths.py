"""Paths as the user writes them, which may begin with `~`."""

from __future__ import annotations

import re
from pathlib import Path

from petransfer.errors import UserError

_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(datasets/)?([\w.-]+/[\w.-]+)(?:/.*)?")

# Names that the hub allows: no part begins or ends with a hyphen or a dot.
_HUB_NAME = re.compile(r"(?!.*(?:--|\.\.))(?:\b[\w.-]+\b/)?\b[\w.-]{1,96}\b(?<!\.git)")


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form `name` or `owner/name` of a repository on the hub."""
    return bool(_HUB_NAME.fullmatch(name))


def refuse_address(name: str, what: str) -> None:
    """Raise UserError if a name is a web address, such as one copied from a browser.

    Args:
        what: What the user was expected to name, such as `a checkpoint`, for the message.
    """
    if "://" not in name:
        return
    found = _HUB.fullmatch(name)
    advice = f"give its hub id, {found[2]}" if found else f"download {what} first, and give its path"
    raise UserError(f"{name:.120} is a web address; {advice}")


def expanded(path: str | Path) -> Path:
    """Return a path in which a `~` or `~name` at the beginning is replaced by that user's home folder.

    Raises:
        UserError: there is no such user, the user has no home folder, or the path is `-`.
    """
    if str(path) == "-":
        raise UserError("- stands for standard input or output, which is not used here; name a file or a folder")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{path}: there is no home folder for {home}; write the whole path, from / on") from None


def without_folder(name: str) -> str:
    """Return the last part of a path of this machine: `/home/me/t5` becomes `t5`. Any other text stays as it is.

    A relative path such as `data/rows.tsv`, which can also be an id on the hub, stays too.
    """
    is_path = name.startswith(("/", "~", "./", "../", "\\")) or name[1:3] in (":\\", ":/")
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def training_around(path: Path) -> Path | None:
    """Return the folder of the training that contains a file or folder. None if there is none."""
    return next((one for one in path.parents if (one / "recipe.yaml").is_file()), None)


def trainings_in(folder: Path) -> str:
    """Return examples of folders of runs, such as `such as results/dates-english`, for a message.

    Args:
        folder: the folder or file that a user gave. The example is the folder of `train` that contains it, or folders
            of `train` inside it.
    """
    around = training_around(folder)
    if around is not None:
        return f"here {around}"
    inner = sorted(str(kept.parent) for kept in folder.glob("*/recipe.yaml"))[:3]
    return f"such as {', '.join(inner) or 'results/dates-english'}"
