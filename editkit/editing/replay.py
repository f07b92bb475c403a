"""Memory of earlier edits: a buffer that replays some of them, or the moments of all of them.

Either way an earlier edit takes part in a step as one more column of ``K``, ``R`` and ``D`` (see
:mod:`editkit.solvers`): its key, its residual (what the layer should put out for it less what it does),
and ``replay_weight``. Its slack is that of a new edit, over that weight.

*hold* with targets from the base model is recursive least squares: at one layer, steps in any order come to one batch
of all edits, for memit and alphaedit as weighted here (arXiv 2601.15686, 2605.26670) and for emmet because equality
holds earlier edits exactly. That is exact for keys of the bare prompt: what is missing of an edit is read there, as
published, so an average over contexts says a little wrongly how far earlier steps have moved it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from editkit.cache import from_json_tensor, json_tensor, write_atomic
from editkit.config import Parameters, Positive
from editkit.editing.gradients import Columns
from editkit.editing.item import Item
from editkit.solvers import compress

SMALLEST_PRIORITY = 1e-6  # an edit that has lost nothing can still be drawn
ROUNDING = 1e-9  # of rate × batch: .55 × 100 is 55, not 56


class ReplaySpec(Parameters):
    """How earlier edits take part in a step; what is left out is as published."""

    replay: Literal["none", "buffer", "hold", "history"] | None = None
    """How earlier edits take part in a step: none, not at all; buffer, some again; hold, all by their keys alone (held
    as they are); history, by keys and values (pulled back). Left out: as published (hold for alphaedit, memit_rls,
    encore and betaedit, else none)."""
    replay_rate: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Earlier edits that a buffer replays, as a share of what replay_base names, rounded up."""
    replay_base: Literal["batch", "buffer"] = "batch"
    """What replay_rate is a share of: the new batch, or the buffer (the batch, while the buffer is smaller)."""
    replay_max_items: Annotated[int, Field(ge=0)] = 0
    """Largest number of edits that the buffer keeps; 0 keeps all."""
    replay_weight: Positive = 1.0
    """Weight of an earlier edit against a new one. Under equality (emmet) both are met, whatever they weigh, and only 1
    is accepted: what is held then does not move at all, which is where a growing weight leads."""
    replay_strategy: Literal["random", "priority", "recent"] = "random"
    """Which edits are replayed; priority prefers important ones of which much is lost: importance × share lost."""
    replay_eviction: Literal["fifo", "lru"] = "fifo"
    """Which edit leaves a full buffer: the oldest, or the one replayed longest ago."""
    replay_refresh: bool | None = None
    """With several layers, read earlier edits' keys anew at each step, a pass over all that take part for each layer.
    Left out: yes, except for what is published with keys as they were when edited (hold of those that hold) and for
    gradients."""


@dataclass(frozen=True)
class EditRecord:
    """One edit as it was made."""

    item: Item
    target: Tensor  # v* (d,): hidden state wanted after the last edited layer
    keys: dict[int, Tensor]  # layer → (d_k,)
    values: dict[int, Tensor]  # layer → (d_v,): output of the edited weight that was asked for
    asked: float = 1.0  # ‖v − W k‖ at the last edited layer before the edit
    importance: float = 1.0  # the editor sets it to ``asked``; see ReplayBuffer.weigh
    timestamp: int = 0  # the buffer's clock when it was added
    priority: float = 1.0  # importance × share lost of what was asked
    access_count: int = 0  # times replayed
    last_used: int = 0  # the buffer's clock when it was added or last replayed

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        tensors = {"target": self.target}
        for layer in self.keys:
            tensors |= {f"key of layer {layer}": self.keys[layer], f"value of layer {layer}": self.values[layer]}
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


