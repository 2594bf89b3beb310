"""Test errors for paths that are neither a checkpoint nor data: they describe the path and name one that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from petransfer.data.rows.source import find_source
from petransfer.errors import UserError
from petransfer.models.registry import checkpoint_spec
from petransfer.sharing.sources import opened_source
from petransfer.wrong_paths import weight_file_advice

COMMITS = ("0" * 40, "1" * 40)


def messages_of(place: Path) -> tuple[str, str]:
    """Return the error messages for a path that is given as a checkpoint, and as an adapter or model."""
    with pytest.raises(UserError) as of_checkpoint:
        checkpoint_spec(str(place))
    with pytest.raises(UserError) as of_adapter, opened_source(str(place)):
        pass
    return str(of_checkpoint.value), str(of_adapter.value)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder of a model in the hub's cache, with two commits. The branch main points to the second commit."""
    place = tmp_path / "hub" / "models--owner--small--model"
    for commit in COMMITS:
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMITS[1])
    return place


@pytest.mark.parametrize("inner", ["", "snapshots", "refs"])
def test_the_error_for_a_folder_of_the_hub_cache_names_the_snapshot_in_it(cache: Path, inner: str) -> None:
    for message in messages_of(cache / inner):
        assert "is the folder of owner/small--model in the hub's cache; name the folder" in message
        assert message.endswith(str(cache / "snapshots" / COMMITS[1]))


def test_the_error_for_the_whole_hub_cache_suggests_a_hub_id(cache: Path) -> None:
    assert all(
        "give the hub id of a model, such as owner/small--model" in message for message in messages_of(cache.parent)
    )


def test_the_error_for_an_incomplete_copy_in_the_cache_suggests_a_download(cache: Path) -> None:
    for commit in COMMITS:
        (cache / "snapshots" / commit / "config.json").unlink()
    assert all("download it again with `hf download owner/small--model`" in message for message in messages_of(cache))


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.ckpt", "a.safetensors", "a.onnx", "a.GGUF"])
def test_a_weight_file_is_not_read_as_a_file_of_rows(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"\x00\x01weights")
    for message in messages_of(file):
        assert "your rows" not in message
        assert "zip" not in message
        assert "name the" in message or "name a folder" in message
    with pytest.raises(UserError, match=f"{name} (has no rows: it )?is .*; (name a file with rows|save a table)"):
        find_source(str(file), None)


def test_files_of_rows_are_not_reported_as_weight_files() -> None:
    assert not any(map(weight_file_advice, (Path("rows.csv"), Path("rows.json"), Path("rows"))))
