"""Find, read and download benchmark files: tests with small generated files and a local server."""

from __future__ import annotations

import hashlib
import http.server
import lzma
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petransfer.data import benchmark_files as files
from petransfer.data import load_task
from petransfer.data import tsv_benchmark as tabular
from petransfer.data.benchmark_files import PublishedFile, cache_dir, find_file, find_or_download, read_rows
from petransfer.data.rows.source import find_source
from petransfer.data.rows.tables import open_dataset
from petransfer.data.tasks import cogs, scan
from petransfer.errors import UserError

BODY = b"first line\nsecond line\nthird line\n"
SOURCE = PublishedFile("owner/name", "0" * 40, "folder/file.txt", "task/file.txt", hashlib.sha256(BODY).hexdigest())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    # otherwise, a proxy of the environment would be used for the local server
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- finding


def test_find_returns_the_first_existing_name_and_prefers_plain_files(tmp_path: Path) -> None:
    packed = _write(tmp_path / "b.txt.xz", lzma.compress(BODY))
    assert find_file(tmp_path, ["a.txt", "b.txt"]) == packed
    plain = _write(tmp_path / "b.txt", BODY)
    assert find_file(tmp_path, ["a.txt", "b.txt"]) == plain
    assert find_file(tmp_path, ["c.txt"]) is None


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the data folder .*nowhere does not exist.*--data-dir"):
        find_file(tmp_path / "nowhere", ["a.txt"])
    with pytest.raises(UserError, match="does not exist"):
        load_task("scan", tmp_path / "nowhere").load("length")


