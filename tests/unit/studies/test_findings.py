"""What tables say in words: every number is the table's, and nothing is claimed that an interval does not bear."""

import math

import pandas as pd

from editkit.language.metrics import summarize
from editkit.studies import baseline_tables, findings
from editkit.studies.findings import (
    baseline_findings,
    budget_findings,
    lora_findings,
    recommendation,
    sequence_findings,
    setup_findings,
)
from tests.unit.studies.conftest import prompts_of


def test_bullets_are_a_markdown_list():
    assert findings.bullets(["One.", "Two."]) == "- One.\n- Two."


def test_findings_on_the_setup_compare_position_0_and_count_free_directions():
    relations = pd.DataFrame({"facts": [1200, 34]}, index=["city_country", "capital_of"])
    norms = pd.DataFrame(
        [
            (start, layer, position, norm)
            for start, layer, first in ((True, 0, 3.0), (True, 1, 80.0), (False, 0, 2.0), (False, 1, 60.0))
            for position, norm in ((0, first), (1, 2.0), (2, 2.0), (3, 9.0))
        ],
        columns=["start_token", "layer", "position", "norm"],
    )
    spaces = pd.DataFrame(
        [(5, 1536, 768, 0.0123, 9.0)],
        columns=["layer", "directions (d_k)", "in null space", "variance there", "largest eigenvalue"],
    )
    facts, position, space = setup_findings(relations, norms, spaces)
    assert "1,234 facts in 2 relations; the largest, city_country, has 1,200" in facts
    assert position.startswith("After layer 1") and "is 40 times as large" in position and "30 times where" in position
    assert "Layer 5" in space and "768 of 1,536 key directions (50%)" in space and "1.2%" in space


def area_rows(score: str, values, gaps) -> list[dict]:
    about = {"run_id": "a", "run": "EMMET, none", "method": "emmet", "replay": "none", "score": score}
    sample = {"lost": 12, "n": 90, "seeds": 1, "clusters": 9}
    columns = ["value", "low", "high", "gap", "gap_low", "gap_high", "p", "p_holm"]
    rows = zip(("interference", "taken_back", "cosine", "age"), values, gaps, strict=True)
    return [
        about | sample | {"predictor": name} | dict(zip(columns, (*found, *gap), strict=True))
        for name, found, gap in rows
    ]


def test_what_foretells_forgetting_is_told_with_its_verdicts():
    unknown = (math.nan,) * 5
    values = [(0.8, 0.7, 0.9), (0.8, 0.7, 0.9), (0.6, 0.5, 0.7), (0.4, 0.3, 0.5)]
    gaps = [unknown, (0.0, -0.1, 0.1, 1.0, 1.0), (0.2, 0.1, 0.3, 0.01, 0.02), (0.4, 0.2, 0.6, 0.04, 0.08)]
    rows = area_rows("success", values, gaps) + area_rows("accuracy", [unknown[:3]] * 4, [unknown] * 4)
    known, missing = findings.foretelling_findings(pd.DataFrame(rows))
    assert "EMMET, none, success: of 90 times that an edit held, 12 were lost" in known
    assert "AUC of 0.80 [0.70, 0.90], better than chance" in known
    assert "not resolved against share taken back (0.00 [-0.10, +0.10], p 1)" in known
    assert "higher against nearest new key (+0.20 [+0.10, +0.30], p 0.02)" in known
    assert "not resolved against age in edits (+0.40 [+0.20, +0.60], p 0.08)" in known
    assert missing.startswith("**Too few of either kind") and missing.endswith("EMMET, none, accuracy: 12 of 90.")


def baselines_of(right: dict[str, int]) -> tuple[pd.DataFrame, ...]:
    """What baseline_findings reads, of methods that hold all of 48 facts one by one and the first ``right`` at once."""
    prompts, rows = [], []
    for method, size, n in [("pre", 0, 12)] + [
        (m, size, n) for m, most in right.items() for size, n in ((1, 48), (48, most))
    ]:
        moment = "immediate" if size else "pre"
        parts = [prompts_of(n - 8 * i, moment, method=method, batch_size=size) for i in range(6)]
        parts = [part.assign(fact=f"{i}" + part.fact, relation=f"{i}" + part.relation) for i, part in enumerate(parts)]
        prompts += parts
        scores = summarize(pd.concat(parts)) | {"EA": 0.5, "PA": 0.25}
        where = {"dataset": "d", "seed": 1, "n_facts": 48, "method": method, "batch_size": size, "moment": moment}
        rows.append(where | scores | {"seconds_targets": 96.0, "seconds_keys": 6.0, "seconds_solve": 18.0})
    frame = pd.concat(prompts, ignore_index=True)
    tables = (baseline_tables.baseline_scores, baseline_tables.baseline_differences, baseline_tables.baseline_changes)
    return pd.DataFrame(rows), *(table(frame) for table in tables)


