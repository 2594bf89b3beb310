"""COGS: tests with the official files, if present, and with invented rows and a local server."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from petransfer.data import benchmark_files as files
from petransfer.data import load_task
from petransfer.data.tasks import cogs
from petransfer.data.tasks.cogs import CATEGORY_GROUP, CATEGORY_TITLE
from petransfer.errors import UserError

DATA = Path(os.environ.get("PETRANSFER_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROWS = {
    "train": "A mouse sang .\tmouse ( x _ 1 ) AND sing . agent ( x _ 2 , x _ 1 )\tin_distribution\n",
    "dev": "Nia slept .\tsleep . agent ( x _ 1 , Nia )\tin_distribution\n",
    "test": "Otto ran .\trun . agent ( x _ 1 , Otto )\tin_distribution\n",
    "gen": "".join(f"Case {case} .\tcase ( x _ 1 )\t{case}\n" for case in CATEGORY_TITLE),
    "gen_2021": "Old .\told ( x _ 1 )\tobj_pp_to_subj_pp\n",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the pinned hashes of the official files with the hashes of `ROWS`."""
    for name, text in ROWS.items():
        digest = hashlib.sha256(text.encode()).hexdigest()
        monkeypatch.setitem(cogs.FILES, name, replace(cogs.FILES[name], sha256=digest))


@pytest.fixture
def folder(tmp_path: Path, pinned: None) -> Path:
    (tmp_path / "data" / "cogs").mkdir(parents=True)
    for name, text in ROWS.items():
        (tmp_path / "data" / "cogs" / f"{name}.tsv").write_text(text)
    return tmp_path / "data"


def test_cogs_has_18_lexical_and_3_structural_cases() -> None:
    assert Counter(CATEGORY_GROUP.values()) == {"lexical": 18, "structural": 3}


def test_both_splits_and_both_versions_are_read(folder: Path) -> None:
    gen = load_task("cogs", folder).load("gen")
    assert [row.category for row in gen.test] == list(CATEGORY_TITLE)
    assert gen.train[0].input == "A mouse sang ."
    assert gen.train[0].target.startswith("mouse ( x _ 1 )")
    assert load_task("cogs", folder).load("test").test[0].input == "Otto ran ."
    assert load_task("cogs", folder, version="2021").load("gen").test[0].input == "Old ."
    assert load_task("cogs", folder / "cogs").load("gen") == gen


@pytest.mark.skipif(not (DATA / "cogs").is_dir(), reason="the official files are not at hand")
def test_the_official_files_have_the_pinned_hashes_and_expected_rows() -> None:
    new, old = (load_task("cogs", DATA, version=version).load("gen") for version in ("2022", "2021"))
    assert (len(new.train), len(new.dev), len(new.test)) == (24_155, 3_000, 21_000)
    assert set(Counter(row.category for row in new.test).values()) == {1_000}
    changed = [row.category for row, other in zip(new.test, old.test, strict=True) if row != other]
    assert changed == ["obj_pp_to_subj_pp"] * 51
    assert len(load_task("cogs", DATA).load("test").test) == 3_000


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("two\tcolumns", "found 2"),
        ("four\tcolumns\tare\tmany", "found 4"),
        ("no target\t\tkind", "logical form is empty"),
        (b"\xff\xfe\tx\ty", "not UTF-8"),
    ],
)
def test_a_broken_row_is_refused_with_its_file_and_line(row: str | bytes, message: str, folder: Path) -> None:
    raw = row if isinstance(row, bytes) else row.encode()
    (folder / "cogs" / "dev.tsv").write_bytes(ROWS["dev"].encode() + raw + b"\n")
    with pytest.raises(UserError, match=rf"dev\.tsv:2: .*{message}"):
        load_task("cogs", folder).load("gen")


def test_a_changed_file_is_refused(folder: Path) -> None:
    (folder / "cogs" / "gen.tsv").write_text(ROWS["gen"].replace("Case", "Face"))
    with pytest.raises(UserError, match="is not the published file"):
        load_task("cogs", folder).load("gen")


class Server(http.server.BaseHTTPRequestHandler):
    """HTTP server for `ROWS`. With `cut`, it sends only the first half of each body."""

    cut = False
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = ROWS[Path(self.path).stem].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.cut else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    handler = type("Handler", (Server,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        monkeypatch.setattr(files, "BASE_URL", f"http://127.0.0.1:{running.server_address[1]}")
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield handler
        running.shutdown()


def _left_in(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_downloads_are_kept_in_the_cache_and_not_repeated(server: type[Server], pinned: None, cache: Path) -> None:
    first = load_task("cogs").load("gen")
    assert len(server.asked) == 3
    assert all("/najoungkim/COGS/165a7b6" in path for path in server.asked)
    assert load_task("cogs").load("gen") == first
    assert len(server.asked) == 3
    assert len(_left_in(cache)) == 3


def test_a_download_with_another_hash_is_not_kept(server: type[Server], cache: Path) -> None:
    with pytest.raises(UserError, match="gave another file than the published one"):
        load_task("cogs").load("gen")
    assert _left_in(cache) == []


def test_an_incomplete_download_is_not_kept(server: type[Server], pinned: None, cache: Path) -> None:
    server.cut = True
    with pytest.raises(UserError, match="the connection broke after"):
        load_task("cogs").load("gen")
    assert _left_in(cache) == []
    server.cut = False
    assert load_task("cogs").load("gen").dev[0].input == "Nia slept ."


def test_the_message_without_a_network_names_the_source_of_the_file(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(files, "BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        load_task("cogs").load("gen")
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in ("cogs/train.tsv", "najoungkim/COGS", "165a7b6", "--data-dir"))
    assert _left_in(cache) == []
