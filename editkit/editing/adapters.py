"""Edits beside the weights: named LoRA adapters of ``peft`` on exactly the edited modules.

    stack = session.adapters          # or AdapterStack(model) and stack.load(folder)
    stack.disable("batch_2")          # as if that batch had not been made
    stack.weigh("batch_1", 0.5)
    stack.combine("batch_1", "batch_3", into="both", rank=8)
    stack.save("adapters/both", "both")

A saved adapter is read by ``peft.PeftModel.from_pretrained`` like any other.
"""

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor, nn

from editkit.editing.adapter_files import read_adapter, write_adapter
from editkit.editing.lowrank import truncate
from editkit.models.base import ModelT

if TYPE_CHECKING:  # peft is imported where there are adapters: it takes a while
    from peft import LoraConfig, PeftModel

Factors = Mapping[int, tuple[Tensor, Tensor]]  # layer → left (d_v, r), right (r, d_k)


@dataclass
class Adapter:
    """What an adapter adds: ``weight · left · right`` at each of its layers while it is switched on."""

    factors: Factors  # float32 on the model's device
    holds: tuple[str, ...]  # names under which its parts were added: its own, or those of the adapters combined in it
    weight: float = 1.0
    enabled: bool = True

    @property
    def n_parameters(self) -> int:
        return sum(left.numel() + right.numel() for left, right in self.factors.values())


