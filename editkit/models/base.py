"""What models that can be edited have in common: where a family keeps what an edit touches."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from editkit.models.hooks import returns_tuple

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # how configs call their number
FOLD = 4093  # 64-bit words of the row that weights are folded to; prime, so that no row of a weight falls onto itself


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its layers and each layer's MLP output weight.

    ``transposed`` marks Conv1D layers, which store the weight as d_k × d_v instead of d_v × d_k; ``scale``
    names the factor (LayerScale) of each output on its way into the residual stream, where a family has one, and
    ``norm`` the norm. ``attention`` is the module inside a layer that mixes positions. ``needs`` has what a model's
    config must say, by name, for this row to be true of it.
    """

    layers: str
    mlp_out: str
    transposed: bool = False
    scale: str | None = None
    norm: str | None = None
    attention: str = "attention"
    needs: tuple[tuple[str, Any], ...] = ()

    @property
    def mlp(self) -> str:
        """The module inside a layer whose output is that of the MLP: the one that holds its last matrix, or that."""
        return self.mlp_out.rpartition(".")[0] or self.mlp_out


def stated_config(name: str) -> dict[str, Any]:
    """Read the entries of the transformers config of a local folder or hub id, none where there is none to read."""
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(name)[0]
    except (OSError, ValueError):  # what is wrong with the name is told by who reads the weights
        return {}


def find_family(name: str, config: Mapping[str, Any], families: Mapping[str, Family]) -> Family:
    """Look up a model's row by the entries of its transformers config.

    Raises ``ValueError`` for a family that has none, for a stored model whose weights are quantised already, and for
    one of a supported family that differs from the others in what an edit needs.
    """
    kind = config.get("model_type")
    if kind not in families:
        experts = any(config.get(field) for field in EXPERTS)
        why = "a mixture of experts has no one matrix that every token passes; " if experts else ""
        raise ValueError(f"{name}: model family {kind!r} is not supported; {why}known families: {', '.join(families)}")
    if config.get("quantization_config"):
        raise ValueError(
            f"{name}: its weights are stored quantised and cannot be edited; take the model in its full precision "
            "(load_lm can quantise what no edit touches: quantization)"
        )
    for field, wanted in families[kind].needs:
        if (value := config.get(field, wanted)) != wanted:
            raise ValueError(f"{name}: a {kind} with {field} = {value} is not supported; {wanted} is")
    return families[kind]


