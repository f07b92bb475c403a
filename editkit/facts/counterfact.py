"""CounterFact, in the layout of ROME's counterfact.json (arXiv 2202.05262)."""

import os

from editkit.facts.fact import Fact
from editkit.facts.files import field, read_records, to_facts

PUBLISHED = "https://rome.baulab.info/data/dsets/counterfact.json"
LAYOUT = (
    "a record of counterfact holds case_id, requested_rewrite {subject, prompt, target_new {str}, target_true {str}}, "
    "and the lists paraphrase_prompts and neighborhood_prompts"
)


def read(path_or_url: str | os.PathLike) -> list[Fact]:
    """Read CounterFact's records in the file's own order.

    Records that state no edit (an empty target, or equal ones) are skipped with one warning. Raises what
    ``read_records`` and ``to_facts`` raise.
    """
    return to_facts(path_or_url, read_records(path_or_url, PUBLISHED), _fact, LAYOUT)


def _fact(index: int, record: dict) -> Fact:
    rewrite = "requested_rewrite"
    return Fact(
        id=f"counterfact:{field(record, 'case_id', kind=int | str)}",
        relation=field(record, rewrite, kind=dict).get("relation_id") or "",
        subject=field(record, rewrite, "subject"),
        prompt=field(record, rewrite, "prompt"),
        target_new=field(record, rewrite, "target_new", "str"),
        target_true=field(record, rewrite, "target_true", "str"),
        paraphrases=field(record, "paraphrase_prompts", kind=object),
        neighbours=field(record, "neighborhood_prompts", kind=object),
        generation=record.get("generation_prompts") or (),
    )