def test_findings_name_a_winner_only_where_every_pair_is_resolved():
    sentences = baseline_findings(*baselines_of({"emmet": 20, "memit": 44, "memit_control": 20}))
    clear = "\n".join(sentences)
    assert sentences[0].startswith("**d**: 48 facts of 1 seed in 24 clusters; success is P(new) > P(true)")
    assert "beats the true one on 25% [" in sentences[0]
    assert sentences[1].startswith("With 48 edits held at once S is: MEMIT 0.92 [")
    assert "**MEMIT leads, resolved over every other.** S of MEMIT, paired by fact, against the others: higher" in clear
    assert "higher for EMMET +0.50 [+0." in clear and "(Holm's p, family of 3)" in clear and "No winner" not in clear
    assert (
        "**Equality itself changes nothing resolved.** EMMET against MEMIT at the same layer and weight: ES 0.00"
        in clear
    )
    assert "S 0.00 [-0.07, +0.07]." in clear
    assert "**NS of 48 edits at once against 1 at once**, paired by fact: lower for EMMET -0.58 [" in clear
    assert "not resolved for MEMIT (-0.08; needs more than 0.1" in clear
    assert "**NS of 48 edits at once against the untouched model**, paired by fact: higher for" in clear
    assert "80% of the time of an edit (2.0 s)" in clear
    close = "\n".join(baseline_findings(*baselines_of({"emmet": 42, "memit": 44})))
    assert "**No winner can be named.** S of MEMIT, paired by fact, against the others: not resolved for EMMET" in close
    assert "MEMIT at the same" not in close
    alone = "\n".join(baseline_findings(*baselines_of({"memit": 44})))
    assert "winner" not in alone and "S is: MEMIT 0.92" in alone


def test_findings_on_budgets_say_whether_edited_facts_bear_the_promise_out():
    rows = [("memit", "fixed λ", math.nan, 0.6, 0.7, -0.2), ("memit", "budget", 3.14159, 0.95, 0.96, 0.01)]
    rows += [("emmet", "fixed λ", math.nan, 0.9, 0.7, -0.2), ("emmet", "budget", 0.0, 0.95, 0.8, -0.15)]
    table = pd.DataFrame(rows, columns=["method", "by", "weight", "tune_kept", "NS_kept", "value"])
    table = table.assign(promised=0.95, low=table.value - 0.1, high=table.value + 0.1, p_holm=[0.01, 0.4, 0.01, 0.02])
    table = table.assign(ES=[1.0, 0.9] * 2, PS=0.5, S=0.6, unwritten=[0, 0, 0, 2])
    memit, emmet = budget_findings(table)
    assert memit.startswith(
        "**Whether MEMIT's promise holds is not resolved.** To keep 0.95 of NS takes a weight of 3.1"
    )
    assert "on tune facts 0.60 → 0.95, on edited test facts 0.70 → 0.96 (against the promise +0.01" in memit
    assert "+0.01 [-0.09, +0.11], p 0.4). ES 1.00 → 0.90, PS 0.50 →" in memit
    assert emmet.startswith("**EMMET's promise is broken.**")
    assert "(against the promise -0.15 [-0.25, -0.05], p 0.02)" in emmet
    assert emmet.endswith("S 0.60 → 0.60. No weight held it in 2 batches: nothing written.")
    assert "a weight of 0 beside" in emmet and not budget_findings(table[:0])


