"""The editing methods, one row each: everything that names, chooses, runs or draws a method reads these rows.

A method is a precision ``M`` and a slack ``D⁻¹`` of the one equation in :mod:`editkit.solvers`. A new closed
form needs a row here, its hyperparameters in :class:`SolverSpec` and its defaults in ``hparams/*.yaml``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from editkit.config import NonNegative, Parameters, Positive
from editkit.solvers import (
    Precision,
    Subspace,
    identity_precision,
    inverse_precision,
    mean_eigenvalue,
    null_space,
    null_space_precision,
    restricted_precision,
    unspanned,
)

UNTOUCHED = "pre"  # the model before any edit, among methods and among moments


class SolverSpec(Parameters):
    """Hyperparameters of the closed forms; those left out take the model's default."""

    mom2_update_weight: Positive | None = None
    """Weight λ of the second moment C (memit, memit_rls, emmet, encore, betaedit)."""
    update_norm_lambda: NonNegative | None = None
    """Ridge added to the weighted second moment (emmet, encore)."""
    emmet_lambda: NonNegative | None = None
    """Slack of emmet's equality, in units of the mean eigenvalue of KᵀMK: only what conditioning needs. 0 is exact."""
    nullspace: Literal["threshold", "kept"] = "threshold"
    """Null space of alphaedit and betaedit: below nullspace_threshold, or, of alphaedit alone, what the kept keys K₀
    leave free, I − K₀(K₀ᵀK₀)⁻¹K₀ᵀ."""
    nullspace_threshold: Positive | None = None
    """Eigenvalue of the second moment C below which its eigenvector belongs to the null space (alphaedit, betaedit)."""
    nullspace_every: Annotated[int, Field(ge=0)] = 1000
    """Edits after which betaedit takes its null space anew, with the keys of all edits so far kept too; 0: never."""
    l2: Positive | None = None
    """Ridge inside the null space of the second moment C (alphaedit, betaedit)."""


@dataclass(frozen=True)
class Look:
    """How results show a method."""

    label: str
    colour: str  # of Okabe and Ito's palette, distinct for colour-blind readers too
    marker: str


@dataclass(frozen=True)
class Method(Look):
    """An editing method.

    ``cost`` and ``slack_formula`` are ``A`` and ``D⁻¹`` as the documentation prints them, ``searched`` names the
    hyperparameters of ``A`` that are worth a search.
    """

    cost: str
    slack_formula: str
    source: str
    precision: Callable[[Tensor, SolverSpec], Precision]  # from C (d_k, d_k) and a resolved spec
    slack: Callable[[Tensor, Precision, SolverSpec], float]  # from K (d_k, n), the precision and a resolved spec
    one_at_a_time: bool = False  # every edit is a batch of its own
    equality: bool = False  # what an edit asks for is met, up to a slack that conditioning needs
    null_space: bool = False  # writes inside a null space of C alone
    replay: str = "none"  # how earlier edits take part as published
    asks: Mapping[str, Any] = field(default_factory=dict)  # other fields of a spec without which it is another method
    usual: Mapping[str, Any] = field(default_factory=dict)  # published for it, where a model's defaults say nothing
    searched: tuple[str, ...] = ()
    # The precision once edits are many: from C, the mean of k kᵀ over their keys (d_k, d_k), and a resolved spec.
    renewed: Callable[[Tensor, Tensor, SolverSpec], Precision] | None = None


def _weighed(C: Tensor, spec: SolverSpec) -> Tensor:
    return spec.mom2_update_weight * C.double()


def _ridged(A: Tensor, ridge: float) -> Tensor:
    return A + ridge * torch.eye(len(A), dtype=A.dtype, device=A.device)


def _memit(C: Tensor, spec: SolverSpec) -> Precision:
    return inverse_precision(_weighed(C, spec))


def _emmet(C: Tensor, spec: SolverSpec) -> Precision:
    return inverse_precision(_ridged(_weighed(C, spec), spec.update_norm_lambda))


