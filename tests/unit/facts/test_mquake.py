"""MQuAKE's and Remastered's layouts: edits of a chain, and questions that take all of them."""

import copy

import pytest

from editkit.facts import Fact, mquake, read_facts, read_probes
from tests.unit.facts.samples import MQUAKE, REMASTERED, write


@pytest.mark.parametrize("record", [MQUAKE, REMASTERED], ids=["published", "remastered"])
def test_every_edit_of_a_record_is_a_fact(record, tmp_path):
    ann, libya = mquake.read(write(tmp_path / "m.json", [record]))
    assert ann == Fact(
        id="mquake:3:0",
        relation="P27",
        subject="Ann Lee",
        prompt="{} is a citizen of",
        target_new="Libya",
        target_true="France",
        paraphrases=("What is the country of citizenship of Ann Lee?",),
    )
    assert (libya.id, libya.text, libya.target_new) == ("mquake:3:1", "The capital of Libya is", "Oslo")


@pytest.mark.parametrize("record", [MQUAKE, REMASTERED], ids=["published", "remastered"])
def test_questions_are_probes_that_take_all_edits(record, tmp_path):
    first, second = mquake.read_case(write(tmp_path / "m.json", [record])).probes
    assert first.prompt == "Q: What is the capital of the country of Ann Lee? A:" and first.kind == "two_hop"
    assert (first.fact, first.needs) == ("mquake:3:0", ("mquake:3:1",)) == (second.fact, second.needs)
    assert (first.before, first.answer, first.rival) == ("Paris", "Oslo", "Paris")
    assert first.aliases == ("Kristiania", "Christiania") and first.before_aliases == ("City of Light",)
    assert first.rests_on == (("Ann Lee", "P27"), ("Libya", "P36"))


def test_longer_chains_are_another_kind_and_extended_answers_count_before(tmp_path):
    longer = MQUAKE | {"single_hops": MQUAKE["single_hops"] * 2, "answer_extended": ["Lutetia"]}
    probes = mquake.read_case(write(tmp_path / "m.json", [longer])).probes
    assert {probe.kind for probe in probes} == {"multi_hop"}
    assert probes[0].before_aliases == ("City of Light", "Lutetia")


def test_an_edit_of_several_records_is_one_fact_with_all_their_probes(tmp_path):
    other = copy.deepcopy(MQUAKE) | {"case_id": 9, "questions": ["Who rules there?"], "requested_rewrite": [
        MQUAKE["requested_rewrite"][1]
    ]}  # fmt: skip
    path = write(tmp_path / "m.json", [MQUAKE, other, MQUAKE])
    with pytest.warns(UserWarning, match="skipped 1 of 3 records.*record 2: mquake:3:0 is there already"):
        case = mquake.read_case(path)
    assert [fact.id for fact in case.facts] == ["mquake:3:0", "mquake:3:1"]
    assert [(probe.fact, probe.needs) for probe in case.probes][-1] == ("mquake:3:1", ())


def test_probes_are_asked_where_all_their_edits_are_and_nothing_else_spoils_them(tmp_path):
    path = write(tmp_path / "m.json", [MQUAKE])
    facts = read_facts("mquake", path=path, part="all")
    kinds = ["two_hop"]
    assert len(read_probes("mquake", facts, path=path, kinds=kinds)) == 2
    assert not read_probes("mquake", facts[:1], path=path, kinds=kinds)
    # Remastered's contamination: another record's edit of a statement that the chain passes.
    only_libya = MQUAKE | {"case_id": 4, "requested_rewrite": MQUAKE["requested_rewrite"][1:], "questions": ["Who?"]}
    away = copy.deepcopy(MQUAKE["requested_rewrite"][0])
    away["target_new"]["str"] = "Chad"
    spoiling = MQUAKE | {"case_id": 5, "requested_rewrite": [away], "questions": ["Why?"]}
    path = write(tmp_path / "m.json", [only_libya, spoiling])
    libya, ann = read_facts("mquake", path=path, part="all")
    alone = read_probes("mquake", [libya], path=path, kinds=kinds)
    assert [probe.prompt for probe in alone] == ["Q: Who? A:"]
    both = read_probes("mquake", [libya, ann], path=path, kinds=kinds)
    assert [probe.prompt for probe in both] == [], "the chain passes Ann Lee's country, and rests on Libya's capital"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requested_rewrite": "x"}, ["requested_rewrite", "a list"]),
        ({"requested_rewrite": [5]}, ["requested_rewrite is 5"]),
        ({"requested_rewrite": [{"subject": "a"}]}, ["requested_rewrite.prompt"]),
        ({"questions": "one"}, ["questions", "a list"]),
        ({"questions": [5]}, ["questions", "text"]),
        ({"new_answer": None}, ["new_answer is None"]),
        ({"answer_alias": {"a": 1}}, ["answer_alias", "list of texts"]),
        ({"single_hops": 5}, ["single_hops is 5", "a list"]),
        ({"orig": {"new_triples": [["a"]]}}, ["new_triples", "triples"]),
        ({"orig": {"new_triples": [["a", "b", "c"]]}}, ["new_triples_labeled", "1 and 0"]),
        ({"case_id": None}, ["case_id is None"]),
    ],
)
def test_another_layout_names_file_record_and_key(change, words, tmp_path):
    with pytest.raises(ValueError) as error:
        mquake.read(write(tmp_path / "m.json", [MQUAKE, MQUAKE | change]))
    message = str(error.value)
    assert all(word in message for word in ["m.json", "record 1", *words, mquake.LAYOUT])
    assert len(message.splitlines()) == 1
