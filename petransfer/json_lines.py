"""Write JSON on one line that no program splits and that changes no terminal."""

from __future__ import annotations

import json
import re
from typing import Any

# Characters that json.dumps leaves as they are, and that some programs read as the end of a line or a terminal as a
# command: control characters from 127 on, and Unicode's line and paragraph separators.
_SPECIAL = re.compile("[\x7f-\x9f\u2028\u2029]")


def json_line(content: Any, ascii_only: bool = False) -> str:
    """Return a value as JSON on one line. Letters of all languages stay as they are.

    Args:
        ascii_only: escape all characters beyond ASCII, for an output that cannot write them.

    >>> json_line({"text": "größe\\u2028"})
    '{"text": "größe\\\\u2028"}'
    """
    text = json.dumps(content, ensure_ascii=ascii_only)
    return _SPECIAL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
