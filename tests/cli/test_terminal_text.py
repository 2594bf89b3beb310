"""Sentences and commands at 60, 80 and 120 columns: broken at white space, and commands can still be copied."""

from __future__ import annotations

import io
import logging
import shlex
import subprocess
import sys

import pytest

from petransfer.cli.log_output import show_log
from petransfer.cli.terminal_text import fitted, for_output, print_text

WIDTHS = (60, 80, 120)
SENTENCE = "no improvement in 6 evaluations on dev-rows; try: --max-steps 4000, or --learning-rate 0.0006 " * 3


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sentence_is_broken_between_words_only(width: int) -> None:
    lines = fitted(SENTENCE.strip(), width).split("\n")
    assert max(map(len, lines)) <= width
    assert len(lines) > 1
    assert all(line.startswith("  ") for line in lines[1:])
    assert " ".join(lines).split() == SENTENCE.split()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_command_goes_on_after_a_backslash(width: int) -> None:
    """A shell reads the lines as the same arguments."""
    words = ["predict", "results/a folder/of dates", "it's  3 March", "--file", "long/" * 16, "--cpu"]
    command = f"  petransfer {shlex.join(words)}"
    lines = fitted(command, width).split("\n")
    assert max(len(line) for line in lines if "long/" not in line) <= width
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == ["petransfer", *words]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("start", range(0, 80, 7))
def test_an_option_is_not_parted_from_its_value_nor_a_command_from_its_arguments(width: int, start: int) -> None:
    whole = [
        "--set task.options.chat=plain,",
        "--template 'summarize: {document}'",
        "(--fsdp_version 2)",
        "`petransfer status results/a`;",
    ]
    text = f"error: {'x ' * start}{' and '.join(whole)} or --plan, then the rest of the sentence"
    shown = fitted(text, width)
    assert all(part in shown for part in whole)
    assert shown.split() == text.split()
    assert max(map(len, shown.split("\n"))) <= width


def test_a_command_that_is_longer_than_a_line_goes_on_after_a_backslash() -> None:
    command = f"petransfer run --recipe results/{'a' * 30}/recipe.yaml --out results/{'a' * 30} --repair"
    lines = fitted(f"a file is damaged; run it again with `{command}`, or delete it", 60).split("\n")
    (first, *_) = (at for at, line in enumerate(lines) if "`petransfer" in line)
    (last, *_) = (at for at, line in enumerate(lines) if "--repair`" in line)
    assert last > first
    assert all(line.endswith(" \\") for line in lines[first:last])
    joined = "\n".join(lines).replace("\\\n", "")
    assert shlex.split(joined.partition("`")[2].partition("`")[0]) == shlex.split(command)


def test_what_fits_stays_as_it_is_and_so_does_what_goes_to_a_file() -> None:
    out = io.StringIO()
    print_text("short", SENTENCE, file=out)
    assert out.getvalue() == f"short\n{SENTENCE}\n"
    assert fitted("short\nlines", 60) == "short\nlines"


def test_a_word_that_is_longer_than_a_line_stays_whole() -> None:
    path = "results/" + "x" * 100
    assert fitted(f"see {path} for more", 60).split("\n") == ["see", f"  {path}", "  for more"]


HOSTILE = "\x1b[2Jgone\x07\x9b31m\r"


def test_no_text_changes_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, errors and texts of files that others wrote are printed, but not obeyed."""
    out = io.StringIO()
    print_text(f"a\tb {HOSTILE}", file=out)
    assert out.getvalue() == "a\tb \\x1b[2Jgone\\x07\\x9b31m\\x0d\n"
    show_log()
    logging.getLogger("petransfer.somewhere").warning("first row: %s\nsecond line", HOSTILE)
    assert capsys.readouterr().err == "first row: \\x1b[2Jgone\\x07\\x9b31m\\x0d\nsecond line\n"


def test_a_generated_text_is_changed_for_a_terminal_alone() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert for_output(HOSTILE, io.StringIO()) == HOSTILE
    assert for_output(HOSTILE, Terminal()) == "\\x1b[2Jgone\\x07\\x9b31m\\x0d"


def test_a_message_is_printed_once_after_a_library_has_set_up_the_root_logger() -> None:
    code = (
        "import logging, sys, petransfer.cli, petransfer.__main__ as command\n"
        "def used():\n"
        "    petransfer.cli.show_log(); logging.basicConfig(); logging.getLogger('petransfer.x').warning('one line')\n"
        "petransfer.cli.main = used\n"
        "command.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "one line\n"
