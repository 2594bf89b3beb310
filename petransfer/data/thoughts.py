"""Handle the opening tag of a thought, such as `<think>`, at the end of prompts for reasoning models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from petransfer.plurals import count

_OPENING = re.compile(r"([<\[])(\w*(?:think|thought|reason)\w*)([>\]])\s*$", re.IGNORECASE)


def without_doubled_tag(prompt: str, target: str) -> str:
    """Return a chat's prompt. If the target begins with the tag at the prompt's end, the prompt ends before this tag.

    >>> without_doubled_tag("assistant: <think>\\n", "<think>\\nlet me see</think>4")
    'assistant: '
    """
    found = _OPENING.search(prompt)
    return prompt[: found.start()] if found and target.startswith(found[0].rstrip()) else prompt


def tag_counts(prompt: str, targets: Iterable[str]) -> Counter[str]:
    """Count the answers that repeat the opening tag at the end of `prompt`, and the answers that lack its closing tag.

    The keys of the result are the two tags, such as `<think>` and `</think>`.

    Args:
        prompt: Any prompt that the chat template wrote. If no opening tag is at its end, nothing is counted.
        targets: The answers of the assistant.
    """
    found = _OPENING.search(prompt)
    if not found:
        return Counter()
    tag, closing = found[0].rstrip(), f"{found[1]}/{found[2]}{found[3]}"
    given = list(targets)
    doubled = sum(target.startswith(tag) for target in given)
    return +Counter({tag: doubled, closing: sum(closing not in target for target in given)})


def tag_notes(counts: Counter[str], answers: int) -> Iterator[str]:
    """Yield notes about the tags that `tag_counts` counted in this number of answers."""
    for tag, number in counts.items():
        which = f"{number:,} of {count(answers, 'answer')}"
        if "/" not in tag:
            yield f"{which} begin with {tag}, which the chat template also writes; it is trained only once"
        else:
            opening = tag.replace("/", "")
            yield (
                f"warning: {which} have no {tag}, and the chat template ends each prompt with {opening}: the model "
                f"would learn to answer inside of a thought. Write {tag} and a blank line before these answers"
            )
