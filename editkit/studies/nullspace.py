"""Does the null space protect anything that C does not?

AlphaEdit forbids what ordinary keys span, down to a threshold; MEMIT makes it dear, by C. Both hold all earlier edits,
read the same keys and ask for the same targets. For each threshold the one that writes more is held back by its own
weight until ‖ΔW‖ is equal: what is left between them is where they write it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from tqdm.auto import tqdm

from editkit.config import Count, Parameters, Positive
from editkit.language.drift import KINDS, TextProbe
from editkit.language.moments import second_moments
from editkit.methods import label
from editkit.studies.endings import Way, measured, norm_written, seeded
from editkit.studies.findings import protocol
from editkit.studies.intervals import RESOLVED, holm, interval, mean_interval, score_differences
from editkit.studies.probed import text_probes
from editkit.studies.runs import check_batches
from editkit.studies.setting import Setting
from editkit.studies.tables import SAMPLE, shown, written, written_gap

SPACE, COST = "alphaedit", "memit_rls"  # the editors that are compared
WEIGHTS = {SPACE: "l2", COST: "mom2_update_weight"}  # what holds them back
NEAR, TRIES = 0.01, 8  # how equal two norms are to be, and how often a weight is tried at most
SLOPE = -0.5  # of log ‖ΔW‖ against the weight's logarithm, from which the search starts
LEAP = 4.0  # by which that logarithm changes at most at once


class NullSpaceParams(Parameters):
    """The question whether a null space protects anything that C does not."""

    nullspace_facts: Annotated[int, Field(ge=0)] = 2
    """Facts edited per seed to compare AlphaEdit with MEMIT at equal ‖ΔW‖; 0 leaves the question out."""
    nullspace_batch: Count = 1
    """Edits of one step there; divides nullspace_facts."""
    nullspace_thresholds: Annotated[list[Positive], Field(min_length=1)] = [0.02]
    """Values of nullspace_threshold that are compared, each at equal ‖ΔW‖."""
    nullspace_orders: Count = 1
    """Orders in which the facts arrive there: as drawn, and shuffled."""


class Compared(NamedTuple):
    """AlphaEdit and MEMIT with everything held, at equal ‖ΔW‖; both tables carry method, threshold, order and seed."""

    scores: pd.DataFrame  # one row a run: scores, drift, ‖ΔW‖, the method's own weight, share of free directions
    prompts: pd.DataFrame  # one row a run and prompt


def run(setting: Setting, params: NullSpaceParams) -> Compared:
    """Edit each seed's facts in every order under every threshold, and with MEMIT, both writing as much.

    Weights are found in the order of the draw, and serve all orders. What was measured before is read from the
    store. Raises ``ValueError`` for a batch size that does not divide the facts, and for a threshold below which C has
    no eigenvalue.
    """
    rows, prompts = [], []
    for seed, draw in setting.draws.items():
        check_batches(len(draw.facts), [params.nullspace_batch])
        probes = text_probes(setting, seeded(setting, seed, setting.spec(SPACE)))
        for threshold in tqdm(
            params.nullspace_thresholds, desc=f"thresholds, seed {seed}", disable=not setting.progress
        ):
            held = Held(setting, seed, params.nullspace_batch, probes)
            where = {"threshold": threshold, "free": free_directions(setting, threshold)}
            equal = held.equal(threshold)
            for order in range(params.nullspace_orders):
                for method, changes in equal.items():
                    row, frame = held.measured(method, changes, order)
                    about = where | {"method": method, "order": order}
                    rows.append(row | about | {"weight": changes[WEIGHTS[method]]})
                    prompts.append(frame.drop(columns="edited_at").assign(**about))  # orders share no steps
    return Compared(pd.DataFrame(rows), pd.concat(prompts, ignore_index=True))


class Held(NamedTuple):
    """Sequences on the facts of a seed: earlier edits held, keys of the bare prompt kept as read, clean targets."""

    setting: Setting
    seed: int
    batch_size: int
    probes: Mapping[str, TextProbe]

    def measured(self, method: str, changes: Mapping[str, Any], order: int) -> tuple[dict[str, Any], pd.DataFrame]:
        return measured(self.setting, self.seed, self._way(method, changes, order), self.probes)

    def equal(self, threshold: float) -> dict[str, dict[str, float]]:
        """Find changes of both methods under which they write as much: the one that writes more is held back."""
        specs = {method: self.setting.spec(method).resolve(self.setting.lm) for method in WEIGHTS}
        own = {method: {name: getattr(specs[method], name)} for method, name in WEIGHTS.items()}
        own[SPACE]["nullspace_threshold"] = threshold
        norms = {method: self._norm(method, changes) for method, changes in own.items()}
        more, wanted = max(norms, key=norms.__getitem__), min(norms.values())
        name = WEIGHTS[more]
        weight = weight_of_norm(lambda w: self._norm(more, own[more] | {name: w}), wanted, own[more][name])
        return own | {more: own[more] | {name: weight}}

    def _norm(self, method: str, changes: Mapping[str, Any]) -> float:
        return norm_written(self.setting, self.seed, self._way(method, changes, 0))

    def _way(self, method: str, changes: Mapping[str, Any], order: int) -> Way:
        layers = self.setting.spec(SPACE).resolve(self.setting.lm).layers
        held = {"layers": layers, "replay": "hold", "replay_refresh": False, "targets_from": "base"}
        return Way(self.setting.spec(method, **{**held, **changes}), self.batch_size, "bare", order)


def weight_of_norm(norm_of: Callable[[float], float], wanted: float, start: float) -> float:
    """Search for the weight under which a norm, which falls as the weight grows, is ``wanted``, to ``NEAR``.

    By the secant method on logarithms. After ``TRIES`` the nearest weight that was tried is returned.
    """
    x, slope, tried = math.log(start), SLOPE, []
    for _ in range(TRIES):
        miss = math.log(norm_of(math.exp(x)) / wanted)
        tried.append((abs(miss), x, miss))
        if abs(miss) < NEAR:
            break
        if len(tried) > 1 and (step := x - tried[-2][1]):
            slope = min((miss - tried[-2][2]) / step, SLOPE / 10)  # it never rises
        x -= max(-LEAP, min(miss / slope, LEAP))
    return math.exp(min(tried)[1])


def free_directions(setting: Setting, threshold: float) -> float:
    """Return the share of the keys' directions that lie in the null space, averaged over the edited layers."""
    spec = setting.spec(SPACE).resolve(setting.lm)
    how: dict[str, Any] = {"store": setting.store, "progress": setting.progress}
    costs = second_moments(setting.lm, spec.layers, setting.texts, spec.mom2_n_tokens, **how)
    return float(np.mean([(torch.linalg.eigvalsh(C) < threshold).double().mean().item() for C in costs.values()]))


