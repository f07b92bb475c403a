"""A setting on a tiny random model, and prompts of runs by hand."""

import pandas as pd
import pytest

from editkit.studies.setting import Draw, Setting
from tests.conftest import TEXTS

KINDS = ("rewrite", "paraphrase", "neighbourhood")


def named(frame: pd.DataFrame, run: tuple[str, ...]) -> pd.DataFrame:
    return frame.assign(**dict(zip(("run_id", "run", "method", "replay"), run, strict=True)))


def prompts_of(right: int, moment: str = "final", seed: int = 1, **columns) -> pd.DataFrame:
    """Eight facts, two of each relation, of which the first ``right`` are right in every way."""
    rows = [
        {"seed": seed, "fact": f"f{i}", "relation": f"r{i // 2}", "kind": kind, "moment": moment}
        | {"success": i < right, "accuracy": i < right, **columns}
        for i in range(8)
        for kind in KINDS
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def setting(tiny, facts, full_spec, store):
    """``setting({1: (edited, held out)}, layers=[2])``: all made-up facts under seed 1 unless told otherwise."""

    def build(draws=None, contexts=("a b c. ",), lm=None, tune=(), **hyperparameters) -> Setting:
        drawn = {seed: Draw(*parts, len(facts)) for seed, parts in (draws or {1: (facts, [])}).items()}
        common = full_spec(**hyperparameters).model_dump(exclude={"method", "seed"}, exclude_unset=True)
        prefixes = dict.fromkeys(drawn, list(contexts))
        return Setting(lm or tiny(), "made up", drawn, prefixes, TEXTS, common, store, False, lambda: tune)

    return build
