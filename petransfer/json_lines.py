"""Write valid JSON: without numbers that are not finite, and on one line that no program splits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# Characters that json.dumps does not escape, although some programs treat them as line ends and terminals treat them as
# commands: control characters from 127 on, and Unicode's line and paragraph separators.
_SPECIAL = re.compile("[\x7f-\x9f\u2028\u2029]")


def with_finite_numbers(content: Any) -> Any:
    """Return values for JSON with None in place of NaN and infinite numbers, which JSON does not have.

    >>> with_finite_numbers({"loss": float("nan"), "scores": (1.5, float("inf"))})
    {'loss': None, 'scores': [1.5, None]}
    """
    if isinstance(content, Mapping):
        return {key: with_finite_numbers(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [with_finite_numbers(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def json_line(content: Any, ascii_only: bool = False) -> str:
    """Return a value as JSON on one line. Letters of all languages stay as they are.

    Args:
        ascii_only: Escape all characters beyond ASCII, for outputs whose encoding lacks them.

    >>> json_line({"text": "größe\\u2028"})
    '{"text": "größe\\\\u2028"}'
    """
    text = json.dumps(content, ensure_ascii=ascii_only)
    return _SPECIAL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
