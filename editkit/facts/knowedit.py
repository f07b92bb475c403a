"""KnowEdit (arXiv 2401.01286): ZsRE, WikiData recent and counterfact, and WikiBio, in the layout of zjunlp/KnowEdit.

WikiData recent and WikiBio name no earlier object: ``NO_OBJECT`` stands in its place, as in EasyEdit's own code.
"""

import os

from editkit.facts.cases import Case, to_case
from editkit.facts.fact import Fact
from editkit.facts.files import read_records
from editkit.facts.requests import groups_of, to_request_case

PUBLISHED = "https://huggingface.co/datasets/zjunlp/KnowEdit"
LAYOUT = (
    "a record of knowedit holds the texts subject, prompt and target_new (WikiBio: concept, text and labels), and may "
    "hold ground_truth, rephrase_prompt, and the objects portability and locality, lists of {prompt, ground_truth} by "
    "name"
)
PLAIN = {key: key for key in ("subject", "prompt", "target_new")}
WIKIBIO = {"subject": "concept", "prompt": "text", "target_new": "labels"}


def read(path_or_url: str | os.PathLike) -> list[Fact]:
    """Read the edits alone, see :func:`read_case`."""
    return list(read_case(path_or_url).facts)


def read_case(path_or_url: str | os.PathLike) -> Case:
    """Read KnowEdit's edits and probes in the file's own order; raises what ``read_records`` and ``to_case`` raise."""
    return to_case(path_or_url, read_records(path_or_url, PUBLISHED), _case, LAYOUT)


def _case(index: int, record: dict) -> Case:
    keys = WIKIBIO if "concept" in record else PLAIN
    return to_request_case(f"knowedit:{index}", record, keys, groups_of(record))
