"""Without a network: checkpoints in the cache are used, and others are refused at once."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import petransfer
from petransfer.cli.doctor import doctor
from petransfer.data import hub_network, load_task
from petransfer.errors import UserError
from petransfer.models import hub_access
from petransfer.models.architecture import configuration
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Simulate a machine without a network. The list contains the addresses to which a connection was tried."""
    tried: list[Any] = []

    def fail(address: Any, timeout: float) -> None:
        tried.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in hub_network._PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", fail)
    hub_network.why_unreachable.cache_clear()
    yield tried
    hub_network.why_unreachable.cache_clear()


def test_only_one_connection_is_tried_and_the_missing_checkpoint_is_named(unreachable: list[Any]) -> None:
    for name in ("some/model", "other/model@main"):
        with pytest.raises(
            UserError, match=rf"{name.split('@')[0]} is not in the local cache.*hub cannot be reached \(Name or"
        ):
            hub_access.refuse_unreachable([checkpoint_spec("nano/english"), checkpoint_spec(name)])
    with pytest.raises(UserError, match="some/model"):
        configuration(checkpoint_spec("some/model"))
    assert unreachable == [("huggingface.co", 443)]
    assert constants.HF_HUB_OFFLINE


def test_doctor_asks_the_hub_that_the_other_verbs_use(
    unreachable: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example:8080")
    monkeypatch.setattr("petransfer.cli.doctor._matrix_products", lambda: "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "false")
    doctor(as_json=True)
    hub = "not reachable (Name or service not known); local folders, the cache and the nano family work"
    assert json.loads(capsys.readouterr().out)["hub"] == hub
    assert unreachable == [("hub.example", 8080)]


def test_load_tries_one_connection(unreachable: list[Any]) -> None:
    with pytest.raises(UserError, match=r"me/nothere is not in the local cache and the hub cannot be reached"):
        petransfer.load("me/nothere")
    assert len(unreachable) == 1


def test_a_proxy_that_cannot_be_used_is_reported_as_the_reason(
    unreachable: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(address: str) -> None:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setattr(hub_network, "_request", failing)
    with pytest.raises(UserError, match=r"hub cannot be reached \(Using SOCKS proxy.*not installed\); check the net"):
        configuration(checkpoint_spec("some/model"))
    assert not unreachable
    hub_network.why_unreachable.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.delenv("ALL_PROXY")
    monkeypatch.setattr(hub_network, "_request", lambda _: None)
    assert hub_network.use_cache_if_unreachable()


def test_checkpoints_on_the_disk_need_no_network(unreachable: list[Any], tiny_t5: Path) -> None:
    hub_access.refuse_unreachable([checkpoint_spec("nano/english"), checkpoint_spec(str(tiny_t5))])
    configuration(checkpoint_spec(str(tiny_t5)))
    assert not unreachable


def _copy_in_cache(base: Path, cache: Path, lost: str = "", absent: tuple[str, ...] = ()) -> Path:
    """Write a copy of `base` as `me/tiny` into a hub cache. `lost` is a link to a file that does not exist."""
    repository = cache / "models--me--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for path in base.iterdir():
        if path.name not in absent:
            (snapshot / path.name).symlink_to(cache / "none" if path.name == lost else path)
    return repository


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.tsv").write_text("".join(f"walk {n}\twalk\n" for n in range(20)))
    return tmp_path / "cache"


def _is_incomplete(error: str, name: str) -> bool:
    parts = (
        "copy of me/tiny in the local cache",
        "incomplete",
        f"{name} is missing",
        "download it again",
        "hf download",
    )
    return all(part in error for part in parts) and "save_pretrained" not in error


@pytest.mark.parametrize(
    ("name", "is_link"),
    [
        ("model.safetensors", True),
        ("model.safetensors", False),
        ("tokenizer.json", True),
        ("tokenizer.json", False),
        ("tokenizer_config.json", True),
        ("config.json", False),
    ],
)
def test_an_incomplete_copy_in_the_cache_is_refused_before_anything_is_written(
    name: str, is_link: bool, unreachable: list[Any], tiny_t5: Path, cache: Path
) -> None:
    _copy_in_cache(tiny_t5, cache, name if is_link else "", () if is_link else (name,))
    with pytest.raises(UserError) as error:
        petransfer.train("me/tiny", "rows.tsv", steps=1, cpu=True)
    assert _is_incomplete(str(error.value), name)
    assert not Path("results").exists()
    with pytest.raises(UserError) as error:
        load_checkpoint(checkpoint_spec("me/tiny"), 32)
    assert _is_incomplete(str(error.value), name)


def test_a_missing_part_of_the_weights_is_named(unreachable: list[Any], tiny_t5: Path, cache: Path) -> None:
    repository = _copy_in_cache(tiny_t5, cache, absent=("model.safetensors",))
    parts = {f"part {n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    (snapshot,) = (repository / "snapshots").iterdir()
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (snapshot / parts["part 1"]).write_text("")
    with pytest.raises(UserError) as error:
        hub_access.refuse_unreachable([checkpoint_spec("me/tiny")], with_weights=True)
    assert _is_incomplete(str(error.value), parts["part 2"])


def test_a_copy_without_the_name_of_its_commit_is_incomplete(
    unreachable: list[Any], tiny_t5: Path, cache: Path
) -> None:
    reference = _copy_in_cache(tiny_t5, cache) / "refs" / "main"
    hub_access.refuse_unreachable([checkpoint_spec("me/tiny")], with_weights=True)
    with pytest.raises(UserError, match="is not in the local cache"):
        hub_access.refuse_unreachable([checkpoint_spec("me/tiny@v2")])
    reference.unlink()
    with pytest.raises(UserError) as error:
        hub_access.refuse_unreachable([checkpoint_spec("me/tiny")])
    assert _is_incomplete(str(error.value), "refs/main")


def test_loading_a_configuration_from_the_cache_needs_no_weights(
    unreachable: list[Any], tiny_t5: Path, cache: Path
) -> None:
    _copy_in_cache(tiny_t5, cache, lost="model.safetensors")
    assert configuration(checkpoint_spec("me/tiny"))[0].d_model == 32


def test_a_dataset_of_the_hub_is_refused_without_a_network(unreachable: list[Any]) -> None:
    with pytest.raises(UserError, match=r"some/rows is not on this machine.*hub cannot be reached"):
        load_task("lines", None, train="some/rows").load("held-out")
    assert unreachable == [("huggingface.co", 443)]
