"""`python -m benchmarks quantise`: the loss of quantised checkpoints on text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.quantising import quantise_head, rows
from petransfer.errors import UserError
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec

TEXT = "It was a fine evening in June, and the windows of the old house stood open to the garden. " * 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_losses_and_sizes_are_measured_for_all_forms_of_quantisation(text: Path) -> None:
    found = {(row.bits, row.wide): row for row in rows(checkpoint_spec("nano/english"), text, 4)}
    assert set(found) == {
        (16, "all"),
        *((bits, wide) for bits in (8, 4) for wide in ("head", "nothing", "head and wo")),
    }
    assert abs(found[8, "head"].change) < 0.01
    assert found[4, "head"].bytes < found[4, "head and wo"].bytes < found[16, "all"].bytes
    assert found[4, "nothing"].loss != found[4, "head"].loss
    assert all(abs(row.change) < 0.1 for row in found.values())


@pytest.mark.parametrize("bits", [8, 4])
def test_quantising_the_head_does_not_change_the_embeddings(bits: int) -> None:
    model = load_checkpoint(checkpoint_spec("nano/english"), bits).model  # type: ignore[arg-type]
    before = model.get_input_embeddings().weight.clone()
    quantise_head(model, bits)  # type: ignore[arg-type]
    assert type(model.get_output_embeddings()).__module__.startswith("bitsandbytes")
    assert model.get_input_embeddings().weight.equal(before)


def test_a_text_that_is_too_short_or_not_in_utf_8_is_refused(tmp_path: Path, text: Path) -> None:
    with pytest.raises(UserError, match="4000 windows need 512,000"):
        list(rows(checkpoint_spec("nano/english"), text, 4000))
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        list(rows(checkpoint_spec("nano/english"), bad, 1))


def test_the_command_prints_a_table_and_writes_a_file(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.json"
    monkeypatch.setattr(
        sys, "argv", ["benchmarks", "quantise", "nano/code", str(text), "--windows", "1", "--out", str(out)]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "change %" in capsys.readouterr().out
    assert '"text": "text.txt"' in out.read_text()
