"""Lists of EasyEdit's requests (zjunlp/EasyEdit): what ``BaseEditor.edit`` makes of its arguments, one object an edit.

The flat names of its datasets and of many users' files (``locality_prompt``, ``portability_prompt``) are read too.
"""

import os

from editkit.facts.cases import Case, to_case
from editkit.facts.fact import Fact
from editkit.facts.files import field, read_records
from editkit.facts.requests import NEIGHBOURS, groups_of, to_request_case

PUBLISHED = "https://github.com/zjunlp/EasyEdit (easyeditor/editors/utils.py, _prepare_requests)"
LAYOUT = (
    "a record of easyedit holds the texts subject, prompt and target_new, and may hold ground_truth, rephrase_prompt, "
    "and the objects portability and locality, {prompt, ground_truth} by name"
)
KEYS = {key: key for key in ("subject", "prompt", "target_new")}
FLAT = {"portability": "portability", "locality": NEIGHBOURS}  # the group that flat names stand for


def read(path_or_url: str | os.PathLike) -> list[Fact]:
    """Read the edits alone, see :func:`read_case`."""
    return list(read_case(path_or_url).facts)


def read_case(path_or_url: str | os.PathLike) -> Case:
    """Read requests and their probes in the file's own order; raises what ``read_records`` and ``to_case`` raise."""
    return to_case(path_or_url, read_records(path_or_url, PUBLISHED), _case, LAYOUT)


def _case(index: int, record: dict) -> Case:
    groups = groups_of(record)
    for part, group in FLAT.items():
        if f"{part}_prompt" in record:
            asked = {key: field(record, f"{part}_{key}", kind=object) for key in ("prompt", "ground_truth")}
            groups[part] = {group: asked} | groups[part]
    return to_request_case(f"easyedit:{index}", record, KEYS, groups)
