"""What a layer's keys look like over ordinary text: the second moment ``C`` and its null space.

``C = E[k kᵀ]`` (uncentred, d_k × d_k) is the cost of disturbing what is kept, see :mod:`editkit.solvers`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from editkit.cache import Store, digest
from editkit.hooks import capture
from editkit.models import EditableModel, LanguageModel
from editkit.precision import exact_products
from editkit.prefix import buckets, pad
from editkit.solvers import Subspace

CHUNK_TOKENS = 256  # longest piece of text seen at once, start token included
BATCH_TOKENS = 1024
PENDING_KEYS = 4096  # keys multiplied out at once
BLOCK = 256  # columns of their product computed at once


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
        """``C`` (dim, dim) in float64. Raises ``ValueError`` before anything was added."""
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


def token_chunks(lm: LanguageModel, texts: Sequence[str], n_tokens: int) -> list[list[int]]:
    """Texts as token rows of at most ``CHUNK_TOKENS``, each after the start token, ``n_tokens`` in all.

    The start tokens are not counted. Raises ``ValueError`` where the texts hold fewer tokens than asked for.
    """
    longest = min(CHUNK_TOKENS, lm.model.config.max_position_embeddings) - 1
    chunks, left = [], n_tokens
    for text in texts:
        ids = lm.encode(text)[0][1:][:left]
        for begin in range(0, len(ids), longest):
            chunks.append([lm.start_id, *ids[begin : begin + longest]])
        left -= len(ids)
        if left == 0:
            return chunks
    raise ValueError(f"the text holds {n_tokens - left} tokens, fewer than the {n_tokens} asked for (mom2_n_tokens)")


@torch.no_grad()
def second_moments(
    lm: LanguageModel,
    layers: Sequence[int],
    texts: Sequence[str],
    n_tokens: int,
    *,
    store: Store | None = None,
    progress: bool = True,
) -> dict[int, Tensor]:
    """``C`` (d_k, d_k) float64 of each layer's keys, all from one pass that stops after the last layer.

    The key is the input of the edited linear layer; the start token is left out (an attention sink, far
    from every other key). With a ``store``, layers computed before for the same weights, text and token
    count are read from it.
    """
    determines = {"text": digest(list(texts)), "n_tokens": n_tokens, "chunk": CHUNK_TOKENS}

    def accumulate(missing: list[int]) -> dict[int, SecondMoment]:
        return _accumulate(lm, missing, token_chunks(lm, texts, n_tokens), progress)

    return stored_moments(lm, layers, determines, accumulate, store or Store())


def stored_moments(
    model: EditableModel,
    layers: Sequence[int],
    determines: dict,
    accumulate: Callable[[list[int]], dict[int, SecondMoment]],
    store: Store,
) -> dict[int, Tensor]:
    """``C`` of each layer's keys under the weights as they are, from the store where it is there.

    Args:
        determines: what else the keys depend on.
        accumulate: the statistics of the layers that the store lacks, all from one pass.
    """
    weights = model.fingerprint()

    def key(layer: int) -> dict:
        return {"weights": weights, "layer": layer, **determines}

    found = {layer: store.get("second-moment", key(layer)) for layer in layers}
    if missing := [layer for layer in layers if found[layer] is None]:
        for layer, statistic in accumulate(missing).items():
            found[layer] = statistic.state_dict()
            store.put("second-moment", key(layer), found[layer])
    moments = {}
    for layer in layers:
        statistic = SecondMoment(model.d_k, model.device)
        statistic.load_state_dict(found[layer])
        moments[layer] = statistic.moment()
    return moments


def _accumulate(
    lm: LanguageModel, layers: list[int], chunks: list[list[int]], progress: bool
) -> dict[int, SecondMoment]:
    statistics = {layer: SecondMoment(lm.weight(layer).shape[1], lm.device) for layer in layers}
    modules = {layer: lm.mlp_out(layer) for layer in layers}
    bar = tqdm(
        total=sum(map(len, chunks)),
        desc=f"second moment of layers {layers}",
        unit="token",
        unit_scale=True,
        disable=not progress,
    )
    with bar, exact_products(lm):
        for group in buckets([len(chunk) for chunk in chunks], BATCH_TOKENS):
            ids, mask = pad([chunks[i] for i in group], lm.start_id, lm.device)
            with capture(modules, side="input", stop=True) as keys:
                lm.forward(ids)
            mask[:, 0] = False
            for layer, statistic in statistics.items():
                statistic.add(keys[layer][mask].float())
            bar.update(sum(len(chunks[i]) for i in group))
    return statistics


def null_space(C: Tensor, threshold: float) -> Subspace:
    """Span of the eigenvectors of ``C`` (d_k, d_k) whose eigenvalue is below ``threshold``.

    AlphaEdit, arXiv 2410.02355 section 3.1: changes confined to it leave the kept keys' outputs alone.
    Raises ``ValueError`` where no eigenvalue is that small.
    """
    values, vectors = torch.linalg.eigh(C.double())
    if values[0] >= threshold:
        raise ValueError(
            f"nullspace_threshold = {threshold:g}: no eigenvalue is below it, the smallest is {values[0]:.3g}"
        )
    small = values < threshold
    complement = bool(2 * small.sum() > len(C))
    return Subspace(vectors[:, ~small if complement else small], complement)
