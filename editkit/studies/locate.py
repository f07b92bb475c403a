"""Where to edit: what causal tracing says of each layer, beside what happens when that layer is edited.

ROME edits where tracing finds the largest effect of MLPs at the subject's last token. Hase, Bansal, Kim and
Ghandeharioun (arXiv 2301.04213) find no relation between the two. Here both are measured on the same facts, of the part
for tuning: a layer that was chosen on facts must not be reported on them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from editkit.config import Count
from editkit.editing.spec import EditSpec
from editkit.facts import Fact
from editkit.facts.fact import part_of
from editkit.language.keys import sample_contexts
from editkit.language.known import known_facts
from editkit.language.moments import second_moments
from editkit.language.tracing import POSITIONS, TraceSpec, trace
from editkit.models.base import is_plain
from editkit.studies.intervals import clustered_by, clustered_mean_interval, interval, paired_difference
from editkit.studies.runs import run_baselines
from editkit.studies.setting import TUNE_SEED, Draw, Setting

AT_ONCE = 2**30  # bytes of second moments that are held while one pass over the text computes them
MOMENT = "immediate"  # of a sweep's scores: right after the edit


class LocateParams(TraceSpec):
    """Where edits act: tracing beside a sweep, and which of them decides, if any."""

    trace_samples: Count = 1
    """Draws of the noise in causal tracing, over which every probability is averaged (published: 10)."""
    trace_mode: Literal["exact", "fast"] = "fast"
    """Matrix products of tracing: exact in the model's own type; fast in bfloat16 where that is clearly faster here."""
    trace_facts: Annotated[int, Field(ge=0)] = 2
    """Facts of the part for tuning, known to the model, that are traced, and edited in the layers of the sweep."""
    sweep_layers: Annotated[int, Field(ge=0)] = 2
    """Layers of the sweep, evenly over the depth: each alone is edited and scored; 0 leaves the sweep out."""
    layer_selection: Literal["given", "traced", "swept"] = "given"
    """What decides where all methods edit: hyperparameters, the best layer by tracing, or by the sweep's S."""

    def swept(self, n_layers: int) -> list[int]:
        """Return the layers of the sweep in a model of ``n_layers``; after the last of all, no attention comes."""
        return sorted({round(place) for place in np.linspace(0, max(0, n_layers - 2), self.sweep_layers)})


class Located(NamedTuple):
    """What is known of each layer."""

    traces: pd.DataFrame  # see editkit.language.tracing.trace
    effects: pd.DataFrame  # see indirect_effects
    scores: pd.DataFrame  # a row a layer, and one of the untouched model, see sweep
    prompts: pd.DataFrame  # the scores of every prompt behind them
    layers: pd.DataFrame  # see side_by_side; these three are empty where nothing is swept
    score: str  # by which layers are ranked: S, or ES where facts lack what S is made of


def locate(setting: Setting, params: LocateParams) -> Located:
    """Trace facts of the part for tuning that the model knows, and edit them, by MEMIT, in single layers.

    Every fact's trace and every layer's scores are kept in the setting's store as soon as they are there, so an
    interrupted call goes on where it was. Warns where the model knows fewer facts than asked for, and leaves out layers
    whose weights cannot be edited. All tables are empty where there is no fact. Raises what :func:`sweep` raises.
    """
    empty, wanted = pd.DataFrame(), params.trace_facts
    facts, tried = known_facts(setting.lm, setting.tunable, wanted) if wanted else ([], 0)
    if len(facts) < wanted:
        known = f"the model knows {len(facts)} of {tried} facts of the tune part"
        warnings.warn(f"trace_facts = {wanted}: {known}; no more are traced", stacklevel=2)
    if not facts:
        return Located(empty, empty, empty, empty, empty, "S")
    tracing = TraceSpec(**{name: getattr(params, name) for name in TraceSpec.model_fields})
    traces = trace(setting.lm, facts, tracing, store=setting.store, progress=setting.progress)
    effects = indirect_effects(traces)
    layers = [layer for layer in params.swept(setting.lm.n_layers) if is_plain(setting.lm.mlp_out(layer).weight)]
    if not layers:
        return Located(traces, effects, empty, empty, empty, "S")
    scores, prompts = sweep(setting, setting.spec("memit"), facts, len(facts), layers)
    score = "S" if scores.S.notna().any() else "ES"
    return Located(traces, effects, scores, prompts, side_by_side(effects, prompts, score=score), score)


