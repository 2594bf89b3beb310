"""Messages on wrong options and arguments of a command."""

from __future__ import annotations

import sys
from typing import Any

from petransfer.similar_names import similar_name

# En dash, em dash and other signs that look like the hyphens of an option.
_LONG_DASHES = tuple("\u2010\u2011\u2012\u2013\u2014\u2015\u2212")
_TOO_MANY = "Got unexpected extra argument"
_LEAVE_OUT = "leave it out"
# Advice for a command with too many arguments. Default: leave the argument out, or call the command once for each.
_ADVICE = {
    "report study": "`petransfer report compare A B` compares two studies",
    "report compare": "compare two studies at a time",
    "adapter merge": "`petransfer predict ADAPTER --with OTHER --weights 0.5,0.5` combines adapters",
    "fit": "`petransfer train MODEL DATA --plan` estimates the memory for your rows",
    "pretrain": "name the recipe with --recipe",
}


def usage_error(error: Any) -> str:
    """Return the message on wrong options or arguments as one line. '' if the command only printed its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoSuchOption" and context is not None:
        options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]
        near = similar_name(error.option_name, options)
        if near is None and "--set" in options:
            from petransfer.recipe.loading import inner_key  # takes 50 ms

            place = inner_key(error.option_name)
            near = f"--set {place}=VALUE" if place else None
        error.possibilities = [near] if near else []
    message = " ".join(error.format_message().split()).rstrip(".")
    if context is not None and message.startswith(_TOO_MANY):
        message = _too_many_arguments(context, message.partition("(s) ")[2].strip("()"))
    dashed = next((argument for argument in sys.argv[1:] if argument.startswith(_LONG_DASHES)), None)
    if dashed is not None:
        message += f"; {dashed} begins with a long dash, as text editors write it: options begin with -- (two hyphens)"
    see = "" if context is None else f"see `{context.command_path} --help`"
    return f"error: {message} {see}" if message.endswith("?") else f"error: {message}; {see}".rstrip("; ")


def _too_many_arguments(context: Any, extra: str) -> str:
    """Return the message on arguments that a command does not accept.

    Args:
        extra: These arguments, separated by blanks.
    """
    command = context.command_path.partition(" ")[2]
    names = [parameter.name.upper() for parameter in context.command.params if not parameter.opts[0].startswith("-")]
    if command == "train":
        from petransfer.data.rows.source import joining_advice

        advice = joining_advice([str(context.params.get("data") or "FILE"), *extra.split()])
    else:
        advice = _ADVICE.get(command) or ("call it once for each" if len(names) == 1 else _LEAVE_OUT)
    accepted = f"only {' '.join(names)}" if names else "no arguments"
    return f"{context.command_path} accepts {accepted}, but {extra} was also given; {advice}"
