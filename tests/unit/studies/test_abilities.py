"""Tasks asked along sequences: where the model stands, and that it is put back."""

import pytest

from editkit.language.downstream import DownstreamParams, measure_downstream
from editkit.studies.abilities import run_abilities


def test_each_sequence_is_asked_before_along_and_after(setting, facts):
    here = setting({7: (facts, [])})
    mark = here.lm.fingerprint()
    params = DownstreamParams(number_of_tests=8, downstream_eval_steps=2)
    found = run_abilities(here, params, "memit", [{"replay": "none"}, {"replay": "hold"}], 1)
    assert here.lm.fingerprint() == mark
    assert found.groupby("replay").step.apply(list).to_dict() == {"none": [0, 2, 4], "hold": [0, 2, 4]}
    assert found[["method", "seed"]].drop_duplicates().values.tolist() == [["memit", 7]]
    session = here.session(here.spec("memit", seed=7), 7)
    for fact in facts[:2]:
        session.edit([fact])
    row = measure_downstream(here.lm, params, progress=False).iloc[0]
    session.undo()
    own = found[(found.replay == "none") & (found.step == 2)].iloc[0]
    assert (own.value, own.stderr) == pytest.approx((row.value, row.stderr))