class EditableModel:
    """A transformers model and the table row of its family.

    ``peft_task`` is what a saved adapter's config calls the model's task, ``kind`` names the default
    hyperparameters of a model that has none of its own.

    Args:
        name: what the model is called in results and where its default hyperparameters are looked up.
        model: the model; it is frozen and set to evaluation.
        families: the known families by the ``model_type`` of a transformers config, see :func:`find_family`.
    """

    peft_task: str | None = None
    kind: str | None = None

    def __init__(self, name: str, model: Any, families: Mapping[str, Family]):
        # Whether a loaded weight is quantised is asked of the weight itself, see weight().
        config = model.config.to_dict() | {"quantization_config": None}
        self.name, self.family = name, find_family(name, config, families)
        self.model: Any = model.eval().requires_grad_(False)  # whose classes share no type that says what is used

    def __repr__(self) -> str:
        count = self.model.num_parameters() / 1e6
        return f"{type(self).__name__}({self.name!r}, {count:.0f}M parameters, {self.n_layers} layers, {self.device})"

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The layers; a layer's output is the residual stream after it."""
        return self.model.get_submodule(self.family.layers)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def tuple_layers(self) -> bool:
        """Whether a layer returns a tuple (transformers 4, GPT-J) or a tensor."""
        with torch.no_grad():
            return returns_tuple(self.layers[0], self.probe)

    def probe(self) -> Tensor:
        """Run the shortest forward pass there is."""
        raise NotImplementedError

    @property
    def d_k(self) -> int:
        """Dimension of a key: the input of the edited linear layer."""
        linear = self.mlp_out(0)
        return linear.nx if self.family.transposed and hasattr(linear, "nx") else linear.in_features

    def mlp_out(self, layer: int) -> Any:
        """Return the edited linear layer: the second matrix of the MLP, whose input is an edit's key.

        It is an ``nn.Linear``, transformers' ``Conv1D``, or peft's layer around one of them.
        """
        return self.layers[layer].get_submodule(self.family.mlp_out)

    def target_module(self, layer: int) -> nn.Module:
        """Return the module whose output at an edit's place a target stands for.

        That is the layer, whose output is the residual stream; and the edited linear layer itself where a norm follows
        it, after which no longer every state can be reached.
        """
        return self.mlp_out(layer) if self.family.norm else self.layers[layer]

    def arriving(self, layer: int, state: Tensor, delta: Tensor) -> Tensor:
        """Compute by how much the residual stream changes where the target module puts out ``state + delta`` (…, d)."""
        if not self.family.norm:
            return delta
        norm = self.layers[layer].get_submodule(self.family.norm)
        return (norm(state + delta) - norm(state)).to(state.device)

    def mlp_out_name(self, layer: int) -> str:
        """Return the path of the edited linear layer inside :attr:`model`."""
        return f"{self.family.layers}.{layer}.{self.family.mlp_out}"

    @property
    def has_adapters(self) -> bool:
        """Whether peft adapters lie beside some of the edited layers' weights."""
        return any(hasattr(self.mlp_out(layer), "lora_A") for layer in range(self.n_layers))

    def weight(self, layer: int) -> Tensor:
        """Return ``W`` (d_v × d_k) of the edited linear layer, a view of the parameter: writing to it edits the model.

        It does not hold what adapters add. Raises ``ValueError`` for a layer that cannot be edited.
        """
        weight = self.mlp_out(layer).weight.data
        if not is_plain(weight):
            why = "accelerate moved it out of the GPU's memory" if weight.is_meta else "its weight is quantised"
            raise ValueError(
                f"layer {layer} of {self.name} cannot be edited: {why}; name the layers to edit in float_layers of "
                "load_lm, or take device 'cpu'"
            )
        return weight.T if self.family.transposed else weight

    @property
    def float32_weight(self) -> Tensor | None:
        """Weight of an edited linear layer that is an ordinary float32 tensor; None where no layer's is."""
        weights = (self.mlp_out(layer).weight.data for layer in range(self.n_layers))
        return next((weight for weight in weights if weight.dtype == torch.float32 and is_plain(weight)), None)

    def gain(self, layer: int) -> Tensor:
        """Return by how much each output of the edited layer changes the residual stream, (d_v, 1) or (1, 1) float64.

        Raises ``ValueError`` where that is 0: no edit of this layer would reach the target.
        """
        if self.family.scale is None:
            return torch.ones(1, 1, dtype=torch.float64, device=self.device)
        gain = self.layers[layer].get_parameter(self.family.scale).data.double()[:, None]
        if closed := int((gain == 0).sum()):
            what = f"{self.family.scale} is 0 in {closed} of {len(gain)} outputs"
            raise ValueError(f"layer {layer} of {self.name} cannot be edited: {what}")
        return gain

    def identity(self) -> dict[str, Any]:
        """Return what determines everything that the model computes, for :func:`editkit.cache.entry_key`."""
        config = {k: v for k, v in self.model.config.to_dict().items() if not k.startswith("_")}
        return {"weights": self.fingerprint(), "config": config, "device": self.device.type}

    def fingerprint(self) -> str:
        """Hash the weights as they are now, so that what is cached for them is not used for others.

        An adapter counts by what it adds to a weight; one that is switched off does not count.
        """
        total = hashlib.sha256()
        for name, tensor in _in_force(self.model):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            data = tensor.detach().contiguous().flatten().view(torch.uint8)
            body = len(data) // (8 * FOLD) * 8 * FOLD
            # Integer sums of the bits (modulo 2⁶⁴), folded to one row: a pass at memory speed, unlike hashing all.
            folded = data[:body].view(torch.int64).view(-1, FOLD).sum(0)
            total.update(folded.cpu().numpy().tobytes() + data[body:].cpu().numpy().tobytes())
        return total.hexdigest()[:16]


ModelT = TypeVar("ModelT", bound=EditableModel)


def is_plain(weight: Tensor) -> bool:
    """Return whether a weight is held as it is computed with: neither quantised nor moved out by accelerate."""
    return weight.is_floating_point() and not weight.is_meta and not is_traceable_wrapper_subclass(weight)


def at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _in_force(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield weights by the names they have without adapters, and what peft adapters in force add to them."""
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            for part in _parts(model, name, tensor):
                yield name.replace(".base_layer.", "."), part
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and not module.disable_adapters and not module.merged:
            for adapter in module.active_adapters:
                if adapter in module.lora_A:
                    yield f"{name}.{adapter}", module.get_delta_weight(adapter)


def _parts(model: nn.Module, name: str, tensor: Tensor) -> Iterator[Tensor]:
    """Yield the ordinary tensors that a weight consists of; one that accelerate moved out, while it is looked at."""
    if tensor.is_meta:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        with align_module_device(module, torch.device("cpu")):
            yield getattr(module, leaf).data
    elif is_traceable_wrapper_subclass(tensor):  # torchao
        for part in tensor.__tensor_flatten__()[0]:
            yield getattr(tensor, part)
    else:
        yield tensor


def pick_device(device: str = "auto") -> torch.device:
    """Choose a device; ``auto`` takes a GPU where there is one. Raises ``ValueError`` for one that is not here."""
    available = {"cuda": torch.cuda.is_available(), "cpu": True}
    if device == "mps":
        raise ValueError("device 'mps' has no float64, in which edits are solved; take 'cpu'")
    if device == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available.get(device, False):
        raise ValueError(f"device {device!r} is not available; here: {', '.join(k for k in available if available[k])}")
    return torch.device(device)
