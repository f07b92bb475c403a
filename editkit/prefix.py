"""Rows of tokens that share a computed beginning: run the prefix once, the suffix as often as needed.

Attention is causal, so keys and values of a prefix never change. Prefixes and suffixes of a batch are
padded on the right to common lengths; an explicit mask and explicit positions keep padding out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from editkit.models import LanguageModel


def buckets(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices grouped by similar length, each group at most ``budget`` tokens when padded (at least one row)."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[index] > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def pad(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows as one tensor (B, T), padded on the right, and the mask (B, T) of what is not padding."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return ids.to(device), mask.to(device)


class FrozenLayer(DynamicLayer):
    """Keys and values of a prefix: read together with the new ones, never extended."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # (B, heads, T, d_head)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


@dataclass
class Prefix:
    """A batch of prefixes that has been run.

    Build it with :meth:`run`; ``select`` repeats, reorders or drops rows; ``arguments`` gives what the
    model needs to run suffixes after them.
    """

    hidden: Tensor  # (B, T, d) final hidden states of the prefixes
    mask: Tensor  # (B, T) True where a token is
    layers: list[tuple[Tensor, Tensor]]  # keys and values of each layer, (B, heads, T, d_head)

    @classmethod
    @torch.no_grad()
    def run(cls, lm: LanguageModel, rows: Sequence[Sequence[int]]) -> "Prefix":
        ids, mask = pad(rows, lm.start_id, lm.device)
        cache = DynamicCache()  # without the config: no sliding window, the prefix is kept whole
        hidden = lm.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        return cls(hidden, mask, [(layer.keys, layer.values) for layer in cache.layers])

    def select(self, rows: Tensor) -> "Prefix":
        return Prefix(self.hidden[rows], self.mask[rows], [(keys[rows], values[rows]) for keys, values in self.layers])

    def last(self) -> Tensor:
        """Final hidden state of each prefix's last token, (B, d)."""
        return self.hidden[torch.arange(len(self.mask)), self.mask.sum(1) - 1]

    def arguments(self, suffix_mask: Tensor, dtype: torch.dtype) -> dict:
        """Keyword arguments of a forward pass over suffixes (B, S) that follow these prefixes."""
        length = suffix_mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=suffix_mask.device).tril()
        seen = torch.cat(
            [self.mask[:, None].expand(-1, length, -1), causal & suffix_mask[:, None]], dim=-1
        )  # (B, S, T+S)
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
        positions = self.mask.sum(1, keepdim=True) + torch.arange(length, device=seen.device)  # (B, S)
        return {
            "attention_mask": bias[:, None],  # (B, 1, S, T+S)
            "position_ids": positions,
            "past_key_values": Cache(layers=[FrozenLayer(keys, values) for keys, values in self.layers]),
        }
