"""Edits beside the weights: named LoRA adapters of ``peft`` on exactly the edited modules.

    stack = session.adapters          # or AdapterStack(lm) and stack.load(folder)
    stack.disable("batch_2")          # as if that batch had not been made
    stack.weigh("batch_1", 0.5)
    stack.combine("batch_1", "batch_3", into="both", rank=8)
    stack.save("adapters/both", "both")

A saved adapter is read by ``peft.PeftModel.from_pretrained`` like any other.
"""

import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from editkit.config import EditSpec
from editkit.language.lora import Problem, fit, truncate
from editkit.models import LanguageModel
from editkit.solvers import Update, clamp, missed

Factors = Mapping[int, tuple[Tensor, Tensor]]  # layer → left (d_v, r), right (r, d_k)
NOTES = "editkit.json"  # beside peft's own files: fingerprint of the base model, spec, facts, scores


@dataclass
class Adapter:
    """What an adapter adds: ``weight · left · right`` at each of its layers, where it is switched on."""

    factors: Factors  # float32 on the model's device
    weight: float = 1.0
    enabled: bool = True

    @property
    def n_parameters(self) -> int:
        return sum(left.numel() + right.numel() for left, right in self.factors.values())


class AdapterStack:
    """The adapters of one model, each under its name; the base weights stay as they are.

    Args:
        lm: a model without adapters; ``ValueError`` where it has some already.
        alpha: LoRA's alpha; 0 takes the rank, and so a scaling of 1.
    """

    def __init__(self, lm: LanguageModel, alpha: float = 0.0):
        if lm.has_adapters:
            raise ValueError(f"{lm.name} already carries adapters: use their AdapterStack, or close() it first")
        self.lm, self.base = lm, lm.fingerprint()
        self._alpha = alpha
        self._adapters: dict[str, Adapter] = {}
        self._peft = None
        self._unmerged: dict[int, Tensor] = {}

    def __repr__(self) -> str:
        return f"AdapterStack({', '.join(f'{n}: {a.weight if a.enabled else 0:g}' for n, a in self._adapters.items())})"

    def __len__(self) -> int:
        return len(self._adapters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of that name; ``ValueError`` where there is none."""
        if name not in self._adapters:
            raise ValueError(f"no adapter {name!r}; there are: {', '.join(self) or 'none'}")
        return self._adapters[name]

    @property
    def merged(self) -> bool:
        return bool(self._unmerged)

    def add(self, name: str, factors: Factors, weight: float = 1.0) -> None:
        """Add an adapter, switched on; one of the same name is replaced and keeps its weight and switch.

        Raises ``FloatingPointError`` for factors that are not finite and ``ValueError`` for a layer or shape
        that is not the model's; nothing is changed then.
        """
        self.check_unmerged()
        self._check(name, factors)
        stored = {layer: tuple(side.to(self.lm.device, torch.float32) for side in factors[layer]) for layer in factors}
        before = self._adapters.get(name, Adapter({}, weight))
        self._uninstall(name)
        self._adapters[name] = Adapter(stored, before.weight, before.enabled)
        self._install(name)

    def remove(self, *names: str) -> None:
        """Take batches of edits back out; the rest stays."""
        self.check_unmerged()
        for name in dict.fromkeys(name for name in names if self[name]):
            self._uninstall(name)
            del self._adapters[name]
        self._switch()

    def close(self) -> None:
        """Remove every adapter: the model is then the plain base model again."""
        self.unmerge()
        self.remove(*self)

    def enable(self, *names: str) -> None:
        self._set(names, enabled=True)

    def disable(self, *names: str) -> None:
        self._set(names, enabled=False)

    def weigh(self, name: str, weight: float) -> None:
        """Let an adapter count more or less; 1 is the edit as solved, and a negative weight works against it."""
        if not math.isfinite(weight):
            raise ValueError(f"weight of adapter {name!r} = {weight}: must be finite")
        self._set([name], weight=float(weight))

    def delta(self, layer: int) -> Tensor | float:
        """What the adapters in force add to a layer's weight, (d_v, d_k) float64; 0.0 where that is nothing."""
        parts = [a for a in self._adapters.values() if a.enabled and layer in a.factors]
        return sum((a.weight * a.factors[layer][0].double() @ a.factors[layer][1].double() for a in parts), 0.0)

    def joined(self, *names: str) -> Factors:
        """Adapters side by side as one, weights taken in: exactly their sum, and as high a rank as all together."""
        joined: dict[int, tuple[Tensor, Tensor]] = {}
        for adapter in [self[name] for name in names]:
            for layer, (left, right) in adapter.factors.items():
                pair = adapter.weight * left, right
                joined[layer] = _beside(joined[layer], pair) if layer in joined else pair
        return joined

    def combine(
        self, *names: str, into: str, rank: int | None = None, metrics: Mapping[int, Tensor] | None = None
    ) -> None:
        """Make one adapter of several, which it replaces.

        Args:
            rank: bring the sum down to this rank; as high as needed where not given.
            metrics: layer → G (d_k, d_k), in which the best approximation is meant, such as the second moment
                of the layer's keys; plain truncated SVD where not given.
        """
        factors = self.joined(*names)
        if rank is not None:
            if rank < 1:
                raise ValueError(f"rank = {rank}: must be 1 or more")
            for layer, (left, right) in factors.items():
                L, T = left.double(), right.double()
                moved = T @ metrics[layer].to(T) if metrics else T
                factors[layer] = truncate(L, T, moved @ T.T, rank)
        self._check(into, factors)
        self.remove(*names)
        self.add(into, factors)

    def merge(self) -> None:
        """Write what is in force into the base weights, of which a copy is kept for :meth:`unmerge`."""
        self.check_unmerged()
        if self._peft is None:
            raise ValueError("there is no adapter to merge")
        layers = {layer for adapter in self._adapters.values() for layer in adapter.factors}
        self._unmerged = {layer: self.lm.weight(layer).clone() for layer in layers}
        if any(adapter.enabled for adapter in self._adapters.values()):
            self._peft.merge_adapter()

    def unmerge(self) -> None:
        """The base weights from the kept copy, bit for bit, and the adapters beside them again."""
        if self.merged:
            if any(adapter.enabled for adapter in self._adapters.values()):
                self._peft.unmerge_adapter()
            for layer, weight in self._unmerged.items():
                self.lm.weight(layer).copy_(weight)
            self._unmerged = {}

    def save(self, directory: str | Path, *names: str, notes: Mapping[str, Any] | None = None) -> Path:
        """Write an adapter, or several as one, in peft's own format, with a model card.

        ``adapter_model.safetensors``, ``adapter_config.json`` and ``README.md``; ``editkit.json`` holds the
        base model's fingerprint and ``notes`` (``spec``, ``facts``, ``scores`` are shown in the card). The
        folder is complete or not there at all; an adapter saved there before is replaced, ``ValueError`` for
        any other folder that is not empty.
        """
        factors = self.joined(*(names or [name for name, adapter in self._adapters.items() if adapter.enabled]))
        if not factors:
            raise ValueError("nothing to save: no adapter is in force")
        directory = Path(directory)
        if directory.exists() and any(directory.iterdir()) and not (directory / NOTES).exists():
            raise ValueError(f"{directory} is not empty and no adapter of editkit: choose another folder")
        notes = {"model": self.lm.name, "weights": self.base} | dict(notes or {})
        tensors = {}
        for layer, (left, right) in factors.items():
            module = f"base_model.model.{self.lm.mlp_out_name(layer)}"
            scaling = self._scaling(right.shape[0])
            tensors |= {f"{module}.lora_A.weight": right, f"{module}.lora_B.weight": left / scaling}
        directory.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".partial-"))
        try:
            building.chmod(0o755)
            self._config(factors, inference_mode=True).save_pretrained(building)
            tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            (building / "adapter_model.safetensors").write_bytes(save_tensors(tensors, {"format": "pt"}))
            (building / NOTES).write_text(json.dumps(notes, indent=1))
            (building / "README.md").write_text(model_card(notes))
            shutil.rmtree(directory, ignore_errors=True)
            os.replace(building, directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return directory

    def load(self, directory: str | Path, name: str) -> None:
        """Add an adapter that :meth:`save` wrote.

        Raises ``ValueError``, before anything is loaded, where the base model is another one than it was made
        for, where the folder is no such adapter, and where a file is damaged.
        """
        directory = Path(directory)
        if not (directory / NOTES).is_file():
            raise ValueError(f"{directory} holds no adapter of editkit ({NOTES} is missing); others are peft's to load")
        if name in self:
            raise ValueError(f"there is an adapter {name!r} already: choose another name")
        try:
            notes = json.loads((directory / NOTES).read_text())
            if notes["weights"] != self.base:
                raise ValueError(
                    f"{directory} was made for another base model: {notes['model']!r} with fingerprint "
                    f"{notes['weights']}, this is {self.lm.name!r} with {self.base} (its dtype counts too)"
                )
            tensors = load_tensors((directory / "adapter_model.safetensors").read_bytes())
            config = json.loads((directory / "adapter_config.json").read_text())
            factors = {}
            for layer in config["layers_to_transform"]:
                module = self.lm.mlp_out_name(layer)
                left, right = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "BA")
                rank = config["rank_pattern"].get(module, config["r"])
                alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
                factors[layer] = left * (alpha / rank), right
        except (SafetensorError, json.JSONDecodeError, OSError, KeyError) as problem:
            raise ValueError(f"{directory} cannot be read: {problem}") from None
        self.add(name, factors)

    def _check(self, name: str, factors: Factors) -> None:
        if "." in name or not name:
            raise ValueError(f"adapter name {name!r}: must not be empty or hold a dot")
        if not factors:
            raise ValueError(f"adapter {name!r} has no layers")
        for layer, (left, right) in factors.items():
            if not 0 <= layer < self.lm.n_layers:
                raise ValueError(f"adapter {name!r}: layer {layer} is out of range 0 to {self.lm.n_layers - 1}")
            shape = left.shape[0], right.shape[1]
            if left.shape[1] != right.shape[0] or shape != tuple(self.lm.weight(layer).shape):
                raise ValueError(
                    f"adapter {name!r}, layer {layer}: {tuple(left.shape)} × {tuple(right.shape)} does not fit a "
                    f"weight {tuple(self.lm.weight(layer).shape)}"
                )
            if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
                raise FloatingPointError(f"layer {layer}: the update is not finite; the adapters stay as they were")

    def _set(self, names: Sequence[str], **changes: Any) -> None:
        self.check_unmerged()
        for adapter in [self[name] for name in names]:
            for field, value in changes.items():
                setattr(adapter, field, value)
        self._switch()

    def check_unmerged(self) -> None:
        """Raises ``RuntimeError`` while the adapters are merged: nothing can be changed then."""
        if self.merged:
            raise RuntimeError("the adapters are merged into the base weights: unmerge() first")

    def _scaling(self, rank: int) -> float:
        return self._alpha / rank if self._alpha else 1.0

    def _config(self, factors: Factors, **options: Any):
        from peft import LoraConfig

        ranks = {layer: right.shape[0] for layer, (_, right) in factors.items()}
        highest = max(ranks.values())
        lower = {self.lm.mlp_out_name(layer): rank for layer, rank in ranks.items() if rank < highest}
        return LoraConfig(
            base_model_name_or_path=self.lm.name,
            task_type="CAUSAL_LM",
            r=highest,
            lora_alpha=self._scaling(highest) * highest,
            rank_pattern=lower,
            alpha_pattern={module: self._scaling(rank) * rank for module, rank in lower.items()},
            target_modules=[self.lm.family.mlp_out],
            layers_to_transform=sorted(factors),
            layers_pattern=self.lm.family.layers.rpartition(".")[2],
            fan_in_fan_out=self.lm.family.transposed,
            lora_dropout=0.0,
            bias="none",
            **options,
        )

    def _install(self, name: str) -> None:
        from peft import PeftModel

        factors = self._adapters[name].factors
        config = self._config(factors)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks by the old name
            if self._peft is None:
                self._peft = PeftModel(self.lm.model, config, name)
            else:
                self._peft.add_adapter(name, config)
        for layer, (left, right) in factors.items():
            module = self.lm.mlp_out(layer)
            module.lora_A[name].weight.data.copy_(right)
            module.lora_B[name].weight.data.copy_(left / self._scaling(right.shape[0]))
        self._switch()

    def _uninstall(self, name: str) -> None:
        if name not in self._adapters:
            return
        if len(self._adapters) == 1:
            self._peft.unload()
            self._peft = None
        else:
            self._peft.delete_adapter(name)

    def _switch(self) -> None:
        """Bring peft's switches and scalings to what the adapters say; freeze everything."""
        if self._peft is None:
            return
        enabled = [name for name, adapter in self._adapters.items() if adapter.enabled]
        for name in enabled:
            for layer in self._adapters[name].factors:
                self.lm.mlp_out(layer).set_scale(name, self._adapters[name].weight)
        if enabled:
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(enabled)
        else:
            self._peft.base_model.disable_adapter_layers()
        self.lm.model.eval().requires_grad_(False)