def differences(prompts: pd.DataFrame) -> pd.DataFrame:
    """Subtract MEMIT's scores from AlphaEdit's under each threshold, paired by fact, each fact's averaged over orders.

    Returns columns threshold, score (ES, PS, NS, S, EA), value, low, high, p, n, seeds, clusters, and p_holm over the
    thresholds of a score.
    """
    tables = []
    for threshold, part in prompts.groupby("threshold"):
        ours, other = (part[part.method == method] for method in (SPACE, COST))
        tables.append(score_differences(ours, other).assign(threshold=threshold))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(p_holm=table.groupby("score").p.transform(holm))


def drifts(scores: pd.DataFrame) -> pd.DataFrame:
    """Subtract MEMIT's divergence from the untouched model from AlphaEdit's, for each threshold and kind of text.

    Returns columns threshold, kind, value (nats, the mean over orders and seeds), low, high (95 % t interval: what the
    order of the facts leaves open on these texts, nan for one order), and n (orders × seeds).
    """
    wide = scores.pivot(index=["threshold", "seed", "order"], columns="method", values=[f"kl_{kind}" for kind in KINDS])
    rows = []
    for threshold, part in wide.groupby(level="threshold"):
        for kind in KINDS:
            gaps = (part[f"kl_{kind}"][SPACE] - part[f"kl_{kind}"][COST]).dropna()
            if len(gaps):
                rows.append((threshold, kind, *mean_interval(gaps), len(gaps)))
    return pd.DataFrame(rows, columns=["threshold", "kind", "value", "low", "high", "n"])


