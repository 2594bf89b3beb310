"""Everyday fine-tuning tasks with generated data, on which the defaults of `petransfer train` are chosen and checked.

Each task makes random rows of input and target, as in a user's csv file with a few hundred rows. No two rows of a task
have the same input.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise, product

Row = tuple[str, str]

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Mary",
    "Tom",
)
CITIES = ("Berlin", "London", "Paris", "Rome", "Madrid", "Vienna", "Oslo", "Dublin", "Lisbon", "Athens")
JOBS = ("teacher", "doctor", "farmer", "painter", "soldier", "writer", "baker", "judge")
FILES = ("notes.txt", "report.pdf", "data.csv", "main.py", "photo.jpg", "letter.doc", "index.html", "log.txt")
FOLDERS = ("backup", "home", "work", "tmp", "docs", "old", "photos", "shared")
WORDS = (
    "the", "house", "garden", "river", "mountain", "letter", "morning", "evening", "winter", "summer", "mother",
    "father", "sister", "brother", "window", "kitchen", "station", "village", "captain", "doctor", "question",
    "answer", "silence", "beautiful", "important", "different", "remember", "together", "nothing", "something",
    "between", "against", "without",
)  # fmt: skip
LATIN = ("a", "b", "v", "g", "d", "e", "zh", "z", "i", "k", "l", "m", "n", "o", "p", "r", "s", "t", "u", "f")
LATIN += ("kh", "ts", "ch", "sh")
CYRILLIC = dict(zip("абвгдежзиклмнопрстуфхцчш", LATIN, strict=True))


@dataclass(frozen=True)
class Task:
    """An everyday task. rows: number of rows, as in a typical user's file. make: makes a random (input, target)."""

    rows: int
    make: Callable[[random.Random], Row]

    def examples(self, seed: int = 0) -> list[Row]:
        """Return the task's rows; the same seed gives the same rows, and no input occurs twice."""
        generator = random.Random(seed)
        found: dict[str, str] = {}
        while len(found) < self.rows:
            text, target = self.make(generator)
            found.setdefault(text, target)
        return list(found.items())


def _date(rng: random.Random) -> Row:
    day = date(1990, 1, 1) + timedelta(days=rng.randrange(14_600))
    month = MONTHS[day.month - 1]
    forms = (
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{day.day:02d}.{day.month:02d}.{day.year}",
        f"{month[:3]} {day.day} {day.year}",
    )
    return rng.choice(forms), day.isoformat()


def _command(rng: random.Random) -> Row:
    file, folder, other = rng.choice(FILES), rng.choice(FOLDERS), rng.choice(FILES)
    count = rng.randint(2, 50)
    forms = (
        (f"copy {file} to the folder {folder}", f"cp {file} {folder}/"),
        (f"move {file} into {folder}", f"mv {file} {folder}/"),
        (f"rename {file} to {other}", f"mv {file} {other}"),
        (f"delete the file {file} in {folder}", f"rm {folder}/{file}"),
        (f"show the first {count} lines of {file}", f"head -n {count} {file}"),
        (f"count the lines of {folder}/{file}", f"wc -l {folder}/{file}"),
        (f"list everything in {folder}", f"ls {folder}"),
        (f"make a folder called {folder} in {rng.choice(FOLDERS)}", ""),
    )
    text, command = rng.choice(forms)
    return (text, command) if command else (text, f"mkdir {text.rsplit(' ', 1)[1]}/{folder}")


def _transliteration(rng: random.Random) -> Row:
    word = "".join(rng.choice(list(CYRILLIC)) for _ in range(rng.randint(3, 7)))
    return word, "".join(CYRILLIC[letter] for letter in word)


def _label(rng: random.Random) -> Row:
    label = rng.choice(("good", "bad", "neutral"))
    things = ("room", "food", "service", "garden", "view", "bed", "breakfast", "staff", "price", "location")
    words = {
        "good": ("wonderful", "excellent", "lovely", "perfect", "very good"),
        "bad": ("terrible", "awful", "dirty", "poor", "very bad"),
        "neutral": ("average", "ordinary", "as expected", "acceptable", "usual"),
    }[label]
    thing, other = rng.sample(things, 2)
    return f"The {thing} was {rng.choice(words)} and the {other} was {rng.choice(words)}.", label


