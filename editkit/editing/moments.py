"""The second moment of a layer's keys, by which the disturbance of what is to be kept is measured."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from editkit.cache import Store, entry_key
from editkit.config import Count, Parameters
from editkit.models import EditableModel
from editkit.models.peak import free_bytes

PENDING_KEYS = 4096  # keys multiplied out at once
KEYS_PER_DIMENSION = 10  # 2 to 10 suffice (arXiv 2506.04226); the speed appendix shows the scores against it
BLOCK = 256  # columns of the keys' product computed at once
STATISTIC_BYTES = 24  # for each element of C: the sum, its symmetric form, and the keys' product or the quotient


class MomentSpec(Parameters):
    """How much is read for the second moment; what is left out takes the model's default."""

    mom2_n_tokens: Count | None = None
    """Tokens of ordinary text that the second moment C is taken over; left out, 10 for each dimension of a key."""


class SecondMoment:
    """Running uncentred second moment of vectors of dimension ``dim``, accumulated in float64."""

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.count = 0
        self._total = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._pending: list[Tensor] = []

    def add(self, keys: Tensor) -> None:
        """Add vectors given as rows, (m, dim)."""
        if keys.ndim != 2 or keys.shape[1] != len(self._total):
            raise ValueError(f"keys {tuple(keys.shape)} must be rows of dimension {len(self._total)}")
        self._pending.append(keys)
        self.count += len(keys)
        if sum(map(len, self._pending)) >= PENDING_KEYS:
            self._flush()

    def moment(self) -> Tensor:
        """Return ``C`` (dim, dim) in float64. Raises ``ValueError`` before anything was added."""
        if self.count == 0:
            raise ValueError("the second moment of no keys at all is not defined")
        return self._sum() / self.count

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self._sum(), "count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["total"].shape != self._total.shape:
            raise ValueError(f"dimension {len(state['total'])} does not fit {len(self._total)}")
        self._pending = []
        self._total = state["total"].to(self._total).triu()
        self.count = int(state["count"])

    def _sum(self) -> Tensor:
        self._flush()
        return self._total + self._total.triu(1).T

    def _flush(self) -> None:
        """Multiply out what is pending. The product is symmetric: only its upper half is computed."""
        if not self._pending:
            return
        keys = torch.cat(self._pending)
        self._pending = []
        for begin in range(0, len(self._total), BLOCK):
            end = begin + BLOCK
            rows = keys[:, begin:end].T @ keys[:, begin:]  # (BLOCK, dim − begin)
            rows[:, :BLOCK].triu_()
            self._total[begin:end, begin:] += rows


def stored_moments(
    model: EditableModel,
    layers: Sequence[int],
    accumulate: Callable[[list[int]], dict[int, SecondMoment]],
    store: Store,
    *,
    code: str,
    **determines: Any,
) -> dict[int, Tensor]:
    """Return ``C`` of each layer's keys under the weights as they are, from the store where it is there.

    Where the layers do not fit into half of the free memory together, a few are accumulated at a time, in as many
    passes; what is returned lies in the machine's memory then, not in a GPU's.

    Args:
        accumulate: computes the statistics of some layers that the store lacks, all in one pass.
        code, determines: as for :func:`editkit.cache.entry_key`.
    """
    base = entry_key(code, model, **determines)
    keys = {layer: base | {"layer": layer} for layer in layers}
    found = {layer: store.get("second-moment", key) for layer, key in keys.items()}
    missing = [layer for layer in layers if found[layer] is None]
    at_once = free_bytes(model.device) // (2 * STATISTIC_BYTES * model.d_k**2)
    step = max(1, at_once)
    for begin in range(0, len(missing), step):
        for layer, statistic in accumulate(missing[begin : begin + step]).items():
            found[layer] = {name: tensor.cpu() for name, tensor in statistic.state_dict().items()}
            store.put("second-moment", keys[layer], found[layer])
    moments = {}
    for layer in layers:
        statistic = SecondMoment(model.d_k, model.device if len(layers) <= at_once else "cpu")
        statistic.load_state_dict(found.pop(layer))
        moments[layer] = statistic.moment()
    return moments