class Overlay:
    """Where a session in ``edit_mode: lora`` writes: adapters of a stack; the weights are left alone.

    It does what :class:`editkit.language.weights.RawWeights` does for raw edits.
    """

    def __init__(self, lm: LanguageModel, spec: EditSpec, stack: AdapterStack):
        self.lm, self.spec, self.stack = lm, spec, stack
        self._names: list[str] = []  # of the session's own adapters
        self._current = ""

    @property
    def n_parameters(self) -> int:
        return sum(adapter.n_parameters for adapter in self._own().values())

    def begin(self) -> None:
        """The next updates belong to a new batch."""
        self.stack.check_unmerged()
        kind = "batch" if self.spec.lora_stack == "batch" else "edits"
        own = list(self._own())
        free = next(name for number in count(1) if (name := f"{kind}_{number}") not in self.stack)
        self._current = own[0] if own and kind == "edits" else free

    def weight(self, layer: int) -> Tensor:
        """``W`` (d_v, d_k) as it is in force, float64."""
        return self.lm.weight(layer).double() + self.stack.delta(layer)

    def write(self, layer: int, update: Update, problem: Problem, largest: float) -> Update:
        """Fit the update to the rank, bound the norm, write; returns the change as written."""
        K, R = problem.K, problem.R
        if self.spec.lora_scale != 1:
            left = update.left * self.spec.lora_scale
            update = update._replace(left=left, residual=missed(left, update.right, K, R))
        old = self._factors(layer)
        if self.spec.lora_stack != "fixed" or old is None:
            written = clamp(fit(update, problem, self.spec), self.weight(layer), largest)
            self.add(layer, written.left, written.right)
            return written
        # All edits so far together are brought down to the rank again.
        left, right = _beside(old, (update.left, update.right))
        rest = self.weight(layer) - old[0] @ old[1]
        new = clamp(fit(update._replace(left=left, right=right), problem, self.spec), rest, largest)
        self._put(layer, new.left, new.right)
        left, right = _beside((new.left, new.right), (-old[0], old[1]))
        return new._replace(left=left, right=right, residual=missed(left, right, K, R))

    def add(self, layer: int, left: Tensor, right: Tensor) -> None:
        """Add ``left · right`` as it is to the current adapter."""
        old, new = self._factors(layer), (left, right)
        self._put(layer, *(_beside(old, new) if old else new))

    def read(self) -> dict[str, Tensor]:
        """Everything that edits change, by name. The tensors are the adapters' own, which are never written to."""
        return {
            f"{name}.{layer}.{side}": tensor
            for name, adapter in self._own().items()
            for layer, pair in adapter.factors.items()
            for side, tensor in zip(("left", "right"), pair, strict=True)
        }

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`read` returned."""
        adapters: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        for key in state:
            name, layer, side = key.split(".")
            if side == "left":
                adapters.setdefault(name, {})[int(layer)] = state[key], state[f"{name}.{layer}.right"]
        self.stack.remove(*(name for name in self._own() if name not in adapters))
        for name, factors in adapters.items():
            self.stack.add(name, factors)
        self._names = list(adapters)

    mark = read  # what undoing needs to come back here

    def changed_since(self, state: Mapping[str, Tensor]) -> int | None:
        """Undoing removes adapters and does not touch the weights, so nobody's change to them can be lost."""

    def _own(self) -> dict[str, Adapter]:
        return {name: self.stack[name] for name in self._names if name in self.stack}

    def _factors(self, layer: int) -> tuple[Tensor, Tensor] | None:
        own = self._own()
        pair = own[self._current].factors.get(layer) if self._current in own else None
        return (pair[0].double(), pair[1].double()) if pair else None

    def _put(self, layer: int, left: Tensor, right: Tensor) -> None:
        own = self._own()
        before = own[self._current].factors if self._current in own else {}
        self.stack.add(self._current, {**before, layer: (left, right)})
        self._names = list(self._own() | {self._current: None})


