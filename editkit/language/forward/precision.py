"""How matrix products are taken: in exact float32 by the fastest kernel here, or in bfloat16.

CPUs with AVX-512-BF16 or AMX and recent GPUs multiply bfloat16 matrices two to four times as fast as
float32 ones. oneDNN's float32 kernels beat the default library's on many CPUs, but torch takes them only
where lower precision is allowed, and some hardware then does lower it. A short trial on the model's own
weights therefore settles both.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers.pytorch_utils import Conv1D

from editkit.cache import Store, entry_key
from editkit.models import LanguageModel
from editkit.models.base import is_plain

ROWS = 256  # tokens in a trial product
GAIN = 1.3  # a smaller gain is eaten up by the conversions
MATMUL = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch puts an object in its module's place
FLOAT32_ERROR = 2e-6  # relative; bfloat16 and TF32 miss it by a factor of 100 and more


def choose_precision(lm: LanguageModel, mode: str, store: Store | None = None) -> str:
    """Choose ``bfloat16`` in mode ``fast`` where it is clearly faster on this hardware, else the model's own type.

    A ``store`` keeps what was found, for weights of that shape on that kind of device: whoever shares it computes the
    same, now and later, however fast it would be there.
    """
    if mode == "fast" and all(p.dtype == torch.float32 and is_plain(p) for p in lm.model.parameters()):
        if store is None:
            return _faster(lm)
        about: dict[str, Any] = {"device": lm.device.type, "shape": list(lm.float32_weight.shape)}
        return store.plain("products", entry_key(__name__, **about), partial(_faster, lm))
    return str(lm.model.dtype).removeprefix("torch.")


def _faster(lm: LanguageModel) -> str:
    weight = lm.float32_weight
    x = torch.randn(ROWS, weight.shape[1], device=weight.device)
    gains = _seconds(x, weight) > GAIN * _seconds(x.bfloat16(), weight.bfloat16())
    return "bfloat16" if gains else "float32"


def _seconds(x: Tensor, weight: Tensor) -> float:
    best = float("inf")
    for _ in range(7):  # the first ones warm up
        start = time.perf_counter()
        for _ in range(4):
            product = nn.functional.linear(x, weight)
        product[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return best


@contextmanager
def exact_products(lm: LanguageModel) -> Iterator[None]:
    """Compute float32 products on a CPU with oneDNN's kernels, where a trial finds those exact."""
    before = MATMUL.fp32_precision
    try:
        if lm.device.type == "cpu" and lm.float32_weight is not None and _onednn_is_exact(lm.float32_weight):
            MATMUL.fp32_precision = "bf16"
        yield
    finally:
        MATMUL.fp32_precision = before


@contextmanager
def bfloat16_blocks(lm: LanguageModel) -> Iterator[None]:
    """Run attention and MLP of every layer in bfloat16, and everything else as before.

    Residual stream, norms and vocabulary projection keep their type: rounding the stream at every layer would
    move the result twice as far. Copies stand in for the blocks' weights, which come back afterwards.
    """
    blocks = [block for layer in lm.layers for block in layer.children() if _multiplies(block)]
    modules = [module for block in blocks for module in block.modules()]
    kept = [(module, name, p) for module in modules for name, p in module.named_parameters(recurse=False)]
    own = lm.model.dtype

    def lower(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _cast(args, torch.bfloat16), _cast(kwargs, torch.bfloat16)

    def restore(module: nn.Module, args: tuple, output: Any) -> Any:
        return _cast(output, own)

    with exact_products(lm), ExitStack() as stack:  # exact products for the vocabulary projection
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(lower, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(restore).remove)
        for module, name, parameter in kept:
            stack.callback(setattr, module, name, parameter)
            setattr(module, name, nn.Parameter(parameter.bfloat16(), requires_grad=False))
        yield


def _multiplies(block: nn.Module) -> bool:
    return any(isinstance(module, nn.Linear | Conv1D) for module in block.modules())


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors in nested tuples, lists and dicts to ``dtype``."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, values)


def _onednn_is_exact(weight: Tensor) -> bool:
    """Test whether oneDNN keeps to float32 even where it may use bfloat16 (it does without AMX).

    With AMX it depends on the shape: a width of 16 stays exact where 24 does not. So the weight's own product is tried,
    and one that is large enough for whatever the hardware has.
    """
    generator = torch.Generator().manual_seed(0)
    small, square = (torch.randn(ROWS, width, generator=generator) for width in (weight.shape[1], ROWS))
    trials = [(small, weight), (square, square)]
    plain = [nn.functional.linear(*trial) for trial in trials]
    before = MATMUL.fp32_precision
    try:
        MATMUL.fp32_precision = "bf16"
        others = [nn.functional.linear(*trial) for trial in trials]
    finally:
        MATMUL.fp32_precision = before
    return all((a - b).norm() <= FLOAT32_ERROR * b.norm() for a, b in zip(others, plain, strict=True))