def test_the_cache_is_in_the_home_folder_unless_the_variable_is_set(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("PETRANSFER_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "petransfer"


def test_locate_prefers_the_users_folder_to_the_cache_and_the_cache_to_a_download(tmp_path: Path, cache: Path) -> None:
    cached = _write(cache / SOURCE.repository / SOURCE.commit / SOURCE.path, BODY)
    own = _write(tmp_path / "data" / "file.txt", BODY)
    assert find_or_download(SOURCE, tmp_path / "data", ["file.txt"]) == own
    assert find_or_download(SOURCE, tmp_path / "data", ["other.txt"]) == cached
    assert find_or_download(SOURCE, None, ["file.txt"]) == cached


UPSTREAM_NAMES = {
    "add_jump": "add_prim_split/tasks_test_addprim_jump.txt",
    "add_turn_left": "add_prim_split/tasks_test_addprim_turn_left.txt",
    "around_right": "template_split/tasks_test_template_around_right.txt",
    "jump_around_right": "template_split/tasks_test_template_jump_around_right.txt",
    "length": "length_split/tasks_test_length.txt",
    "opposite_right": "template_split/tasks_test_template_opposite_right.txt",
    "right": "template_split/tasks_test_template_right.txt",
}


@pytest.mark.parametrize("folder", ["", "scan/"])
@pytest.mark.parametrize("split", UPSTREAM_NAMES)
def test_scan_reads_a_checkout_of_the_official_repository(split: str, folder: str, tmp_path: Path) -> None:
    rows = [scan.format_row(row) for row in scan.generate(split)["test"]]
    # the official files have another order than the generated rows
    path = _write(tmp_path / folder / UPSTREAM_NAMES[split], "\n".join(reversed(rows)).encode())
    assert load_task("scan", tmp_path).load(split) == load_task("scan").load(split)
    path.write_text("\n".join(rows[1:]))
    problem = rf"{path.name} does not hold the published test rows.*the rows are then generated"
    with pytest.raises(UserError, match=problem):
        load_task("scan", tmp_path).load(split)


@pytest.mark.parametrize("place", ["cogs", ".", "data"])
def test_cogs_reads_every_layout_compressed_or_plain(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "dev", "gen"):
        row = f"The {part} ran .\t* {part} ( x _ 1 )\tin_distribution\n".encode()
        monkeypatch.setitem(cogs.FILES, part, replace(cogs.FILES[part], sha256=hashlib.sha256(row).hexdigest()))
        if part == "dev":
            _write(tmp_path / place / f"{part}.tsv", row)
        else:
            _write(tmp_path / place / f"{part}.tsv.xz", lzma.compress(row))
    data = load_task("cogs", tmp_path).load("gen")
    assert [part[0].input for part in (data.train, data.dev, data.test)] == [
        "The train ran .", "The dev ran .", "The gen ran .",
    ]  # fmt: skip


# --- reading


@pytest.mark.parametrize("content", [BODY, BODY.replace(b"\n", b"\r\n"), BODY.removesuffix(b"\n")])
@pytest.mark.parametrize("packed", [False, True])
def test_line_ends_and_compression_do_not_change_rows_or_hash(content: bytes, packed: bool, tmp_path: Path) -> None:
    path = _write(tmp_path / ("a.txt.xz" if packed else "a.txt"), lzma.compress(content) if packed else content)
    assert list(read_rows(path, str, SOURCE.sha256)) == ["first line", "second line", "third line"]


def test_rows_are_yielded_before_a_later_line_is_checked(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", b"good\n" * 10 + b"\xff\n")
    rows = read_rows(path, str)
    assert [next(rows) for _ in range(10)] == ["good"] * 10
    with pytest.raises(UserError, match=r"a\.txt:11: not UTF-8 at byte 0"):
        next(rows)


@pytest.mark.parametrize(
    "content", [lzma.compress(BODY)[:-20], b"not packed at all", lzma.compress(BODY)[:30] + b"\0" * 40]
)
def test_a_damaged_xz_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt.xz", content)
    with pytest.raises(UserError, match=r"a\.txt\.xz cannot be unpacked") as caught:
        list(read_rows(path, str))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt cannot be read"):
        list(read_rows(tmp_path / "gone.txt", str))


def test_a_changed_file_in_the_cache_is_refused_with_advice_and_not_deleted(cache: Path) -> None:
    path = _write(cache / SOURCE.repository / SOURCE.commit / SOURCE.path, BODY + b"one more\n")
    with pytest.raises(UserError, match=r"file\.txt is not the published file: .*delete it to have it downloaded"):
        list(read_rows(find_or_download(SOURCE, None, []), str, SOURCE.sha256))
    assert path.exists()


# \x0b, \x85 and \u2028 are text here, although some readers treat them as line ends
CELLS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), st.sampled_from("\x0b\x85\u2028"))
).filter(str.strip)
WORDS = st.lists(st.from_regex(r"[A-Za-z_]{1,8}", fullmatch=True).filter(lambda word: word != "OUT"), min_size=1)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5))
def test_cogs_rows_are_read_as_they_were_written(rows: list[tuple[str, str, str]], tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    text = "".join("\t".join(row) + "\n" for row in rows).encode()
    path = _write(tmp_path_factory.mktemp("rows") / "rows.tsv", text)
    assert list(read_rows(path, tabular.parse_row, hashlib.sha256(text).hexdigest())) == rows


@given(cells=st.lists(CELLS, max_size=6).filter(lambda cells: len(cells) != 3))
def test_cogs_rows_with_another_number_of_columns_are_refused(cells: list[str]) -> None:
    with pytest.raises(ValueError, match=f"found {max(len(cells), 1)}$"):
        tabular.parse_row("\t".join(cells))


@given(command=WORDS, actions=WORDS)
def test_scan_rows_are_read_as_they_were_written(command: list[str], actions: list[str]) -> None:
    row = " ".join(command), " ".join(actions)
    assert scan.parse_row(scan.format_row(row)) == row


# --- downloading


class Server(http.server.BaseHTTPRequestHandler):
    """HTTP server that answers with `body`. `manner` selects a failure; `well` means none."""

    body = BODY
    manner = "well"

    def do_GET(self) -> None:
        if self.manner == "missing":
            self.send_error(404)
            return
        chunked = self.manner == "cut chunked"
        self.protocol_version = "HTTP/1.1" if chunked else "HTTP/1.0"
        self.send_response(200)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(self.body) + self.body[:9])
        else:
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body[:9] if self.manner == "cut" else self.body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    handler = type("Handler", (Server,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        monkeypatch.setattr(files, "BASE_URL", f"http://127.0.0.1:{running.server_address[1]}")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield handler
        running.shutdown()


def _left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_complete_download_is_the_only_file_in_the_cache(server: type[Server], cache: Path) -> None:
    path = find_or_download(SOURCE, None, [])
    assert path == cache / "owner" / "name" / SOURCE.commit / "folder" / "file.txt"
    assert _left_in(cache) == [path]
    assert path.read_bytes() == BODY


@pytest.mark.skipif(os.name == "nt", reason="the test sets POSIX file modes")
def test_a_shared_cache_can_be_read_by_the_group(server: type[Server]) -> None:
    before = os.umask(0o022)
    try:
        mode = find_or_download(SOURCE, None, []).stat().st_mode
    finally:
        os.umask(before)
    assert stat.S_IMODE(mode) == 0o644


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("missing", "task/file.txt is missing and cannot be downloaded .*404"),
        ("cut", "the connection broke after 9 of 34 bytes"),
        ("cut chunked", "cannot be downloaded .*IncompleteRead"),
    ],
)
def test_a_failed_download_leaves_no_file(manner: str, message: str, server: type[Server], cache: Path) -> None:
    server.manner = manner
    with pytest.raises(UserError, match=message) as caught:
        find_or_download(SOURCE, None, [])
    assert "\n" not in str(caught.value)
    assert _left_in(cache) == []


def test_a_download_with_another_hash_is_refused_and_leaves_no_file(server: type[Server], cache: Path) -> None:
    server.body = BODY.upper()
    with pytest.raises(UserError, match="gave another file than the published one: its sha256 is"):
        find_or_download(SOURCE, None, [])
    assert _left_in(cache) == []


