"""Numbers that were measured differently are not put into one table."""

from dataclasses import replace

import pandas as pd
import pytest

from editkit.studies import protocol
from editkit.studies.intervals import interval, paired_difference
from editkit.studies.runs import run_baselines
from tests.unit.studies.conftest import prompts_of


def test_model_facts_and_part_are_what_a_protocol_is(setting, tiny, facts):
    here = setting({1: (facts[:2], []), 2: (facts[2:], [])})
    one, other = protocol.named(here, 1), protocol.named(here, 2)
    assert one["protocol"] == other["protocol"] and one["facts"] != other["facts"]
    assert protocol.named(setting({1: (facts[:2], [])}, lm=tiny("gpt2")), 1)["protocol"] != one["protocol"]
    assert protocol.named(replace(here, dataset="zsre"), 1)["protocol"] != one["protocol"]
    assert protocol.origin(here, 1) == {"model": here.lm.name, "dataset": here.dataset, "seed": 1, **one}
    about = protocol.stated(here)
    assert protocol.provenance(here) == {"facts": here.hashes, "protocol": about}
    assert about["part"] in ("test", "tune", "test and tune") and about["weights"] == here.lm.fingerprint()


def test_every_row_of_results_carries_them(setting, facts):
    here = setting({7: (facts, [])})
    for frame in run_baselines(here, {"memit": here.spec("memit")}, [4]):
        assert frame[["protocol", "facts"]].drop_duplicates().to_dict("records") == [protocol.named(here, 7)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"protocol": "b"}, "protocols a and b are mixed"),
        ({"facts": "y"}, "seed 1: facts x and y are mixed"),
    ],
)
def test_mixing_is_an_error(changes, told):
    one = prompts_of(5).assign(protocol="a", facts="x")
    other = one.assign(**changes)
    assert paired_difference(one, one).value.tolist() == [0] * 4
    with pytest.raises(ValueError, match=told):
        paired_difference(one, other)
    with pytest.raises(ValueError, match=told):
        interval(pd.concat([one, other]))
    protocol.check_one(one, other.assign(seed=2, protocol="a"))
    protocol.check_one(one, one.drop(columns=["protocol", "facts"]))  # what states none is not judged