class Memory:
    """What a session remembers of earlier edits: nothing in this base class."""

    def __len__(self) -> int:
        return 0

    def copy(self) -> Self:
        """Return a memory with the same content that can change on its own."""
        return self

    def add(self, records: Sequence[EditRecord]) -> None:
        """Take in new edits."""

    def holds(self, item: Item) -> bool:
        """Return whether this edit may take part in a later step."""
        return False

    def recall(self, rate: float, batch: int, layer: int, weight: Tensor) -> list[EditRecord]:
        """Return the records that take part with ``batch`` new edits, as far as they are still there one by one.

        Args:
            rate: how many a buffer replays, see :class:`ReplaySpec`.
            weight: of the last edited layer, (d_v, d_k).
        """
        return []

    def use(self, records: Sequence[EditRecord]) -> None:
        """Note that records were replayed."""

    def past(self, layer: int, records: Sequence[EditRecord]) -> tuple[Tensor, Tensor] | None:
        """Return keys (d_k, m) and values (d_v, m) that take part in a step as they were stored; None for none."""
        return None

    def taking_part(self, records: Sequence[EditRecord]) -> int:
        """Count the earlier edits that take part in a step with these replayed records."""
        return 0

    def factors(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys (d_k, m) and values (d_v, m) that stand for all that is stored; there must be some."""
        raise NotImplementedError

    def asked(self, columns: Columns, rate: float) -> Columns:
        """Return the residuals of gradients, by statistics that only a lifelong memory keeps."""
        raise NotImplementedError

    def seen(self, layer: int) -> Tensor | None:
        """Return keys (d_k, m), ``F Fᵀ`` their mean of ``k kᵀ``, for a null space taken anew; None for none."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors, for a safetensors file."""
        return {}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], make: Callable[..., Item]) -> Self:
        """Make a memory from what :meth:`state_dict` returned, ``make`` being the class of its items."""
        return cls()


