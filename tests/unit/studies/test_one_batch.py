"""Holding comes to one batch of all edits."""

import pytest

from editkit.studies.one_batch import gap_to_one_batch


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_hold_adds_up_to_one_batch_and_no_replay_does_not(setting, tiny, method):
    one = setting(lm=tiny(), contexts=(), layers=[1, 2], mom2_n_tokens=100, nullspace_threshold=0.5)
    mark = one.lm.fingerprint()
    assert gap_to_one_batch(one, method, 1, replay="hold") < 1e-4
    assert gap_to_one_batch(one, method, 1, replay="none") > 1e-3
    assert one.lm.fingerprint() == mark
    with pytest.raises(ValueError, match="3 does not divide"):
        gap_to_one_batch(one, method, 3)
