"""zsRE, in the layout of ROME's zsre_mend_eval.json (De Cao et al., arXiv 2104.08164).

The new object is the file's alternative answer (``alt``), as MEND edits it, so that success
compares it with the true one. ROME instead teaches the true answer and has no rival to it.
The locality question keeps its text and gets a question mark, as in ROME and MEMIT.
"""

import os

from editkit.facts.fact import Fact, template_of
from editkit.facts.files import read_records, to_facts

PUBLISHED = "https://rome.baulab.info/data/dsets/zsre_mend_eval.json"


def read(path_or_url: str | os.PathLike) -> list[Fact]:
    """Read zsRE's records in the file's own order.

    Records whose question does not name the subject, whose answer is empty, or whose alternative is one of the true
    answers are skipped with one warning. Raises what ``read_records`` and ``to_facts`` raise.
    """
    return to_facts(path_or_url, read_records(path_or_url, PUBLISHED), _fact)


def _fact(index: int, record: dict) -> Fact:
    answers = [answer.strip() for answer in record["answers"]]
    target_new = record["alt"].strip()
    if target_new in answers:
        raise ValueError(f"the alternative {target_new!r} is one of the true answers {answers}")
    return Fact(
        id=f"zsre:{index}",
        relation="zsre",
        subject=record["subject"],
        prompt=template_of(record["src"].strip(), record["subject"]),
        target_new=target_new,
        target_true=answers[0] if answers else "",
        paraphrases=(record["rephrase"].strip(),),
        neighbours=(record["loc"].strip() + "?",),
        neighbour_target=record["loc_ans"].strip(),
    )
