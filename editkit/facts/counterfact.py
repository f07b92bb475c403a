"""CounterFact, in the layout of ROME's counterfact.json (arXiv 2202.05262)."""

import os

from editkit.facts.fact import Fact
from editkit.facts.files import read_records, to_facts

PUBLISHED = "https://rome.baulab.info/data/dsets/counterfact.json"


def read(path_or_url: str | os.PathLike) -> list[Fact]:
    """Read CounterFact's records in the file's own order.

    Records that state no edit (an empty target, or equal ones) are skipped with one warning. Raises what
    ``read_records`` and ``to_facts`` raise.
    """
    return to_facts(path_or_url, read_records(path_or_url, PUBLISHED), _fact)


def _fact(index: int, record: dict) -> Fact:
    rewrite = record["requested_rewrite"]
    return Fact(
        id=f"counterfact:{record['case_id']}",
        relation=rewrite.get("relation_id", ""),
        subject=rewrite["subject"],
        prompt=rewrite["prompt"],
        target_new=rewrite["target_new"]["str"],
        target_true=rewrite["target_true"]["str"],
        paraphrases=record["paraphrase_prompts"],
        neighbours=record["neighborhood_prompts"],
        generation=record.get("generation_prompts", ()),
    )
