"""The list of verbs: what it says of each is what the verb says, and to show it imports none of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.core import TyperGroup

from petransfer.cli.lazy_verbs import VERBS, Verbs, imported


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_says_of_a_verb_what_the_verb_says_of_itself(verb: str) -> None:
    listed, own = Verbs().commands[verb], imported(verb)
    assert own.help == listed.help
    assert isinstance(own, TyperGroup) or own.params


def test_help_imports_no_verb_and_nothing_that_takes_long_to_import() -> None:
    code = (
        "import sys\nfrom petransfer.cli import main\nsys.argv = ['petransfer', '--help']\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "slow = {'torch', 'transformers', 'pydantic', 'yaml', 'numpy'}\n"
        "print(sorted(name for name in sys.modules if name in slow or name.startswith('petransfer.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['petransfer.cli.lazy_verbs', 'petransfer.cli.log_output']"
    assert all(line in " ".join(done.stdout.split()) for line in VERBS)