def _space(C: Tensor, spec: SolverSpec) -> Subspace:
    return unspanned(C) if spec.nullspace == "kept" else null_space(C, spec.nullspace_threshold)


def _betaedit(C: Tensor, kept: Tensor, spec: SolverSpec) -> Precision:
    """Return the precision of ``l2·I + λC`` inside the null space of ``kept``, a second moment like C."""
    return restricted_precision(null_space(kept, spec.nullspace_threshold), _ridged(_weighed(C, spec), spec.l2))


def _betaedit_renewed(C: Tensor, seen: Tensor, spec: SolverSpec) -> Precision:
    return _betaedit(C, (seen + _weighed(C, spec)) / (1 + spec.mom2_update_weight), spec)


def _one(K: Tensor, precision: Precision, spec: SolverSpec) -> float:
    return 1.0


METHODS: dict[str, Method] = {
    "rome": Method(
        "ROME",
        "#D55E00",
        "circle",
        cost="$C$, one edit at a time",
        slack_formula="$0$ (equality)",
        source="arXiv 2202.05262, eq. 2",
        precision=lambda C, spec: inverse_precision(C),
        slack=lambda K, precision, spec: 0.0,
        one_at_a_time=True,
        equality=True,
    ),
    "memit": Method(
        "MEMIT",
        "#0072B2",
        "square",
        cost=r"$\lambda C$",
        slack_formula="$I$",
        source="arXiv 2210.07229, eq. 14",
        precision=_memit,
        slack=_one,
        searched=("mom2_update_weight",),
    ),
    "emmet": Method(
        "EMMET",
        "#009E73",
        "diamond",
        cost=r"$\lambda C + \mu I$",
        slack_formula=r"$\nu \bar\sigma I$, $\bar\sigma$ the mean eigenvalue of $K^\top M K$ (equality)",
        source="arXiv 2403.14236, eq. 9",
        precision=_emmet,
        slack=lambda K, precision, spec: spec.emmet_lambda * mean_eigenvalue(K, precision),
        equality=True,
        searched=("update_norm_lambda",),  # its slack is relative too, so that the weight enters by their ratio alone
    ),
    "alphaedit": Method(
        "AlphaEdit",
        "#CC79A7",
        "triangle-up",
        cost=r"$l_2 I + K_p K_p^\top$ in the null space of $C$, $\infty$ outside",
        slack_formula="$I$",
        source="arXiv 2410.02355, eq. 14",
        precision=lambda C, spec: null_space_precision(_space(C, spec), spec.l2),
        slack=_one,
        null_space=True,
        replay="hold",
        searched=("nullspace_threshold", "l2"),
    ),
    # Recursive least squares. RLSEdit/RLSEdit_main.py of github.com/Euphoria040201/RLSEdit prints this recursion; what
    # it then runs subtracts W k from a residual that is a difference already, which is not followed here.
    "memit_rls": Method(
        "MEMIT, all held (RLS)",
        "#004488",
        "triangle-down",
        cost=r"$\lambda C + K_p K_p^\top$, targets of the untouched model",
        slack_formula="$I$",
        source="arXiv 2601.15686",
        precision=_memit,
        slack=_one,
        replay="hold",
        asks={"targets_from": "base"},
        searched=("mom2_update_weight",),
    ),
    "ultraedit": Method(  # editor/ultraedit.py of github.com/XiaojieGu/UltraEdit, see editkit.editing.gradients
        "UltraEdit",
        "#AA4499",
        "star",
        cost="$I$, residuals of one gradient",
        slack_formula="$I$",
        source="arXiv 2505.14679",
        precision=lambda C, spec: identity_precision(),
        slack=_one,
        asks={"target_mode": "gradient", "targets_from": "current"},
        searched=("gradient_lr",),
    ),
    "encore": Method(  # encore/encore_main.py of github.com/scalable-model-editing/knowledge-editing-regularization
        "ENCORE",
        "#117733",
        "pentagon",
        cost=r"$\lambda C + \mu I + K_p K_p^\top$, targets stopped once most probable",
        slack_formula="$I$",
        source="arXiv 2502.01636",
        precision=_emmet,
        slack=_one,
        replay="hold",
        usual={"most_probable_steps": 2},
        searched=("mom2_update_weight", "update_norm_lambda"),
    ),
    "betaedit": Method(  # BetaEdit/algs/betaedit/betaedit_main.py of github.com/lbq8942/BetaEdit
        "BetaEdit",
        "#661100",
        "hexagon",
        cost=r"$l_2 I + \lambda C + K_p K_p^\top$ in a null space of $C$ and $K_p$, $\infty$ outside",
        slack_formula="$I$",
        source="arXiv 2605.09285",
        precision=lambda C, spec: _betaedit(C, C, spec),
        slack=_one,
        null_space=True,
        replay="hold",
        searched=("mom2_update_weight", "nullspace_threshold", "l2"),
        renewed=_betaedit_renewed,
    ),
}
"""Every closed-form method by its name."""
if TYPE_CHECKING:  # what pydantic checks is made from the rows, which no type checker reads
    MethodName = str
    SequenceMethodName = str
    TargetMethodName = str
