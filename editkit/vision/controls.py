"""What editors are compared with: repairs that change the classification head alone, and fine-tuning.

The head is the linear layer ``logits = W x + b`` on the backbone's features ``x``. Two ways to change it:

* *ewc*: gradient descent on the edited images, held back where the kept ones depend on a weight (elastic weight
  consolidation, Kirkpatrick et al. 2017, arXiv 1612.00796 eq. 3): mean cross-entropy + λ/2 · Σ F_i (θ_i − θ*_i)².
* *closed*: the equation of :mod:`editkit.solvers` with the head's weight as ``W``, the edited images' features as
  keys and the kept ones' second moment as ``C``.

Fine-tuning is plain, held near the weights before (L2: λ/2 · ‖θ − θ*‖², or EWC as above, with the gradients of kept
images for the Fisher information), or rehearses kept images beside the edited ones.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from tqdm.auto import tqdm

from editkit.cache import write_atomic
from editkit.config import Count, NonNegative, Parameters, Positive
from editkit.editing.moments import SecondMoment
from editkit.models import VisionModel
from editkit.plain import to_json
from editkit.solvers import inverse_precision, mean_eigenvalue, solve
from editkit.vision.data import ImageSet
from editkit.vision.forward import BATCH, read
from editkit.vision.metrics import lead

FISHER_IMAGES = 64  # kept images, at most, behind the Fisher information of fine-tuned layers


class HeadSpec(Parameters):
    """How the classifier's head is repaired."""

    ewc_lambda: NonNegative = 1.0e3
    """Weight λ of the Fisher penalty in repairing the head by elastic weight consolidation (EWC)."""
    head_lr: Positive = 1.0e-3
    """Adam's learning rate in repairing the head by EWC."""
    head_steps: Count = 200
    """Steps of repairing the head by EWC at most; it ends once every edited image is classified correctly."""
    margin: Positive = 1.0
    """Logits by which the closed-form repair of the head makes the true class win over the best other one."""
    slack: NonNegative = 0.0
    """Slack D⁻¹ of the closed-form repair of the head, in units of the mean eigenvalue of KᵀMK; 0 asks for equality."""
    ridge: NonNegative = 1.0e-3
    """Ridge of the closed-form repair of the head, added to the diagonal of C as a share of its mean."""


class FinetuneSpec(Parameters):
    """How the classifier is fine-tuned on the edited images."""

    finetune_layers: Annotated[int, Field(ge=0)] = 3
    """Last layers that fine-tuning on the edited images trains, with the head."""
    finetune_lr: Positive = 1.0e-5
    """Learning rate of fine-tuning on the edited images."""
    finetune_steps: Count = 30
    """Steps of fine-tuning on the edited images at most."""
    finetune_penalty: NonNegative = 100.0
    """Weight λ of the squared change in fine-tuning on the edited images, plain (L2) or by Fisher information (EWC)."""


HeadMethod = Literal["ewc", "closed"]
FinetuneMethod = Literal["plain", "l2", "ewc", "rehearsal"]


def features(vit: VisionModel, part: ImageSet) -> Tensor:
    """Read what the head sees of each image, (n, d)."""
    if not len(part):
        return torch.empty(0, vit.head.in_features, device=vit.device, dtype=vit.head.weight.dtype)
    return read(vit, part.images, vit.head, "input")


@torch.no_grad()
def fisher(head: nn.Linear, x: Tensor) -> Tensor:
    """Compute the diagonal Fisher information (labels, d + 1) of weight and, last column, bias over features x (n, d).

    The expectation over the model's own labels has a closed form: F_ck = E[p_c (1 − p_c) x_k²], x_k = 1 for the bias.
    """
    p = head(x).double().softmax(1)  # (n, labels)
    squares = torch.cat([x.double().square(), torch.ones_like(p[:, :1])], 1)  # (n, d + 1)
    return (p * (1 - p)).T @ squares / len(x)


