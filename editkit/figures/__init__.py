"""Figures of the report: a tidy frame in, a plotly figure out. Nothing here reads files or draws by itself."""

from editkit.figures.cost import growth, scores_by_tokens, speedups
from editkit.figures.edits import loss_curves, score_bars, scores_by_batch, seconds_bars
from editkit.figures.lora import lora_rank_vs_metrics, update_spectrum
from editkit.figures.model import position_norms, spectrum
from editkit.figures.sequences import along_the_sequence, differences, forgetting_curves, retention_map
from editkit.figures.style import COLOURS, INSTALL_BROWSER, NAMES, WIDTH, find_browser, save, use_notebook_style

__all__ = [
    "COLOURS",
    "INSTALL_BROWSER",
    "NAMES",
    "WIDTH",
    "along_the_sequence",
    "differences",
    "find_browser",
    "forgetting_curves",
    "growth",
    "lora_rank_vs_metrics",
    "loss_curves",
    "position_norms",
    "retention_map",
    "save",
    "score_bars",
    "scores_by_batch",
    "scores_by_tokens",
    "seconds_bars",
    "spectrum",
    "speedups",
    "update_spectrum",
    "use_notebook_style",
]
