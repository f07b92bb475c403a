"""What a session has to know of what it edits: facts in a language model, images in a Vision Transformer."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from editkit.editing.replay import Item
from editkit.editing.result import LayerUpdate
from editkit.editing.targets import Targets
from editkit.editing.trust import TrustDecision


class Domain(Protocol):
    """One kind of edit on one model under one spec.

    ``item`` is the class of what is edited, a dataclass of plain values.
    """

    item: ClassVar[type[Item]]

    def costs(self) -> dict[int, Tensor]:
        """``C`` (d_k, d_k) of each edited layer.

        A session asks once, with the model as it was before its first edit: what else the domain wants to know
        of that model, it reads now.
        """

    def keys(self, items: Sequence[Item], layer: int) -> Tensor:
        """``K`` (d_k, n): input of the edited linear layer where each item is edited, averaged over contexts."""

    def hidden(self, items: Sequence[Item], layer: int) -> Tensor:
        """Residual stream after a layer at the same places, (d, n)."""

    def targets(self, items: Sequence[Item]) -> Targets:
        """``v*`` of each item on the model as it stands."""

    def scores(self, items: Sequence[Item]) -> dict[str, float]:
        """How well the model as it stands holds these edits."""

    def judge(self, edited: Sequence[Item], updates: Sequence[LayerUpdate]) -> TrustDecision | None:
        """What to do with a step that is written, after ``edited`` ones; None where trust is not asked for."""

    def options(self) -> dict[str, Any]:
        """What a saved session must keep, besides spec and items, to be made again; JSON-able arguments."""
