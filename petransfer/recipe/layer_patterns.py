"""Check patterns of layer names before they are used for matching."""

from __future__ import annotations

import re

from petransfer.errors import shortened

LONGEST_PATTERN, MOST_QUANTIFIERS = 512, 4


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a regular expression that is invalid, or that takes too long to match."""
    shown = f"'{shortened(pattern, 60)}'"
    if not pattern:
        raise ValueError("the pattern is empty; name layers, or use all-linear")
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"the pattern {shown} has {len(pattern):,} characters; at most {LONGEST_PATTERN} are allowed")
    # the time for nested repeats, such as `(a+)+`, grows exponentially; layer names need no nested repeats
    if re.search(r"\)[?]?[*+{]", pattern) or len(re.findall(r"(?<!\\)[*+{]", pattern)) > MOST_QUANTIFIERS:
        raise ValueError(
            f"the pattern {shown} repeats a group or has more than {MOST_QUANTIFIERS} of * + {{, which can take hours "
            "to match; list the names of the layers instead"
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {shown} is not a regular expression: {error}") from None
