"""Reference texts for CounterFact: what Wikipedia says of other subjects that have a fact's new object.

The layout is that of ROME's attribute_snippets.json, as dsets/attr_snippets.py of kmeng01/rome reads it; a fact's texts
are those of its relation and of the id of its new object.
"""

import os
from collections.abc import Mapping

from editkit.facts.files import field, read_records

Snippets = dict[tuple[str, str], list[str]]  # texts by relation and by the id of an object
PUBLISHED = "https://rome.baulab.info/data/dsets/attribute_snippets.json"
COUNTERFACT = "https://rome.baulab.info/data/dsets/counterfact.json"
LAYOUT = "a record of attribute_snippets holds the texts relation_id and target_id, and samples, a list of {name, text}"


def read(path_or_url: str | os.PathLike) -> Snippets:
    """Read the published snippets.

    Raises what ``read_records`` raises, and ``ValueError`` for another layout; it names the file and the record.
    """
    found: Snippets = {}
    for index, record in enumerate(read_records(path_or_url, PUBLISHED)):
        try:
            about = field(record, "relation_id"), field(record, "target_id")
            texts = [field({"samples": sample}, "samples", "text") for sample in field(record, "samples", kind=list)]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path_or_url}: record {index} has another layout: {error}; {LAYOUT}") from None
        found.setdefault(about, []).extend(texts)
    return found


def references(path_or_url: str | os.PathLike, snippets: Mapping[tuple[str, str], list[str]]) -> dict[str, list[str]]:
    """Find the reference texts of the facts of a CounterFact file, by the facts' ids; facts without any are left out.

    Raises what ``read_records`` raises.
    """
    found = {}
    for record in read_records(path_or_url, COUNTERFACT):
        rewrite = record.get("requested_rewrite") or {}
        about = rewrite.get("relation_id"), (rewrite.get("target_new") or {}).get("id")
        if texts := snippets.get(about):
            found[f"counterfact:{record.get('case_id')}"] = texts
    return found
