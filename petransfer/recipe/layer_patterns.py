"""Check patterns of layer names before they are used for matching."""

from __future__ import annotations

import re

from petransfer.errors import shortened

LONGEST_PATTERN, MOST_QUANTIFIERS = 512, 4
# The longest pattern in an adapter of another program. Those of unsloth have about 500 characters.
LONGEST_OF_OTHERS = 8192


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a regular expression that is invalid, or that takes too long to match."""
    check_syntax(pattern)
    shown = f"'{shortened(pattern, 60)}'"
    # the time for nested repeats, such as `(a+)+`, grows exponentially; layer names need no nested repeats
    if re.search(r"\)[?]?[*+{]", pattern) or len(re.findall(r"(?<!\\)[*+{]", pattern)) > MOST_QUANTIFIERS:
        raise ValueError(
            f"the pattern {shown} repeats a group or has more than {MOST_QUANTIFIERS} of * + {{, which can take hours "
            "to match; list the names of the layers instead"
        )


def check_syntax(pattern: str, longest: int = LONGEST_PATTERN) -> None:
    """Raise ValueError for a regular expression that is empty, too long or invalid."""
    shown = f"'{shortened(pattern, 60)}'"
    if not pattern:
        raise ValueError("the pattern is empty; name layers, or use all-linear")
    if len(pattern) > longest:
        raise ValueError(f"the pattern {shown} has {len(pattern):,} characters; at most {longest:,} are allowed")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {shown} is not a regular expression: {error}") from None
