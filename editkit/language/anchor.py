"""Norm-anchor scaling of targets (NAS, arXiv 2602.02543): every ``v*`` has one norm, that of the untouched model's.

After ``NAS/compute_z.py`` and ``util/vstar_stats.py`` of github.com/SasyaTitech/NAS. The shift δ of the hidden state is
taken for one of what the edited matrix puts out: ``v* = v₀ + δ`` is scaled to the anchor's norm, and one of more than
twice that norm is dropped for ``v₀``. The anchor is the mean of ‖v*‖ over facts on the untouched model, with the bare
prompt as the only context, the largest 5 % left out.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.cache import Store
from editkit.editing.spec import EditSpec
from editkit.editing.targets import Targets
from editkit.facts.fact import Fact
from editkit.language.keys import hidden_states, put_out
from editkit.language.targets import optimise_targets
from editkit.models import LanguageModel

DROPPED = 0.05  # of the norms behind an anchor, the largest
TOO_LARGE = 2.0  # times the anchor: such a v* is not written
SMALL = 1e-10  # added to a norm that is divided by


def anchored(v: Tensor, before: Tensor, anchor: float) -> Tensor:
    """Scale values ``v`` (d, n) to the norm ``anchor``; one of more than twice that becomes what it was ``before``."""
    size = v.norm(dim=0)
    return torch.where(size > TOO_LARGE * anchor, before, v * (anchor / (size + SMALL)))


def anchor_targets(lm: LanguageModel, facts: Sequence[Fact], targets: Targets, spec: EditSpec) -> Targets:
    """Scale targets of facts, found on the model as it stands, to ``spec.norm_anchor``; 0 leaves them as they are."""
    if not spec.norm_anchor:
        return targets
    delta, before = _shifts(lm, facts, targets, spec.layers[-1])
    v = before + delta
    moved = anchored(v, before, spec.norm_anchor) - v
    return targets._replace(values=targets.values + moved.to(targets.values))


def measure_anchor(
    lm: LanguageModel, facts: Sequence[Fact], spec: EditSpec, *, store: Store | None = None, progress: bool = True
) -> float:
    """Measure an anchor for ``EditSpec(norm_anchor=…)`` on the model as it stands, which should be the untouched one.

    Args:
        facts: published: 1,000 of CounterFact, drawn at random; here they should be of the part for tuning.
        spec: resolved; its target is optimised with the bare prompt alone.
    """
    found = optimise_targets(lm, facts, spec, [], store=store, progress=progress)
    delta, before = _shifts(lm, facts, found, spec.layers[-1])
    return mean_norm((before + delta).norm(dim=0).tolist())


def mean_norm(norms: Sequence[float]) -> float:
    """Average norms without the largest 5 %, rounded down in number. Raises ``ValueError`` for none."""
    kept = sorted(norms)[: len(norms) - math.floor(DROPPED * len(norms))]
    if not kept:
        raise ValueError("no norms to average: an anchor needs facts")
    return sum(kept) / len(kept)


def _shifts(lm: LanguageModel, facts: Sequence[Fact], targets: Targets, layer: int) -> tuple[Tensor, Tensor]:
    """Return δ and what the edited matrix puts out without it, (d, n) float64 each."""
    delta = targets.values.double() - hidden_states(lm, facts, layer).double()
    return delta, put_out(lm, facts, layer).double()
