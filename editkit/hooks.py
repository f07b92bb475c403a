"""Read and replace activations of a running model; whatever is installed is always removed.

    with capture({"key": layer}, side="input", stop=True) as seen:
        run(model, inputs)
    seen["key"]            # the layer's input tensor

Decoder layers return a tensor in transformers 5 and a tuple in 4.x; both are handled here and nowhere else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn


class StopForward(Exception):
    """Raised inside a forward pass to end it once everything wanted has been seen."""


def first(output: Any) -> Tensor:
    """The hidden state in a module's output, be it a tensor or a tuple that starts with one."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def capture(
    modules: Mapping[Any, nn.Module], *, side: Literal["input", "output"] = "output", stop: bool = False
) -> Iterator[dict[Any, Tensor]]:
    """Collect the input or output tensor of each module in a dict under the module's name.

    With ``stop`` the forward pass ends as soon as every module has been seen; a pass that ends before
    that raises ``RuntimeError`` naming the modules that never ran.
    """
    seen: dict[Any, Tensor] = {}

    def keep(name: Any) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any = None) -> None:
            seen[name] = first(args if side == "input" else output)
            if stop and len(seen) == len(modules):
                raise StopForward

        return hook

    def register(module: nn.Module, hook: Callable):
        return module.register_forward_pre_hook(hook) if side == "input" else module.register_forward_hook(hook)

    handles = [register(module, keep(name)) for name, module in modules.items()]
    try:
        yield seen
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in modules if name not in seen]:
        raise RuntimeError(f"modules that never ran: {missing}")


@contextmanager
def replace_forward(
    layers: Sequence[nn.Module], forward: Callable[[Tensor], Tensor], *, tuple_output: bool
) -> Iterator[None]:
    """Run ``forward`` on the hidden state in place of each of the decoder ``layers``.

    With the identity, layers are skipped and cost nothing; with a constant, a known activation stands in.
    """

    def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        new = forward(hidden)
        return (new,) if tuple_output else new

    try:
        for layer in layers:
            layer.forward = run
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