def points(found: Compared) -> pd.DataFrame:
    """Put S, NS and divergence on each kind of text beside ‖ΔW‖, a row each for every method and threshold.

    Returns columns method, threshold, free, norm (the mean), weight (λ or l2), orders, score, value, low, high.
    Intervals of S and NS are over clusters of facts, those of divergence over orders (t).
    """
    rows = []
    for (method, threshold), part in found.scores.groupby(["method", "threshold"], sort=False):
        asked = found.prompts[(found.prompts.method == method) & (found.prompts.threshold == threshold)]
        about = {"method": method, "threshold": threshold, "free": part.free.mean(), "norm": part.delta_norm.mean()}
        about |= {"weight": part.weight.mean(), "orders": part.order.nunique()}
        for name, row in interval(asked).loc[["S", "NS"]].iterrows():
            rows.append(about | {"score": name, **row[["value", "low", "high"]]})
        for kind in KINDS:
            value, low, high = mean_interval(part[f"kl_{kind}"])
            rows.append(about | {"score": f"kl_{kind}", "value": value, "low": low, "high": high})
    return pd.DataFrame(rows).dropna(subset="value")


def told(gaps: pd.DataFrame, made: pd.DataFrame, moved: pd.DataFrame) -> pd.DataFrame:
    """Write for a chapter what sets AlphaEdit apart from a MEMIT that writes as much, a row a threshold.

    Args:
        gaps: of :func:`differences`.
        made: of :func:`points`.
        moved: of :func:`drifts`.
    """
    rows = []
    for threshold, part in made.groupby("threshold"):
        of, own = part.groupby("method")[["norm", "weight"]].first(), gaps[gaps.threshold == threshold]
        own = own.set_index("score")
        row = {"threshold": f"{threshold:g}", "directions free": f"{part.free.iloc[0]:.0%}"}
        row |= {"‖ΔW‖": of.norm[SPACE], "of MEMIT": of.norm[COST], "l2": of.weight[SPACE], "λ": of.weight[COST]}
        row |= {r.Index: written(r.value, r.low, r.high, "+") for r in own.loc[["S", "NS", "EA"]].itertuples()}
        for r in moved[moved.threshold == threshold].itertuples():
            row[f"KL {r.kind}"] = written(r.value, r.low, r.high, "+")
        rows.append(row | {"orders": part.orders.iloc[0], **own.loc["S", SAMPLE].astype(int)})
    return shown(pd.DataFrame(rows), "threshold")


def findings(gaps: pd.DataFrame, moved: pd.DataFrame) -> list[str]:
    """Say whether AlphaEdit keeps more than a MEMIT that writes as much.

    Args:
        gaps: of :func:`differences`.
        moved: of :func:`drifts`.
    """
    sentences = []
    for name in ("NS", "S"):
        rows = gaps[gaps.score == name]
        sure = rows[rows.p_holm < RESOLVED]
        head = f"The null space changes {name} by nothing that is resolved"
        if len(sure):
            way = "higher" if (sure.value > 0).all() else "lower" if (sure.value < 0).all() else "changed"
            head = f"With the null space {name} is {way} at {len(sure)} of {len(rows)} thresholds, resolved"
        parts = "; ".join(f"{r.threshold:g} {written_gap(r)}" for r in rows.itertuples())
        sentences.append(
            f"**{head}.** {name} of {label(SPACE)} less that of {label(COST)} at equal ‖ΔW‖, by threshold: {parts} "
            f"({protocol(rows.iloc[0])}; p is Holm's)."
        )
    parts = "; ".join(
        f"{kind} " + ", ".join(f"{r.threshold:g} {written(r.value, r.low, r.high, '+')}" for r in rows.itertuples())
        for kind, rows in moved.groupby("kind", sort=False)
    )
    orders = int(moved.n.max())
    sentences.append(
        f"KL from the untouched model, {label(SPACE)} less {label(COST)}, in nats, by threshold: {parts} "
        f"({orders} order{'s' * (orders > 1)} of the facts; intervals are over these, on the same texts)."
    )
    return sentences
