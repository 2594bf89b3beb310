"""The Dockerfiles copy all files that the package needs, pin their base image, and do not run as root.

hadolint checks their style if it is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_everything_that_the_package_needs_is_copied(file: Path) -> None:
    copied = [word for line in re.findall(r"^COPY (.+)$", file.read_text(), re.M) for word in line.split()[:-1]]
    assert not [name for name in copied if not (ROOT / name).exists()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    needed |= set(project["tool"]["setuptools"]["package-dir"].values())
    assert needed <= set(copied)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_base_image_is_pinned_and_the_user_is_not_root(file: Path) -> None:
    text = file.read_text()
    (base,) = re.findall(r"^FROM \S+:(\S+)$", text, re.M)
    assert base != "latest"
    (user,) = re.findall(r"^USER (\d+)$", text, re.M)
    assert int(user) > 0
    assert text.index("USER") < text.index("ENTRYPOINT")
    assert re.search(r"^RUN pip install .*-c constraints.txt \.$", text, re.M)


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    found = subprocess.run(["hadolint", str(file)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
