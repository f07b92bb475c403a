"""The second moment ``C`` of a layer's keys over ordinary text.

``C = E[k kᵀ]`` (uncentred, d_k × d_k) is the cost of disturbing what is kept, see :mod:`editkit.solvers`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from editkit.cache import Store, digest
from editkit.editing.moments import SecondMoment, stored_moments
from editkit.language.forward.precision import exact_products
from editkit.language.forward.prefix import buckets, pad
from editkit.models import LanguageModel
from editkit.models.hooks import capture

CHUNK_TOKENS = 256  # longest piece of text seen at once, start token included
BATCH_TOKENS = 1024


def token_chunks(lm: LanguageModel, texts: Sequence[str], n_tokens: int) -> list[list[int]]:
    """Cut texts into token rows of at most ``CHUNK_TOKENS``, each after the start token, ``n_tokens`` in total.

    The start tokens are not counted. Raises ``ValueError`` where the texts hold fewer tokens than asked for.
    """
    longest = int(min(CHUNK_TOKENS, lm.n_positions)) - 1
    chunks, left = [], n_tokens
    for text in texts:
        ids = lm.tokens(text)[:left]
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
    """Compute ``C`` (d_k, d_k) float64 of each layer's keys in one pass that stops after the last layer.

    The key is the input of the edited linear layer; the start token is left out (an attention sink, far
    from every other key). With a ``store``, layers computed before for the same weights, text and token
    count are read from it.
    """

    def accumulate(missing: list[int]) -> dict[int, SecondMoment]:
        return _accumulate(lm, missing, token_chunks(lm, texts, n_tokens), progress)

    determines = {"text": digest(list(texts)), "n_tokens": n_tokens}
    return stored_moments(lm, layers, accumulate, store or Store(), code=__name__, **determines)


def _accumulate(
    lm: LanguageModel, layers: list[int], chunks: list[list[int]], progress: bool
) -> dict[int, SecondMoment]:
    statistics = {layer: SecondMoment(lm.d_k, lm.device) for layer in layers}
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
                states = keys[layer].to(lm.device).reshape(*ids.shape, -1)  # OPT's MLP sees one long row
                statistic.add(states[mask].float())
            bar.update(sum(len(chunks[i]) for i in group))
    return statistics
