"""What the steps of a sequence do to earlier edits, as their solver knows it before they are made.

A step's ``ΔW = R (Kᵀ M K + D⁻¹)⁻¹ Kᵀ M`` changes what the layer puts out for the key ``k_p`` of an earlier edit by
``ΔW k_p``: its *interference*, one matrix product and no pass through the model. It is measured against what the edit's
own step wrote for the same key. Of several layers these changes add up in the residual stream, which the target is for;
of each its key is taken as it was right after the edit's own step, so what later edits of lower layers do to it is left
out. With one layer nothing is.

Keys are those of the bare prompt, after which an edit is scored, and not averaged over contexts.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from editkit.editing.journal import part_of
from editkit.editing.result import LayerUpdate
from editkit.editing.weights import State
from editkit.facts import Fact
from editkit.language.keys import edit_keys
from editkit.models import LanguageModel

PREFIX = "interference."


class Interference:
    """The keys of all edits of a sequence, and what has happened to their outputs since they were last looked at.

    Args:
        lm: the model that is edited.
        layers: the edited ones, in ascending order.
    """

    def __init__(self, lm: LanguageModel, layers: Sequence[int]):
        self.lm, self.layers = lm, layers
        self._state: State = {}  # keys.{layer} (edits, d_k); written, moved (edits, d_v); cosine (edits,)

    def step(self, facts: Sequence[Fact], updates: Sequence[LayerUpdate]) -> None:
        """Take in a step right after it was written: what it does to earlier edits, and its own ``facts``."""
        keys = {f"keys.{layer}": edit_keys(self.lm, facts, layer, ()).T.float() for layer in self.layers}
        new, first = self._outputs(keys, updates), f"keys.{self.layers[0]}"
        if self._state:
            # Nothing moves what comes into the first edited layer: there keys of any two steps can be compared.
            near = (normalize(self._state[first]) @ normalize(keys[first]).T).amax(dim=1)
            self._state["moved"] += self._outputs(self._state, updates)
            self._state["cosine"] = self._state["cosine"].maximum(near)
        fresh = keys | {"written": new, "moved": torch.zeros_like(new), "cosine": new.new_full((len(new),), -1.0)}
        self._state = {name: torch.cat([self._state.get(name, own[:0]), own]) for name, own in fresh.items()}

    def look(self, begin: int) -> dict[str, list[float]]:
        """Return what was done to all edits from number ``begin`` (from 0) on since their own step or the last look.

        ``interference`` is ``‖Σ ΔW k_p‖`` over the norm of what the edit wrote for its key; ``taken_back`` the part of
        it against that, as a share of it; both are nan for an edit that wrote nothing. ``cosine`` is the largest of its
        key with new keys of the first layer, −1 where there were none.
        """
        written, moved, cosine = (self._state[name][begin:] for name in ("written", "moved", "cosine"))
        size = written.norm(dim=1)
        found = {"interference": moved.norm(dim=1) / size, "taken_back": -(moved * written).sum(1) / size.square()}
        found = {name: torch.where(size > 0, values, torch.nan).tolist() for name, values in found.items()}
        found["cosine"] = cosine.tolist()
        moved.zero_()
        cosine.fill_(-1.0)
        return found

    def state_dict(self) -> State:
        """Return everything as tensors, to lie beside a session's state."""
        return {f"{PREFIX}{name}": tensor for name, tensor in self._state.items()}

    def load_state_dict(self, state: State) -> None:
        """Go on where another stood; of ``state`` only what :meth:`state_dict` returned is taken."""
        self._state = part_of(state, PREFIX, self.lm.device)

    def _outputs(self, keys: State, updates: Sequence[LayerUpdate]) -> Tensor:
        return outputs(self.lm, {layer: keys[f"keys.{layer}"] for layer in self.layers}, updates)


def outputs(lm: LanguageModel, keys: Mapping[int, Tensor], updates: Sequence[LayerUpdate]) -> Tensor:
    """Add up over layers by how much updates change the residual stream for keys.

    Args:
        keys: (n, d_k) of each edited layer.

    Returns (n, d_v).
    """
    first = next(iter(keys))
    total = torch.zeros(len(keys[first]), lm.weight(first).shape[0]).double().to(lm.device)
    for item in updates:
        change = item.update.left @ (item.update.right @ keys[item.layer].double().T)  # (d_v, n)
        total += (lm.gain(item.layer).to(change) * change).T
    return total.float()
