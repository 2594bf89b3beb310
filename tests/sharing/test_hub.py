"""`adapter push`, `pull` and `info` with huggingface_hub's real client and a local hub server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from petransfer.sharing.hub import without_tokens
from tests.sharing.conftest import call, contents
from tests.sharing.hub_server import TOKEN, Hub, Repository, serving

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running local hub server."""
    with serving() as made:
        yield made


def environment(endpoint: str, here: Path) -> dict[str, str]:
    """Return the environment variables for a process that uses the hub at `endpoint`."""
    given = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return given | {
        "HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(here / "hf"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200",
    }  # fmt: skip


def process(arguments: tuple[str, ...], endpoint: str, here: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` in a new process with the hub at `endpoint`. No output may show the token."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=here, env=environment(endpoint, here), capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Ask]:
    """A function that runs `petransfer adapter ARGUMENTS` in this process with the hub at an endpoint.

    huggingface_hub reads its environment variables when it is imported, so the constants that it made of them are
    replaced. The function returns the exit code, stdout and stderr. No output may show the token.
    """

    def run(endpoint: str, *arguments: str, token: str = TOKEN, offline: bool = False) -> tuple[int, str, str]:
        for name, value in environment(endpoint, here).items():
            monkeypatch.setenv(name, value)
        for name in [name for name in os.environ if "proxy" in name.lower()]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_TOKEN", token)
        changed = {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_CACHE": str(here / "hf" / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in changed.items():
            monkeypatch.setattr(constants, name, value)
        close_session()
        capsys.readouterr()
        code = call("adapter", *arguments)
        message = capsys.readouterr()
        assert TOKEN not in message.out + message.err
        assert "Traceback" not in message.err
        return code, message.out, message.err

    yield run
    close_session()


def test_pull_gets_the_same_files_that_push_uploaded(hub: Hub, packed: Path, here: Path, ask: Ask) -> None:
    """The upload runs in a new process, which gets the hub's address and the token from environment variables."""
    pushing = ("-m", "petransfer", "adapter", "push", str(packed), "me/mine", "--tag", "german", "--json")
    done = process(pushing, hub.url, here)
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
    code, _, error = ask(hub.url, "pull", "me/mine", "--out", "pulled")
    assert code == 0, error
    assert {path.name: path.read_bytes() for path in (here / "pulled").iterdir()} == pushed
    shown = json.loads(ask(hub.url, "info", f"me/mine@{made.head}", "--json")[1])
    assert shown["hub commit"] == made.head
    assert shown["made by"].startswith("petransfer, run ")
    assert not any("modeling.py" in call for call in hub.calls)


def test_push_to_a_public_repository_needs_the_option_public(hub: Hub, packed: Path, ask: Ask) -> None:
    code, _, error = ask(hub.url, "push", str(packed), "me/open", "--public")
    assert code == 0, error
    assert not hub.repositories["me/open"].private
    commits = len(hub.repositories["me/open"].commits)
    code, _, error = ask(hub.url, "push", str(packed), "me/open")
    assert (code, error.count("\n")) == (2, 1)
    assert "me/open is already public; add --public to confirm" in error
    assert len(hub.repositories["me/open"].commits) == commits


def test_errors_of_the_hub_are_one_line_without_the_token(hub: Hub, packed: Path, ask: Ask) -> None:
    stranger = "hf_" + "another" * 4
    code, _, error = ask(hub.url, "push", str(packed), "me/mine", token=stranger)
    assert (code, error.count("\n")) == (2, 1)
    assert stranger not in error
    assert "***" in error, error
    assert "hf auth login" in error
    hub.broken = True
    code, _, error = ask(hub.url, "push", str(packed), "me/mine")
    assert (code, error.count("\n")) == (2, 1), error
    assert len(hub.repositories["me/mine"].commits) == 1
    assert ask(hub.url, "pull", "me/none")[0] == 2
    hub.repositories["me/pickled"] = Repository(private=False)
    hub.repositories["me/pickled"].commit({"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x04."})
    _, _, error = ask(hub.url, "pull", "me/pickled")
    assert "only adapter_model.bin, a pickle, which runs code" in error
    assert not any("resolve" in call for call in hub.calls), "no file may be downloaded"


def test_a_missing_network_is_reported_at_once_and_local_commands_work(
    packed: Path, here: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = time.sleep

    def sleep(seconds: float) -> None:
        assert seconds < 0.5, f"it would wait for {seconds} seconds, as before a retry"
        plain(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    for arguments in (("push", str(packed), "me/mine"), ("pull", "me/mine")):
        for offline in (False, True):
            code, _, error = ask(NOWHERE, *arguments, offline=offline)
            assert (code, error.count("\n")) == (2, 1)
            assert ("HF_HUB_OFFLINE is set" if offline else "cannot be reached") in error
    assert ask(NOWHERE, "pull", str(packed), "--out", "pulled")[0] == 0
    assert ask(NOWHERE, "info", "pulled")[0] == 0


# Runs several commands, and prints the exit code of each and which of the large packages have been imported.
COMMANDS = """
import json, sys
from petransfer.cli import main
for arguments in (["verify", "me/mine"], ["merge", "me/mine", "merged"]):
    sys.argv = ["petransfer", "adapter", *arguments]
    try:
        main()
    except SystemExit as stop:
        print(json.dumps([stop.code, sorted({"torch", "transformers"} & sys.modules.keys())]))
"""


def test_the_error_for_a_missing_network_comes_before_torch_and_transformers_are_imported(here: Path) -> None:
    done = process(("-c", COMMANDS), NOWHERE, here)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[2, []], [2, []]]
    message = "there is no folder or file me/mine, and the hub at 127.0.0.1 cannot be reached"
    assert done.stderr.count(message) == 2


def test_tokens_of_the_hub_are_removed_from_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    assert without_tokens("said secret-of-mine and hf_abcdefghij1") == "said *** and ***"