def choose_layers(setting: Setting, params: LocateParams) -> Setting:
    """Return the setting in which all methods edit the layer that tracing or the sweep finds best, if one decides.

    Raises ``ValueError`` where hyperparameters give layers too, where a sweep of no layers decides, and what
    :func:`locate` raises.
    """
    if params.layer_selection == "given":
        return setting
    lm, said = setting.lm, f"layer_selection = {params.layer_selection!r}"
    if "layers" in setting.hyperparameters:
        raise ValueError(f"{said}: hyperparameters give layers = {setting.hyperparameters['layers']} too")
    if params.layer_selection == "swept" and not params.sweep_layers:
        raise ValueError(f"{said}: sweep_layers = 0 leaves nothing to choose from")
    if params.layer_selection == "traced":
        effects = locate(setting, params.model_copy(update={"sweep_layers": 0})).effects
        found = effects if effects.empty else _effects_at(effects)[: lm.n_layers - 1]
        value = "value"
    else:
        found, value = locate(setting, params).layers, "swept"
    if found.empty:
        raise ValueError(f"{said}: there is no fact of the tune part, or no layer, to choose by")
    layer = found.layer[found[value].idxmax()]
    return replace(setting, hyperparameters={**setting.hyperparameters, "layers": [int(layer)]})


