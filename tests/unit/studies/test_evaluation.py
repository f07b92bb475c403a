"""Editors and controls measured by everything: against each measurement by itself, once each, model as it was."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from editkit import evaluate, summarize
from editkit.facts import read_probes
from editkit.language.fluency import fluency
from editkit.language.metrics import RUNGS
from editkit.language.probes import evaluate_probes, known_probes
from editkit.methods import UNTOUCHED
from editkit.studies import controls, evaluation
from editkit.studies.controls import MAKERS
from editkit.studies.evaluation import EvaluationParams, run_evaluation
from editkit.studies.evaluation_tables import (
    downstream_shown,
    evaluation_ladder,
    evaluation_shown,
    rank_changes,
)
from editkit.studies.setting import SettingParams

QUICK = {"lora_control_steps": 2, "locft_epochs": 3, "locft_lr": 0.01, "grace_eps": 0.01}
QUICK |= {"evaluation_facts": 3, "evaluation_texts": 2, "downstream_tasks": []}
WHERE = SettingParams()


@pytest.fixture
def written(facts):
    """Made-up facts that have generation prompts, by ids that are not worldfacts'."""
    return [replace(fact, generation=(f"{fact.subject} is",)) for fact in facts]


@pytest.fixture
def here(setting, written):
    return setting({7: (written, [])})


def test_what_is_measured_is_what_each_measurement_says(here, written):
    mark, specs = here.lm.fingerprint(), {"memit": here.spec("memit"), "rome": here.spec("rome")}
    params = EvaluationParams(controls=list(MAKERS), **QUICK)
    found = run_evaluation(here, params, specs, WHERE)
    assert here.lm.fingerprint() == mark
    assert found.scores.method.tolist() == [UNTOUCHED, "memit", "rome", *MAKERS]
    assert found.scores.moment.tolist() == [UNTOUCHED] + ["immediate"] * 7
    facts, session = written[:3], here.session(specs["memit"], 7)
    result = session.edit(facts)
    frame, texts = evaluate(here.lm, facts, rungs=RUNGS), fluency(here.lm, facts[:2])
    probes = read_probes("worldfacts", facts)
    asked = evaluate_probes(here.lm, probes, [True] * len(probes))
    session.undo()
    known = known_probes(here.lm, probes)
    rows = found.scores.set_index("method")
    wanted = summarize(frame) | {name: texts[name].mean() for name in ("GE", "RS")}
    assert rows.loc["memit", list(wanted)].astype(float).to_dict() == pytest.approx(wanted, nan_ok=True)
    norm = sum(delta.norm() ** 2 for delta in result.deltas.values()) ** 0.5
    assert rows.loc["memit", "delta_norm"] == pytest.approx(norm.item())
    ours = found.prompts[found.prompts.method == "memit"].reset_index(drop=True)
    assert ours[["fact", "prompt", "said", "text"]].equals(frame[["fact", "prompt", "said", "text"]])
    ours = found.probes[found.probes.method == "memit"].reset_index(drop=True)
    assert ours.prompt.tolist() == [probe.prompt for probe in probes] and ours.known.tolist() == known
    assert ours.accuracy[ours.known].tolist() == asked.accuracy[ours.known].tolist()
    texts = fluency(here.lm, facts[:2])
    plain = summarize(evaluate(here.lm, facts, rungs=RUNGS)) | {name: texts[name].mean() for name in ("GE", "RS")}
    assert rows.loc[UNTOUCHED, list(plain)].astype(float).to_dict() == pytest.approx(plain, nan_ok=True)
    assert rows.loc["locft", "parameters"] == 16 * 24 and math.isnan(rows.loc["grace", "delta_norm"])


