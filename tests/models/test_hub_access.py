"""Without a network: one line at once, and what is in the cache is used."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import petransfer
from petransfer.data import hub_network, load_task
from petransfer.errors import UserError
from petransfer.models import hub_access
from petransfer.models.architecture import configuration
from petransfer.models.registry import checkpoint_spec


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine without a network; the connections that were tried."""
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


def test_one_connection_is_tried_and_the_checkpoint_is_named(unreachable: list[Any]) -> None:
    for name in ("some/model", "other/model@main"):
        with pytest.raises(
            UserError, match=rf"{name.split('@')[0]} is not in the local cache.*hub cannot be reached \(Name or"
        ):
            hub_access.refuse_unreachable([checkpoint_spec("nano/english"), checkpoint_spec(name)])
    with pytest.raises(UserError, match="some/model"):
        configuration(checkpoint_spec("some/model"))
    assert unreachable == [("huggingface.co", 443)]
    assert constants.HF_HUB_OFFLINE


def test_load_tries_one_connection(unreachable: list[Any]) -> None:
    with pytest.raises(UserError, match=r"me/nothere is not in the local cache and the hub cannot be reached"):
        petransfer.load("me/nothere")
    assert len(unreachable) == 1


def test_a_proxy_that_cannot_be_used_is_named_at_once(unreachable: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_is_on_the_disk_asks_for_no_network(unreachable: list[Any], tiny_t5: Path) -> None:
    hub_access.refuse_unreachable([checkpoint_spec("nano/english"), checkpoint_spec(str(tiny_t5))])
    configuration(checkpoint_spec(str(tiny_t5)))
    assert not unreachable


def test_a_dataset_of_the_hub_is_refused_at_once(unreachable: list[Any]) -> None:
    with pytest.raises(UserError, match=r"some/rows is not on this machine.*hub cannot be reached"):
        load_task("lines", None, train="some/rows").load("held-out")
    assert unreachable == [("huggingface.co", 443)]
