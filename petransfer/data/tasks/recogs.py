"""COGS with two other kinds of logical forms: ReCOGS, and forms without variables.

Source: Wu, Manning & Potts 2023, arXiv:2303.13716. The test and generalization sets have COGS's sentences and cases.
"""

from __future__ import annotations

from dataclasses import dataclass

from petransfer.data.benchmark_files import PublishedFile
from petransfer.data.logical_forms import RECOGS as SEMANTICS
from petransfer.data.task_registry import RegisteredTask
from petransfer.data.tasks.cogs import CATEGORY_GROUP, CATEGORY_TITLE
from petransfer.data.tsv_benchmark import TabularTask

_COMMIT = "1b6eca8ff4dca5fd2fb284a7d470998af5083beb"
_VARIABLE_FREE_COMMIT = "836173aa370fa9d6ce4d9b2dd30a9d6d1147d2ef"


def _sources(folder: str, place: str, commit: str, hashes: dict[str, str]) -> dict[str, PublishedFile]:
    return {
        part: PublishedFile("frankaging/ReCOGS", commit, f"{folder}/{part}.tsv", f"{place}/{part}.tsv", sha256)
        for part, sha256 in hashes.items()
    }


RECOGS: dict[str, PublishedFile] = _sources(
    "recogs_positional_index",
    "recogs_positional_index",
    _COMMIT,
    {
        "train": "943b4d5ccde4d6d6e421f34a117a8a543b77acfbacf835c5a775eb6e7329f624",
        "dev": "fb863a167667eff33c141241ceff546b78f2f8a4171a6902570a1817bfa63842",
        "test": "4eed77fbe78b2e786b34fcabf71a84021988a60e1c5528864e0a5999b20c919c",
        "gen": "9cf742934e13833faccf7de8d2634eb640d3e98062ba39e35d6d2c39ad59056a",
    },
)
VARIABLE_FREE: dict[str, PublishedFile] = _sources(
    "variable_free",
    "cogs_variable_free",
    _VARIABLE_FREE_COMMIT,
    {
        "train": "0d8429b2db4c9fd216ce2a80ca6ee20861f331f9d4ce6086b565dcbde7c2791d",
        "dev": "8fe6a76e2a3b0ebf26aff1e899076956c16f87396374a729dad439669b05b429",
        "test": "b312353b6f40fcd870dc2c75b70da8ea25bf32134884e9da2c9c98306e17b9d1",
        "gen": "ce0be5c1e70139301b7cc77e6b94e7b23af0ae3db921ce935d2524fe68070159",
    },
)


@dataclass(frozen=True)
class RecogsTask(TabularTask):
    """ReCOGS with positional indices: 27,227 training rows.

    Some training rows of COGS are joined, have modifiers before the verb, or have added words. Thus no generalization
    case is hard only because of its length or its indices. Predictions are also scored by meaning
    (`petransfer.data.logical_forms`), as in the paper.

    Args:
        data_dir: Folder with `recogs_positional_index/gen.tsv`, folder with `gen.tsv`, or checkout of the official
            repository. Files can be compressed as `.xz`. Missing files are read from the cache or downloaded.
    """

    name = "recogs"
    sources = RECOGS
    folders = ("recogs_positional_index/", "extra/recogs_positional_index/")
    training_rows = 27_227
    longest_row = (366, 869)


@dataclass(frozen=True)
class CogsVariableFreeTask(TabularTask):
    """COGS with the nested logical forms of Qiu et al. (2022, arXiv:2112.07610): 24,155 training rows.

    These forms have no variables and are much shorter. According to Wu et al., these forms lose a part of the meaning.

    Args:
        data_dir: Folder with `cogs_variable_free/gen.tsv`, folder with `gen.tsv`, or checkout of ReCOGS's repository.
            Files can be compressed as `.xz`. Missing files are read from the cache or downloaded.
    """

    name = "cogs-variable-free"
    sources = VARIABLE_FREE
    folders = ("cogs_variable_free/", "variable_free/", "extra/cogs_variable_free/")
    training_rows = 24_155
    longest_row = (103, 172)


TASK = RegisteredTask(
    "recogs",
    RecogsTask,
    title="ReCOGS",
    licence="mit",
    languages=("en",),
    citation="Wu, Manning and Potts (2023), ReCOGS, arXiv:2303.13716",
    semantics=SEMANTICS,
    category_titles=CATEGORY_TITLE,
    category_groups=CATEGORY_GROUP,
)
VARIABLE_FREE_TASK = RegisteredTask(
    "cogs-variable-free",
    CogsVariableFreeTask,
    title="COGS (variable-free)",
    licence="mit",
    languages=("en",),
    citation="Qiu et al. (2022), arXiv:2112.07610; files of Wu, Manning and Potts (2023), arXiv:2303.13716",
    category_titles=CATEGORY_TITLE,
    category_groups=CATEGORY_GROUP,
)