def test_an_interrupted_download_leaves_no_file(
    server: type[Server], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        assert _left_in(cache), "the download must have created its file before the interrupt"
        raise KeyboardInterrupt

    monkeypatch.setattr(files.urllib.request, "urlopen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_or_download(SOURCE, None, [])
    assert _left_in(cache) == []


def test_a_download_without_a_network_is_refused_with_advice(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"save it as DIR/task/file\.txt and pass --data-dir DIR$"):
        find_or_download(SOURCE, None, [])
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(UserError, match=r"at commit 0000000 from http\S+, save it as .*/data/task/file\.txt and try"):
        find_or_download(SOURCE, folder, [])
    assert _left_in(cache) == []


def test_an_error_message_of_two_lines_becomes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no way\n  to get there")

    monkeypatch.setattr(files.urllib.request, "urlopen", fails)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no way to get there\)"):
        find_or_download(SOURCE, None, [])


def test_a_cache_that_cannot_be_written_raises_a_user_error(server: type[Server], cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"task/file\.txt is missing and cannot be downloaded"):
        find_or_download(SOURCE, None, [])


def test_scan_simple_is_downloaded_and_sorted(server: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("walk", "I_WALK"), ("jump and run", "I_JUMP I_RUN"), ("look", "I_LOOK")]
    server.body = "".join(scan.format_row(row) + "\n" for row in rows).encode()
    for part in ("train", "test"):
        source = replace(scan.SIMPLE[part], sha256=hashlib.sha256(server.body).hexdigest())
        monkeypatch.setitem(scan.SIMPLE, part, source)
        monkeypatch.setitem(scan.PUBLISHED, ("simple", part), scan.PublishedPart(3, scan.rows_sha256(rows)))
    test = load_task("scan").load("simple").test
    assert [(row.index, row.input, row.category) for row in test] == [
        (0, "jump and run", "and"), (1, "look", "simple"), (2, "walk", "simple"),
    ]  # fmt: skip


def test_every_source_has_a_full_commit_hash_and_sha256() -> None:
    for source in (*cogs.FILES.values(), *scan.SIMPLE.values()):
        assert len(source.commit) == 40
        assert set(source.commit) <= set("0123456789abcdef")
        assert len(source.sha256) == 64


def test_importing_the_tasks_imports_no_heavy_library() -> None:
    heavy = ("torch", "pandas", "datasets", "transformers", "numpy", "rich")
    code = f"import sys, petransfer.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_messages_name_a_file_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "here" / "data" / "rows.csv"
    inside.parent.mkdir(parents=True)
    inside.write_text("input,target\na,b\n")
    monkeypatch.chdir(tmp_path / "here")
    assert find_source(str(inside), None).name == "data/rows.csv"
    assert find_source(str(inside), None).path == inside
    (tmp_path / "rows.csv").write_text("input,target\na,b\n")
    assert find_source(str(tmp_path / "rows.csv"), None).name == str(tmp_path / "rows.csv")
    assert find_source("data/rows.csv", None).name == "data/rows.csv"


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("train.en", "join them with `paste train.en train.de > train.tsv`"),
        ("other.xyz", "you can also name the format as in --set task.options.format=tsv"),
        ("noending", "you can also name the format as in --set task.options.format=tsv"),
        ("a.tmx", "a file of translations; write a tsv file with a text, a tab and its translation in every line"),
        ("a.po", "a file of translations"),
        (".", "join them with `paste train.de train.en > train.tsv`"),
    ],
)
def test_files_of_an_unknown_format_get_advice(
    name: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for each in ("train.en", "train.de", "other.xyz", "noending", "a.tmx", "a.po"):
        (folder / each).write_text("a text\n", encoding="utf-8")
    with pytest.raises(UserError) as refused:
        open_dataset(find_source(name, None))
    line = str(refused.value).replace(f"{folder}/", "")
    assert output in line
    if name != "train.en":
        assert ("paste" in line) == (name == ".")


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("data/*.csv", r"data/\*.csv stands for 2 files; .*`mkdir joined; cp data/\*.csv joined`"),
        ("data/a*.csv", r"stands for 1 file; name it: data/a b.csv"),
        ("data/*.tsv", r"no file matches data/\*.tsv; correct the name"),
        ("data/a b.csv, data/c.csv", r"names 2 files; .*`mkdir joined; cp 'data/a b.csv' data/c.csv joined`"),
        ("data/a b.csv,none.csv", r"no file data/a b.csv,none.csv in"),
    ],
)
def test_names_that_stand_for_several_files_are_refused(
    name: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for file in ("a b.csv", "c.csv", "d[1].jsonl"):
        Path("data", file).write_text("input,target\na,b\n")
    with pytest.raises(UserError, match=output):
        find_source(name, None)
    assert find_source("data/d[1].jsonl", None).format == "jsonl"