def test_findings_sort_runs_by_what_holm_resolves_and_recommend_by_name():
    rows = [("pre", 0.0), ("immediate", 1.0), ("final", 0.5)]
    scores = pd.DataFrame(rows, columns=["moment", "ES"]).assign(method="emmet", replay="none", PS=0.6, NS=0.5, S=9.0)
    scores = scores.assign(run="EMMET, none")
    lost = {"run": "EMMET, none", "score": "ES", "value": -0.5, "low": -0.6, "high": -0.4, "p_holm": 0.01}
    losses = pd.DataFrame([lost])
    differences = pd.DataFrame(
        [("up", 0.2, 0.1, 0.3, 0.01), ("down", -0.2, -0.3, -0.1, 0.02), ("same", 0.01, 0.0, 0.1, 0.06)],
        columns=["run", "value", "low", "high", "p_holm"],
    ).assign(method="emmet", n=54, seeds=3, clusters=36)
    protocol, first, told = sequence_findings(scores, losses, differences)
    assert protocol.startswith("54 facts of 3 seeds in 36 clusters; success is P(new) > P(true)")
    assert "**EMMET forgets.** Without replay 100.0% of the rewrites" in first
    assert "50.0% after the last one (*final*; -0.50 [-0.60, -0.40], p 0.01, paired by fact)" in first
    for change, verdict in (
        ({"p_holm": 0.2}, "Whether EMMET forgets is not resolved"),
        ({"value": 0.0}, "EMMET forgets nothing"),
    ):
        assert sequence_findings(scores, losses.assign(**change), differences)[1].startswith(f"**{verdict}")
    assert "S goes from 0.64 to 0.53 (untouched model: 0.00)" in first  # 3 / (1 + 1/.6 + 2), 3 / (2 + 1/.6 + 2)
    assert told == (
        "**1 of 3 memories and restraints help EMMET.** Final S, against no replay: "
        "higher for up +0.20 [+0.10, +0.30], p 0.01; lower for down -0.20 [-0.30, -0.10], p 0.02; "
        "not resolved for same (+0.01; needs more than 0.05) (Holm's p, family of 3)."
    )
    none = sequence_findings(scores, losses, differences[1:])[-1]
    assert none.startswith("**None of 2 memories and restraints is resolved to help EMMET.**")
    assert "Recommended: up." in recommendation(differences) and "3 configurations" in recommendation(differences)
    nothing = recommendation(differences[1:])
    assert (
        "No configuration can be recommended" in nothing and "The highest, same, changes final S by +0.01 " in nothing
    )


def test_findings_on_low_rank_say_what_the_tables_say():
    rows = [
        (1, 8, "none", "full", "raw", 0.90, 1.0, 1000),
        (1, 8, "none", "8", "exact", 0.90, 1.0, 100),
        (1, 8, "none", "4", "svd", 0.40, 1.0, 50),
        (1, 8, "none", "4", "keys", 0.60, 1.0, 50),
        (1, 2, "hold", "full", "raw", 0.80, 0.8, 1000),
        (2, 2, "hold", "full", "raw", 0.90, 1.0, 1000),
        (1, 2, "hold", "1", "svd", 0.30, float("nan"), 10),
        (1, 2, "hold", "1", "keys", 0.50, float("nan"), 10),
        (2, 2, "hold", "1", "keys", 0.60, 0.7, 10),
    ]
    columns = ["seed", "batch_size", "replay", "lora_rank", "lora_fit", "ES", "retention", "parameters"]
    ablation = pd.DataFrame(rows, columns=columns).assign(n_facts=8, S=9.0)
    ablation = ablation.assign(PS=ablation.ES, NS=ablation.ES)
    pairs = [(4, "keys", "svd", "ES", 0.2, 0.01), (4, "keys", "svd", "S", 0.3, 0.01)]
    pairs += [(4, "finetuning", "keys", "ES", 0.5, 0.01), (4, "finetuning", "keys", "S", 0.1, 0.5)]
    gaps = pd.DataFrame(pairs, columns=["rank", "fit", "reference", "score", "value", "p_holm"])
    gaps = gaps.assign(low=gaps.value - 0.1, high=gaps.value + 0.1, n=16, seeds=2, clusters=8)
    share = pd.DataFrame({"rank": [4, 8], "share": [0.55, 1.0]})
    tuned = pd.DataFrame({"rank": [4, 4, 8], "lr": [0.01] * 3, "ES": [0.6, 0.8, 0.8], "seconds": [8.0, 10.0, 9.0]})
    tuned = tuned.assign(PS=tuned.ES, NS=tuned.ES)
    sentences = lora_findings(ablation, gaps, share, tuned)
    text = "\n".join(sentences)
    assert text.startswith("8 facts of each of 2 seeds; all scores are *final*. Steps of 8 edits need rank 8")
    assert "(S 0.90 against 0.90) with 10.0% of the numbers" in text
    assert "Rank 4 for such a step: S svd 0.40, keys 0.60. The first 4 singular values hold 55%" in text
    assert "rank 4 (best rate 0.01, 9 s): S 0.70." in text and "rank 8 (best" in text
    assert "16 facts of 2 seeds in 8 clusters" in text
    assert "**At rank 4 ES of keys is higher** than of svd: +0.20 [+0.10, +0.30], p 0.01." in sentences
    assert "**Not resolved**: S of fine-tuning against keys at rank 4 (+0.10; needs more than 0.10)." in sentences
    kept = "In steps of 2, replay hold: final S (share of immediate ES kept, where not all) raw full 0.85 (90%), "
    assert kept + "svd 1 0.30, keys 1 0.55 (70%)." in text
    without = lora_findings(ablation, gaps[:0], share, tuned[:0])
    assert not any(
        "fine-tuning" in sentence or "At rank" in sentence or "Not resolved" in sentence for sentence in without
    )
