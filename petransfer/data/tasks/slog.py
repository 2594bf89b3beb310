"""SLOG (Li et al. 2023, arXiv:2310.15040): English sentences to logical forms, 17 cases of structural generalization.

The authors protect the generalization sets with a password, to keep them out of the training data of language models.
petransfer decrypts these sets in memory and never writes their text to a file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from petransfer.data.benchmark_files import PublishedFile, rows_of
from petransfer.data.encrypted_zip import open_member
from petransfer.data.task import Example
from petransfer.data.task_registry import RegisteredTask
from petransfer.data.tsv_benchmark import TabularTask, parse_row
from petransfer.errors import UserError

PASSWORD_VARIABLE = "PETRANSFER_SLOG_PASSWORD"
_COMMIT = "1c55df85006d58b842520c79dcb8e1b43df2836f"

# the title, for tables, of each case of the generalization set; the groups below are those of the paper's section 2.2
CATEGORY_TITLE: dict[str, str] = {
    "PP_3": "PP modifiers, shallower (depth 3)",
    "PP_5-12": "PP modifiers, deeper (depth 5 to 12)",
    "CP_3": "Sentential complements, shallower (depth 3)",
    "CP_5-12": "Sentential complements, deeper (depth 5 to 12)",
    "center_embed_3": "Center embedding, shallower (depth 3)",
    "center_embed_5-12": "Center embedding, deeper (depth 5 to 12)",
    "PP_modif_subj": "PP in subject NPs",
    "PP_modif_iobj": "PP in indirect object NPs",
    "RC_modif_subj": "RC in subject NPs",
    "RC_modif_iobj": "RC in indirect object NPs",
    "RC_iobj_extracted": "Indirect object-extracted RC",
    "Q_iobj_ditransV": "Indirect object wh-questions",
    "Q_subj_active": "Active subject wh-questions",
    "Q_subj_passive": "Passive subject wh-questions",
    "Q_dobj_ditransV": "Direct object wh-questions with ditransitive verbs",
    "Q_modified_NPs": "Wh-questions with modified NPs",
    "Q_long_mv": "Wh-questions with long movement",
}
_GROUPS: dict[str, tuple[str, ...]] = {
    "recursion": ("PP_3", "PP_5-12", "CP_3", "CP_5-12", "center_embed_3", "center_embed_5-12"),
    "modification": ("PP_modif_subj", "PP_modif_iobj", "RC_modif_subj", "RC_modif_iobj"),
    "gap": ("RC_iobj_extracted", "Q_iobj_ditransV"),
    "wh-question": ("Q_subj_active", "Q_subj_passive", "Q_dobj_ditransV", "Q_modified_NPs", "Q_long_mv"),
}
CATEGORY_GROUP: dict[str, str] = {case: group for group, cases in _GROUPS.items() for case in cases}


def _source(path: str, sha256: str) -> PublishedFile:
    return PublishedFile("bingzhilee/SLOG", _COMMIT, f"data/{path}", f"slog/{path}", sha256)


FILES: dict[str, PublishedFile] = {
    "train": _source("varfree_LF/train.tsv", "0afc442d1cfca446a3c356c58e979df631d19f863b62edd2c4d6cc70a34e0778"),
    "dev": _source("varfree_LF/dev.tsv", "8677b6b92f9649e74f9e99c2affc9a8a0c4810a612dd32fcd1b45448ca3647f9"),
    "test": _source("varfree_LF/test.tsv", "2f2942a345507ef6af5885ccde48f08bf32a1dd2ba0e19da371d4bbd40b90644"),
    # the hash of the archive, because the archive is not unpacked on disk
    "gen": _source("generalization_sets.zip", "99a13618b033b9f5721107f4c163d035d92a2fee340b217a5a1f6abc63842647"),
}
GEN_MEMBER = "generalization_sets/gen_varfreeLF.tsv"


@dataclass(frozen=True)
class SlogTask(TabularTask):
    """SLOG with variable-free logical forms: 32,755 training and 4,046 dev rows for `gen` and `test`.

    The test set of `gen` has 1,000 rows for each of the 17 cases in `CATEGORY_GROUP`. Its archive needs the password in
    `$PETRANSFER_SLOG_PASSWORD`. The test set of `test` has 4,046 rows with the distribution of the training rows, and
    needs no password.

    Args:
        data_dir: Folder with `slog/varfree_LF/train.tsv` and `slog/generalization_sets.zip`, or checkout of the
            official repository. The tsv files can be compressed as `.xz`. Missing files are read from the cache or
            downloaded.
    """

    name = "slog"
    sources = FILES
    folders = tuple(
        f"{above}{below}" for above in ("slog/", "data/", "extra/slog/", "") for below in ("varfree_LF/", "")
    )
    training_rows = 32_755
    longest_row = (136, 275)

    def read(self, part: str) -> tuple[Example, ...]:
        """Return the examples of one part. The part `gen` is decrypted in memory and never written to a file."""
        if part != "gen":
            return super().read(part)
        source = self.sources["gen"]
        password = _password(source)
        path = self.find_or_download(source)
        lines = open_member(path, GEN_MEMBER, source.sha256, password, f"${PASSWORD_VARIABLE}")
        return tuple(Example(index, *row) for index, row in enumerate(rows_of(lines, path, parse_row)))


def _password(source: PublishedFile) -> str:
    password = os.environ.get(PASSWORD_VARIABLE, "")
    if not password:
        raise UserError(
            f"split gen of slog needs its authors' password: read it in the README of github.com/"
            f"{source.repository} and set {PASSWORD_VARIABLE} to it, or use the split test"
        )
    return password


TASK = RegisteredTask(
    "slog",
    SlogTask,
    title="SLOG",
    licence="mit",
    languages=("en",),
    citation="Li et al. (2023), SLOG: A Structural Generalization Benchmark for Semantic Parsing, arXiv:2310.15040",
    category_titles=CATEGORY_TITLE,
    category_groups=CATEGORY_GROUP,
    text_is_private=True,
)
