"""Figures of the report: a tidy frame in, a plotly figure out. Nothing here reads files or draws by itself."""

from editkit.figures.anatomy import anatomy_bars
from editkit.figures.baselines import loss_curves, scores_by_batch, seconds_bars
from editkit.figures.downstream import downstream_curves
from editkit.figures.equal_cost import equal_cost
from editkit.figures.explorer import scores_explored
from editkit.figures.frontiers import common_direction, edits_at_budget, frontier_curves, layer_sweep
from editkit.figures.images import (
    confusion_maps,
    gallery,
    layer_importance_bars,
    leakage_curves,
    patch_heat_maps,
    repair_bars,
    training_curve,
)
from editkit.figures.ladder import ranks_by_rung
from editkit.figures.lora import lora_rank_vs_metrics, replay_by_rank, update_spectrum
from editkit.figures.probes import probe_dots
from editkit.figures.replay import (
    along_the_sequence,
    differences,
    foretold,
    forgetting_curves,
    protection,
    retention_map,
    steps_or_at_once,
    ways_compared,
)
from editkit.figures.setup import position_norms, spectrum
from editkit.figures.speech import speech
from editkit.figures.speed import growth, scores_by_search, scores_by_tokens, speedups, thousands
from editkit.figures.style import INSTALL_BROWSER, WIDTH, as_svg, find_browser, save, show, use_notebook_style
from editkit.figures.summary import costs_compared, keep_against_learn, methods_compared, sizes_compared
from editkit.figures.survival import survival
from editkit.figures.tracing import effect_curves, effect_heat_maps, trace_heat_maps, traced_and_swept
from editkit.figures.tune import sensitivity

__all__ = [
    "INSTALL_BROWSER",
    "WIDTH",
    "along_the_sequence",
    "anatomy_bars",
    "as_svg",
    "common_direction",
    "confusion_maps",
    "costs_compared",
    "differences",
    "downstream_curves",
    "edits_at_budget",
    "effect_curves",
    "effect_heat_maps",
    "equal_cost",
    "find_browser",
    "foretold",
    "forgetting_curves",
    "frontier_curves",
    "gallery",
    "growth",
    "keep_against_learn",
    "layer_importance_bars",
    "layer_sweep",
    "leakage_curves",
    "lora_rank_vs_metrics",
    "loss_curves",
    "methods_compared",
    "patch_heat_maps",
    "position_norms",
    "probe_dots",
    "protection",
    "ranks_by_rung",
    "repair_bars",
    "replay_by_rank",
    "retention_map",
    "save",
    "scores_by_batch",
    "scores_by_search",
    "scores_by_tokens",
    "scores_explored",
    "seconds_bars",
    "sensitivity",
    "show",
    "sizes_compared",
    "spectrum",
    "speech",
    "speedups",
    "steps_or_at_once",
    "survival",
    "thousands",
    "trace_heat_maps",
    "traced_and_swept",
    "training_curve",
    "update_spectrum",
    "use_notebook_style",
    "ways_compared",
]
