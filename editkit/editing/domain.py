"""What a session asks of the kind of thing it edits: facts in a language model, images in a Vision Transformer."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from editkit.editing.item import Item
from editkit.editing.result import LayerUpdate
from editkit.editing.targets import Targets
from editkit.editing.trust import TrustDecision

ItemT = TypeVar("ItemT", bound=Item)


class Domain(Protocol[ItemT]):
    """One kind of edit on one model under one spec."""

    @property
    def item(self) -> type[ItemT]:
        """The class of what is edited, a dataclass of plain values."""

    def costs(self) -> dict[int, Tensor]:
        """Compute ``C`` (d_k, d_k) of each edited layer.

        A session calls this once, on the model as it was before its first edit; whatever else the domain needs
        of that model, it reads then.
        """

    def keys(self, items: Sequence[ItemT], layer: int) -> Tensor:
        """Return ``K`` (d_k, n), inputs of the edited linear layer where items are edited, averaged over contexts."""

    def hidden(self, items: Sequence[ItemT], layer: int) -> Tensor:
        """Return the residual stream after a layer at the same places, (d, n)."""

    def targets(self, items: Sequence[ItemT]) -> Targets:
        """Compute ``v*`` of each item on the model as it stands, or keys and gradients, where target_mode says so."""

    def scores(self, items: Sequence[ItemT]) -> dict[str, float]:
        """Measure how well the model as it stands holds these edits."""

    def watch(self, earlier: Sequence[ItemT]) -> None:
        """Look at the model right before a step that follows the edits ``earlier``, where trust is asked for.

        A domain that measures no trust has neither this nor :meth:`judge`.
        """
        raise ValueError(f"{type(self).__name__} measures no trust: trust_enable must be False")

    def judge(self, items: Sequence[ItemT], updates: Sequence[LayerUpdate]) -> TrustDecision:
        """Decide on the step that was watched and wrote ``updates``, or a share of them, for ``items``."""
        raise ValueError(f"{type(self).__name__} measures no trust: trust_enable must be False")

    def promises(self, items: Sequence[ItemT]) -> Callable[[], dict[str, float]]:
        """Look at the model as it stands, which is the untouched one, on data for tuning.

        Args:
            items: all edits so far, the new ones among them.

        Returns a function that measures what share of each promised thing stays with the model as it stands then.
        """

    def options(self) -> dict[str, Any]:
        """Return the JSON-able arguments that a saved session needs besides spec and items to be made again."""