else:
    MethodName = Literal[*METHODS]
    # Those of which earlier edits can be remembered in every way.
    SequenceMethodName = Literal[
        *(name for name, method in METHODS.items() if not method.one_at_a_time and "target_mode" not in method.asks)
    ]
    TargetMethodName = Literal[*(name for name, method in METHODS.items() if "target_mode" not in method.asks)]  # v*
COMPARED = ("rome", "memit", "emmet", "alphaedit")  # by studies where nobody says which
CONTROLS: dict[str, Look] = {  # what editors are compared with
    UNTOUCHED: Look("no edit", "#7F858D", "x"),
    "memit_control": Look("MEMIT at EMMET's layer and weight", "#8C7A00", "square-open"),
    "finetuning": Look("fine-tuning", "#E69F00", "circle"),
    "finetuning_l2": Look("fine-tuning, L2", "#A6761D", "square"),
    "finetuning_ewc": Look("fine-tuning, EWC", "#7570B3", "diamond"),
    "rehearsal": Look("fine-tuning with kept images", "#66A61E", "triangle-up"),
    "retraining": Look("training anew with them", "#B22222", "x"),
    "head_ewc": Look("head, EWC", "#56B4E9", "circle"),
    "head_closed": Look("head, closed form", "#000000", "circle"),
    "lora": Look("LoRA fine-tuning", "#B08D3C", "pentagon"),
    "locft": Look("LocFT-BF", "#332288", "star"),
    "incontext": Look("all facts in the prompt", "#882255", "hexagon"),
    "incontext_oracle": Look("the fact in the prompt", "#44AA99", "hexagon2"),
    "grace": Look("look-up of v* (GRACE)", "#999933", "cross"),
}


def look(name: str) -> Look:
    """Return the look of a method or control. Raises ``ValueError`` for an unknown name."""
    looks = METHODS | CONTROLS
    if name not in looks:
        raise ValueError(f"unknown method {name!r}: must be one of {', '.join(looks)}")
    return looks[name]


def label(name: str) -> str:
    """Return the name of a method or control for people to read; any other name stays as it is."""
    return look(name).label if name in METHODS | CONTROLS else name


def table(names: Iterable[str] = METHODS) -> str:
    """Return methods, all or those named, as a Markdown table of ``A``, ``D⁻¹`` and source."""
    rows = [f"| {m.label} | {m.cost} | {m.slack_formula} | {m.source} |" for m in map(METHODS.__getitem__, names)]
    return "\n".join(["| method | $A$ | $D^{-1}$ | source |", "|---|---|---|---|", *rows])
