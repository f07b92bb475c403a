"""Rows of tokens that share a computed beginning: the prefix is run once, suffixes as often as needed.

Attention is causal, so keys and values of a prefix never change. Prefixes and suffixes of a batch are
padded on the right to common lengths; an explicit mask and explicit positions keep padding out. A row may
hold several texts (*segments*) one after another: a token sees its own segment and the row's trunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from editkit.language.forward.attention import grouped
from editkit.models import LanguageModel

PADDING = -1  # segment of a padding token
TRUNK = -2  # segment of a token that every segment of its row continues
GROUP_COST = 32  # tokens that could be run in the time one more group takes, measured on a CPU


def buckets(lengths: Sequence[int], budget: int, group_cost: int = GROUP_COST) -> list[list[int]]:
    """Group indices by similar length, so that the padded tokens and the groups together cost least.

    A group holds at most ``budget`` tokens when padded, or a single row, and costs as much as ``group_cost`` tokens.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    least, begin = [0], [0]  # for the shortest rows: the best division's cost, and its last group's begin
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        first = min(max(0, end - budget // max(longest, 1)), end - 1)
        cost, start = min((least[i] + (end - i) * longest + group_cost, i) for i in range(first, end))
        least.append(cost)
        begin.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(order[begin[end] : end])
        end = begin[end]
    return groups[::-1]


def pad(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows on the right to one tensor (B, T). Returns it with the mask (B, T) of what is not padding."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return ids.to(device), mask.to(device)


class GrowingLayer(DynamicLayer):
    """Keys and values of a prefix, to which new ones are appended."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # (B, heads, T, d_head)


class FrozenLayer(GrowingLayer):
    """Keys and values of a prefix: read together with the new ones, never extended."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


@dataclass
class Prefix:
    """A batch of prefixes that has been run.

    Build it with :meth:`run` or :meth:`run_sharing`; ``extend`` appends tokens; ``select`` repeats, reorders or drops
    rows; ``pack`` makes one row of several; ``forward`` runs suffixes after them.
    """

    segment: Tensor  # (B, T) the text of its row that a token belongs to; PADDING for none
    layers: list[tuple[Tensor, Tensor]]  # keys and values of each layer, (B, heads, T, d_head)

    @classmethod
    def run(cls, lm: LanguageModel, rows: Sequence[Sequence[int]]) -> "Prefix":
        return cls.read(lm, rows)[0]

    @classmethod
    def read(cls, lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple["Prefix", Tensor]:
        """Run prefixes. Returns them and the final hidden states (B, T, d) of their tokens."""
        nothing = torch.empty(len(rows), 0, dtype=torch.long, device=lm.device)
        return cls(nothing, []).followed(lm, rows)

    @classmethod
    def run_sharing(cls, lm: LanguageModel, table: Sequence[Sequence[Sequence[int]]]) -> "Prefix":
        """Run a table of prefixes, the common beginning of each column once. Rows come out row by row."""
        shared = [common_beginning(column) for column in zip(*table, strict=True)]
        rest = [ids[len(head) :] for row in table for ids, head in zip(row, shared, strict=True)]
        heads = cls.run(lm, shared).select(torch.arange(len(shared), device=lm.device).repeat(len(table)))
        return heads.extend(lm, rest) if any(rest) else heads

    def extend(self, lm: LanguageModel, rows: Sequence[Sequence[int]]) -> "Prefix":
        """Return these prefixes, each followed by more tokens of its (single) text; a row may add none."""
        return self.followed(lm, rows)[0]

    @torch.no_grad()
    def followed(self, lm: LanguageModel, rows: Sequence[Sequence[int]]) -> tuple["Prefix", Tensor]:
        """Return what :meth:`extend` does, and the final hidden states (B, S, d) of the added tokens."""
        ids, mask = pad(rows, lm.start_id, lm.device)
        segment = mask.long() - 1
        grown = [GrowingLayer(keys, values) for keys, values in self.layers]
        # Without the config: no sliding window, all is kept.
        cache = Cache(layers=[*grown]) if grown else DynamicCache()
        hidden = _forward(lm, ids, segment, self.segment, cache)
        filled: list[Any] = cache.layers  # all of attention, which hold keys and values
        layers = [(layer.keys, layer.values) for layer in filled]
        return Prefix(torch.cat([self.segment, segment], dim=1), layers), hidden

    def select(self, rows: Tensor) -> "Prefix":
        def chosen(states: Tensor) -> Tensor:  # each layer's lie where the layer does
            return states[rows.to(states.device)]

        return Prefix(self.segment[rows], [(chosen(keys), chosen(values)) for keys, values in self.layers])

    def pack(self, count: int) -> "Prefix":
        """Lay each run of ``count`` rows side by side in one row, as segments 0 to ``count`` − 1, padding last."""
        number = torch.arange(count, device=self.segment.device).repeat(len(self.segment) // count)[:, None]
        segment = self.segment.where(self.segment == PADDING, number).unflatten(0, (-1, count)).flatten(1, 2)

        def together(states: Tensor) -> Tensor:  # (B · count, heads, ·, d_head) → (B, heads, T, d_head)
            return states.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)

        side_by_side = Prefix(segment, [(together(keys), together(values)) for keys, values in self.layers])
        return side_by_side.only(range(count))

    def only(self, segments: Sequence[int]) -> "Prefix":
        """Return the same rows with some of their texts alone, padding last."""
        kept = torch.isin(self.segment, torch.tensor([*segments], device=self.segment.device))
        order = kept_first(kept)  # (B, T)

        def chosen(states: Tensor) -> Tensor:
            heads, width = states.shape[1], states.shape[3]
            return states.gather(2, order[:, None, :, None].expand(-1, heads, -1, width).to(states.device))

        segment = columns(self.segment.where(kept, PADDING), order)
        return Prefix(segment, [(chosen(keys), chosen(values)) for keys, values in self.layers])

    def forward(self, lm: LanguageModel, ids: Tensor, segment: Tensor, after: Tensor | None = None) -> Tensor:
        """Compute the final hidden states (B, S, d) of suffixes ``ids`` (B, S) that follow these prefixes.

        ``segment`` (B, S) tells which text of its row each suffix token continues; PADDING for none. ``after`` (B, S)
        tells how many tokens of its row's prefix come before its suffix, where that is not the whole of its text.
        """
        cache = Cache(layers=[FrozenLayer(keys, values) for keys, values in self.layers])
        return _forward(lm, ids, segment, self.segment, cache, after)

    def as_trunk(self) -> "Prefix":
        """Return these prefixes, of one text a row, as something that several suffixes of a row may follow."""
        return replace(self, segment=self.segment.where(self.segment == PADDING, TRUNK))


def kept_first(kept: Tensor) -> Tensor:
    """Return the columns of each row in which those come first that are kept (B, T), as many as one row keeps."""
    return (~kept).byte().argsort(dim=1, stable=True)[:, : kept.sum(1).max()]


def columns(tensor: Tensor, order: Tensor) -> Tensor:
    """Return ``tensor`` (B, T) or (B, T, d) with the columns ``order`` (B, S) of each row."""
    return tensor.gather(1, order if tensor.dim() == 2 else order[..., None].expand(-1, -1, tensor.shape[2]))


def run_rows(lm: LanguageModel, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]) -> Tensor:
    """Compute final hidden states (B, T, d) of rows of tokens, each token in a segment of its row (or its trunk)."""
    ids, _ = pad(rows, lm.start_id, lm.device)
    segment, _ = pad(segments, PADDING, lm.device)
    return _forward(lm, ids, segment, segment[:, :0], None)


def _forward(
    lm: LanguageModel,
    ids: Tensor,
    segment: Tensor,
    before: Tensor,
    cache: Cache | None,
    after: Tensor | None = None,
) -> Tensor:
    """Run the tokens of ``segment`` (B, S) after those of ``before`` (B, T), whose keys are in the cache."""
    length, dtype = segment.shape[1], lm.model.dtype
    other = torch.cat([before, segment], dim=1)[:, None]  # (B, 1, T+S)
    earlier = torch.ones(length, other.shape[2], dtype=torch.bool, device=ids.device).tril(before.shape[1])
    seen = ((other == segment[:, :, None]) | (other == TRUNK)) & earlier  # (B, S, T+S); padding sees padding
    if after is not None:
        place = torch.arange(before.shape[1], device=ids.device)
        seen = seen & torch.nn.functional.pad(place < after[..., None], (0, length), value=True)
    # A token's position is the number of tokens before it in its text; padding has none.
    positions = (seen.sum(-1) - 1).where(segment != PADDING, 0)
    seen = seen[:, None]
    if window := getattr(lm.model.config, "sliding_window", None):
        every = torch.cat([_positions(before), positions], dim=1)
        seen = torch.cat([seen, seen & (positions[:, None, :, None] - every[:, None, None] < window)], dim=1)
    bias = torch.zeros(seen.shape, dtype=dtype, device=ids.device).masked_fill(~seen, torch.finfo(dtype).min)
    with grouped(lm):
        return lm.forward(ids, attention_mask=bias, position_ids=positions, past_key_values=cache)


def _positions(segment: Tensor) -> Tensor:
    """Count the tokens before each one in its text, (B, T); trunks come first."""
    other = segment[:, None]
    return ((other == segment[:, :, None]) | (other == TRUNK)).tril(-1).sum(-1)


def common_beginning(rows: Sequence[list[int]]) -> list[int]:
    """Find the longest beginning that all rows share."""
    lowest, highest = min(rows), max(rows)  # what these two share, every row between them shares
    pairs = zip(lowest, highest, strict=False)
    count = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(lowest), len(highest)))
    return lowest[:count]
