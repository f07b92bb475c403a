"""What a session wrote, kept so that it can be undone bit for bit, settled, saved and continued."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from editkit.cache import from_json_tensor, json_tensor, write_atomic
from editkit.editing.item import Item
from editkit.editing.replay import Memory
from editkit.editing.result import EditResult
from editkit.editing.weights import Overlay, RawWeights, State
from editkit.plain import to_json

Pairs = list[tuple[str, Item]]  # items, each with the name of the adapter it was written to; empty for raw edits


class Journal:
    """The results of a session that can still be undone one by one, and the states before and after them."""

    def __init__(self, weights: RawWeights | Overlay):
        self.weights = weights
        self.results: list[EditResult] = []
        self.settled: Pairs | None = None  # edits that can only be undone all together
        self._before: list[tuple[Memory, State | None]] = []  # memory and mark before each result
        self._original: State | None = None  # before the first edit
        self._written: State | None = None  # after the last edit
        self._base: State | None = None  # where the results begin, once edits were settled

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written, or everything was undone."""
        return self._original is None

    def note(self, before: State, memory: Memory, mark: State | None) -> None:
        """Note weights and memory as they were before a step that is now written."""
        self._before.append((memory, mark))
        self._original = before if self._original is None else self._original
        self._written = self.weights.read()

    def untouched(self) -> AbstractContextManager[None]:
        """Return a context in which the model is as it was before its first edit."""
        return nullcontext() if self._original is None else self.weights.put_for_now(self._original)

    def undo(self, last: int | None, nothing: Memory) -> Memory | None:
        """Take back the ``last`` results, or everything; returns the memory then, after everything ``nothing``.

        Returns None where there is nothing to take back. Raises as :meth:`editkit.editing.session.Session.undo`.
        """
        everything = last is None
        last = len(self.results) if everything else last
        if not 0 <= last <= len(self.results):
            raise ValueError(f"cannot undo {last} edits: this session made {len(self.results)}")
        if self._written is not None and (what := self.weights.changed_since(self._written)):
            raise RuntimeError(f"{what} was changed outside this session; {self.weights.way_back}")
        kept = self.results[: len(self.results) - last]
        stay = _names(kept) | (set() if everything else self._settled_names())
        undone = _names(self.results[len(kept) :]) | (self._settled_names() if everything else set())
        self.weights.check_apart(stay, undone)
        if not everything and not last:
            return None
        memory, mark = (nothing, self._original) if everything else self._before[len(kept)]
        if mark is not None:
            self.weights.put(mark)
        elif self._original is not None:
            self.weights.put(self._original if everything or self._base is None else self._base)
            for result in kept:  # the same additions in the same order give the same bits
                for item in result.updates:
                    self.weights.add(item.layer, item.update.left, item.update.right)
        if everything:
            self.settled = self._base = None
        del self._before[len(kept) :]
        self._written = self.weights.read()
        if not kept and self.settled is None:  # nothing is held any more: the weights may change outside the session
            self._original = self._written = None
        self.results = kept
        return memory

    def settle(self) -> None:
        """Accept the results so far and drop their updates."""
        if self.results:
            self.settled, self._base = self.pairs(), self._written
            self.results = []
            self._before.clear()

    def pairs(self) -> Pairs:
        """Return every item edited so far with its adapter's name, except those rolled back."""
        made = [(result.adapter, item) for result in self.results if result.updates for item in result.items]
        return (self.settled or []) + made

    def edited(self, adapters: Sequence[str] | None = None) -> list[Item]:
        """Return the items edited so far that are in the given adapters, or all that are in force."""
        held = self.weights.batches(adapters)
        return [item for name, item in self.pairs() if held is None or name in held]

    def save(self, path: Path, about: dict[str, Any]) -> Path:
        """Write the updates in factored form, with ``about`` as JSON in the file's metadata."""
        if self.settled:
            raise ValueError("the updates of settled edits are gone: save before settling")
        if not self.results:
            raise ValueError("nothing to save: this session has made no edit")
        updates = [item for result in self.results for item in result.updates]
        tensors = {
            f"{number}.{item.layer}.{side}": getattr(item.update, side).cpu().contiguous()
            for number, item in enumerate(updates)
            for side in ("left", "right")
        }
        write_atomic(path, save_tensors(tensors, {"editkit": to_json(about)}))
        return path

    def repeat(self, saved: "SavedEdits", items: list[Item]) -> None:
        """Write saved updates again; on any error the weights stay as they were."""
        self._original = self.weights.read()
        self.weights.begin()
        try:
            for layer, left, right in saved.updates:
                self.weights.add(layer, left, right)
        except BaseException:
            self.weights.put(self._original)
            raise
        self._written = self._base = self.weights.read()
        self.settled = [("", item) for item in items]

    def state_dict(self, about: dict[str, Any]) -> State:
        """Return what is written and its items; adapters are taken as they are now, with their switches and weights."""
        written = self._written if self._written is not None and self.weights.is_raw else self.weights.read()
        pairs = [(adapter, asdict(item)) for adapter, item in self.pairs()]
        state = {f"edits.{name}": tensor for name, tensor in written.items()}
        return state | {"session": json_tensor(about | {"items": pairs, "settings": self.weights.settings()})}

    def load_state_dict(self, state: State, about: dict[str, Any], make: type[Item]) -> None:
        """Take over what :meth:`state_dict` returned."""
        original = self.weights.read()
        self.weights.load(part_of(state, "edits.", self.weights.model.device), about["settings"])
        self._original, self._written = original, self.weights.read()
        self._base = self._written
        self.settled = [(adapter, make(**entry)) for adapter, entry in about["items"]]

    def _settled_names(self) -> set[str]:
        return {name for name, _ in self.settled or ()}


class SavedEdits(NamedTuple):
    """What :meth:`Journal.save` wrote."""

    about: dict[str, Any]
    updates: list[tuple[int, Tensor, Tensor]]  # layer, left (d_v, n), right (n, d_k), in the order of edits


def read_edits(path: str | Path, device: torch.device) -> SavedEdits:
    """Read a file that :meth:`Journal.save` wrote. Raises ``ValueError`` for any other file."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            about = json.loads((file.metadata() or {})["editkit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        layers, order = about["spec"]["layers"], sorted({tuple(map(int, name.split(".")[:2])) for name in tensors})
        wanted = {f"{number}.{layer}.{side}" for number, layer in order for side in ("left", "right")}
        if odd := sorted(wanted ^ tensors.keys()) or sorted({layer for _, layer in order} - {*layers}):
            raise ValueError(f"{odd[0]} does not belong to a pair of factors for one of layers {layers}")
        pairs = [(a, tensors[f"{i}.{a}.left"], tensors[f"{i}.{a}.right"]) for i, a in order]
        return SavedEdits(about, pairs)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{path} does not hold the edits of such a session: {problem}") from None


def read_state(state: State) -> dict[str, Any]:
    """Return the plain values that a session's state holds beside its tensors."""
    return from_json_tensor(state["session"])


def part_of(state: State, prefix: str, device: torch.device) -> State:
    """Return the tensors whose names begin with ``prefix``, under their names without it."""
    return {name.removeprefix(prefix): t.to(device) for name, t in state.items() if name.startswith(prefix)}


def _names(results: Sequence[EditResult]) -> set[str]:
    return {result.adapter for result in results}
