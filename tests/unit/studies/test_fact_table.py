"""The table of every fact: answers, classes, and that no text of a fact becomes markup."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from editkit.studies import anatomy, fact_table
from editkit.studies.setting import Draw

HOSTILE = "<script>alert('x')</script> & $a$"


def row(method, kind, success, accuracy, **more):
    likely, rival = np.log([0.8, 0.1])
    right = {"logprob_new": likely if success else rival, "logprob_true": rival if success else likely}
    about = {"seed": 1, "fact": "f", "relation": "r", "method": method, "kind": kind, "prompt": f"{HOSTILE} {kind}"}
    return about | {"success": success, "accuracy": accuracy, "batch_size": 0 if method == "pre" else 4} | right | more


@pytest.fixture
def batches():
    """One fact before and after an edit that holds, misses its paraphrase and breaks its neighbour."""
    rows = [row("pre", "rewrite", False, False), row("pre", "paraphrase", False, False)]
    rows += [row("pre", "neighbourhood", True, True), row("memit", "rewrite", True, True)]
    rows += [row("memit", "paraphrase", False, False), row("memit", "neighbourhood", False, False)]
    return pd.DataFrame(rows)


@pytest.fixture
def asked():
    columns = ["seed", "fact", "relation", "subject", "prompt", "new", "true"]
    return pd.DataFrame([(1, "f", "r", "Eibar", f"Eibar {HOSTILE}", "Malaysia", "Spain")], columns=columns)


def test_an_edit_is_told_with_its_answers_and_what_failed(batches, asked):
    edits = anatomy.of_run(batches, pd.DataFrame())
    table = fact_table.fact_table(edits, asked, {"batches": batches})
    assert list(table) == fact_table.COLUMNS and len(table) == 1
    told = table.iloc[0]
    assert (told.subject, told.method, told["edits at once"]) == ("Eibar", "MEMIT", 4)
    assert (told.before, told.after) == ("prefers Spain (0.80)", "says Malaysia (0.80)")
    assert told.became == "both" and told["broken neighbours"] == f"{HOSTILE} neighbourhood"


def test_what_a_model_says_is_quoted(batches, asked):
    spoken = batches.drop(columns="batch_size").assign(text=["Spain.", "", "", "Malaysia.", "", ""])
    edits = anatomy.of_run(pd.DataFrame(), spoken)
    told = fact_table.fact_table(edits, asked, {"evaluation": spoken}).iloc[0]
    assert (told.before, told.after, told["edits at once"]) == ("“Spain.”", "“Malaysia.”", 1)


def test_nothing_edited_is_an_empty_table(asked):
    nothing = anatomy.of_run(pd.DataFrame(), pd.DataFrame())
    assert list(fact_table.fact_table(nothing, asked, {})) == fact_table.COLUMNS


def test_no_text_becomes_markup_and_none_is_cut(batches, asked):
    edits = anatomy.of_run(batches, pd.DataFrame())
    long = asked.assign(subject="x" * 300)
    html = fact_table.facts_html(fact_table.fact_table(edits, long, {"batches": batches}))
    assert html.startswith('<div class="facts ') and "x" * 300 in html
    tags, texts = set(), []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.add(tag)
    parser.handle_data = texts.append
    parser.feed(html)
    assert tags == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert f"Eibar {HOSTILE}" in "".join(texts)


def test_a_long_table_is_cut_and_says_so(batches, asked):
    table = fact_table.fact_table(anatomy.of_run(batches, pd.DataFrame()), asked, {"batches": batches})
    many = pd.concat([table] * 4000, ignore_index=True)
    html = fact_table.facts_html(many)
    shown = html.count("<tr>")  # the head has a style
    assert len(html) <= 1_000_000 and shown < 4000
    assert re.search(rf"first {shown:,} of 4,000 rows", html)


def test_facts_are_listed_by_seed(facts):
    table = fact_table.edited_facts({3: Draw(facts, [], len(facts))})
    assert set(table.seed) == {3} and table.fact.tolist() == [fact.id for fact in facts]
    first = facts[0]
    assert table.prompt[0] == first.prompt.replace("{}", first.subject)
    assert (table.new[0], table["true"][0]) == (first.target_new, first.target_true)