class AdapterStack(Generic[ModelT]):
    """The adapters of one model, each under its name; the base weights stay as they are.

    Args:
        model: must be without adapters, else ``ValueError`` is raised.
        alpha: LoRA's alpha; 0 takes the rank, and so a scaling of 1.
    """

    def __init__(self, model: ModelT, alpha: float = 0.0):
        if model.has_adapters:
            raise ValueError(f"{model.name} already carries adapters: use their AdapterStack, or close() it first")
        self.model, self.alpha = model, alpha
        self._adapters: dict[str, Adapter] = {}
        self.names: set[str] = set()  # every name ever added: no session takes one a second time
        self._base = ""
        self._peft: PeftModel | None = None
        self._unmerged: dict[int, Tensor] = {}  # the base weights of the layers that adapters are merged into
        self._merged = ""  # fingerprint of the model with them

    def __repr__(self) -> str:
        return f"AdapterStack({', '.join(f'{n}: {a.weight if a.enabled else 0:g}' for n, a in self._adapters.items())})"

    def __len__(self) -> int:
        return len(self._adapters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __getitem__(self, name: str) -> Adapter:
        """Return the adapter of that name. Raises ``ValueError`` where there is none."""
        if name not in self._adapters:
            raise ValueError(f"no adapter {name!r}; there are: {', '.join(self) or 'none'}")
        return self._adapters[name]

    @property
    def base(self) -> str:
        """Fingerprint of the weights without adapters; taken anew while there are none, as the weights may change."""
        return self._base if self._adapters else self.model.fingerprint()

    @property
    def enabled(self) -> list[str]:
        """Names of the adapters that are switched on."""
        return [name for name, adapter in self._adapters.items() if adapter.enabled]

    @property
    def merged(self) -> bool:
        return bool(self._unmerged)

    def add(self, name: str, factors: Factors, *, holds: Sequence[str] = ()) -> None:
        """Add an adapter, switched on; one that replaces another of its name takes over that one's weight and switch.

        Args:
            holds: names of the adapters combined in it, where there are any.

        Raises ``FloatingPointError`` for factors that are not finite and ``ValueError`` for a layer or shape
        that is not the model's; nothing is changed then.
        """
        self.check_unmerged()
        self._check(name, factors)
        where = {layer: self.model.weight(layer).device for layer in factors}
        stored = {
            layer: (left.to(where[layer], torch.float32), right.to(where[layer], torch.float32))
            for layer, (left, right) in factors.items()
        }
        self._base = self.base
        before = self._adapters.get(name)
        self._uninstall(name)
        try:
            old = before or Adapter({}, (name,))
            self._adapters[name] = Adapter(stored, tuple(holds) or old.holds, old.weight, old.enabled)
            self._install(name)
            self.names.add(name)
        except BaseException:
            del self._adapters[name]
            if before:
                self._adapters[name] = before
                self._install(name)
            raise

    def remove(self, *names: str) -> None:
        """Remove adapters, and with them their edits; the others stay."""
        self.check_unmerged()
        for name in dict.fromkeys(name for name in names if self[name]):
            self._uninstall(name)
            del self._adapters[name]
        self._switch()

    def close(self) -> None:
        """Remove every adapter, so that the model is the plain base model again."""
        self.unmerge()
        self.remove(*self)

    def enable(self, *names: str) -> None:
        self._set(names, enabled=True)

    def disable(self, *names: str) -> None:
        self._set(names, enabled=False)

    @contextmanager
    def switched(self, *, on: Collection[str] = (), off: Collection[str] = ()) -> Iterator[None]:
        """Switch some adapters on and others off within a block; afterwards each is as it was, whatever happens."""
        on, off = [name for name in on if not self[name].enabled], [name for name in off if self[name].enabled]
        try:
            self._set(on, enabled=True)
            self._set(off, enabled=False)
            yield
        finally:
            self._set(off, enabled=True)
            self._set(on, enabled=False)

    def weigh(self, name: str, weight: float) -> None:
        """Set an adapter's weight: 1 is the edit as solved, and a negative weight works against it."""
        if not math.isfinite(weight):
            raise ValueError(f"weight of adapter {name!r} = {weight}: must be finite")
        self._set([name], weight=float(weight))

    def delta(self, layer: int) -> Tensor | float:
        """Return what the adapters in force add to a layer's weight, (d_v, d_k) float64; 0.0 where that is nothing."""
        parts = [a for a in self._adapters.values() if a.enabled and layer in a.factors]
        return sum((a.weight * a.factors[layer][0].double() @ a.factors[layer][1].double() for a in parts), 0.0)

    def joined(self, *names: str) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the exact sum of adapters, weights included, as one pair of factors per layer; their ranks add up.

        A name given twice counts once.
        """
        joined: dict[int, tuple[Tensor, Tensor]] = {}
        for adapter in [self[name] for name in dict.fromkeys(names)]:
            for layer, (left, right) in adapter.factors.items():
                pair = adapter.weight * left, right
                joined[layer] = side_by_side(joined[layer], pair) if layer in joined else pair
        return joined

    def combine(
        self, *names: str, into: str, rank: int | None = None, metrics: Mapping[int, Tensor] | None = None
    ) -> None:
        """Replace several adapters in force by one, which takes their weights in for good.

        Args:
            rank: the rank that the sum is brought down to; as high as needed where not given.
            metrics: layer → G (d_k, d_k), the metric of the best approximation, such as the second moment of the
                layer's keys; plain truncated SVD where not given.

        Raises ``ValueError`` for an adapter that is switched off and for a taken name; nothing is changed then.
        """
        if into not in names:
            self.check_free(into)
        if off := [name for name in names if not self[name].enabled]:
            raise ValueError(f"adapter {off[0]!r} is switched off: enable or remove it first")
        factors = self.joined(*names)
        if rank is not None:
            if rank < 1:
                raise ValueError(f"rank = {rank}: must be 1 or more")
            for layer, (left, right) in factors.items():
                L, T = left.double(), right.double()
                moved = T @ metrics[layer].to(T) if metrics else T
                factors[layer] = truncate(L, T, moved @ T.T, rank)
        self._check(into, factors)
        holds = dict.fromkeys(batch for name in names for batch in self[name].holds)
        self.remove(*names)
        self.add(into, factors, holds=tuple(holds))

    def merge(self) -> None:
        """Write the adapters in force into the base weights and keep a copy of the latter for :meth:`unmerge`.

        The model is a plain one then: saved by transformers, it loads anywhere with the edits in it.
        """
        self.check_unmerged()
        if not self._adapters:
            raise ValueError("there is no adapter to merge")
        layers = {layer for adapter in self._adapters.values() for layer in adapter.factors}
        self._unmerged = {layer: self.model.weight(layer).clone() for layer in sorted(layers)}
        self._take_off()
        for layer, weight in self._unmerged.items():
            self.model.weight(layer).copy_(weight.double() + self.delta(layer))
        self._merged = self.model.fingerprint()

    def unmerge(self) -> None:
        """Restore the base weights bit for bit from the kept copy, with the adapters beside them again.

        Raises ``RuntimeError`` where the merged model has been changed since, which would be lost.
        """
        if not self.merged:
            return
        if self.model.fingerprint() != self._merged:
            raise RuntimeError("the model has been changed since its adapters were merged: undo that first")
        for layer, weight in self._unmerged.items():
            self.model.weight(layer).copy_(weight)
        self._unmerged = {}
        for name in self._adapters:
            self._put_on(name)
        self._switch()

    def check_unmerged(self) -> None:
        """Raise ``RuntimeError`` while the adapters are merged, as nothing can be changed then."""
        if self.merged:
            raise RuntimeError("the adapters are merged into the base weights: unmerge() first")

    def check_free(self, name: str) -> None:
        """Raise ``ValueError`` for a name that an adapter has."""
        if name in self:
            raise ValueError(f"there is an adapter {name!r} already: choose another name")

    def save(self, directory: str | Path, *names: str, notes: Mapping[str, Any] | None = None) -> Path:
        """Write an adapter, or several as one, in peft's own format, with a model card.

        Beside peft's files and ``README.md``, ``editkit.json`` holds the base model's fingerprint and ``notes``
        (the card shows ``spec``, ``edited`` and ``scores``). The folder is written whole or not at all, and an
        adapter saved there before is replaced. Raises ``ValueError`` for any other folder that is not empty, and
        where no adapter is in force.
        """
        factors = self.joined(*(names or self.enabled))
        if not factors:
            raise ValueError("nothing to save: no adapter is in force")
        tensors: dict[str, Tensor] = {}
        for layer, (left, right) in factors.items():
            module = f"base_model.model.{self.model.mlp_out_name(layer)}"
            scaling = self._scaling(right.shape[0])
            tensors |= {f"{module}.lora_A.weight": right, f"{module}.lora_B.weight": left / scaling}
        about = dict(notes or {}) | {"model": self.model.name, "weights": self.base}
        return write_adapter(Path(directory), self._config(factors, inference_mode=True), tensors, about)

    def load(self, directory: str | Path, name: str) -> None:
        """Add an adapter that :meth:`save` wrote.

        Raises ``ValueError``, before anything is loaded, for a folder that was made for another base model, is no
        such adapter or is damaged.
        """
        self.check_free(name)
        config, tensors = read_adapter(Path(directory), self.model.name, self.base)
        factors = {}
        try:
            for layer in config["layers_to_transform"]:
                module = self.model.mlp_out_name(layer)
                left, right = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "BA")
                rank = config["rank_pattern"].get(module, config["r"])
                alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
                factors[layer] = left * (alpha / rank), right
        except KeyError as missing:
            raise ValueError(f"{directory} cannot be read: it has no {missing}") from None
        self.add(name, factors)

    def _check(self, name: str, factors: Factors) -> None:
        if "." in name or not name:
            raise ValueError(f"adapter name {name!r}: must not be empty or hold a dot")
        if hasattr(nn.ModuleDict(), name):
            raise ValueError(f"adapter name {name!r}: torch keeps it for itself, choose another")
        if not factors:
            raise ValueError(f"adapter {name!r} has no layers")
        for layer, (left, right) in factors.items():
            if not 0 <= layer < self.model.n_layers:
                raise ValueError(f"adapter {name!r}: layer {layer} is out of range 0 to {self.model.n_layers - 1}")
            shape = left.shape[0], right.shape[1]
            if not left.shape[1] or left.shape[1] != right.shape[0] or shape != tuple(self.model.weight(layer).shape):
                raise ValueError(
                    f"adapter {name!r}, layer {layer}: {tuple(left.shape)} × {tuple(right.shape)} does not fit a "
                    f"weight {tuple(self.model.weight(layer).shape)}"
                )
            if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
                raise FloatingPointError(f"layer {layer}: the update is not finite; the adapters stay as they were")

    def _set(self, names: Sequence[str], **changes: Any) -> None:
        if not names:
            return
        self.check_unmerged()
        for adapter in [self[name] for name in names]:
            for field, value in changes.items():
                setattr(adapter, field, value)
        self._switch()

    def _scaling(self, rank: int) -> float:
        return self.alpha / rank if self.alpha else 1.0

    def _config(self, factors: Factors, **options: Any) -> "LoraConfig":
        from peft import LoraConfig

        ranks = {layer: right.shape[0] for layer, (_, right) in factors.items()}
        highest = max(ranks.values())
        lower = {self.model.mlp_out_name(layer): rank for layer, rank in ranks.items() if rank < highest}
        return LoraConfig(
            base_model_name_or_path=self.model.name,
            task_type=self.model.peft_task,
            r=highest,
            lora_alpha=self._scaling(highest) * highest,  # type: ignore[arg-type]  # peft takes any number
            rank_pattern=lower,
            alpha_pattern={module: self._scaling(rank) * rank for module, rank in lower.items()},
            target_modules=[self.model.family.mlp_out],
            layers_to_transform=sorted(factors),
            layers_pattern=self.model.family.layers.rpartition(".")[2],
            fan_in_fan_out=self.model.family.transposed,
            lora_dropout=0.0,
            bias="none",
            **options,
        )

    def _install(self, name: str) -> None:
        self._put_on(name)
        self._switch()

    def _put_on(self, name: str) -> None:
        from peft import PeftModel

        if self._peft is None and self.model.has_adapters:
            raise ValueError(f"{self.model.name} carries adapters of another stack: close() that first")
        factors = self._adapters[name].factors
        config = self._config(factors)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks by the old name
            if self._peft is None:
                self._peft = PeftModel(self.model.model, config, name)
            else:
                self._peft.add_adapter(name, config)
        for layer, (left, right) in factors.items():
            module = self.model.mlp_out(layer)
            module.lora_A[name].weight.data.copy_(right)
            module.lora_B[name].weight.data.copy_(left / self._scaling(right.shape[0]))

    def _uninstall(self, name: str) -> None:
        if name not in self._adapters:
            return
        if len(self._adapters) == 1:
            self._take_off()
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Adapter .* was active")  # _switch sets the active ones next
                self._peft.delete_adapter(name)

    def _take_off(self) -> None:
        self._peft.unload()
        self._peft = None

    def _switch(self) -> None:
        """Set peft's switches and scalings as the adapters say, and freeze everything."""
        if self._peft is None:
            return
        for name in self.enabled:
            for layer in self._adapters[name].factors:
                self.model.mlp_out(layer).set_scale(name, self._adapters[name].weight)
        tuner: Any = self._peft.base_model  # peft states no type for it
        if self.enabled:
            tuner.enable_adapter_layers()
            tuner.set_adapter(self.enabled)
        else:
            tuner.disable_adapter_layers()
        self.model.model.eval().requires_grad_(False)


def side_by_side(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return factors of the sum of two products ``left · right``."""
    return torch.cat([a[0], b[0]], dim=1), torch.cat([a[1], b[1]], dim=0)
