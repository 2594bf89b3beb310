"""The types of values in recipes, with limits that no sensible recipe reaches."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

LARGEST_NUMBER, LARGEST_SEED = 2**63 - 1, 2**32 - 1
# The largest number of runs in a study. Planning this many runs takes only seconds.
MOST_RUNS = 20_000
# The largest number of tokens of a generated text: more than any model generates sensibly.
MOST_NEW_TOKENS = 131_072
LONGEST_NAME, LONGEST_LIST = 200, 1000
# Names that are valid folder names on every system.
FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Strict(BaseModel):
    """The base class of all parts of a recipe. Unknown keys, infinity, NaN and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _only_a_number(value: Any) -> Any:
    """Refuse booleans and numbers that are too large."""
    if isinstance(value, bool):
        raise ValueError("give a number, not yes or no")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"the number is too large; at most {LARGEST_NUMBER:,} is allowed")
    return value


def _printable(value: str) -> str:
    if not value:
        raise ValueError("a name is empty")
    if not value.isprintable():
        raise ValueError("a name must not contain line breaks or other control characters")
    return value


def _without_null(value: str) -> str:
    if "\0" in value:
        raise ValueError("the text must not contain a null character")
    return value


Values = TypeVar("Values", bound=list[Any])


def _unique(values: Values) -> Values:
    """Refuse a list with duplicates, which would request the same runs twice."""
    seen: set[str] = set()
    for value in values:
        if repr(value) in seen:
            raise ValueError(f"{getattr(value, 'label', value)} is given twice; keep one")
        seen.add(repr(value))
    return values


Whole = Annotated[int, BeforeValidator(_only_a_number)]
Real = Annotated[float, BeforeValidator(_only_a_number)]
Count = Annotated[Whole, Field(ge=1, le=10**9)]
LARGEST_BATCH = 2**16
BatchSize = Annotated[Whole, Field(ge=1, le=LARGEST_BATCH)]
Seed = Annotated[Whole, Field(ge=0, le=LARGEST_SEED)]
Text = Annotated[str, Field(max_length=10_000), AfterValidator(_without_null)]
Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_printable)]
FolderName = Annotated[str, Field(pattern=FOLDER_NAME, max_length=100)]
Names = Annotated[list[Name], Field(min_length=1, max_length=LONGEST_LIST), AfterValidator(_unique)]
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=MOST_RUNS), AfterValidator(_unique)]

Part = TypeVar("Part")
Parts = Annotated[list[Part], Field(min_length=1, max_length=LONGEST_LIST), AfterValidator(_unique)]