def _beside(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Factors of the sum of two products."""
    return torch.cat([a[0], b[0]], dim=1), torch.cat([a[1], b[1]], dim=0)


def model_card(notes: Mapping[str, Any]) -> str:
    """README of a saved adapter, in the hub's form."""
    lines = [
        "---",
        f"base_model: {notes['model']}",
        "library_name: peft",
        "tags: [lora, model-editing, editkit]",
        "---",
        "",
        f"# Edits of {notes['model']} as a LoRA adapter",
        "",
        "Made by editkit in closed form: nothing was trained. Load it with "
        "`peft.PeftModel.from_pretrained(base, folder)`.",
        "",
        f"It belongs to `{notes['model']}` with the weights' fingerprint `{notes['weights']}`.",
    ]
    if scores := notes.get("scores"):
        lines += ["", "## Scores of these edits", "", *_table(["score", "value"], scores.items())]
    if facts := notes.get("facts"):
        rows = [(f["prompt"].replace("{}", f["subject"]), f["target_new"], f["target_true"]) for f in facts]
        lines += ["", "## Edited facts", "", *_table(["prompt", "now", "before"], rows)]
    if spec := notes.get("spec"):
        lines += ["", "## Method and hyperparameters", "", *_table(["name", "value"], spec.items())]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows) -> list[str]:
    def line(cells) -> str:
        shown = (f"{cell:.3f}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(shown)} |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows)]
