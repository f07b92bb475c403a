"""Where to edit: averages of traces by hand, a sweep against single edits, and the two side by side."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from editkit import Fact, evaluate, summarize
from editkit.facts.fact import part_of
from editkit.language import tracing
from editkit.language.tracing import TraceSpec, trace
from editkit.studies import runs
from editkit.studies.intervals import interval, mean_interval, paired_difference
from editkit.studies.locate import (
    LocateParams,
    agreement,
    choose_layers,
    indirect_effects,
    locate,
    side_by_side,
    sweep,
    total_effect,
)

SPEC = TraceSpec(trace_samples=2, trace_window=1)


@pytest.fixture
def tune():
    """Two facts of the part for tuning that a tiny model knows, whose output weights are changed to favour words."""

    @torch.no_grad()
    def build(lm) -> list[Fact]:
        texts = [lm.tokenizer.decode([token]) for token in range(len(lm.tokenizer))]
        words = [token for token, text in enumerate(texts) if text.startswith(" ") and text.strip().isalpha()]
        lm.model.get_output_embeddings().weight[words] *= 20
        found = []
        for subject, prompt in (("Rome", "The city of {} is"), ("Stockholm", "People in {} speak")):
            text = prompt.replace("{}", subject)
            ids = torch.tensor([lm.encode(text)[0]], device=lm.device)
            said = texts[lm.logits(lm.forward(ids)[0, -1]).argmax()].strip()
            more = {"paraphrases": [f"We know that {text}"], "neighbours": ["The capital of France is"]}
            new = next(word for word in ("Swedish", "Spanish") if word != said)
            about = {"subject": subject, "prompt": prompt, "relation": "made up", "target_new": new}
            found.append(Fact.make(**about, target_true=said, **more))
        return found

    return build


def traces_of(*cells) -> pd.DataFrame:
    columns = "fact relation kind layer token position clean corrupted restored".split()
    return pd.DataFrame(cells, columns=columns)


TRACES = traces_of(
    ("a", "r", "mlp", 0, 1, "before", 0.9, 0.1, 0.1),
    ("a", "r", "mlp", 0, 2, "middle subject", 0.9, 0.1, 0.5),
    ("a", "r", "mlp", 0, 3, "middle subject", 0.9, 0.1, 0.3),
    ("a", "r", "mlp", 0, 4, "last", 0.9, 0.1, 0.2),
    ("b", "r", "mlp", 0, 1, "middle subject", 0.6, 0.2, 0.2),
    ("b", "r", "mlp", 0, 2, "last", 0.6, 0.2, 0.6),
)


def test_effects_are_means_over_tokens_with_clusters_behind_them():
    found = indirect_effects(TRACES).set_index("position")
    assert list(found.index) == ["middle subject", "last"] and found.n.tolist() == [2, 2]
    assert found.value.tolist() == pytest.approx([(0.4 + 0.2 + 0.0) / 3, (0.1 + 0.4) / 2])
    assert found.clusters.tolist() == [2, 2], "one relation alone: each fact is a cluster"
    assert tuple(found.loc["last", ["value", "low", "high"]]) == pytest.approx(
        np.clip(mean_interval([0.1, 0.4]), -1, 1)
    )
    several = pd.concat([TRACES, TRACES.assign(fact=lambda rows: rows.fact + "2", relation="s")])
    several = indirect_effects(several).set_index("position")
    assert several.n.tolist() == [4, 4] and several.clusters.tolist() == [2, 2]
    total = total_effect(TRACES)
    assert (total["clean"], total["corrupted"], total["n"]) == (pytest.approx(0.75), pytest.approx(0.15), 2)
    assert tuple(total[name] for name in ("value", "low", "high")) == pytest.approx(mean_interval([0.8, 0.4]))


def test_a_sweep_edits_each_layer_of_the_untouched_model(setting, tune):
    here = setting(layers=[2], contexts=("a b c. ",))
    lm, spec = here.lm, here.spec("memit")
    facts = tune(lm)
    assert {part_of(fact) for fact in facts} == {"tune"}
    before = lm.fingerprint()
    table, prompts = sweep(here, spec, facts, 2)
    assert lm.fingerprint() == before
    assert table.moment.tolist() == ["pre", *["immediate"] * 4]
    assert np.isnan(table.layer[0]) and table.layer[1:].tolist() == [0, 1, 2, 3]
    assert table.layers[1:].tolist() == [[0], [1], [2], [3]]
    for layer in (0, 3):
        session = here.session(spec.model_copy(update={"layers": [layer], "seed": 1}), 1)
        session.edit(facts)
        own = evaluate(lm, facts)
        session.undo()
        ours = prompts[prompts.layer == layer].reset_index(drop=True)
        assert ours.logprob_new.tolist() == pytest.approx(own.logprob_new.tolist(), abs=1e-4)
        row = table[table.layer == layer].iloc[0]
        assert {name: row[name] for name in ("ES", "PS", "NS")} == {
            name: value for name, value in summarize(own).items() if name in ("ES", "PS", "NS")
        }


def test_an_interrupted_sweep_goes_on_where_it_was(setting, tune, monkeypatch):
    here = setting(layers=[2])
    facts, done, edit = tune(here.lm), [], runs._edit

    def counted(setting, seed, spec, size):
        done.append(spec.layers)
        if len(done) == 3:
            raise KeyboardInterrupt
        return edit(setting, seed, spec, size)

    monkeypatch.setattr(runs, "_edit", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(here, here.spec("memit"), facts, 1, [3, 0, 1])
    table, _ = sweep(here, here.spec("memit"), facts, 1, [3, 0, 1])
    assert done == [[3], [0], [1], [1]] and table.layer[1:].tolist() == [3, 0, 1]


def test_facts_of_the_test_part_and_missing_layers_are_refused(setting, facts, tune):
    here = setting(layers=[2])
    with pytest.raises(ValueError, match="is of the test part; layers are chosen on facts of the tune part alone"):
        sweep(here, here.spec("memit"), facts, 1)
    with pytest.raises(ValueError, match="layer 4 is out of range"):
        sweep(here, here.spec("memit"), tune(here.lm), 2, [1, 4])
    with pytest.raises(ValueError, match="3 does not divide"):
        sweep(here, here.spec("memit"), tune(here.lm), 3, [1])


def test_known_facts_are_traced_and_swept_side_by_side(setting, tune, monkeypatch):
    base = setting(layers=[2])
    known = tune(base.lm)
    here = setting(layers=[2], lm=base.lm, tune=known)
    params = LocateParams(**SPEC.model_dump() | {"trace_facts": 2, "sweep_layers": 2})
    found = locate(here, params)
    with pytest.warns(UserWarning, match="trace_facts = 9: the model knows 2 of 2 facts of the tune part"):
        more = locate(here, params.model_copy(update={"trace_facts": 9}))
    pd.testing.assert_frame_equal(more.traces, found.traces)
    nothing = locate(here, params.model_copy(update={"trace_facts": 0}))
    assert nothing.traces.empty and nothing.effects.empty and nothing.layers.empty
    expected = trace(here.lm, known, SPEC, progress=False)
    pd.testing.assert_frame_equal(found.traces, expected)
    pd.testing.assert_frame_equal(found.effects, indirect_effects(expected))
    assert found.layers.layer.tolist() == [0, 2] and found.layers.n.tolist() == [2, 2]
    effects = found.effects[(found.effects.kind == "mlp") & (found.effects.position == "last subject")]
    assert found.layers.traced.tolist() == effects.value[effects.layer.isin([0, 2])].tolist()
    assert found.layers.ES.tolist() == found.scores.ES[1:].tolist()
    monkeypatch.setattr(tracing, "_trace", lambda *_: pytest.fail("traced"))
    monkeypatch.setattr(runs, "_edit", lambda *_: pytest.fail("edited"))
    again = locate(here, params)
    pd.testing.assert_frame_equal(again.layers, found.layers)
    assert locate(here, params.model_copy(update={"sweep_layers": 0})).layers.empty


def test_tracing_or_the_sweep_chooses_the_layer_of_every_method(tiny, setting, tune):
    lm = tiny()
    here = setting(lm=lm, tune=tune(lm))
    here = replace(here, hyperparameters={n: v for n, v in here.hyperparameters.items() if n != "layers"})
    params = LocateParams(**SPEC.model_dump() | {"trace_facts": 2, "sweep_layers": 2})
    assert choose_layers(here, params) is here
    found = locate(replace(here, hyperparameters=here.hyperparameters | {"layers": [1]}), params)
    mlp = found.effects[(found.effects.kind == "mlp") & (found.effects.position == "last subject")]
    best = {
        "traced": int(mlp.layer[mlp.value.idxmax()]),
        "swept": int(found.layers.layer[found.layers.swept.idxmax()]),
    }
    for by, layer in best.items():
        chosen = choose_layers(here, params.model_copy(update={"layer_selection": by}))
        assert chosen.spec("rome").resolve(lm).layers == [layer] == chosen.spec("emmet").resolve(lm).layers
    twice = replace(here, hyperparameters=here.hyperparameters | {"layers": [1]})
    with pytest.raises(ValueError, match=r"layer_selection = 'traced': hyperparameters give layers = \[1\] too"):
        choose_layers(twice, params.model_copy(update={"layer_selection": "traced"}))
    nothing = params.model_copy(update={"layer_selection": "swept", "sweep_layers": 0})
    with pytest.raises(ValueError, match="sweep_layers = 0 leaves nothing to choose from"):
        choose_layers(here, nothing)


def prompts_by_layer(*right: int) -> pd.DataFrame:
    """Eight facts in four relations; layer i has the first ``right[i]`` of them right on every kind of prompt."""
    rows = [
        {"seed": 1, "fact": f"f{i}", "relation": f"r{i // 2}", "kind": kind, "moment": "immediate"}
        | {"layer": layer, "success": i < n, "accuracy": False}
        for layer, n in enumerate(right)
        for i in range(8)
        for kind in ("rewrite", "paraphrase", "neighbourhood")
    ]
    return pd.DataFrame(rows)


def effects_of(*values: float) -> pd.DataFrame:
    rows = [("mlp", "last subject", layer, value, value - 0.1, value + 0.1, 8, 4) for layer, value in enumerate(values)]
    return pd.DataFrame(rows, columns="kind position layer value low high n clusters".split())


def test_ranks_and_what_tracing_would_lose():
    effects, prompts = effects_of(0.1, 0.3, 0.2, 0.0), prompts_by_layer(2, 4, 6, 0)
    frame = side_by_side(effects, prompts)
    assert frame.traced_rank.tolist() == [3, 1, 2, 4] and frame.swept_rank.tolist() == [3, 2, 1, 4]
    assert frame.swept.tolist() == frame.S.tolist() == pytest.approx([0.25, 0.5, 0.75, 0.0])
    assert frame.traced_low.tolist() == pytest.approx([0.0, 0.2, 0.1, -0.1])
    own = interval(prompts[prompts.layer == 2], "immediate").loc["S"]
    assert (frame.swept_low[2], frame.swept_high[2]) == (own.low, own.high)
    found = agreement(frame, prompts)
    # Spearman's: 1 − 6 Σ d² / (n (n² − 1)) with d = 0, 1, 1, 0.
    assert found["rank_correlation"] == pytest.approx(1 - 6 * 2 / 60) and found["n_layers"] == 4
    assert (found["traced_layer"], found["swept_layer"]) == (1, 2)
    lost = paired_difference(prompts[prompts.layer == 1], prompts[prompts.layer == 2], "immediate").loc["S"]
    assert (found["difference"], found["low"], found["high"]) == (lost.value, lost.low, lost.high)
    assert found["difference"] == pytest.approx(-0.25)


def test_a_choice_that_is_the_best_loses_nothing_and_equal_layers_have_no_order():
    prompts = prompts_by_layer(2, 4)
    found = agreement(side_by_side(effects_of(0.1, 0.3), prompts), prompts)
    assert (found["difference"], found["low"], found["high"]) == (0.0, 0.0, 0.0)
    assert found["rank_correlation"] == pytest.approx(1)
    alike = prompts_by_layer(4, 4)
    assert math.isnan(agreement(side_by_side(effects_of(0.1, 0.3), alike), alike)["rank_correlation"])


def test_what_was_not_measured_is_told():
    prompts = prompts_by_layer(2, 4)
    with pytest.raises(ValueError, match="kind = 'attention', position = 'last subject': nothing was traced there"):
        side_by_side(effects_of(0.1, 0.3), prompts, kind="attention")
    bare = prompts[prompts.kind != "paraphrase"]
    with pytest.raises(ValueError, match="score = 'S': the facts lack prompts for it"):
        side_by_side(effects_of(0.1, 0.3), bare)
    assert side_by_side(effects_of(0.1, 0.3), bare, score="ES").swept.tolist() == pytest.approx([0.25, 0.5])
