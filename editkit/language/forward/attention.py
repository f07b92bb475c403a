"""Attention of short suffixes over cached prefixes in plain products; heads that share keys are taken together.

The fused kernels are made for long sequences; for a few tokens with an explicit mask their backward pass
costs several times that of three matrix products.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import AttentionInterface

from editkit.models import LanguageModel

NAME = "editkit_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,  # (B, heads, S, d_head)
    key: Tensor,  # (B, key heads, T, d_head)
    value: Tensor,
    attention_mask: Tensor,  # (B, 1, S, T), added to the scores
    scaling: float | None = None,
    **unused,
) -> tuple[Tensor, None]:
    """Compute ``softmax(Q Kᵀ · scaling + mask) V`` (B, S, heads, d_head), for transformers' attention interface."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups, length = key.shape[1], query.shape[2]
    together = (query * scaling).unflatten(1, (groups, -1)).flatten(2, 3)  # (B, groups, heads/groups · S, d_head)
    scores = (together @ key.transpose(2, 3)).unflatten(2, (-1, length)) + attention_mask[:, :, None]
    weights = scores.softmax(-1).flatten(2, 3).to(value.dtype)  # (B, groups, heads/groups · S, T)
    output = (weights @ value).unflatten(2, (-1, length)).flatten(1, 2)  # (B, heads, S, d_head)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)


@contextmanager
def grouped(lm: LanguageModel) -> Iterator[None]:
    """Run the model's attention by :func:`grouped_attention`; every pass within needs a 4-D mask."""
    before = lm.model.config._attn_implementation
    try:
        lm.model.set_attn_implementation(NAME)
        yield
    finally:
        lm.model.set_attn_implementation(before)
