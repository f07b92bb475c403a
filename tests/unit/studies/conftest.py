"""A setting on a tiny random model."""

import pytest

from editkit.studies.setting import Draw, Setting
from tests.conftest import TEXTS


@pytest.fixture
def setting(tiny, facts, full_spec, store):
    """``setting({1: (edited, held out)}, layers=[2])``: all made-up facts under seed 1 unless told otherwise."""

    def build(draws=None, contexts=("a b c. ",), lm=None, **hyperparameters) -> Setting:
        drawn = {seed: Draw(*parts, len(facts)) for seed, parts in (draws or {1: (facts, [])}).items()}
        common = full_spec(**hyperparameters).model_dump(exclude={"method", "seed"}, exclude_unset=True)
        prefixes = dict.fromkeys(drawn, list(contexts))
        return Setting(lm or tiny(), "made up", drawn, prefixes, TEXTS, common, store, progress=False)

    return build