@dataclass
class ReplayBuffer(Memory):
    """A memory of edits, some of which are made again together with new ones.

    What is drawn depends on the seed and the buffer's content alone, so a buffer that is put back to an
    earlier :meth:`copy` draws the same again.

    Args:
        capacity: largest number of edits kept; 0 keeps all.
        strategy: ``random``, ``priority`` (likelier the more an edit has lost) or ``recent``.
        eviction: which edit leaves a full buffer: ``fifo`` the oldest, ``lru`` the one used longest ago.
        seed: decides what is drawn.
        base: what a rate is a share of, ``batch`` or ``buffer``.
    """

    capacity: int = 0
    strategy: str = "random"
    eviction: str = "fifo"
    seed: int = 0
    base: str = "batch"
    clock: int = 0
    _records: dict[tuple[str, str], EditRecord] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[EditRecord]:
        return iter(self._records.values())

    def copy(self) -> Self:
        other = copy(self)
        other._records = dict(self._records)
        return other

    def add(self, records: Sequence[EditRecord]) -> None:
        """Take in new edits: each replaces an older one of the same topic, and a full buffer then evicts.

        Raises ``ValueError`` for a record whose layers or dimensions are not those of the others.
        """
        for record in records:
            other = next(iter(self), record)
            if record.shapes != other.shapes:
                raise ValueError(f"{record.item.id}: {record.shapes} do not fit the buffer's {other.shapes}")
        self.clock += 1
        for record in records:
            self._records.pop(record.item.topic, None)
            self._records[record.item.topic] = replace(record, timestamp=self.clock, last_used=self.clock)
        age = "timestamp" if self.eviction == "fifo" else "last_used"
        while self.capacity and len(self) > self.capacity:
            del self._records[min(self, key=lambda record: getattr(record, age)).item.topic]

    def amount(self, rate: float, batch: int) -> int:
        """Return how many to replay with ``batch`` new edits: ``rate`` of these, or of what is stored if that is more
        and the base."""
        whole = batch if self.base == "batch" else max(len(self), batch)
        return min(len(self), math.ceil(rate * whole - ROUNDING))

    def sample(self, count: int) -> list[EditRecord]:
        """Draw ``count`` records without replacement, oldest first; this changes nothing, see :meth:`use`."""
        if not 0 <= count <= len(self):
            raise ValueError(f"cannot draw {count} records from a buffer of {len(self)}")
        records = sorted(self, key=lambda record: record.timestamp)
        if count == len(records) or self.strategy == "recent":
            return records[len(records) - count :]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.clock)
        weight = torch.ones(len(records), dtype=torch.float64)
        if self.strategy == "priority":
            weight = torch.tensor([record.priority for record in records]).double() + SMALLEST_PRIORITY
        drawn = torch.multinomial(weight, count, generator=generator).tolist() if count else []
        return [records[i] for i in sorted(drawn)]

    def holds(self, item: Item) -> bool:
        return any(record.item.id == item.id for record in self)

    def recall(self, rate: float, batch: int, layer: int, weight: Tensor) -> list[EditRecord]:
        self.prioritise(layer, weight)
        return self.sample(self.amount(rate, batch))

    def past(self, layer: int, records: Sequence[EditRecord]) -> tuple[Tensor, Tensor] | None:
        return columns(records, layer) if records else None

    def taking_part(self, records: Sequence[EditRecord]) -> int:
        return len(records)

    def use(self, records: Sequence[EditRecord]) -> None:
        for record in records:
            self._records[record.item.topic] = replace(
                record, access_count=record.access_count + 1, last_used=self.clock + 1
            )

    def weigh(self, importance: Mapping[str, float]) -> None:
        """Set the importance of edits, by the id of their items; without this it is the norm of what each asked for.

        Raises ``ValueError`` for an edit that is not stored, and for a negative importance.
        """
        stored = {record.item.id: record for record in self}
        for name, value in importance.items():
            if name not in stored:
                raise ValueError(f"importance of {name!r}: the buffer holds no such edit")
            if not 0 <= value < math.inf:
                raise ValueError(f"importance of {name!r} = {value}: must be 0 or more, and finite")
            self._records[stored[name].item.topic] = replace(stored[name], importance=float(value))

    def prioritise(self, layer: int, weight: Tensor) -> None:
        """Set each priority to importance × share lost, under ``weight`` (d_v, d_k) of the last edited ``layer``.

        The share lost is ``‖v − W k‖``, by the key as stored, over what it was before the edit.
        """
        if not len(self):
            return
        K, V = self.factors(layer)
        missing = (V - weight.double() @ K).norm(dim=0).tolist()
        for record, lost in zip(list(self), missing, strict=True):
            share = lost / record.asked if record.asked else 0.0  # who asked for nothing cannot lose any of it
            self._records[record.item.topic] = replace(record, priority=record.importance * share)

    def factors(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys (d_k, m) and values (d_v, m) of all that is stored."""
        return columns(list(self), layer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors; settings, items and counts lie in ``meta`` as JSON."""
        settings = {name: getattr(self, name) for name in ("capacity", "strategy", "eviction", "seed", "base", "clock")}
        return {"settings": json_tensor(settings)} | _pack(list(self))

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file."""
        path = Path(path)
        write_atomic(path, save_tensors({name: tensor.contiguous() for name, tensor in self.state_dict().items()}))
        return path

    @classmethod
    def load(cls, path: str | Path, make: Callable[..., Item]) -> Self:
        """Read what :meth:`save` wrote, ``make`` being the class of its items.

        Raises ``ValueError`` for any other file.
        """
        try:
            return cls.from_state_dict(load_tensors(Path(path).read_bytes()), make)
        except (SafetensorError, KeyError) as problem:
            raise ValueError(f"{path} is not a replay buffer: {problem}") from None

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], make: Callable[..., Item]) -> Self:
        buffer = cls(**from_json_tensor(state["settings"]))
        buffer._records = {record.item.topic: record for record in _unpack(state, make)}
        return buffer


def columns(records: Sequence[EditRecord], layer: int) -> tuple[Tensor, Tensor]:
    """Return keys (d_k, m) and values (d_v, m) of records at a layer, float64."""
    K = torch.stack([record.keys[layer] for record in records], dim=1)
    V = torch.stack([record.values[layer] for record in records], dim=1)
    return K.double(), V.double()


@dataclass
class Moments(Memory):
    """``K_p K_pᵀ`` and ``V_p K_pᵀ`` of all earlier edits of each layer, in factored form.

    Up to d_k edits the factors are the edits' own keys and values, and each can be read again; beyond that they stay
    at d_k columns (:func:`editkit.solvers.compress`), in which no edit is to be found any more. Unlike a buffer this
    cannot forget: an edit that a newer one of the same topic contradicts still counts.
    """

    count: int = 0  # edits taken in
    _records: list[EditRecord] = field(default_factory=list)  # while they are no more than d_k
    _factors: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # from then on

    def __len__(self) -> int:
        return self.count

    def copy(self) -> Self:
        return replace(self, _records=list(self._records), _factors=dict(self._factors))

    def add(self, records: Sequence[EditRecord]) -> None:
        self._records += records
        self.count += len(records)
        keys = records[0].keys
        if self._factors or self.count > len(next(iter(keys.values()))):
            self._factors = {layer: compress(*self.factors(layer)) for layer in keys}
            self._records = []

    def holds(self, item: Item) -> bool:
        return True

    def recall(self, rate: float, batch: int, layer: int, weight: Tensor) -> list[EditRecord]:
        return list(self._records)

    def past(self, layer: int, records: Sequence[EditRecord]) -> tuple[Tensor, Tensor] | None:
        return self.factors(layer) if len(self) else None

    def taking_part(self, records: Sequence[EditRecord]) -> int:
        return self.count

    def factors(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return ``F`` (d_k, m) and ``X`` (d_v, m), m ≤ d_k, with ``F Fᵀ = K_p K_pᵀ`` and ``X Fᵀ = V_p K_pᵀ``."""
        parts = [self._factors[layer]] if self._factors else []
        parts += [columns(self._records, layer)] if self._records else []
        F, X = zip(*parts, strict=True)
        return torch.cat(F, dim=1), torch.cat(X, dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        state = {"count": torch.tensor(self.count)} | _pack(self._records)
        for layer, (F, X) in self._factors.items():
            state |= {f"keys.{layer}": F.T, f"values.{layer}": X.T}
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], make: Callable[..., Item]) -> Self:
        records = _unpack(state, make)
        layers = [] if records else _layers(state)
        return cls(int(state["count"]), records, {n: (state[f"keys.{n}"].T, state[f"values.{n}"].T) for n in layers})