def indirect_effects(traces: pd.DataFrame) -> pd.DataFrame:
    """Average the indirect effect, restored − corrupted, of each kind, position and layer, with 95 % intervals.

    Every token counts once, as in notebooks/average_causal_effects.ipynb of kmeng01/rome, so a long subject has more
    weight at its middle. Clusters are the relations (facts where there is one alone), see
    :mod:`editkit.studies.intervals`.

    Returns columns kind, position, layer, value, low, high, n (facts) and clusters, in the order of ``POSITIONS``.
    """
    cluster = clustered_by(traces)
    effect = traces.assign(effect=traces.restored - traces.corrupted)
    places = effect[effect.position != "before"].groupby(["kind", "position", "layer"], sort=False)
    rows = [
        (*place, *clustered_mean_interval(part.effect, part[cluster]), part.fact.nunique(), part[cluster].nunique())
        for place, part in places
    ]
    frame = pd.DataFrame(rows, columns=["kind", "position", "layer", "value", "low", "high", "n", "clusters"])
    frame = frame.assign(low=frame.low.clip(-1), high=frame.high.clip(upper=1))  # of probabilities
    order = {name: number for number, name in enumerate(POSITIONS)}
    return frame.sort_values("position", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def total_effect(traces: pd.DataFrame) -> dict[str, float]:
    """Average clean − corrupted over facts (value) with its 95 % interval (low, high), both probabilities, and n."""
    facts = traces.drop_duplicates("fact")
    ends = clustered_mean_interval(facts.clean - facts.corrupted, facts[clustered_by(facts)])
    found = zip(("value", "low", "high"), ends, strict=True)
    return dict(found) | {"clean": facts.clean.mean(), "corrupted": facts.corrupted.mean(), "n": len(facts)}


def sweep(
    setting: Setting, spec: EditSpec, facts: Sequence[Fact], batch_size: int, layers: Sequence[int] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Edit facts in each single layer of the untouched model, and score them there.

    Returns the table and the prompts of :func:`editkit.studies.runs.run_baselines`, under the seed for tuning,
    each with the column layer, nan for the untouched model.
    Raises ``ValueError`` for facts of the test part, a batch size that does not divide them, and layers that there are
    not or that cannot be edited.
    """
    if bad := [fact for fact in facts if part_of(fact) != "tune"]:
        raise ValueError(f"fact {bad[0].id!r} is of the test part; layers are chosen on facts of the tune part alone")
    lm, seed = setting.lm, TUNE_SEED
    layers = list(range(lm.n_layers) if layers is None else layers)
    named = {f"layer {layer}": layer for layer in layers}
    specs = {name: spec.model_copy(update={"layers": [layer]}) for name, layer in named.items()}
    for one in specs.values():
        resolved = one.resolve(lm)
    step = max(1, AT_ONCE // (8 * lm.d_k**2))
    given: dict[str, Any] = {"store": setting.store, "progress": setting.progress}
    for begin in range(0, len(layers), step):  # here, as each layer by itself would take a pass over the text
        second_moments(lm, layers[begin : begin + step], setting.texts, resolved.mom2_n_tokens, **given)
    # The same prefixes whatever a chapter draws, so that all chapters find the same layer.
    prefixes = setting.contexts.get(seed) or sample_contexts(lm, resolved.n_contexts, resolved.context_length, seed)
    draws = {seed: Draw(list(facts), [], len(facts))}
    here = replace(setting, draws=draws, contexts={seed: prefixes})
    table, prompts = run_baselines(here, specs, [batch_size])
    return tuple(frame.assign(layer=frame.method.map(named)) for frame in (table, prompts))


def side_by_side(
    effects: pd.DataFrame, prompts: pd.DataFrame, *, kind: str = "mlp", position: str = "last subject", score: str = "S"
) -> pd.DataFrame:
    """Put what tracing finds and what edits reach into one frame, a row a layer that was swept.

    Args:
        effects: as of :func:`indirect_effects`; those of ``kind`` at ``position`` are taken.
        prompts: as of :func:`sweep`.
        score: ES, PS, NS or S, by which layers are ranked.

    Returns layer, traced, traced_low, traced_high (the mean indirect effect), swept, swept_low, swept_high (the score),
    ES, PS, NS and S, n (facts swept), traced_rank and swept_rank (1 is the largest).
    Raises ``ValueError`` where nothing was traced at that kind and position, and where no layer has the score.
    """
    of = _effects_at(effects, kind, position).set_index("layer")
    if of.empty:
        raise ValueError(f"kind = {kind!r}, position = {position!r}: nothing was traced there")
    rows = []
    for layer, part in prompts[prompts.moment == MOMENT].groupby("layer"):
        scores, traced = interval(part, MOMENT), of.loc[int(layer)]
        row = {"layer": int(layer)}
        row |= {"traced": traced.value, "traced_low": traced.low, "traced_high": traced.high}
        row |= {"swept": scores.value[score], "swept_low": scores.low[score], "swept_high": scores.high[score]}
        rows.append(row | scores.value.to_dict() | {"n": int(scores.n[score])})
    frame = pd.DataFrame(rows)
    if frame.swept.isna().all():
        raise ValueError(f"score = {score!r}: the facts lack prompts for it")
    ranks = {f"{name}_rank": frame[name].rank(ascending=False, method="min") for name in ("traced", "swept")}
    return frame.assign(**ranks)


def _effects_at(effects: pd.DataFrame, kind: str = "mlp", position: str = "last subject") -> pd.DataFrame:
    return effects[(effects.kind == kind) & (effects.position == position)].sort_values("layer")


def agreement(layers: pd.DataFrame, prompts: pd.DataFrame, score: str = "S") -> dict[str, Any]:
    """Say how far tracing tells where to edit: does it order layers as edits do, and what is lost by its first choice?

    Args:
        layers, prompts, score: as of :func:`side_by_side`.

    Returns rank_correlation (Spearman's; without a p, since neighbouring layers are no independent cases), n_layers,
    traced_layer and swept_layer (the best by each), and difference, low and high: the paired difference of the score in
    the former to that in the latter with its 95 % interval. The best of many layers is best by chance too, on the facts
    that it was chosen on, so the difference is, if anything, too large.
    """
    traced, swept = (int(layers.layer[layers[name].idxmax()]) for name in ("traced", "swept"))
    found = {"difference": 0.0, "low": 0.0, "high": 0.0}
    if traced != swept:
        ours, best = (prompts[prompts.layer == layer] for layer in (traced, swept))
        row = paired_difference(ours, best, MOMENT).loc[score]
        found = {"difference": row.value, "low": row.low, "high": row.high}
    rho = layers.traced.rank().corr(layers.swept.rank())
    about = {"rank_correlation": rho, "n_layers": len(layers), "traced_layer": traced, "swept_layer": swept}
    return {name: float(value) if isinstance(value, float) else value for name, value in (about | found).items()}
