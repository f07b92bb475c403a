"""A look-up beside the model in place of a change of weights, in the manner of GRACE (arXiv 2211.11031).

Each edit stores a key, the edited layer's input at the subject's last token, with its target v* and a radius ε.
Wherever a token's own key lies within the radius of the nearest stored one, the hidden state after the layer becomes
that one's v*; everywhere else the model computes what it did.

Read beside ``grace/editors/grace.py`` of github.com/Thartvigsen/GRACE, from which these differ:

* keys and values are those of the editors here, where GRACE's key stands at the prompt's last token, and its value is
  trained on the prompt alone;
* every token is looked up and replaced by itself, where GRACE looks up the last one and replaces the whole prompt, the
  last token, or all (``replacement``);
* every edit keeps a key of its own, where GRACE widens the radius of a near key that has the same label;
* radii follow GRACE's rule of splitting, ½ of the distance to a key with another label, for all pairs at once, where
  GRACE splits edit after edit with the nearest key alone, so that its radii depend on the order;
* ``eps`` is a share of a key's own norm, where GRACE's is a distance, which means another thing in every layer.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from editkit.cache import Store
from editkit.editing.spec import EditSpec
from editkit.facts.fact import Fact
from editkit.language.keys import edit_keys
from editkit.language.targets import optimise_targets
from editkit.models import LanguageModel
from editkit.models.base import at_least_float32
from editkit.models.hooks import capture, edit_output

SAME = 1e-4  # share of a key's norm within which another one is the same but for rounding


@dataclass(frozen=True)
class LookUp:
    """Edits as a table of keys and targets, see :class:`editkit.language.controls.Control`."""

    name = "grace"
    lm: LanguageModel
    layer: int
    keys: Tensor  # (n, d_k)
    values: Tensor  # V (n, d): what the target module puts out, see target_module of the model
    radii: Tensor  # (n,)
    seconds: float
    delta_norm = math.nan  # no weight is changed

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        facts: Sequence[Fact],
        spec: EditSpec,
        contexts: Sequence[str],
        *,
        eps: float,
        store: Store | None = None,
        progress: bool = True,
    ) -> Self:
        """Look up facts at the last layer of a resolved spec, whose method plays no part.

        Args:
            contexts: prefixes over which v* is optimised; keys are those of the bare prompts.
            eps: largest radius, as a share of a key's norm.

        Of edits with one key, which no look-up can tell apart, the latest is kept, with a warning where they differ in
        what they want. Raises ``ValueError`` for an ``eps`` that is not positive and finite, and what
        :func:`editkit.language.targets.optimise_targets` raises.
        """
        if not 0 < eps < math.inf:
            raise ValueError(f"eps = {eps:g}: must be positive and finite, a share of a key's norm")
        targets = optimise_targets(lm, facts, spec, contexts, store=store, progress=progress)
        start = time.perf_counter()
        layer = spec.layers[-1]
        keys = at_least_float32(edit_keys(lm, facts, layer, ()).T)
        labels = [fact.target_new for fact in facts]
        kept = _latest(keys, labels)
        keys = keys[kept]
        reach = radii(keys, [labels[i] for i in kept], eps)
        seconds = targets.seconds + time.perf_counter() - start
        return cls(lm, layer, keys, targets.values.T[kept].contiguous(), reach, seconds)

    @property
    def parameters(self) -> int:
        return self.keys.numel() + self.values.numel() + self.radii.numel()

    @contextmanager
    def apply(self) -> Iterator[LanguageModel]:
        """Yield the model with the look-up; afterwards there is none."""
        module = self.lm.target_module(self.layer)
        with (
            capture({"key": self.lm.mlp_out(self.layer)}, side="input", required=False) as seen,
            edit_output({module: lambda states: self.replaced(seen["key"], states)}),
        ):
            yield self.lm

    def replaced(self, keys: Tensor, states: Tensor) -> Tensor:
        """Return states (…, d) with v* in place of those whose key (…, d_k) lies within a radius; others stay."""
        queries = at_least_float32(keys).flatten(0, -2)  # OPT's MLP sees one long row
        distance, nearest = _distances(queries, self.keys.to(queries)).min(1)
        hit = distance <= self.radii.to(queries)[nearest]
        values = self.values.to(states)[nearest].view_as(states)
        return torch.where(hit.view(*states.shape[:-1], 1), values, states)


def radii(keys: Tensor, labels: Sequence[str], eps: float) -> Tensor:
    """Return the radius (n,) of each key (n, d_k): ``eps`` times its norm, but at most ½ of the way to another label.

    Half the distance to the nearest key of another label is where GRACE splits two that are in conflict.
    """
    number = torch.tensor([sorted(set(labels)).index(label) for label in labels], device=keys.device)
    distance = _distances(keys, keys).masked_fill(number[:, None] == number, torch.inf)
    return torch.minimum(eps * keys.norm(dim=1), distance.min(1).values / 2)


def _latest(keys: Tensor, labels: Sequence[str]) -> list[int]:
    """Return the edits whose key (n, d_k) no later one has too; warns of those that want another answer."""
    same = (_distances(keys, keys) <= SAME * keys.norm(dim=1)).triu(1)  # (n, n): a later edit has the same key
    lost = [i for i, row in enumerate(same.tolist()) if any(row)]
    if other := [i for i in lost if any(labels[i] != labels[j] for j in same[i].nonzero()[:, 0].tolist())]:
        warnings.warn(
            f"{len(other)} of {len(keys)} edits have the key of a later edit that wants another answer, and are lost: "
            "up to the subject's last token their prompts are the same",
            stacklevel=3,
        )
    return [i for i in range(len(keys)) if i not in lost]


def _distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Compute Euclidean distances (m, n), to rounding of the differences: squares would lose small ones."""
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")
