"""What tables of tracing, of the ladder, of probes and of tasks say, in sentences (Markdown)."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from editkit.facts.probe import KINDS
from editkit.methods import UNTOUCHED, label
from editkit.studies.tables import number, over_seeds

MOVED = 2.0  # standard errors of a difference between two runs on the same items from which on it is named


def locating_findings(
    effects: pd.DataFrame, total: Mapping[str, float], layers: pd.DataFrame, agreed: Mapping[str, Any], score: str = "S"
) -> list[str]:
    """Say where tracing finds facts, and whether edits do best there; nothing where nothing was traced.

    Args:
        effects, total: see :func:`editkit.studies.locate.indirect_effects` and ``total_effect``.
        layers, agreed: see :func:`editkit.studies.locate.side_by_side` and ``agreement``; may be empty.
        score: the score that was swept.
    """
    if effects.empty:
        return []
    sentences = [
        f"Noise on the subject takes the answer from P = {total['clean']:.2f} to {total['corrupted']:.2f} "
        f"({int(total['n'])} facts of the tune part)."
    ]
    for kind, name in (("mlp", "MLPs"), ("attention", "attention")):
        of = effects[effects.kind == kind]
        best = of.loc[of.value.idxmax()]
        sentences.append(
            f"Restoring {name} brings back most at the {best.position} token around layer {best.layer}: "
            f"{best.value:.2f} {_ends(best)} of the probability."
        )
    if len(layers):
        found, same = agreed, agreed["traced_layer"] == agreed["swept_layer"]
        lost = (
            "" if same else f", where {score} is {found['difference']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
        )
        rho = f"{found['rank_correlation']:+.2f}" if found["rank_correlation"] == found["rank_correlation"] else "none"
        sentences.append(
            f"Of {found['n_layers']} layers that were edited one at a time, tracing would choose layer "
            f"{found['traced_layer']}{lost}, the sweep layer {found['swept_layer']}; their rank correlation is {rho}."
        )
    return [sentence.replace("-", "−") if "rank correlation" in sentence else sentence for sentence in sentences]


def evaluation_findings(
    scores: pd.DataFrame, ladder: pd.DataFrame, changes: pd.DataFrame, probes: pd.DataFrame, downstream: pd.DataFrame
) -> list[str]:
    """Say what becomes of scores from rung to rung, of consequences, fluency and other abilities.

    Args:
        scores, downstream: of an :class:`editkit.studies.evaluation.Evaluation`; downstream may be empty.
        ladder, changes: see :mod:`editkit.studies.evaluation_tables`.
        probes: see :func:`editkit.studies.probe_tables.probe_scores`; may be empty.
    """
    means = over_seeds(scores, "method")
    facts, seeds = int(scores.n_facts.iloc[0]), scores.seed.nunique()
    asked = f"{facts} fact{'s' * (facts > 1)} of each of {seeds} seed{'s' * (seeds > 1)}"
    sentences = [f"{asked}, held all at once by everyone."]
    sentences += _rungs(ladder[ladder.kind == "rewrite"])
    sentences += _swaps(changes)
    if "GE" in means:
        texts = "; ".join(f"{label(str(name))} {number(value, '.2f')}" for name, value in means.GE.items())
        sentences.append(
            f"GE, the entropy of free texts in bits ({int(scores.n_texts.iloc[0])} facts a seed): {texts}."
        )
    return [*sentences, *_consequences(probes), *_abilities(downstream)]


def _rungs(rewrites: pd.DataFrame) -> list[str]:
    """Say what everyone reaches on the weakest rung and in free speech."""
    if not {"success", "said"} <= {*rewrites.rung}:
        return []
    wide = rewrites[rewrites.method != UNTOUCHED].pivot(index="method", columns="rung", values="value")
    listed = "; ".join(f"{label(str(r.Index))} {r.success:.0%} → {r.said:.0%}" for r in wide.itertuples())
    return [f"Rewrites, from P(new) > P(true) to a free sentence that names the new object: {listed}."]


def _swaps(changes: pd.DataFrame) -> list[str]:
    """Count the pairs that a rung turns round; which they are is in the table."""
    turned = changes[changes.swapped != ""]
    if turned.empty:
        return ["No rung turns the order by success of any two methods round."]
    told = [
        f"{r.kind} by {r.rung}, {len(r.swapped.split('; '))}"
        for r in turned.itertuples()
        if r.rung in ("accuracy", "said")
    ]
    return [f"Pairs whose order by success turns round, without a test of each: {'; '.join(told)}."] if told else []


def _tied(rows: pd.DataFrame, value: float) -> str:
    """Name the method of a value, or say how many have it."""
    names = rows.method[rows.value == value].map(label)
    return names.iloc[0] if len(names) == 1 else f"{len(names)} of {len(rows)} methods"


def _consequences(probes: pd.DataFrame) -> list[str]:
    known = probes[(probes.known > 0) & (probes.method != UNTOUCHED)] if len(probes) else probes
    sentences = []
    for kind in dict.fromkeys(known.kind) if len(known) else ():
        rows = known[known.kind == kind]
        score = "success" if KINDS[kind].ranks else "accuracy"
        here = rows[rows.score == score].dropna(subset="value").sort_values("value")
        if here.empty:
            continue
        worst, best = here.iloc[0], here.iloc[-1]
        first, last = (_tied(here, end.value) for end in (worst, best))
        sentences.append(
            f"{KINDS[kind].label.capitalize()} ({score}, {int(best.known)} of {int(best.asked)} probes known before): "
            f"from {first} {worst.value:.0%} {_ends(worst, '.0%')} to {last} {best.value:.0%} {_ends(best, '.0%')}."
        )
    return sentences


def _abilities(downstream: pd.DataFrame) -> list[str]:
    """Name the changes of a task's first score that are larger than their standard errors."""
    if downstream.empty:
        return []
    sentences = []
    means = downstream.groupby(["task", "metric", "method"], sort=False)[["value", "stderr"]].mean()
    for task, rows in means.groupby("task", sort=False):
        metric = rows.index.get_level_values("metric")[0]
        values = rows.xs(metric, level="metric").droplevel("task")
        gaps = values.value - values.value[UNTOUCHED]
        spread = (values.stderr**2 + values.stderr[UNTOUCHED] ** 2) ** 0.5
        moved = gaps[gaps.abs() > MOVED * spread]
        told = "; ".join(f"{label(str(name))} {gap:+.2f}" for name, gap in moved.items()).replace("-", "−")
        before = f"{task} ({metric} {values.value[UNTOUCHED]:.2f} ± {values.stderr[UNTOUCHED]:.2f} before any edit)"
        sentences.append(
            f"{before}: {told}." if told else f"{before}: nobody moves it beyond twice its standard error."
        )
    return sentences


def _ends(row: pd.Series, form: str = ".2f") -> str:
    return "[not known]" if pd.isna(row.low) else f"[{row.low:{form}}, {row.high:{form}}]"
