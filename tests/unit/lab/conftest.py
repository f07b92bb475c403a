"""A laboratory on a tiny random model."""

import pandas as pd
import pytest

from editkit.lab.images import Images
from editkit.lab.laboratory import Laboratory
from editkit.studies.results import Results


@pytest.fixture
def make_lab(tiny, full_spec, facts, store):
    """``make_lab()``: a laboratory, with the first of the facts in its form."""

    def build(lm=None, **hyperparameters) -> Laboratory:
        values = full_spec(**{"v_num_grad_steps": 3, **hyperparameters}).model_dump(exclude_unset=True)
        del values["method"]
        lab = Laboratory(lm or tiny(), facts=facts, hyperparameters=values, store=store, heldout=facts[2:])
        lab.pick(facts[0])
        return lab

    return build


@pytest.fixture
def lab(make_lab) -> Laboratory:
    return make_lab()


@pytest.fixture
def images(study) -> Images:
    """Mistakes of a tiny classifier, not opened yet."""
    return Images(made=lambda _: study(layer_selection="last", num_edit_layers=2))


@pytest.fixture
def opened(images) -> Images:
    images.open()
    images.wait()
    return images


@pytest.fixture
def summary() -> pd.DataFrame:
    """A small table of configurations."""
    return pd.DataFrame(
        {
            "configuration": ["no edit", "MEMIT, 8 at once", "MEMIT, 32 at once", "EMMET, 8 at once", "EMMET, r=4"],
            "method": ["pre", "memit", "memit", "emmet", "emmet"],
            "batch_size": [0, 8, 32, 8, 8],
            "lora_rank": [float("nan")] * 4 + [4.0],
            "n": 32,
            "ES": [0.0, 1.0, 0.9, 1.0, 1.0],
            "ES_low": [0.0, 0.9, 0.8, 0.9, 0.9],
            "ES_high": [0.1, 1.0, 1.0, 1.0, 1.0],
            "PS": 0.5,
            "NS": 0.75,
            "ESaid": [float("nan"), float("nan"), 0.5, 0.5, 1.0],
            "PSaid": [float("nan"), float("nan"), 0.5, 0.5, 1.0],
            "NSaid": [float("nan"), float("nan"), 0.5, 0.5, 1.0],
        }
    )


@pytest.fixture
def run_dir(tmp_path, summary):
    """A run's folder with two tables of scores, and one of other things."""
    results = Results(tmp_path)
    results.save("final_summary", summary)
    plain = {"method": ["emmet", "memit"], "seed": [1, 2], "ES": 1.0, "PS": 1.0, "NS": 1.0}
    results.save("baselines", pd.DataFrame(plain))
    results.save("predictions", pd.DataFrame({"method": ["memit"], "predicted": ["3"]}))
    return tmp_path
