"""COGS (Kim & Linzen 2020, arXiv:2010.05465): English sentences to logical forms, with 21 cases of generalization.

The rows keep the order of the official files.
"""

from __future__ import annotations

from dataclasses import dataclass

from petransfer.data.benchmark_files import PublishedFile
from petransfer.data.task import Example
from petransfer.data.task_registry import RegisteredTask
from petransfer.data.tsv_benchmark import TabularTask
from petransfer.errors import unknown

# the title, for tables, of each case of the generalization set; the keys are the names in the official files
CATEGORY_TITLE: dict[str, str] = {
    "subj_to_obj_common": "Subject → Object (common noun)",
    "subj_to_obj_proper": "Subject → Object (proper noun)",
    "obj_to_subj_common": "Object → Subject (common noun)",
    "obj_to_subj_proper": "Object → Subject (proper noun)",
    "prim_to_subj_common": "Primitive noun → Subject (common noun)",
    "prim_to_subj_proper": "Primitive noun → Subject (proper noun)",
    "prim_to_obj_common": "Primitive noun → Object (common noun)",
    "prim_to_obj_proper": "Primitive noun → Object (proper noun)",
    "prim_to_inf_arg": "Primitive verb → Infinitival argument",
    "obj_pp_to_subj_pp": "Object-modifying PP → Subject-modifying PP",
    "cp_recursion": "Depth generalization: Sentential complements",
    "pp_recursion": "Depth generalization: PP modifiers",
    "active_to_passive": "Active → Passive",
    "passive_to_active": "Passive → Active",
    "obj_omitted_transitive_to_transitive": "Object-omitted transitive → Transitive",
    "unacc_to_transitive": "Unaccusative → Transitive",
    "do_dative_to_pp_dative": "Double object dative → PP dative",
    "pp_dative_to_do_dative": "PP dative → Double object dative",
    "only_seen_as_transitive_subj_as_unacc_subj": "Agent NP → Unaccusative subject",
    "only_seen_as_unacc_subj_as_obj_omitted_transitive_subj": "Theme NP → Object-omitted transitive subject",
    "only_seen_as_unacc_subj_as_unerg_subj": "Theme NP → Unergative subject",
}
_STRUCTURAL = frozenset({"obj_pp_to_subj_pp", "cp_recursion", "pp_recursion"})
CATEGORY_GROUP: dict[str, str] = {
    category: "structural" if category in _STRUCTURAL else "lexical" for category in CATEGORY_TITLE
}

_COMMITS = {
    "2022": "165a7b669eade971fa47bf568a2e51925360fed8",
    "2021": "bf1efc46298a6a23528b4444ef36786b12ef47d4",
}


def _source(file: str, sha256: str, version: str = "2022", place: str | None = None) -> PublishedFile:
    return PublishedFile("najoungkim/COGS", _COMMITS[version], f"data/{file}", place or f"cogs/{file}", sha256)


FILES: dict[str, PublishedFile] = {
    "train": _source("train.tsv", "220b3804b562c0156ee986eff1bdd15c27e52142549362a64f57baf86e304c78"),
    "dev": _source("dev.tsv", "ab66388a309c7ac1ad210c781a6a0ce12281a9ef24619a12422a752cef61bc21"),
    "test": _source("test.tsv", "68f8e51e9f6d9cd22d64efe68dd21d7ea5ba327e9a2359481030161aea757035"),
    "gen": _source("gen.tsv", "d013d9eee0bafc153f8decc85f42814ac97260f84964d980e1e2b84577b82361"),
    "gen_2021": _source(
        "gen.tsv", "410369d993e7cf3af9bb75835a77b1a332b56e60985a8bf1e7d75c30e91d4828", "2021", "cogs/gen_2021.tsv"
    ),
}
# a correction in September 2022 changed 51 rows of obj_pp_to_subj_pp; earlier publications used the uncorrected set
_GEN_FILE = {"2022": "gen", "2021": "gen_2021"}


@dataclass(frozen=True)
class CogsTask(TabularTask):
    """COGS: 24,155 training and 3,000 dev rows, shared by the splits `gen` and `test`.

    The test set of `gen` is the generalization set: 1,000 rows for each of the 21 cases in `CATEGORY_GROUP`. The test
    set of `test` has 3,000 rows with the distribution of the training rows. The category is the third column of the
    official file.

    Args:
        data_dir: Folder with `cogs/gen.tsv`, folder with `gen.tsv`, or checkout of the official repository. Files can
            be compressed as `.xz`. Missing files are read from the cache or downloaded.
        version: "2022" uses the corrected generalization set. "2021" uses the set before the correction, which is
            called `gen_2021.tsv` in `data_dir`.
    """

    version: str = "2022"
    name = "cogs"
    sources = FILES
    folders = ("cogs/", "data/")
    training_rows = 24_155
    longest_row = (103, 435)

    def __post_init__(self) -> None:
        # an unquoted 2021 in a recipe arrives as a number
        object.__setattr__(self, "version", str(self.version))
        if self.version not in _GEN_FILE:
            raise unknown("version of cogs", self.version, _GEN_FILE)

    def read(self, part: str) -> tuple[Example, ...]:
        """Return the examples of one part: `train`, `dev`, `test` or `gen`."""
        return super().read(_GEN_FILE[self.version] if part == "gen" else part)


TASK = RegisteredTask(
    "cogs",
    CogsTask,
    title="COGS",
    licence="mit",
    languages=("en",),
    citation="Kim and Linzen (2020), COGS: A Compositional Generalization Challenge, arXiv:2010.05465",
    category_titles=CATEGORY_TITLE,
    category_groups=CATEGORY_GROUP,
)
