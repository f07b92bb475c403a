"""Attention of short suffixes over cached prefixes in plain products; heads that share keys are taken together.

The fused kernels are made for long sequences; for a few tokens with an explicit mask their backward pass
costs several times that of three matrix products.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from editkit.models import LanguageModel

NAME = "editkit_grouped"
# What models hand on to every kernel: it says what the mask says already, or matters in training alone.
WITHOUT_EFFECT = {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states"}


def grouped_attention(
    module: nn.Module,
    query: Tensor,  # (B, heads, S, d_head)
    key: Tensor,  # (B, key heads, T, d_head)
    value: Tensor,
    attention_mask: Tensor,  # (B, 1, S, T), added to the scores; (B, 2, S, T): the second one for a sliding window
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute ``softmax(Q Kᵀ · scaling + mask) V`` (B, S, heads, d_head), for transformers' attention interface.

    With ``softcap`` c the scores are c · tanh(scores / c) before the mask is added (Gemma 2). Raises ``ValueError`` for
    an argument that would change the result and is not known here.
    """
    window = others.pop("sliding_window", None)
    if unknown := sorted(name for name, value in others.items() if value is not None and name not in WITHOUT_EFFECT):
        raise ValueError(f"{type(module).__name__} asks its attention for {unknown[0]}, which is not supported")
    if attention_mask.shape[1] == 2:
        attention_mask = attention_mask[:, 1:] if window else attention_mask[:, :1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups, length = key.shape[1], query.shape[2]
    together = (query * scaling).unflatten(1, (groups, -1)).flatten(2, 3)  # (B, groups, heads/groups · S, d_head)
    scores = (together @ key.transpose(2, 3)).unflatten(2, (-1, length))  # (B, groups, heads/groups, S, T)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    weights = (
        (scores + attention_mask[:, :, None]).softmax(-1).flatten(2, 3).to(value.dtype)
    )  # (B, groups, heads/groups · S, T)
    output = (weights @ value).unflatten(2, (-1, length)).flatten(1, 2)  # (B, heads, S, d_head)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)


@contextmanager
def grouped(lm: LanguageModel) -> Iterator[None]:
    """Run the model's attention by :func:`grouped_attention`; every pass within needs a 4-D mask.

    A model whose attention is its own code alone (GPT-J) keeps it.
    """
    if not lm.model._can_set_attn_implementation():  # it would warn at every pass
        yield
        return
    before = lm.model.config._attn_implementation
    if before == NAME:  # within another: setting it visits every module, a noticeable part of a step of decoding
        yield
        return
    try:
        lm.model.set_attn_implementation(NAME)
        yield
    finally:
        lm.model.set_attn_implementation(before)
