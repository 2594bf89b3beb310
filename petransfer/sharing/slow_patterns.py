"""Refuse an adapter whose patterns for layer names would take too long to match.

peft matches the patterns in adapter_config.json with the name of every layer. Python cannot interrupt a match, and a
pattern with nested repeats can take years. So other programs' patterns are first matched in a process of their own,
which is ended after a time limit.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from petransfer.errors import UserError, shortened
from petransfer.recipe.layer_patterns import check_pattern
from petransfer.sharing.bundle import Bundle

# The time limit in seconds for all patterns of an adapter. Those of unsloth take a few milliseconds.
SECONDS = 5.0
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    compiled = re.compile(pattern)
    for name in names:
        compiled.fullmatch(name)
        compiled.match(name)
"""


def refuse_slow_patterns(bundle: Bundle, model: Any) -> None:
    """Raise UserError if an adapter's patterns take longer than SECONDS to match the names of a model's layers."""
    patterns = list(dict.fromkeys(_forms(bundle.config)))
    if not patterns:
        return
    content = json.dumps([patterns, [name for name, _ in model.named_modules(remove_duplicate=False)]])
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH],
            input=content.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        shown = shortened(patterns[0], 60)
        raise UserError(
            f"{bundle.label} is refused: its patterns of layers, such as '{shown}', take more than {SECONDS:g} s to "
            "match the layers of its base; list the names of the layers in adapter_config.json instead"
        ) from None
    except subprocess.CalledProcessError:  # too deep or too large for the module `re`; peft would fail too
        raise UserError(
            f"{bundle.label} is refused: a pattern of layers in adapter_config.json cannot be used, such as "
            f"'{shortened(patterns[0], 60)}'; list the names of the layers instead"
        ) from None


def _forms(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the patterns that may be slow, in the form in which peft matches them."""
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(config.get(key), str) and _may_be_slow(config[key]):
            yield config[key]
    listed = config.get("layers_pattern") or []
    for text in [listed] if isinstance(listed, str) else listed:
        if _may_be_slow(text):
            yield rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\."
    for key in ("rank_pattern", "alpha_pattern"):
        for text in config.get(key) or {}:
            if _may_be_slow(text):
                yield rf"(.*\.)?({text})$"


def _may_be_slow(text: str) -> bool:
    try:
        check_pattern(text)
    except ValueError:
        return True
    return False
