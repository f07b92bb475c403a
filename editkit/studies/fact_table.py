"""One table of every fact that a run edited: what was asked for, what the model answered before and after, what failed.

Answers are of the fact's own prompt. Where the model was let speak, its sentence stands in quotation marks; elsewhere
it *says* an object whose every token is its first choice, and *prefers* the likelier one of the two, with the
probability (geometric mean over tokens) in brackets.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from editkit.methods import UNTOUCHED, label
from editkit.studies.anatomy import FACT
from editkit.studies.setting import Draw

OBJECTS = ["subject", "prompt", "new", "true"]
ASKED = ["relation", *OBJECTS]
COLUMNS = [
    "subject",
    "method",
    "before",
    "after",
    "became",
    "broken neighbours",
    *OBJECTS[1:],
    "relation",
    "edits at once",
]
LARGEST = 900_000  # characters of a page's table


def edited_facts(draws: Mapping[int, Draw]) -> pd.DataFrame:
    """Tabulate the facts that are edited under each seed: seed, fact (id), relation, subject, prompt, new, true."""
    rows = [
        (seed, fact.id, fact.relation, fact.subject, fact.text, fact.target_new, fact.target_true)
        for seed, draw in draws.items()
        for fact in draw.facts
    ]
    return pd.DataFrame(rows, columns=[*FACT, *ASKED])


def fact_table(edits: pd.DataFrame, facts: pd.DataFrame, prompts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put beside every edit what was asked for and what became of it.

    Args:
        edits: of :func:`editkit.studies.anatomy.of_run`.
        facts: of :func:`edited_facts`; edits of other facts are left out.
        prompts: the prompts behind the edits, by their ``part``.

    Returns ``COLUMNS``, a row an edit; ``became`` is its class, missing where that cannot be told, and ``broken
    neighbours`` their prompts, parted by " / ".
    """
    told = [pd.DataFrame(columns=COLUMNS)]
    for part, rows in edits.groupby("part", sort=False):
        asked = prompts[part]
        if "batch_size" in asked:
            asked = asked[asked.batch_size.isin([0, *rows.batch_size.unique()])]
        asked = asked[asked.kind == "rewrite"].merge(facts[[*FACT, *OBJECTS[2:]]], on=FACT)
        asked = asked.assign(answer=_answers(asked))
        before = asked[asked.method == UNTOUCHED].set_index(FACT).answer.rename("before")
        after = asked[asked.method != UNTOUCHED].set_index(["method", *FACT]).answer.rename("after")
        table = rows.drop(columns="relation").merge(facts, on=FACT).join(before, on=FACT)
        table = table.join(after, on=["method", *FACT])
        names = {"method": table.method.map(label), "broken neighbours": table.broke.str.replace("\n", " / ")}
        told.append(table.assign(**names, **{"edits at once": table.batch_size, "became": table["class"]})[COLUMNS])
    return pd.concat(told[1:] or told, ignore_index=True)


def _answers(asked: pd.DataFrame) -> pd.Series:
    """Say what the model answers to the prompts of facts, with columns new and true."""
    new = asked.success | asked.accuracy  # of several tokens, first choices all, the mean may yet be the lower one
    preferred = np.where(new, asked.new, asked.true)
    likely = np.exp(np.where(new, asked.logprob_new, asked.logprob_true))
    verbs = np.where(asked.accuracy, "says", "prefers")
    told = [f"{verb} {name} ({p:.2f})" for verb, name, p in zip(verbs, preferred, likely, strict=True)]
    if "text" not in asked:
        return pd.Series(told, asked.index, dtype=object)
    return "“" + asked.text.fillna("") + "”"


def facts_html(table: pd.DataFrame) -> str:
    """Write :func:`fact_table` as HTML of the class ``facts``, every text escaped, and no longer than ``LARGEST``."""
    html = _html(table)
    if len(html) <= LARGEST:
        return html
    some = table.head(int(len(table) * LARGEST / len(html) * 0.9))
    told = f"The first {len(some):,} of {len(table):,} rows; all are in <code>results/facts.csv</code>."
    return f"<p>{told}</p>{_html(some)}"


def _html(table: pd.DataFrame) -> str:
    # JupyterLab would take what stands between two dollar signs for a formula.
    with pd.option_context("display.max_colwidth", None):
        rows = table.to_html(index=False, escape=True, border=0, na_rep="", max_rows=len(table) + 1)
    return f'<div class="facts tex2jax_ignore mathjax_ignore">{rows}</div>'