def _json(rng: random.Random) -> Row:
    name, city, job, age = rng.choice(NAMES), rng.choice(CITIES), rng.choice(JOBS), rng.randint(18, 80)
    forms = (
        f"{name} is a {job} of {age} years from {city}.",
        f"In {city} lives {name}, {age}, a {job}.",
        f"{name} ({age}) works as a {job} in {city}.",
    )
    return rng.choice(forms), json.dumps({"name": name, "age": age, "job": job, "city": city})


def _spelling(rng: random.Random) -> Row:
    words = rng.sample(WORDS, rng.randint(2, 4))
    wrong = []
    for word in words:
        letters = list(word)
        at = rng.randrange(len(letters) - 1)
        kind = rng.choice(("swap", "double", "drop", "keep"))
        if kind == "swap":
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
        elif kind == "double":
            letters.insert(at, letters[at])
        elif kind == "drop" and len(letters) > 3:
            del letters[at]
        wrong.append("".join(letters))
    return " ".join(wrong), " ".join(words)


def _units(rng: random.Random) -> Row:
    scales = {
        ("km", "m"): 1000,
        ("m", "cm"): 100,
        ("kg", "g"): 1000,
        ("h", "min"): 60,
        ("min", "s"): 60,
        ("l", "ml"): 1000,
    }
    (large, small), factor = rng.choice(list(scales.items()))
    value = rng.randint(1, 999)
    return f"{value} {large} in {small}", f"{value * factor} {small}"


TASKS = {
    "dates": Task(500, _date),
    "commands": Task(400, _command),
    "transliteration": Task(1000, _transliteration),
    "labels": Task(300, _label),
    "json": Task(800, _json),
    "spelling": Task(2000, _spelling),
    "units": Task(1000, _units),
}
# Tasks on a real pretrained checkpoint, which `pip install petransfer[real]` installs.
REAL_TASKS = {"smiles": "annalog"}
SMILES_ROWS = 300


def rows_of(name: str) -> list[Row]:
    """Return the rows of a task by its name."""
    return list(smiles_rows(SMILES_ROWS)) if name in REAL_TASKS else TASKS[name].examples()


def smiles_rows(count: int, seed: int = 0) -> Iterator[Row]:
    """Yield rows of two molecules in SMILES notation.

    The input has one of the halogens F and Cl. The target is the same molecule with the next halogen: Cl or Br.

    Args:
        count: the number of rows; at most 326, the number of different molecules.
        seed: the seed for the random choice and order of the molecules.
    """
    halogens = ("F", "Cl", "Br")  # annalog has no token for iodine
    parts = ("C", "CC", "CCC", "C(C)C", "c1ccccc1", "CO", "CN", "C(=O)O", "C(=O)N", "CC(C)C", "C1CC1", "c1ccncc1", "CS")
    bodies = dict.fromkeys(f"{left}{right}" for left, right in product(parts, parts))
    molecules = list(product(bodies, pairwise(halogens)))
    for body, (halogen, following) in random.Random(seed).sample(molecules, count):
        yield f"{body}{halogen}", f"{body}{following}"


def chat_rows(count: int, seed: int = 0) -> Iterator[list[dict[str, str]]]:
    """Yield conversations of one question about a person's city and one answer, as lists of chat messages.

    Args:
        count: the number of conversations; at most 140.
        seed: the seed for the random choice of people and cities.
    """
    rng = random.Random(seed)
    pairs = rng.sample(list(product(NAMES, CITIES)), min(count, len(NAMES) * len(CITIES)))
    for name, city in pairs:
        yield [
            {"role": "user", "content": f"Where does {name} of {city} live?"},
            {"role": "assistant", "content": f"{name} lives in {city}."},
        ]