def test_a_cell_is_computed_once_and_again_where_what_it_depends_on_changes(here, monkeypatch):
    params = EvaluationParams(controls=["locft"], **QUICK)
    first = run_evaluation(here, params, {}, WHERE)
    monkeypatch.setitem(controls.MAKERS, "locft", lambda *_: pytest.fail("it is in the store"))
    monkeypatch.setattr(evaluation, "Untouched", lambda *_: pytest.fail("it is in the store"))
    again = run_evaluation(here, params.model_copy(update={"grace_eps": 0.5}), {}, WHERE)
    assert all(one.equals(other) for one, other in zip(first, again, strict=True))
    with pytest.raises(pytest.fail.Exception):
        run_evaluation(here, params.model_copy(update={"evaluation_texts": 1}), {}, WHERE)


def test_tables_tell_what_every_rung_says(here, written):
    params = EvaluationParams(controls=["incontext_oracle"], **QUICK)
    found = run_evaluation(here, params, {"memit": here.spec("memit")}, WHERE)
    shown, ladder = evaluation_shown(found), evaluation_ladder(found)
    assert shown.index.tolist() == ["no edit", "MEMIT", "the fact in the prompt"]
    assert {"ES", "NS", "S", "ESaid", "GE", "seconds", "‖ΔW‖", "n"} <= {*shown} and set(shown.n) == {3}
    assert set(ladder.rung) == {"success", "accuracy", "said", "exact"}
    order = rank_changes(ladder).set_index(["kind", "rung"])
    assert order.loc[("rewrite", "success"), "swapped"] == "" and len(order.loc["rewrite"]) == 4


def test_a_rung_that_turns_an_order_round_names_the_pair(here):
    found = run_evaluation(here, EvaluationParams(controls=[], **QUICK), {}, WHERE)
    one = evaluation_ladder(found)
    table = [
        one.assign(method="memit", value=one.rung.map({"success": 0.9, "accuracy": 0.2}).fillna(0.5)),
        one.assign(method="rome", value=one.rung.map({"success": 0.8, "accuracy": 0.3}).fillna(0.5)),
    ]
    changes = rank_changes(pd.concat(table)).set_index(["kind", "rung"])
    assert changes.loc[("rewrite", "accuracy"), "swapped"] == "MEMIT / ROME"
    assert changes.loc[("rewrite", "accuracy"), "correlation"] == pytest.approx(-1)
    assert changes.loc[("rewrite", "accuracy"), "order"] == "ROME > MEMIT"
    alike = changes.loc[("rewrite", "said")]
    assert alike.order == "MEMIT = ROME"
    assert alike.swapped == "" and math.isnan(alike.correlation)


def test_downstream_tasks_are_asked_of_everyone_and_of_an_oracle_as_of_the_untouched_model(here):
    params = EvaluationParams(
        controls=["incontext", "incontext_oracle", "grace"],
        **QUICK | {"downstream_tasks": ["symbols"], "number_of_tests": 12, "evaluation_facts": 1, "grace_eps": 100.0},
    )
    found = run_evaluation(here, params, {"memit": here.spec("memit")}, WHERE)
    values = found.downstream.set_index("method").value
    assert set(found.downstream.n) == {12} and values["incontext_oracle"] == values[UNTOUCHED]
    assert list(downstream_shown(found.downstream).index) == [
        "no edit",
        "MEMIT",
        "all facts in the prompt",
        "the fact in the prompt",
        "look-up of v* (GRACE)",
    ]


def test_reference_texts_are_counterfacts_alone(here):
    params = EvaluationParams(controls=[], **QUICK | {"snippets_path": "attribute_snippets.json"})
    with pytest.raises(ValueError, match="reference texts are of CounterFact's facts, and facts_source is worldfacts"):
        run_evaluation(here, params, {}, WHERE)


def test_more_facts_than_a_seed_has_are_refused(here):
    params = EvaluationParams(controls=[], **QUICK | {"evaluation_facts": 9})
    with pytest.raises(ValueError, match="evaluation_facts = 9: seed 7 has 4 facts to edit"):
        run_evaluation(here, params, {}, WHERE)
