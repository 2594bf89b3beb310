"""At 60, 80 and 120 columns, sentences are broken at white space, and broken commands can still be copied."""

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
def test_a_long_command_is_continued_with_backslashes(width: int) -> None:
    """A shell reads the broken command as the same arguments."""
    words = ["predict", "results/a folder/of dates", "it's  3 March", "--file", "long/" * 16, "--cpu"]
    command = f"  petransfer {shlex.join(words)}"
    lines = fitted(command, width).split("\n")
    assert max(len(line) for line in lines if "long/" not in line) <= width
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == ["petransfer", *words]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("start", range(0, 80, 7))
def test_options_with_values_and_commands_in_backquotes_are_not_broken(width: int, start: int) -> None:
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


def test_a_long_command_in_a_sentence_is_continued_with_backslashes() -> None:
    command = f"petransfer run --recipe results/{'a' * 30}/recipe.yaml --out results/{'a' * 30} --repair"
    lines = fitted(f"a file is damaged; run it again with `{command}`, or delete it", 60).split("\n")
    (first, *_) = (at for at, line in enumerate(lines) if "`petransfer" in line)
    (last, *_) = (at for at, line in enumerate(lines) if "--repair`" in line)
    assert last > first
    assert all(line.endswith(" \\") for line in lines[first:last])
    joined = "\n".join(lines).replace("\\\n", "")
    assert shlex.split(joined.partition("`")[2].partition("`")[0]) == shlex.split(command)


def test_short_texts_and_texts_for_a_file_are_not_broken() -> None:
    out = io.StringIO()
    print_text("short", SENTENCE, file=out)
    assert out.getvalue() == f"short\n{SENTENCE}\n"
    assert fitted("short\nlines", 60) == "short\nlines"


def test_a_word_that_is_longer_than_a_line_stays_whole() -> None:
    path = "results/" + "x" * 100
    assert fitted(f"see {path} for more", 60).split("\n") == ["see", f"  {path}", "  for more"]


HOSTILE = "\x1b[2Jgone\x07\x9b31m\r"


def test_control_characters_in_messages_are_printed_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, errors and texts from files of other people must not control the terminal."""
    out = io.StringIO()
    print_text(f"a\tb {HOSTILE}", file=out)
    assert out.getvalue() == "a\tb \\x1b[2Jgone\\x07\\x9b31m\\x0d\n"
    show_log()
    logging.getLogger("petransfer.somewhere").warning("first row: %s\nsecond line", HOSTILE)
    assert capsys.readouterr().err == "first row: \\x1b[2Jgone\\x07\\x9b31m\\x0d\nsecond line\n"


def test_control_characters_in_generated_texts_are_escaped_only_for_a_terminal() -> None:
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
