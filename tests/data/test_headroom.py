"""ReCOGS, COGS without variables, SLOG and SCAN-MCD: tests with invented files and, if present, the official files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import zipfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from petransfer.cli import main
from petransfer.data import benchmark_files as files
from petransfer.data import load_task
from petransfer.data.benchmark_files import PublishedFile
from petransfer.data.tasks import recogs, scan, scan_mcd, slog
from petransfer.data.tasks.cogs import CATEGORY_TITLE
from petransfer.data.tasks.slog import CATEGORY_GROUP, GEN_MEMBER, PASSWORD_VARIABLE
from petransfer.errors import UserError

DATA = Path(os.environ.get("PETRANSFER_DATA", Path(__file__).parents[3] / "shared" / "data"))
official = pytest.mark.skipif(not (DATA / "extra").is_dir(), reason="the official files are not at hand")
TABLES = {
    "recogs": ("recogs_positional_index", recogs.RECOGS, "* dog ( 1 ) ; {verb} ( 2 ) AND agent ( 2 , 1 )"),
    "cogs-variable-free": ("cogs_variable_free", recogs.VARIABLE_FREE, "{verb} ( agent = * dog )"),
    "slog": ("slog/varfree_LF", slog.FILES, "{verb} ( agent = ? )"),
}
SECRET = "The zeppelin"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty working folder and cache, no password and no network."""
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    monkeypatch.setattr(files, "BASE_URL", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def locked(member: str, text: bytes, password: bytes) -> bytes:
    """Return a zip with one encrypted member (PKWARE's application note, 6.1). `zipfile` cannot write such a file."""
    # the table of CRC-32 without the two inversions that zlib's crc32 does
    table = [zlib.crc32(bytes([byte]), 0xFFFFFFFF) ^ 0xFFFFFFFF for byte in range(256)]
    keys = [0x12345678, 0x23456789, 0x34567890]

    def step(key: int, byte: int) -> int:
        return (key >> 8) ^ table[(key ^ byte) & 0xFF]

    def turn(byte: int) -> None:
        keys[0] = step(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = step(keys[2], keys[1] >> 24)

    def hide(byte: int) -> int:
        mask = keys[2] | 2
        turn(byte)
        return byte ^ ((mask * (mask ^ 1)) >> 8) & 0xFF

    for byte in password:
        turn(byte)
    check = zlib.crc32(text)
    body = bytes(map(hide, bytes(11) + bytes([check >> 24]) + text))
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(member), body)
    packed = bytearray(plain.getvalue())
    for mark, flag, crc, size in ((b"PK\x03\x04", 6, 14, 22), (b"PK\x01\x02", 8, 16, 24)):
        at = packed.index(mark)
        packed[at + flag] |= 1
        packed[at + crc : at + crc + 4] = check.to_bytes(4, "little")
        packed[at + size : at + size + 4] = len(text).to_bytes(4, "little")
    return bytes(packed)


def keep(sources: dict[str, PublishedFile], part: str, path: Path, content: bytes, patch: pytest.MonkeyPatch) -> None:
    """Write a file, and replace the pinned hash of the official file with its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    patch.setitem(sources, part, replace(sources[part], sha256=hashlib.sha256(content).hexdigest()))


@pytest.fixture(params=list(TABLES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(name: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a few rows of one task."""
    place, sources, form = TABLES[name]
    target = form.format(verb="run")
    for part, rows in (("train", 8), ("dev", 3), ("test", 2)):
        text = "".join(f"The dog {part} {at} ran .\t{target}\tin_distribution\n" for at in range(rows))
        keep(sources, part, elsewhere / "data" / place / f"{part}.tsv", text.encode(), monkeypatch)
    cases = CATEGORY_GROUP if name == "slog" else CATEGORY_TITLE
    text = "".join(f"{SECRET} {case} ran .\t{target}\t{case}\n" for case in cases).encode()
    if name == "slog":
        archive = elsewhere / "data" / "slog" / "generalization_sets.zip"
        keep(sources, "gen", archive, locked(GEN_MEMBER, text, b"word"), monkeypatch)
        monkeypatch.setenv(PASSWORD_VARIABLE, "word")
    else:
        keep(sources, "gen", elsewhere / "data" / place / "gen.tsv", text, monkeypatch)
    return elsewhere / "data"


@pytest.fixture
def mcd(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a few rows of SCAN-MCD."""
    rows = [row for row in scan.all_rows() if len(row[0].split()) < 4]
    for part, chosen in {"train": rows[:40], "dev": rows[40:46], "test": rows[46:52]}.items():
        path = elsewhere / "data" / "scan_mcd" / "mcd1" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(scan.format_row(row) + "\n" for row in reversed(chosen)))
        pinned = scan.PublishedPart(len(chosen), scan.rows_sha256(chosen))
        monkeypatch.setitem(scan_mcd.PUBLISHED, ("mcd1", part), pinned)
    return elsewhere / "data"


def test_both_splits_are_read(name: str, data: Path) -> None:
    gen, test = (load_task(name, data).load(split) for split in ("gen", "test"))
    assert [row.category for row in gen.test] == list(CATEGORY_GROUP if name == "slog" else CATEGORY_TITLE)
    assert (len(gen.train), len(gen.dev), len(test.test)) == (8, 3, 2)
    assert gen.train == test.train
    # the folder of the task itself can also be given
    place = data / TABLES[name][0]
    assert load_task(name, place).load("test") == test


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["petransfer", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def arguments(task: str, split: str, data: Path, verb: str = "run") -> list[str]:
    sets = ["effects=[]", "train.steps=2", "train.batch_size=2", f"task.splits=[{split}]"]
    head = [verb, "-r", f"lora-{task}", "--arms", "english", "--data-dir", str(data), "--out", "out"]
    return [*head, *(["--cpu", "--workers", "1"] if verb == "run" else []), *(p for s in sets for p in ("--set", s))]


def test_plan_and_run_succeed_and_write_no_private_text_of_slog(
    name: str, data: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, *arguments(name, "gen", data, "plan")) == 0
    assert run(monkeypatch, *arguments(name, "gen", data)) == 0
    (folder,) = (elsewhere / "out" / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert set(result["test"]["categories"]) == set(CATEGORY_GROUP if name == "slog" else CATEGORY_TITLE)
    groups = [result["dev"], result["test"], *result["test"]["categories"].values()]
    assert all(("semantic_exact_match" in group) == (name == "recogs") for group in groups)
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(folder / "examples.parquet").column_names
    assert ("semantic_correct" in columns) == (name == "recogs")
    written = [path for path in elsewhere.rglob("*") if path.is_file() and path.suffix != ".tsv"]
    assert len(written) > 5
    if name == "slog":
        assert not {"prediction", "input", "target"} & set(columns)
        assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_a_changed_file_is_refused(name: str, data: Path) -> None:
    path = data / TABLES[name][0] / "train.tsv"
    path.write_text(path.read_text().replace("ran", "run"))
    with pytest.raises(UserError, match=r"train\.tsv is not the published file"):
        load_task(name, data).load("test")


def test_a_missing_file_is_refused_with_its_path_below_the_data_folder(name: str, data: Path) -> None:
    (data / TABLES[name][0] / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"dev\.tsv is missing and cannot be downloaded") as caught:
        load_task(name, data).load("test")
    assert "\n" not in str(caught.value)
    assert str(data) in str(caught.value)


# --- SLOG's archive


@pytest.mark.parametrize("name", ["slog"])
class TestArchive:
    """Tests of wrong passwords and archives of SLOG. Commands print one error line and exit with code 2."""

    def refused(self, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
        assert run(monkeypatch, *arguments("slog", "gen", data)) == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert SECRET not in error
        return error

    def test_no_password(self, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.delenv(PASSWORD_VARIABLE)
        error = self.refused(data, monkeypatch, capsys)
        assert "read it in the README of github.com/bingzhilee/SLOG and set PETRANSFER_SLOG_PASSWORD" in error
        assert len(load_task("slog", data).load("test").test) == 2

    @pytest.mark.parametrize("password", ["wrong", "WORD", "wörd"])
    def test_a_wrong_password(
        self, password: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv(PASSWORD_VARIABLE, password)
        assert "the password in $PETRANSFER_SLOG_PASSWORD does not open" in self.refused(data, monkeypatch, capsys)

    def test_wrong_passwords_that_pass_the_check_byte_are_refused(
        self, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # a zip checks a password by one byte, so about 2 of 600 wrong passwords pass this check
        for number in range(600):
            monkeypatch.setenv(PASSWORD_VARIABLE, str(number))
            with pytest.raises(UserError, match="does not open"):
                load_task("slog", data).read("gen")  # type: ignore[attr-defined]

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_a_truncated_archive(
        self, share: float, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = data / "slog" / "generalization_sets.zip"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        error = self.refused(data, monkeypatch, capsys)
        assert "generalization_sets.zip is not the published file" in error


# --- SCAN-MCD


def test_dev_of_mcd_is_cut_from_train_or_read_from_the_published_file(mcd: Path) -> None:
    cut = load_task("scan-mcd", mcd, dev_size=5).load("mcd1")
    whole = load_task("scan-mcd", mcd, dev="published").load("mcd1")
    assert (len(cut.train), len(cut.dev), len(cut.test)) == (35, 5, 6)
    assert (len(whole.train), len(whole.dev), len(whole.test)) == (40, 6, 6)
    assert set(cut.dev) <= set(whole.train)
    assert cut.test == whole.test
    assert load_task("scan-mcd").train_size("mcd3") == 7_865
    assert load_task("scan-mcd", None, dev="published").train_size("mcd2") == 8_365


def test_mcd_reads_the_other_published_layout(mcd: Path) -> None:
    before = load_task("scan-mcd", mcd, dev_size=5).load("mcd1")
    for path in (mcd / "scan_mcd" / "mcd1").iterdir():
        path.write_text(path.read_text().replace("IN: ", "").replace(" OUT: ", "  "))
    assert load_task("scan-mcd", mcd / "scan_mcd", dev_size=5).load("mcd1") == before


def test_plan_and_run_succeed_with_mcd(mcd: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["--set", "task.options.dev_size=4"]
    assert run(monkeypatch, *arguments("scan-mcd", "mcd1", mcd, "plan"), *sets) == 0
    assert run(monkeypatch, *arguments("scan-mcd", "mcd1", mcd), *sets) == 0
    assert len(list((elsewhere / "out" / "runs").glob("*/DONE"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev": "test"}, "unknown dev of scan-mcd 'test'"),
        ({"dev_size": 0}, "dev_size of scan-mcd is 0"),
        ({"dev_size": 9_000}, "from 1 to 4,000"),
        ({"size": 1}, "unknown option of task scan-mcd 'size'"),
    ],
)
def test_wrong_options_of_mcd_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task("scan-mcd", None, **options)


def test_mcd_refuses_changed_missing_and_broken_files(mcd: Path) -> None:
    path = mcd / "scan_mcd" / "mcd1" / "test.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(UserError, match=r"does not hold the published test rows of scan-mcd/mcd1 \(5 rows"):
        load_task("scan-mcd", mcd, dev_size=5).load("mcd1")
    path.write_text("walk I_WALK\n")
    with pytest.raises(UserError, match=r"test\.txt:1: expected"):
        load_task("scan-mcd", mcd, dev_size=5).load("mcd1")
    path.unlink()
    with pytest.raises(UserError, match=r"scan_mcd/mcd1/test\.txt is missing and cannot be downloaded"):
        load_task("scan-mcd", mcd, dev_size=5).load("mcd1")


# --- the official files


@official
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("recogs", (27_227, 3_000, 21_000)),
        ("cogs-variable-free", (24_155, 3_000, 21_000)),
        ("slog", (32_755, 4_046, 4_046)),
    ],
)
def test_the_official_tables_have_the_expected_rows(name: str, sizes: tuple[int, int, int]) -> None:
    task = load_task(name, DATA)
    parts = task.load("test" if name == "slog" else "gen")
    assert (len(parts.train), len(parts.dev), len(parts.test)) == sizes
    assert task.train_size("gen") == sizes[0]
    assert task.longest("gen") == tuple(
        max(len(getattr(row, key)) for row in parts.train) for key in ("input", "target")
    )
    if name != "slog":
        assert Counter(row.category for row in parts.test) == dict.fromkeys(CATEGORY_TITLE, 1_000)
    _round_trip([row.target for part in (parts.train[::50], parts.test[::50]) for row in part])


@official
def test_the_official_mcd_splits_have_the_expected_rows() -> None:
    for split in scan_mcd.SPLITS:
        parts = load_task("scan-mcd", DATA).load(split)
        assert (len(parts.train), len(parts.dev), len(parts.test)) == (7_865, 500, 1_045)
        assert all(scan.interpret(row.input) == row.target for row in parts.test)
        assert not {row.input for row in parts.train + parts.dev} & {row.input for row in parts.test}


@official
@pytest.mark.skipif("SLOG_PASSWORD_FOR_TESTS" not in os.environ, reason="the authors' password is not at hand")
def test_the_official_slog_archive_has_the_expected_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, os.environ["SLOG_PASSWORD_FOR_TESTS"])
    gen = load_task("slog", DATA).load("gen")
    assert Counter(row.category for row in gen.test) == dict.fromkeys(CATEGORY_GROUP, 1_000)
    _round_trip([row.target for row in gen.test[::50]])


def _round_trip(targets: list[str]) -> None:
    from transformers import AutoTokenizer

    from petransfer.data.encoding import Layout, encode_targets
    from petransfer.models.registry import NANO

    tokenizer = AutoTokenizer.from_pretrained(NANO / "tokenizer")
    assert len(encode_targets(targets, tokenizer, Layout(True, 0, 1))) == len(targets)
