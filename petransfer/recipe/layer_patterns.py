"""Check patterns of layer names before they are used for matching."""

from __future__ import annotations

import math
import re

from petransfer.errors import shortened

LONGEST_PATTERN, MOST_QUANTIFIERS = 512, 4
# The largest number of characters of a pattern in another program's adapter. unsloth's patterns have about 500.
LONGEST_OF_OTHERS = 8192
# The largest number of ways in which the alternatives of a pattern (`a|b`, `a?`) can be combined, and the largest
# product of this number and of the ways in which the quantifiers can divide a layer's name of 100 characters.
MOST_CHOICES, MOST_WAYS = 10**5, 10**9


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a regular expression that is invalid, or that takes too long to match."""
    check_syntax(pattern)
    shown = f"'{shortened(pattern, 60)}'"
    # the time for nested repeats, such as `(a+)+`, grows exponentially; layer names need no nested repeats
    quantifiers = len(re.findall(r"(?<!\\)[*+{]", pattern))
    if re.search(r"\)[?]?[*+{]", pattern) or quantifiers > MOST_QUANTIFIERS:
        raise ValueError(
            f"the pattern {shown} repeats a group or has more than {MOST_QUANTIFIERS} of * + {{, which can take hours "
            "to match; list the names of the layers instead"
        )
    choices = _choices(pattern)
    if choices > MOST_CHOICES or choices * 100**quantifiers > MOST_WAYS:
        raise ValueError(
            f"the pattern {shown} combines too many alternatives (| and ?), which can take hours to match; list the "
            "names of the layers instead"
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


def _choices(pattern: str) -> int:
    """Return the number of combinations of a pattern's alternatives: `a|b` has two, and so has `a?`."""
    plain = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    choices: int = 2 ** len(re.findall(r"(?<![(*+}?])\?", plain))
    stack = [1]
    for character in plain:
        if character == "(":
            stack.append(1)
        elif character == "|":
            stack[-1] += 1
        elif character == ")" and len(stack) > 1:
            choices *= stack.pop()
    return choices * math.prod(stack)
