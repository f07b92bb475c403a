"""A setting on a tiny random model, prompts of runs by hand, and a small sweep."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from editkit.cache import Store
from editkit.studies.setting import Draw, Setting
from editkit.studies.summary import COLUMNS
from editkit.studies.sweep import SweepParams
from editkit.studies.sweep_tables import Found
from editkit.studies.tune import TuneParams, Tuning, tuning_of
from tests.conftest import TEXTS
from tests.unit.studies.sweeping import look, start, sweep_here, tables

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


@pytest.fixture
def writers(facts):
    """The made-up facts, of which all but the second have a prompt to write on."""
    return [replace(fact, generation=() if n == 1 else (f"{fact.subject} is",)) for n, fact in enumerate(facts)]


QUICK = {"n_contexts": 1, "context_length": 3, "mom2_n_tokens": 300, "v_num_grad_steps": 2}


@pytest.fixture
def tune_params(tmp_path):
    """Parameters of a search of seconds; ``hyperparameters`` are held besides those that make it quick."""

    def build(hyperparameters=None, **changes) -> TuneParams:
        (text := tmp_path / "prose.txt").write_text("\n\n".join(TEXTS))
        held = QUICK | (hyperparameters or {})
        given = {"model": "tiny-llama", "text_path": str(text), "first_batch": 2, "hyperparameters": held}
        return TuneParams(**(given | changes))

    return build


@pytest.fixture
def tuning(tiny, facts, store, tune_params):
    """A search on the made-up facts and a tiny random model."""

    def build(hyperparameters=None, lm=None, facts=facts, store=store, **changes) -> Tuning:
        return tuning_of(lm or tiny(), facts, tune_params(hyperparameters, **changes), store=store, progress=False)

    return build


SWEPT = {"methods": ["memit", "alphaedit"], "sweep_replays": ["none", "hold"], "batch_sizes": [4], "n_facts": 4}
SWEPT |= {"seeds": [1, 2], "sequence_methods": ["memit"], "sequence_facts": 4, "sequence_batch": 2, "sequence_every": 2}
SWEPT |= {"sequence_seeds": [1, 2]}


@pytest.fixture(scope="session")
def sweep_values(tiny, full_spec, tmp_path_factory):
    """``sweep_values(methods=["rome"])``: parameters of 24 cells on a tiny random model in a folder, which all read."""
    folder, lm = tmp_path_factory.mktemp("sweep"), tiny()
    lm.model.save_pretrained(folder / "tiny-llama")
    lm.tokenizer.save_pretrained(folder / "tiny-llama")
    place = {"rephrase": "Where is it?", "alt": "Spain", "answers": ["Italy"], "loc": "who", "loc_ans": "Ada"}
    records = [place | {"subject": f"Town {i}", "src": f"Where does Town {i} lie?"} for i in range(60)]
    (path := folder / "zsre.json").write_text(json.dumps(records))
    (text := folder / "text.txt").write_text("\n\n".join(TEXTS))
    changes = {"layers": [2], "v_num_grad_steps": 2, "mom2_n_tokens": 100, "n_contexts": 1, "trust_heldout_samples": 2}
    hyperparameters = full_spec(nullspace_threshold=0.5, **changes).model_dump(exclude={"method"}, exclude_unset=True)
    given = {"model": str(folder / "tiny-llama"), "device": "cpu", "facts_source": "zsre", "facts_path": str(path)}
    given |= {"text_path": str(text)}

    def build(hyperparameters=hyperparameters, **values) -> dict:
        return given | {"hyperparameters": hyperparameters} | SWEPT | values

    return build


@pytest.fixture(scope="session")
def sweep_params(sweep_values):
    def build(**values) -> SweepParams:
        return SweepParams(**sweep_values(**values))

    return build


@pytest.fixture(scope="session")
def undisturbed(sweep_params, sweep_values, tmp_path_factory) -> Found:
    """The tables of a sweep that nothing has disturbed."""
    store = Store(tmp_path_factory.mktemp("undisturbed") / "store")
    process = start(sweep_here, sweep_values(), str(store.root))
    process.join()
    assert process.exitcode == 0 and not look(sweep_params(), store).pending
    return tables(sweep_params(), store)


def summarised() -> pd.DataFrame:
    """A small table of all that a run measured, as editkit.studies.summary.final_summary makes it."""
    samples = {
        "A": {"chapter": "01", "part": "batches", "arrival": "batch", "n": 16, "moment": "immediate"},
        "B": {"chapter": "01", "part": "evaluation", "arrival": "batch", "n": 4, "moment": "immediate"},
        "C": {"chapter": "02", "part": "sequences", "arrival": "sequence", "n": 8, "moment": "final"},
        "D": {"chapter": "03", "part": "sequences", "arrival": "sequence", "n": 6, "moment": "final"},
    }
    rows = [  # sample, method, configuration, batch size, S, other columns
        *(("A", "memit", f"MEMIT, {size} at once", size, 0.8, {}) for size in (1, 8)),
        *(("A", "emmet", f"EMMET, {size} at once", size, 0.7, {}) for size in (1, 8)),
        ("A", "emmet", "EMMET, 8 at once, NS kept 0.9", 8, 0.6, {"neighbour_budget": 0.9}),
        ("B", "memit", "MEMIT", 4, 0.8, {"PSaid": 0.3}),
        ("B", "locft", "LocFT-BF", 4, 0.6, {"PSaid": 0.5}),
        *(("C", "emmet", "EMMET, none", size, 0.7, {"replay": "none"}) for size in (4, 1, 8)),
        *(("C", "emmet", "EMMET, history", size, 0.75, {"replay": "history"}) for size in (8,)),
        ("C", "memit", "MEMIT, none", 4, 0.6, {"replay": "none"}),
        ("C", "emmet", "EMMET, none, norm ≤ 1.05", 4, 0.4, {"replay": "none"}),
        ("D", "emmet", "EMMET, none", 6, 0.8, {"replay": "none"}),
        *(("D", "emmet", f"EMMET, none, LoRA svd r={r}", 6, s, {"lora_rank": r}) for r, s in ((2, 0.4), (4, 0.7))),
    ]
    found = []
    for sample, about in samples.items():
        own = [row for row in rows if row[0] == sample]
        for _, method, told, size, value, more in [(sample, "pre", "no edit", 0, 0.1, {"moment": "pre"}), *own]:
            row = about | {"facts": sample, "method": method, "configuration": told, "batch_size": size, "seeds": 1}
            for name in ("ES", "PS", "NS", "S", "PSaid"):
                score = more.get(name, value)
                row |= {name: score, f"{name}_low": score - 0.1, f"{name}_high": score + 0.1}
            row |= {"protocol": "p1", "model": "m", "dataset": "d", "clusters": 4, "seconds_an_edit": 2.0}
            row |= {"arrival": "adapters", "replay": "none", "lora_fit": "svd"} if "lora_rank" in more else {}
            found.append(row | more)
    return pd.DataFrame(found).reindex(columns=["chapter", *COLUMNS])


def front_tables() -> dict[str, pd.DataFrame]:
    """Tables of a small run, as its first screen reads them: 60 facts in batches of 20, and ten beside a control."""
    shares = {"memit": 0.6, "emmet": 0.4}
    clean = [
        {"part": part, "panel": panel, "method": method, "class": "clean", "value": value, "n": n}
        for part, panel, n, of in (
            ("batches", "20 edits at once: 60 facts of 2 seeds", 60, shares),
            ("evaluation", "editors and controls, 5 at once: 10 facts of 1 seed", 10, shares | {"grace": 0.1}),
        )
        for method, value in of.items()
    ]
    pairs = [("batches", "emmet", "memit", -0.2), ("evaluation", "memit", "grace", 0.5)]
    gaps = pd.DataFrame(pairs, columns=["part", "method", "reference", "value"])
    broken = [{"part": "batches", "method": name, "value": value} for name, value in (("memit", 0.25), ("emmet", 0.5))]
    scores = [
        {"method": method, "batch_size": size, "score": score, "value": value, "n": 60}
        for method, size, value in (("pre", 0, 0.9), ("memit", 1, 0.85), ("memit", 20, 0.8), ("emmet", 20, 0.7))
        for score in ("ES", "PS", "NS", "S")
    ]
    changes = pd.DataFrame([("memit", 0, "NS", -0.1), ("memit", 1, "S", -0.05)])
    changes.columns = ["method", "reference", "score", "value"]
    asked = [
        {"method": "memit", "seed": 1, "fact": f"f{i}", "relation": f"r{i % 5}", "kind": "paraphrase"}
        | {"success": i < 9, "said": i < 2, "moment": "immediate", "model": "tiny", "dataset": "made up"}
        for i in range(10)
    ]
    final = {
        "configuration": "EMMET, none",
        "method": "emmet",
        "arrival": "sequence",
        "batch_size": 5,
        "replay": "none",
    }
    runs = pd.DataFrame([final | {"n": 20, "seeds": 1, "ES": 0.5, "ES_low": 0.3, "ES_high": 0.7}])
    losses = pd.DataFrame([{"run": "EMMET, none", "score": "ES", "value": -0.5}])
    memories = pd.DataFrame([{"score": "S", "run": "EMMET, history", "value": 0.1}])
    ranks = [("raw", "full", 1.0), ("exact", "10", 1.0), ("svd", "4", 0.5), ("keys", "8", 0.96)]
    adapters = pd.DataFrame(ranks, columns=["lora_fit", "lora_rank", "ES"]).assign(batch_size=10, replay="none")
    removed = pd.DataFrame([{"it is": "off", "its own ES": 0.0, "value": 0.0}])
    images = {"method": "rome", "test_images": 200, "test_fixed": 9, "test_broken": 2, "fixed": 0.9, "fixed_n": 20}
    images |= {"fixed_low": 0.7, "fixed_high": 1.0, "test_kept": 0.99, "test_kept_n": 180}
    images |= {"test_kept_low": 0.97, "test_kept_high": 1.0, "p_holm": 0.01}

    def sure(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(low=frame.value - 0.05, high=frame.value + 0.05, p_holm=0.01)

    return {
        "anatomy": sure(pd.DataFrame(clean)),
        "clean_gaps": sure(gaps),
        "broken_neighbours": sure(pd.DataFrame(broken)).assign(broken=10, watched=240, n=60),
        "baseline_scores": sure(pd.DataFrame(scores)),
        "baseline_differences": sure(gaps.assign(batch_size=20, score="NS")),
        "baseline_changes": sure(changes),
        "evaluation_prompts": pd.DataFrame(asked),
        "sequence_configurations": runs,
        "sequence_losses": sure(losses),
        "sequence_differences": sure(memories),
        "lora_ablation": adapters,
        "lora_removal": removed,
        "evaluation_certainty": pd.DataFrame([images]),
    }
