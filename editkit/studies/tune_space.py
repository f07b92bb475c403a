"""Where a search for hyperparameters begins, and what it may try."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import Trial
from torch import Tensor

from editkit.editing.spec import GRADIENT_LR
from editkit.methods import METHODS
from editkit.models import LanguageModel

N = TypeVar("N", int, float)
Space = dict[str, FloatDistribution | IntDistribution]
Start = Mapping[str, Mapping[str, Any]]  # in the layout of a file of defaults

LAST, WINDOW = "last_layer", "n_layers"  # what layers are searched as: a window that ends at a depth
SEARCH = ("v_lr", "clamp_norm_factor", "v_num_grad_steps")  # of the search for targets v*
TARGETS = (LAST, *SEARCH)  # another value of these needs other targets
WIDEST = 6  # layers of a window at most
RATES, CLAMPS, STEPS = (0.01, 1.0), (0.2, 4.0), (5, 40)
FACTOR = 100  # by which a hyperparameter of the solver is tried above and below its start
RIDGES = (1e-6, 10.0)  # of EMMET, in units of its weight of C; the least one is as good as none
DIGITS = 3  # a file of more would be tedious to read, and no score depends on them

# Of the published settings that editkit/hparams names: what all of them share, and what follows from a model's size.
COMMON = {"v_num_grad_steps": 25, "v_weight_decay": 0.5, "clamp_norm_factor": 0.75, "kl_factor": 0.0625}
COMMON |= {"early_stop_loss": 0.05, "n_contexts": 5, "context_length": 10, "update_norm_lambda": 0.0}
COMMON |= {"emmet_lambda": 1.0e-6, "l2": 10.0, "gradient_lr": GRADIENT_LR}
DEPTH = 0.28  # of the layer whose output is the target: .36 in GPT-2 XL, .3 in GPT-J, .26 in Llama 3 (last of theirs)
LARGE = 4096  # hidden size from which on the smaller rate is published
RATE, SMALL_RATE = 0.5, 0.1


def derived(lm: LanguageModel) -> dict[str, dict[str, Any]]:
    """Derive a setting from which to search, for a model for which nothing is published, from its depth and size.

    ``nullspace_threshold`` is missing: it depends on the layer's keys, see :func:`threshold`.
    """
    n, single = lm.n_layers, bool(lm.family.norm)
    last = round(DEPTH * (n - 1))
    window = 1 if single else min(max(1, round(n / 6)), WIDEST, last + 1)
    rate = SMALL_RATE if lm.model.config.hidden_size >= LARGE else RATE
    size = {"v_lr": rate, "mom2_update_weight": rounded(float(lm.d_k))}
    shared = {"layers": list(range(last - window + 1, last + 1)), **COMMON, **size}
    return {"shared": shared, "rome": {"layers": [last]}, "emmet": {"layers": [last]}}


def threshold(C: Tensor) -> float:
    """Choose a ``nullspace_threshold`` that leaves about half of the directions of ``C`` (d_k, d_k) free."""
    values = torch.linalg.eigvalsh(C.double())
    return rounded(max(values.median().item(), 1e-6 * values[-1].item()))


def space(lm: LanguageModel, method: str, start: Mapping[str, Any], held: Mapping[str, Any]) -> Space:
    """Return what a search for a method may vary, by name: :data:`LAST`, :data:`WINDOW` and fields of ``EditSpec``.

    Args:
        start: the setting from which it begins, every field of it; all ranges hold it.
        held: fields that are not searched.
    """
    last, window, n = start["layers"][-1], len(start["layers"]), lm.n_layers
    widest = 1 if lm.family.norm else max(window, min(WIDEST, n))
    found: Space = {
        LAST: IntDistribution(0, max(last, n - 2)),  # after the last layer no attention carries an edit on
        WINDOW: IntDistribution(1, widest),
        "v_lr": _range(start["v_lr"], *RATES),
        "clamp_norm_factor": _range(start["clamp_norm_factor"], *CLAMPS),
        "v_num_grad_steps": IntDistribution(*_around(start["v_num_grad_steps"], *STEPS)),
    }
    for name in METHODS[method].searched:
        if name == "update_norm_lambda":
            weight = start["mom2_update_weight"]
            found[name] = _range(start[name] or RIDGES[0] * weight, *(ridge * weight for ridge in RIDGES))
        else:
            found[name] = _range(start[name], start[name] / FACTOR, start[name] * FACTOR)
    gone = {*held, *((LAST, WINDOW) if "layers" in held else ())}
    gone |= {*SEARCH} if start.get("target_mode") == "gradient" else set()
    return {name: values for name, values in found.items() if name not in gone and not values.single()}


def starting_point(space: Space, start: Mapping[str, Any]) -> dict[str, Any]:
    """Return the point of a space at which a search begins."""
    layers = start["layers"]
    at = {**start, LAST: layers[-1], WINDOW: len(layers)}
    return {name: max(at[name], values.low) for name, values in space.items()}  # no ridge is the least one


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Let a trial choose a point of a space."""
    for name, values in space.items():
        if isinstance(values, IntDistribution):
            trial.suggest_int(name, values.low, values.high)
        else:
            trial.suggest_float(name, values.low, values.high, log=values.log)
    return trial.params


def setting_at(point: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``EditSpec`` that a point of a space stands for; a window is cut at layer 0."""
    layers = start["layers"]
    found: dict[str, Any] = {name: rounded(value) for name, value in point.items() if name not in (LAST, WINDOW)}
    if LAST in point or WINDOW in point:
        last, window = point.get(LAST, layers[-1]), point.get(WINDOW, len(layers))
        found = {"layers": list(range(max(0, last - window + 1), last + 1)), **found}
    return found


def rounded(value: float) -> float:
    """Round to three significant digits; whole numbers stay as they are."""
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def _around(value: N, low: N, high: N) -> tuple[N, N]:
    return min(low, value), max(high, value)


def _range(value: float, low: float, high: float) -> FloatDistribution:
    return FloatDistribution(*_around(value, low, high), log=True)
