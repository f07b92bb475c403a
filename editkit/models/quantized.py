"""Weights that no edit touches in 8 or 4 bits, rounded by torchao or bitsandbytes while transformers reads a model."""

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from editkit.models.base import Family, is_plain

Quantization = Literal["none", "int8", "nf4"]
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
HEADS = ["lm_head", "embed_out"]  # names of the vocabulary projection


def check_quantization(quantization: str) -> None:
    """Raise ``ValueError`` for a quantisation that is not known, or whose package is not installed."""
    if quantization != "none" and quantization not in PACKAGES:
        raise ValueError(f"quantization {quantization!r}: must be none or {' or '.join(PACKAGES)}")
    package = PACKAGES.get(quantization)
    if package and importlib.util.find_spec(package) is None:
        install = f"pip install --no-deps {package}"
        raise ValueError(f"quantization {quantization!r} needs the package {package}; install it with: {install}")


def quantizing(quantization: Quantization, family: Family, float_layers: Sequence[int] | None) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that quantise a model while it is read.

    Weights alone are rounded, so that a token's result depends on no other of its batch: cached prefixes and packed
    rows rely on that. LLM.int8() of bitsandbytes rounds activations too, by what else is in the batch.

    Args:
        float_layers: layers whose edited matrix is left as it is; all where not given.
    """
    edited = [family.mlp_out]  # the end of a name is enough
    if float_layers is not None:
        edited = [f"{family.layers}.{layer}.{family.mlp_out}" for layer in float_layers]
    untouched = [*HEADS, *edited]
    if quantization == "nf4":
        from transformers import BitsAndBytesConfig

        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=untouched)
        return {"quantization_config": four}
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of kernels for other hardware
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=untouched)}


def settle(name: str, model: nn.Module, quantization: Quantization) -> None:
    """Make a model that was quantised while it was read ready for editing.

    Raises ``ValueError`` where nothing was quantised although it was asked for.
    """
    if quantization != "none" and all(is_plain(weight) for weight in model.parameters()):
        raise ValueError(f"{name}: {PACKAGES[quantization]} quantises none of its layers; take quantization 'none'")
    for module in model.modules():
        # bitsandbytes' kernel for AVX-512-BF16 passes no gradient on, and packs the weights anew at the first pass.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # not only tensors and modules
