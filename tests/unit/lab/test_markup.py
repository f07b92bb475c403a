"""The laboratory's pictures: what they show, and that nothing from data is markup."""

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from editkit.editing.targets import Step
from editkit.editing.trust import TrustDecision, TrustSpec
from editkit.facts import Fact
from editkit.lab import markup
from editkit.lab.reading import Look, Reading

HOSTILE = "<script>alert(1)</script>\" onload='x'"


def reading(word):
    prompts = pd.DataFrame(
        {
            "kind": ["rewrite", "paraphrase", "neighbourhood"],
            "prompt": [f"p {word}"] * 3,
            "success": [True, False, True],
            "said": [True, False, False],
            "text": [f"t {word}"] * 3,
        }
    )
    probes = pd.DataFrame({"kind": ["two_hop"], "prompt": [f"q {word}"], "accuracy": [pd.NA]})
    return Reading([(word, 0.75), (" a", 0.25)], prompts, probes=probes)


def soup(text):
    return BeautifulSoup(text, "html.parser")


def test_nothing_from_data_is_markup():
    fact = Fact.make(subject=HOSTILE, prompt="{} is", target_new=HOSTILE + "n", target_true=HOSTILE)
    look = Look([(HOSTILE, True)], [(HOSTILE, 0.5)], None, 1)
    decision = TrustDecision.of({"text": 0.5}, TrustSpec())
    shown = [
        markup.tokens(look),
        markup.answer(look),
        markup.before_after(fact, reading(HOSTILE), reading(HOSTILE)),
        markup.comparison({"rome": reading(HOSTILE), HOSTILE: reading(HOSTILE)}),
        markup.notice([HOSTILE], HOSTILE),
        markup.trust(decision),
        markup.table([HOSTILE], []),
    ]
    for text in shown[:5]:
        assert HOSTILE.replace(" ", "␣") in soup(text).get_text() or HOSTILE in soup(text).get_text()
    for text in shown:
        page = soup(text)
        assert not page.find_all("script") and not page.find_all(onload=True)


def test_bars_are_as_long_as_tokens_are_probable():
    drawn = soup(markup.bars([("Rome", 0.75), (" a\n", 0.2)], "Before"))
    assert [bar["style"].split(";")[0] for bar in drawn.select("div div div div")] == ["width:75.0%", "width:20.0%"]
    assert [code.string for code in drawn.select("code")] == ["Rome", "␣a⏎"] and "0.75" in drawn.get_text()


@pytest.mark.parametrize(("knows", "said"), [(None, ""), (True, "it knows"), (False, "does not say")])
def test_an_answer_says_whether_the_model_knows(knows, said):
    text = soup(markup.answer(Look([], [("Rome", 0.5)], knows, 2))).get_text()
    assert said in text and "the new object has 2 tokens" in text
    assert markup.answer(Look([], [], None, None)) == ""


def test_before_and_after_stand_side_by_side_with_every_prompt():
    fact = Fact.make(subject="Rome", prompt="{} is", target_new="a", target_true="b")
    page = soup(markup.before_after(fact, reading("old"), reading("new")))
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in page.find_all("tr") if row.find("td")]
    assert [row[0] for row in rows] == ["prompt", "paraphrase", "neighbour", "two hops"]
    assert rows[0][2:] == ["prefers ✔ says ✔", "t old", "prefers ✔ says ✔", "t new"]
    assert rows[1][4] == "prefers ✘ says ✘" and rows[3][2:] == ["–", "–"]


def test_neighbours_are_counted_and_those_that_broke_are_named():
    def moment(*success):
        prompts = pd.DataFrame({"kind": ["rewrite"] + ["neighbourhood"] * 3, "prompt": ["p", "a", "<b>", "c"]})
        return Reading([], prompts.assign(success=[True, *success]))

    told = soup(markup.kept(moment(True, True, False), moment(True, False, True))).get_text()
    assert told == "neighbours: 1 of 2 that were right are right still; ✘ <b>"
    told = soup(markup.kept(moment(True, True, False), moment(True, True, False))).get_text()
    assert told == "neighbours: 2 of 2 that were right are right still"
    assert markup.kept(moment(False, False, False), moment(True, True, True)) == ""


def test_trust_names_the_worst_part_first():
    text = soup(markup.trust(TrustDecision.of({"text": 0.9, "norm_total": 0.2}, TrustSpec()))).get_text()
    assert text.startswith("trust 0.20") and text.index("norm total 0.20") < text.index("text 0.90")
    assert markup.trust(None) == ""


def test_a_loss_that_falls_is_drawn_falling():
    drawn = soup(markup.losses([Step(1, 4, 1, 8.0), Step(2, 4, 1, 2.0)]))
    heights = [bar["style"].split("height:")[1].split(";")[0] for bar in drawn.select("div div")]
    assert heights == ["100.0%", "25.0%"] and drawn.get_text() == "step 2 of 4, loss 2.00"
    assert markup.losses([]) == ""


def test_a_comparison_counts_prompts_as_wanted():
    [row] = soup(markup.comparison({"rome": reading("x")})).find_all("tr")[1:]
    assert [cell.get_text() for cell in row.find_all("td")][3:] == ["1, 1 of 1", "0, 0 of 1", "1, 0 of 1"]
    assert row.find("b").string == "ROME"
