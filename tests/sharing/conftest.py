"""Fixtures: adapters trained in a few steps by `petransfer train`, and their bundles. Helpers to change a bundle."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from petransfer.cli import main
from petransfer.sharing.bundle_zip import write_zip

WORDS = {"walk": "gehen", "run": "rennen", "see": "sehen", "say": "sagen"}
ROWS = [(f"{how} {word} {n}", WORDS[word]) for n in range(5) for word in WORDS for how in ("to", "must")]
Contents = dict[str, bytes]


def call(*arguments: str) -> int:
    """Run `petransfer ARGUMENTS` in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["petransfer", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a call that must end with exit code 2, and return its one-line error."""
    capsys.readouterr()
    assert call(*arguments) == 2
    message = capsys.readouterr()
    assert message.out == ""
    assert message.err.startswith("error: ")
    assert message.err.count("\n") == 1
    return message.err


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.tsv, a file of 40 rows."""
    folder = tmp_path_factory.mktemp("share")
    text = "".join(f"{source}\t{target}\n" for source, target in ROWS)
    (folder / "pairs.tsv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trained(place: Path) -> Callable[..., Path]:
    """A function that runs `petransfer train` once for each (model, options), and returns the run's folder."""
    made: dict[tuple[str, ...], Path] = {}

    def make(model: str, *options: str) -> Path:
        key = (model, *options)
        if key not in made:
            out = place / f"study{len(made)}"
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                patch.setenv("PETRANSFER_CACHE", str(place / "cache"))
                arguments = ("--steps", "40", "--lr", "0.01", "--cpu", "--test", "10", "--out", str(out), *options)
                assert call("train", model, "pairs.tsv", *arguments) == 0
            (made[key],) = (out / "runs").iterdir()
        return made[key]

    return make


@pytest.fixture(scope="session")
def run(trained: Callable[..., Path]) -> Path:
    """The folder of a run that trained an adapter on nano/english."""
    return trained("nano/english")


@pytest.fixture(scope="session")
def packed(run: Path, place: Path) -> Path:
    """The bundle of the adapter in `run`."""
    target = place / "good.petransfer.zip"
    assert call("adapter", "pack", str(run), "--out", str(target)) == 0
    return target


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a new folder that has a copy of pairs.tsv and an empty cache folder. Return the new folder."""
    (tmp_path / "pairs.tsv").write_bytes((place / "pairs.tsv").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def contents(bundle: Path) -> Contents:
    """Return the content of each file in a bundle, by file name."""
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sealed(files: Mapping[str, bytes]) -> Contents:
    """Return the files with new sha256 in petransfer.json, the card and the manifest, as a forger would write them."""
    new = dict(files)
    old = json.loads(new["petransfer.json"])
    provenance = json.loads(new["petransfer.json"])
    provenance["files"] = {name: sha256(new[name]).hexdigest() for name in old["files"]}
    new["petransfer.json"] = json.dumps(provenance).encode()
    weights = "adapter_model.safetensors"
    new["README.md"] = new["README.md"].replace(old["files"][weights].encode(), provenance["files"][weights].encode())
    return listed(new)


def listed(files: Mapping[str, bytes]) -> Contents:
    """Return the files with a manifest that has their sha256."""
    hashes = {name: sha256(content).hexdigest() for name, content in files.items() if name != "manifest.json"}
    return {**files, "manifest.json": json.dumps({"format": 1, "files": hashes}).encode()}


def write(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a bundle with these files, and return its path."""
    write_zip(path, files)
    return path
