"""`adapter push`, `pull` and `info` with huggingface_hub's real client and a local hub server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from petransfer.sharing.hub import without_tokens
from tests.sharing.conftest import contents
from tests.sharing.hub_server import TOKEN, Hub, Repository, serving


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running local hub server."""
    with serving() as made:
        yield made


def ask(endpoint: str, here: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `petransfer adapter ARGUMENTS` in a new process with the hub at `endpoint`. No output may show the token."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {
        "HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(here / "hf"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200", **extra,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "petransfer", "adapter", *arguments],
        cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_pull_gets_the_same_files_that_push_uploaded(hub: Hub, packed: Path, here: Path) -> None:
    done = ask(hub.url, here, "push", str(packed), "me/mine", "--tag", "german", "--json")
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout)
    made = hub.repositories["me/mine"]
    assert message == {"url": f"{hub.url}/me/mine/commit/{made.head}", "commit": made.head, "private": True}
    assert made.private
    assert len(made.commits) == 2, "one commit creates the repository, and one adds all files"
    assert made.lfs == {"adapter_model.safetensors", "examples.parquet"}
    assert "POST /api/validate-yaml" in hub.calls
    pushed = {name: content for name, content in made.commits[made.head].items() if name != ".gitattributes"}
    before = contents(packed)
    assert pushed.keys() == before.keys()
    assert b"- german\n" in pushed["README.md"]
    same = [name for name in before if pushed[name] == before[name]]
    assert set(before) - set(same) == {"README.md", "manifest.json"}
    assert all(TOKEN.encode() not in content for content in pushed.values())
    made.commits[made.head]["modeling.py"] = b"raise SystemExit('code')"
    done = ask(hub.url, here, "pull", "me/mine", "--out", "pulled")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (here / "pulled").iterdir()} == pushed
    shown = json.loads(ask(hub.url, here, "info", f"me/mine@{made.head}", "--json").stdout)
    assert shown["hub commit"] == made.head
    assert shown["made by"].startswith("petransfer, run ")
    assert not any("modeling.py" in call for call in hub.calls)


def test_push_to_a_public_repository_needs_the_option_public(hub: Hub, packed: Path, here: Path) -> None:
    assert ask(hub.url, here, "push", str(packed), "me/open", "--public").returncode == 0
    assert not hub.repositories["me/open"].private
    commits = len(hub.repositories["me/open"].commits)
    done = ask(hub.url, here, "push", str(packed), "me/open")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "me/open is public already; --public confirms" in done.stderr
    assert len(hub.repositories["me/open"].commits) == commits


def test_errors_of_the_hub_are_one_line_without_the_token(hub: Hub, packed: Path, here: Path) -> None:
    stranger = "hf_" + "another" * 4
    done = ask(hub.url, here, "push", str(packed), "me/mine", HF_TOKEN=stranger)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert stranger not in done.stderr
    assert "***" in done.stderr, done.stderr
    assert "hf auth login" in done.stderr
    hub.broken = True
    done = ask(hub.url, here, "push", str(packed), "me/mine")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert len(hub.repositories["me/mine"].commits) == 1
    assert ask(hub.url, here, "pull", "me/none").returncode == 2
    hub.repositories["me/pickled"] = Repository(private=False)
    hub.repositories["me/pickled"].commit({"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x04."})
    done = ask(hub.url, here, "pull", "me/pickled")
    assert "only adapter_model.bin, a pickle, which runs code" in done.stderr
    assert not any("resolve" in call for call in hub.calls), "no file may be downloaded"


# As sitecustomize.py of a process, this code turns a wait of 0.5 seconds or more, as before a retry, into an error.
NO_WAITING = """
import time

plain = time.sleep

def sleep(seconds):
    assert seconds < 0.5, f"it would wait for {seconds} seconds"
    plain(seconds)

time.sleep = sleep
"""


def test_a_missing_network_is_reported_at_once_and_local_commands_work(packed: Path, here: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    (here / "first").mkdir()
    (here / "first" / "sitecustomize.py").write_text(NO_WAITING)
    at_once = {"PYTHONPATH": str(here / "first")}
    for arguments in (("push", str(packed), "me/mine"), ("pull", "me/mine")):
        for extra in ({}, {"HF_HUB_OFFLINE": "1"}):
            done = ask(nowhere, here, *arguments, **extra, **at_once)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert ("HF_HUB_OFFLINE is set" if extra else "cannot be reached") in done.stderr
    for arguments in (("verify", "me/mine"), ("merge", "me/mine", "merged")):
        done = ask(nowhere, here, *arguments, PYTHONVERBOSE="1")  # lists every imported module
        assert done.returncode == 2
        assert "there is no folder or file me/mine, and the hub at 127.0.0.1 cannot be reached" in done.stderr
        assert not re.search(r"^import '(torch|transformers)'", done.stderr, re.MULTILINE), (
            "the error must come before these imports"
        )
    assert ask(nowhere, here, "pull", str(packed), "--out", "pulled").returncode == 0
    assert ask(nowhere, here, "info", "pulled").returncode == 0


def test_tokens_of_the_hub_are_removed_from_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    assert without_tokens("said secret-of-mine and hf_abcdefghij1") == "said *** and ***"
