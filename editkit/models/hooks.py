"""The one door to a running model's activations; whatever is installed is always removed.

    with capture({"key": layer}, side="input", stop=True) as seen:
        run(model, inputs)
    seen["key"]            # the layer's input tensor

Layers return a tensor in transformers 5 and a tuple in 4.x (GPT-J in both); that is decided here and nowhere else.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from torch import Tensor, nn


class Layered(Protocol):
    """A model with layers one after another."""

    @property
    def layers(self) -> nn.ModuleList: ...

    @property
    def tuple_layers(self) -> bool: ...  # see returns_tuple


class StopForward(Exception):
    """Raised inside a forward pass to end it once everything wanted has been seen."""


@contextmanager
def capture(
    modules: Mapping[Any, nn.Module],
    *,
    side: Literal["input", "output"] = "output",
    stop: bool = False,
    copy: bool = False,
    required: bool = True,
) -> Iterator[dict[Any, Tensor]]:
    """Collect the input or output tensor of each module, of its latest run, in a dict under the module's name.

    With ``stop`` the forward pass ends as soon as every module has been seen. With ``copy`` tensors stay as they were
    seen, whatever is written into them afterwards: Falcon adds its attention to what its MLP put out. Raises
    ``RuntimeError`` for modules that never ran where they are ``required`` to.
    """
    seen: dict[Any, Tensor] = {}

    def keep(name: Any) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any = None) -> None:
            found = _first(args if side == "input" else output)
            seen[name] = found.clone() if copy else found
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
    if required and (missing := [name for name in modules if name not in seen]):
        raise RuntimeError(f"modules that never ran: {missing}")


@contextmanager
def edit_output(edits: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Pass each module's output tensor through a function; a tuple that starts with the tensor stays a tuple."""

    def hook(edit: Callable[[Tensor], Tensor]) -> Callable:
        return lambda module, args, output: _like(output, edit(_first(output)))

    handles = [module.register_forward_hook(hook(edit)) for module, edit in edits.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def count_tokens(modules: Iterable[nn.Module]) -> Iterator[dict[str, int]]:
    """Count the tokens that pass through modules, padding included, over all of them: ``forward`` and ``backward``.

    One counts as backward where a gradient of the module's output (…, d) comes back.
    """
    seen = {"forward": 0, "backward": 0}

    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        hidden = _first(output)
        number = hidden.shape[:-1].numel()
        seen["forward"] += number
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: seen.update(backward=seen["backward"] + number))

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def run_from(model: Layered, start: int, hidden: Tensor, *, until: int | None = None) -> Iterator[None]:
    """Begin every pass at layer ``start``, whose input is ``hidden`` (rows, positions, d).

    Layers below it, and those from ``until`` on, are skipped and cost nothing. ``start`` may be the number of
    layers: then ``hidden`` is the last one's output.
    """
    layers, as_tuple = model.layers, model.tuple_layers

    def stand_in(new: Callable[[Tensor], Tensor]) -> Callable:
        return lambda state, *args, **kwargs: (new(state),) if as_tuple else new(state)

    skipped = [*layers[: max(0, start - 1)], *([] if until is None else layers[until:])]
    own = {layer: layer.__dict__["forward"] for layer in layers if "forward" in layer.__dict__}  # accelerate's
    handle = layers[0].register_forward_pre_hook(lambda module, args: (hidden, *args[1:])) if start == 0 else None
    try:
        for layer in skipped:
            layer.forward = stand_in(lambda state: state)
        if start:
            layers[start - 1].forward = stand_in(lambda state: hidden)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        for layer, forward in own.items():
            layer.forward = forward
        if handle:
            handle.remove()


def returns_tuple(layer: nn.Module, run: Callable[[], Any]) -> bool:
    """Tell by a ``run`` whether a layer returns a tuple that starts with the hidden state, or that state alone."""
    seen = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(isinstance(output, tuple)))
    try:
        run()
    finally:
        handle.remove()
    return seen[0]


def window(layer: int, size: int, n_layers: int) -> range:
    """Return ``size`` layers centred on ``layer``, fewer at the ends; an even size has one more below it."""
    return range(max(0, layer - size // 2), min(n_layers, layer - size // 2 + size))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _like(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
