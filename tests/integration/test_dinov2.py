"""Repairs of the real small Vision Transformer, as params/quick.yaml asks for them."""

from pathlib import Path

import pytest

from editkit import RunParams
from editkit.cache import Store
from editkit.studies.repair_tables import report
from editkit.studies.repairs import RepairSpec, prepare, repair

QUICK = Path(__file__).parents[2] / "params" / "quick.yaml"

pytestmark = [pytest.mark.needs_model, pytest.mark.slow]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    params = RunParams.load(QUICK)
    spec = RepairSpec.of(params, params.vit_seeds[0])
    return prepare(spec, store=Store(tmp_path_factory.mktemp("store")), progress=False)


def test_the_fine_tuned_model_makes_mistakes_worth_repairing(study):
    accuracy = study.metrics.set_index("split").accuracy
    assert 0.85 <= accuracy["val"] <= 0.99 and len(study.candidates) >= 20


@pytest.mark.parametrize("method", ["alphaedit", "emmet"])
def test_editors_repair_and_keep(study, method):
    before, after = report(study, [repair(study, method)]).itertuples()
    assert before.fixed == 0 and after.fixed >= 0.9
    # One of the 260 images is 0.4 %: a little room, since fine-tuning differs in rounding between machines.
    assert after.kept >= 0.97 and after.heldout_change >= -1 and after.generality > before.generality