def edit_head(
    vit: VisionModel,
    edits: ImageSet,
    kept: ImageSet,
    method: HeadMethod,
    spec: HeadSpec,
    *,
    kept_features: Tensor | None = None,
    holds: Callable[[], bool] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Change the head in place so that ``edits`` are classified correctly, and keep what is right of ``kept``.

    Args:
        kept_features: :func:`features` of ``kept``, where they are known already.
        holds: whether a promise holds for the model as it stands; the first step after which it does not is taken back
            and is the end.

    Returns one row a step (``closed`` has one) measured after it: ``step``, ``loss`` (mean cross-entropy of the edited
    images, nats), ``penalty`` (``ewc``: λ/2 · Σ F_i (θ_i − θ*_i)²; ``closed``: tr(ΔW C ΔWᵀ)), ``edited_accuracy``,
    ``kept_accuracy`` (over the kept images right before), ``change`` (‖ΔW‖), ``taken_back`` and ``seconds``.
    Raises ``ValueError`` for held-out images, no images to edit and no kept ones that are right, and
    ``FloatingPointError`` where the loss leaves the finite numbers. On any error the head is as it was.
    """
    if method not in ("ewc", "closed"):
        raise ValueError(f"method = {method!r}: must be 'ewc' or 'closed'")
    edits, kept = edits.require_open("editing the head"), kept.require_open("keeping the head")
    start, head = time.perf_counter(), vit.head
    x, x_kept = features(vit, edits), features(vit, kept) if kept_features is None else kept_features
    y, y_kept = _labels(vit, edits), _labels(vit, kept)
    right = head(x_kept).argmax(1) == y_kept
    if not len(x) or not right.any():
        raise ValueError(
            f"editing the head needs images to edit and kept ones that are right; got {len(x)}, and "
            f"{int(right.sum())} right of {len(kept)}"
        )
    x_kept, y_kept = x_kept[right], y_kept[right]
    change, most = {"ewc": (_ewc, spec.head_steps), "closed": (_closed, 1)}[method]
    with _trainable(list(head.parameters())) as (weight, *_):
        rows = (
            {
                **_score(head, x, y),
                "penalty": penalty,
                "kept_accuracy": _score(head, x_kept, y_kept)["edited_accuracy"],
                "change": (head.weight - weight).norm().item(),
            }
            for penalty in change(head, x, y, x_kept, spec)
        )
        return _until_right(rows, start, most, f"head, {method}", progress, list(head.parameters()), holds)


def finetune(
    vit: VisionModel,
    edits: ImageSet,
    kept: ImageSet,
    method: FinetuneMethod,
    spec: FinetuneSpec,
    *,
    seed: int = 0,
    holds: Callable[[], bool] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train the last layers and the head on ``edits``, which is what one would do without an editor.

    AdamW without weight decay takes at most ``BATCH`` images a step, drawn by ``seed``, and ends once all are right.

    Args:
        kept: images that are right, for "ewc" and "rehearsal".
        method: "plain"; "l2" and "ewc" add λ/2 times the squared change of all that is trained, "ewc" each weight's by
            its Fisher information, the mean squared gradient of the model's own answers to ``FISHER_IMAGES`` kept
            images; in "rehearsal" as many kept images take part in each step as edited ones.
        holds: as for :func:`edit_head`.

    Returns one row a step measured after it: ``step``, ``loss`` (of all edited images, nats), ``edited_accuracy``,
    ``change`` (norm of the change of all that is trained), ``taken_back`` and ``seconds``.
    Raises ``ValueError`` for held-out or no images and more layers than the model has, and ``FloatingPointError`` where
    the loss leaves the finite numbers. On any error the model is as it was.
    """
    edits.require_open("fine-tuning on edits")
    if not len(edits) or spec.finetune_layers > vit.n_layers:
        raise ValueError(
            f"fine-tuning needs images and 0 to {vit.n_layers} layers; got {len(edits)} images, finetune_layers = "
            f"{spec.finetune_layers}"
        )
    if method in ("ewc", "rehearsal") and not len(kept.require_open("keeping what is right")):
        raise ValueError(f"fine-tuning, {method}: needs kept images, got none")
    parameters = [*vit.layers[vit.n_layers - spec.finetune_layers :].parameters(), *vit.head.parameters()]
    rng, start = np.random.default_rng(seed), time.perf_counter()
    optimiser = torch.optim.AdamW(parameters, lr=spec.finetune_lr, weight_decay=0.0)

    def step() -> dict[str, float]:
        batch = edits.select(rng.permutation(len(edits))[:BATCH])
        optimiser.zero_grad()
        _loss(vit, batch).backward()
        if method == "rehearsal":
            _loss(vit, kept.select(rng.permutation(len(kept))[: len(batch)])).backward()
        if importance:
            for f, now, old in zip(importance, parameters, before, strict=True):
                (spec.finetune_penalty / 2 * (f * (now - old).square()).sum()).backward()
        optimiser.step()
        change = math.hypot(*((now - old).norm().item() for now, old in zip(parameters, before, strict=True)))
        return {**_score(vit.head, features(vit, edits), _labels(vit, edits)), "change": change}

    what = f"fine-tuning, {method}, lr {spec.finetune_lr:g}"
    with _trainable(parameters) as before:
        importance: Sequence[Tensor | float] = [1.0] * len(parameters) if method == "l2" else []
        if method == "ewc":
            importance = _importance(vit, kept, parameters, rng)
        rows = (step() for _ in range(spec.finetune_steps))
        return _until_right(rows, start, spec.finetune_steps, what, progress, parameters, holds)


@contextmanager
def restored(vit: VisionModel) -> Iterator[dict[str, Tensor]]:
    """Put every weight back afterwards, bit for bit, so that one repair after another starts from the same model.

    Yields copies of the weights before.
    """
    before = {name: tensor.clone() for name, tensor in vit.model.state_dict().items()}
    try:
        yield before
    finally:
        vit.model.load_state_dict(before)


def save_changes(vit: VisionModel, before: dict[str, Tensor], path: Path, about: dict[str, Any]) -> Path:
    """Write the weights that are not what they were before to one safetensors file, as they are now.

    Args:
        about: JSON-able, for the file's metadata; what the changes belong to (``model``, ``weights``: the model's
            fingerprint before).
    """
    changed = {
        name: tensor.cpu().contiguous()
        for name, tensor in vit.model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    write_atomic(path, save_tensors(changed, {"editkit": to_json(about)}))
    return path


def load_changes(vit: VisionModel, path: Path) -> None:
    """Put weights that :func:`save_changes` wrote into the model that they were made from.

    Raises ``ValueError`` for any other file, and for a model whose weights are others; the model is then as it was.
    """
    try:
        with safe_open(path, framework="pt", device=str(vit.device)) as file:
            made_from = json.loads((file.metadata() or {})["editkit"])["weights"]
            changed = {name: file.get_tensor(name) for name in file.keys()}
        if odd := sorted(changed.keys() - vit.model.state_dict().keys()):
            raise ValueError(f"{odd[0]} is no weight of {vit.name}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{path} does not hold changed weights of {vit.name}: {problem}") from None
    if made_from != (found := vit.fingerprint()):
        raise ValueError(f"{path} was made from weights {made_from}, {vit.name} has {found}")
    vit.model.load_state_dict(vit.model.state_dict() | changed)


def _ewc(head: nn.Linear, x: Tensor, labels: Tensor, kept: Tensor, spec: HeadSpec) -> Iterator[float]:
    """Take Adam's steps on loss and penalty. Yields the penalty after each."""
    importance, start = fisher(head, kept), _joined(head).detach()

    def penalty() -> Tensor:
        return spec.ewc_lambda / 2 * (importance * (_joined(head) - start).square()).sum()

    optimiser = torch.optim.Adam(head.parameters(), lr=spec.head_lr)
    for _ in range(spec.head_steps):
        optimiser.zero_grad()
        (cross_entropy(head(x).double(), labels) + penalty()).backward()
        optimiser.step()
        yield penalty().item()


def _closed(head: nn.Linear, x: Tensor, labels: Tensor, kept: Tensor, spec: HeadSpec) -> Iterator[float]:
    """Raise the true classes' logits alone, and only where they do not win by the margin yet. Yields the penalty."""
    moment = SecondMoment(kept.shape[1], kept.device)
    moment.add(kept.double())
    C = moment.moment()
    missing = (spec.margin - lead(head(x).detach().double(), labels)).clamp_min(0)  # (n,)
    R = one_hot(labels, head.out_features) * missing[:, None]  # (n, labels)
    ridge = spec.ridge * C.diagonal().mean().item()
    cost = C + ridge * torch.eye(len(C), dtype=C.dtype, device=C.device)
    precision = inverse_precision(cost)
    delta = solve(x.T, R.T, precision, spec.slack * mean_eigenvalue(x.T, precision)).delta
    head.weight.data += delta.to(head.weight.dtype)
    yield (delta @ C * delta).sum().item()


def _loss(vit: VisionModel, part: ImageSet) -> Tensor:
    return cross_entropy(vit.forward(vit.pixels(part.images)), _labels(vit, part))


def _importance(
    vit: VisionModel, kept: ImageSet, parameters: Sequence[nn.Parameter], rng: np.random.Generator
) -> list[Tensor]:
    """Estimate the diagonal Fisher information of each parameter, a gradient an image and answer drawn by the model."""
    total = [torch.zeros_like(parameter) for parameter in parameters]
    part = kept.select(rng.permutation(len(kept))[:FISHER_IMAGES])
    for image in part.images:
        logits = vit.forward(vit.pixels(image[None]))
        p = logits.detach().double().softmax(1)[0].cpu().numpy()
        answer = torch.tensor([rng.choice(len(p), p=p / p.sum())], device=vit.device)
        for entry, gradient in zip(total, torch.autograd.grad(cross_entropy(logits, answer), parameters), strict=True):
            entry += gradient.square() / len(part)
    return total


def _joined(head: nn.Linear) -> Tensor:
    return torch.cat([head.weight, head.bias[:, None]], 1).double()  # (labels, d + 1)


def _labels(vit: VisionModel, part: ImageSet) -> Tensor:
    return torch.tensor(part.labels, device=vit.device)


@torch.no_grad()
def _score(head: nn.Linear, x: Tensor, labels: Tensor) -> dict[str, float]:
    logits = head(x).double()
    right = logits.argmax(1) == labels
    return {"loss": cross_entropy(logits, labels).item(), "edited_accuracy": right.double().mean().item()}


def _until_right(
    rows: Iterable[dict],
    start: float,
    most: int,
    what: str,
    progress: bool,
    parameters: Sequence[nn.Parameter],
    holds: Callable[[], bool] | None,
) -> pd.DataFrame:
    """Collect one row a step, until every edited image is right, the steps are over, or a promise no longer holds."""
    history: list[dict[str, Any]] = []
    last = _copies(parameters) if holds else []
    for row in tqdm(rows, what, most, unit="step", disable=not progress):
        broken = holds is not None and not holds()
        seconds = time.perf_counter() - start
        history.append({"step": len(history) + 1} | row | {"taken_back": broken, "seconds": seconds})
        if not math.isfinite(row["loss"] + row.get("penalty", 0.0)):
            raise FloatingPointError(f"{what}: diverged at step {len(history)}, lower the learning rate")
        if broken:
            _put_back(parameters, last)
            break
        if row["edited_accuracy"] == 1:
            break
        last = _copies(parameters) if holds else []
    return pd.DataFrame(history)


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Let ``parameters`` have gradients, and put them back on an error. Yields copies of what they were."""
    before = _copies(parameters)
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        yield before
    except BaseException:
        _put_back(parameters, before)
        raise
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def _copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _put_back(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data.copy_(value)
