"""The benchmarks on tiny models: what they measure, and that both sides agree."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import growth, ratios, searches, thousands
from benchmarks.__main__ import main, parser
from editkit import figures
from editkit.editing.spec import KEYS_PER_DIMENSION
from editkit.studies.speed_findings import search_findings, thousands_findings, token_findings
from tests.conftest import TEXTS


def test_a_ratio_is_reference_over_ours():
    found = ratios.measurement("x", ours=[1.0, 2.0, 4.0], reference=[8.0, 8.0, 8.0])
    assert (found["ratio"], found["lowest"], found["highest"]) == (4.0, 2.0, 8.0)


def test_both_sides_of_every_ratio_agree(tiny, facts, full_spec, monkeypatch):
    lm = tiny()
    spec = full_spec("emmet").resolve(lm)
    monkeypatch.setattr(ratios, "LAYERS", [0, 2])
    monkeypatch.setattr(ratios, "STATISTICS_TOKENS", 200)
    specs = {mode: full_spec("emmet", target_mode=mode).resolve(lm) for mode in ("exact", "fast")}
    found = ratios.targets(lm, facts, specs, ["a b c . "], repeats=2)
    assert set(found) == {"targets_exact", "targets_fast", "targets_single"}
    assert found["targets_exact"]["largest_relative_error"] <= 1e-3
    assert found["targets_exact"]["largest_loss_difference"] <= 1e-3
    found |= ratios.scoring(lm, facts, repeats=2) | ratios.statistics(lm, TEXTS, repeats=1)
    assert found["scoring"]["largest_difference"] <= 1e-4
    found |= ratios.batch(lm, facts, spec, [], TEXTS, found)
    assert all(one["ratio"] > 0 for one in found.values())


def test_the_alphaedit_update_is_that_of_the_public_code():
    assert ratios.alphaedit(60, n=5, repeats=2)["relative_error"] <= 1e-8


def test_growth_by_edits_and_batches(tiny, facts, full_spec, store, monkeypatch):
    lm = tiny()
    monkeypatch.setattr(growth, "EditSpec", lambda method, **changes: full_spec(method, **changes))
    bench = growth.Bench(lm, [], TEXTS, store)
    rows = growth.edits(bench, facts)
    assert [row["edits"] for row in rows] == [1, 4] and all(row["targets"] > 0 for row in rows)
    rows = growth.batches(bench, facts)
    assert {row["tokens"] for row in rows} == set(growth.BATCH_TOKENS)


def test_searches_are_compared_with_the_exact_one_under_the_same_precision(tiny, facts, full_spec, store, monkeypatch):
    lm = tiny()
    own = {"v_num_grad_steps": 3, "gradient_lr": 1e-6}

    def spec(method, **changes):
        return full_spec(method, **own | changes | {"layers": [1]})

    monkeypatch.setattr(searches, "EditSpec", spec)
    monkeypatch.setattr(searches, "PRECISIONS", ("memit", "emmet"))
    monkeypatch.setattr(searches, "RATES", (1e-6, 1e-3))
    bench = growth.Bench(lm, ["a b c . "], TEXTS, store)
    frame = pd.DataFrame(searches.searches(bench, facts, facts[:2]))
    assert list(frame.search.unique()) == list(searches.SEARCHES) and len(frame) == 2 * len(searches.SEARCHES)
    for _, part in frame.groupby("method"):
        exact = part.iloc[0]
        assert exact.search == "exact" and exact.S_change == 0
        for score in ("ES", "PS", "NS", "S"):
            assert (part[score] - exact[score]).tolist() == pytest.approx(part[f"{score}_change"].tolist())
    steps = frame.drop_duplicates("search").set_index("search").steps
    assert steps["exact"] == 3 and steps["fast, 2 steps"] == 2 and steps["one gradient"] == 1
    lines = search_findings(frame)[0].splitlines()
    assert len(lines) == len(searches.SEARCHES) and "MEMIT" in lines[-1] and "EMMET" in lines[-1]


def test_thousands_are_judged_by_the_same_edits_and_leave_no_trace(tiny, facts, full_spec, store, monkeypatch):
    lm = tiny()
    untouched = lm.weight(2).clone()
    own = {"v_num_grad_steps": 2, "layers": [1, 2]}
    monkeypatch.setattr(thousands, "EditSpec", lambda method, **changes: full_spec(method, **own | changes))
    monkeypatch.setattr(thousands, "other_prose", lambda *_, **__: TEXTS)
    monkeypatch.setattr(thousands, "PIECES", 1)
    monkeypatch.setattr(thousands, "SIZES", (2, 9))
    monkeypatch.setattr(thousands, "JUDGED", 2)
    frame = pd.DataFrame(thousands.thousands(growth.Bench(lm, [], TEXTS, store), facts))
    assert list(frame.edits) == [2] * 3 + [len(facts)] * 3 and set(frame.judged) == {2} and set(frame.d_k) == {lm.d_k}
    assert list(frame.editor.unique()) == ["EMMET, one layer", "EMMET, 2 layers", "MEMIT, 2 layers"]
    assert frame.perplexity_before.nunique() == 1 and (frame.perplexity != frame.perplexity_before).all()
    assert ((frame.S_low <= frame.S) & (frame.S <= frame.S_high)).all()
    assert frame.targets[:3].nunique() == 1  # found once
    assert torch.equal(lm.weight(2), untouched)


def test_scores_by_kind_and_amount_of_text(tiny, facts, full_spec, store, monkeypatch):
    lm = tiny()
    monkeypatch.setattr(growth, "EditSpec", lambda method, **changes: full_spec(method, **changes))
    monkeypatch.setattr(growth, "MULTIPLES", (1, 2))
    monkeypatch.setattr(growth, "TEXT_METHODS", ("memit",))
    bench = growth.Bench(lm, [], [], store)
    frame = pd.DataFrame(growth.tokens(bench, facts, {"forward": TEXTS, "backward": TEXTS[::-1]}))
    assert list(frame.text) == ["forward"] * 2 + ["backward"] * 2 and list(frame.tokens_per_dimension) == [1, 2] * 2
    assert frame.S.between(0, 1).all() and set(frame.method) == {"memit"}
    with pytest.raises(ValueError, match="fewer than the 48 asked for"):
        growth.tokens(bench, facts, {"enough": TEXTS, "short": ["a b c"]})


def test_kinds_of_text(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "MULTIPLES", (1,))
    monkeypatch.setattr(benchmarks, "PROSE", tmp_path / "absent.jsonl")
    assert list(benchmarks._kinds(tiny(), None)) == ["samples", "python-reference"]
    (path := tmp_path / "mine.txt").write_text("\n\n".join(TEXTS))
    found = benchmarks._kinds(tiny(), path)["mine"]
    assert sorted(" ".join(found).split()) == sorted(" ".join(TEXTS).split())


def test_bad_arguments(capsys):
    assert main(["--repeats", "0"]) == 2 and "--repeats = 0: must be 1 or more" in capsys.readouterr().err
    assert main(["--edits", "2"]) == 2 and "--edits = 2: must not be below --repeats = 3" in capsys.readouterr().err
    assert main(["--only", "batch"]) == 2 and "needs targets and scoring" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser().parse_args(["--only", "everything"])


def test_committed_results_hold_what_the_appendix_shows():
    record = json.loads(Path(ratios.__file__).with_name("results.json").read_text())
    wanted = {"targets_exact", "targets_fast", "targets_single", "statistics", "scoring", "alphaedit_solve"}
    assert wanted <= set(record["ratios"])
    assert all(record["ratios"][name] == found["ratio"] for name, found in record["measurements"].items())
    tokens, searched = (pd.DataFrame(record["growth"][name]) for name in ("tokens", "searches"))
    assert len(token_findings(tokens, KEYS_PER_DIMENSION)) == 1 + tokens.method.nunique()
    assert set(searched.search) == set(searches.SEARCHES)
    assert len(search_findings(searched)[0].splitlines()) == len(searches.SEARCHES)
    many = pd.DataFrame(record["growth"]["thousands"])
    assert len(thousands_findings(many)) == 2 and len(figures.thousands(many).data) == 2 * many.editor.nunique()
    assert set(record["growth"]) == {"searches", "tokens", "edits", "thousands", "batches", "layers", "widths"}
