"""zsRE, in the layout of ROME's zsre_mend_eval.json (De Cao et al., arXiv 2104.08164).

The new object is the file's alternative answer (``alt``), as MEND edits it, so that success
compares it with the true one. ROME instead teaches the true answer and has no rival to it.
The locality question keeps its text and gets a question mark, as in ROME and MEMIT.
"""

import os

from editkit.config import shown
from editkit.facts.fact import Fact, clean, cut
from editkit.facts.files import field, read_records, to_facts

PUBLISHED = "https://rome.baulab.info/data/dsets/zsre_mend_eval.json"
TEXTS = ("subject", "src", "alt", "rephrase", "loc", "loc_ans")
LAYOUT = f"a record of zsre holds the texts {', '.join(TEXTS)}, and the list answers"


def read(path_or_url: str | os.PathLike) -> list[Fact]:
    """Read zsRE's records in the file's own order.

    Records whose question does not name the subject, whose answer is empty, or whose alternative is one of the true
    answers are skipped with one warning. Raises what ``read_records`` and ``to_facts`` raise.
    """
    return to_facts(path_or_url, read_records(path_or_url, PUBLISHED), _fact, LAYOUT)


def _fact(index: int, record: dict) -> Fact:
    answers = [clean(answer).strip() for answer in field(record, "answers", kind=list)]
    texts = {name: clean(field(record, name)).strip() for name in TEXTS}
    if texts["alt"] in answers:
        raise ValueError(f"the alternative {shown(texts['alt'])} is one of the true answers {shown(answers)}")
    return Fact(
        id=f"zsre:{index}",
        relation="",  # the file names none: each question is a topic of its own
        subject=texts["subject"],
        prompt=cut(texts["src"], texts["subject"]),
        target_new=texts["alt"],
        target_true=answers[0] if answers else "",
        paraphrases=(texts["rephrase"],) if texts["rephrase"] else (),
        neighbours=(texts["loc"] + "?",) if texts["loc"] else (),
        neighbour_target=texts["loc_ans"] if texts["loc"] else None,
    )
