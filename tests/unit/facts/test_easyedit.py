"""Lists of EasyEdit's requests: nested as its editor makes them, and flat as its datasets and users write them."""

import pytest

from editkit.facts import Fact, easyedit
from tests.unit.facts.samples import EASYEDIT, FLAT, write


def read(tmp_path, *records):
    return easyedit.read_case(write(tmp_path / "e.json", list(records)))


def test_a_request_is_an_edit_with_its_neighbours(tmp_path):
    (fact,) = read(tmp_path, EASYEDIT).facts
    assert fact == Fact(
        id="easyedit:0",
        relation="",
        subject="France",
        prompt="The capital of {} is",
        target_new="Rome",
        target_true="Paris",
        paraphrases=("France is ruled from",),
        neighbours=("The Louvre is in", "Montmartre is in"),
        neighbour_target="Paris",
    )


def test_inputs_are_kinds_of_probes(tmp_path):
    probes = {probe.kind: probe for probe in read(tmp_path, EASYEDIT).probes}
    assert set(probes) == {"two_hop", "distracting_neighbourhood"}
    assert probes["two_hop"].answer == "the Tiber" and probes["two_hop"].conditions[0].answers == ("Paris",)
    assert probes["distracting_neighbourhood"].prompt == "France, Rome. The Louvre is in"
    assert probes["distracting_neighbourhood"].rival == "Rome"


def test_neighbours_with_several_answers_are_probes(tmp_path):
    near = {"prompt": ["The Louvre is in", "The Prado is in"], "ground_truth": ["Paris", "Madrid"]}
    case = read(tmp_path, EASYEDIT | {"locality": {"neighborhood": near}})
    assert case.facts[0].neighbours == ()
    assert [(p.kind, p.answer) for p in case.probes if not p.changes] == [("locality", "Paris"), ("locality", "Madrid")]


def test_neighbours_whose_answer_is_the_new_object_have_no_rival(tmp_path):
    near = {"prompt": "The Colosseum is in", "ground_truth": "Rome"}
    case = read(tmp_path, EASYEDIT | {"locality": {"neighborhood": near}})
    assert case.facts[0].neighbours == () and [p.rival for p in case.probes if not p.changes] == [None]


def test_flat_names_are_read(tmp_path):
    more = FLAT | {"portability_prompt": "Parliament sits in", "portability_ground_truth": "Sydney"}
    case = read(tmp_path, more)
    assert (case.facts[0].neighbours, case.facts[0].neighbour_target) == (("The largest city in Canada is",), "Toronto")
    assert [(probe.kind, probe.answer) for probe in case.probes] == [("portability", "Sydney")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": None}, ["subject is None"]),
        ({"rephrase_prompt": 5}, ["rephrase_prompt", "5"]),
        ({"locality_prompt": 7, "locality_ground_truth": "a"}, ["locality.neighborhood.prompt is 7"]),
        ({"locality_ground_truth": ["Rome", 5]}, ["locality.neighborhood.ground_truth"]),
        ({"portability_prompt": "a"}, ["portability_ground_truth"]),
    ],
)
def test_another_layout_names_file_record_and_key(change, words, tmp_path):
    with pytest.raises(ValueError) as error:
        read(tmp_path, FLAT, FLAT | change)
    message = str(error.value)
    assert all(word in message for word in ["e.json", "record 1", *words, easyedit.LAYOUT])


def test_a_request_without_a_subject_names_the_key(tmp_path):
    with pytest.raises(ValueError, match="record 0 has no key 'subject'"):
        read(tmp_path, {name: value for name, value in FLAT.items() if name != "subject"})