def _pack(records: Sequence[EditRecord]) -> dict[str, Tensor]:
    """Return records as tensors, keys and values as rows; items and counts lie in ``meta`` as JSON."""
    counts = ("asked", "importance", "timestamp", "priority", "access_count", "last_used")
    meta = [{"item": asdict(r.item)} | {name: getattr(r, name) for name in counts} for r in records]
    tensors = {"meta": json_tensor(meta)}
    if records:
        tensors["target"] = torch.stack([record.target for record in records])
        for layer in records[0].keys:
            K, V = columns(records, layer)
            tensors |= {f"keys.{layer}": K.T, f"values.{layer}": V.T}
    return tensors


def _unpack(state: Mapping[str, Tensor], make: Callable[..., Item]) -> list[EditRecord]:
    """Return the records that :func:`_pack` packed, ``make`` being the class of their items."""
    layers = _layers(state)
    return [
        EditRecord(
            item=make(**entry.pop("item")),
            target=state["target"][i],
            keys={layer: state[f"keys.{layer}"][i] for layer in layers},
            values={layer: state[f"values.{layer}"][i] for layer in layers},
            **entry,
        )
        for i, entry in enumerate(from_json_tensor(state["meta"]))
    ]


def _layers(state: Mapping[str, Tensor]) -> list[int]:
    return [int(name.removeprefix("keys.")) for name in state if name.startswith("keys.")]


def make_memory(spec: ReplaySpec, seed: int) -> Memory:
    """Return the empty memory that a resolved spec asks for."""
    if spec.replay == "none" or (spec.replay == "buffer" and spec.replay_rate == 0):
        return Memory()
    if spec.replay == "buffer":
        how = (spec.replay_strategy, spec.replay_eviction)
        return ReplayBuffer(spec.replay_max_items, *how, seed, spec.replay_base)
    return Moments()
