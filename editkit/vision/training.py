"""Fine-tuning of a Vision Transformer: resumable after every epoch, and not done twice."""

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from editkit.cache import Store, entry_key, from_json_tensor, json_tensor, write_atomic
from editkit.config import Count, NonNegative, Parameters, Positive
from editkit.models import VisionModel
from editkit.plain import to_json
from editkit.vision.data import ImageData, ImageSet
from editkit.vision.forward import predict
from editkit.vision.metrics import summary

TOO_GOOD = 0.98  # accuracy above which there is little to repair, or the splits leak


class TrainSpec(Parameters):
    """How a classifier is fine-tuned."""

    epochs: Count = 5
    """Passes over the training images in fine-tuning."""
    batch_size: Count = 32
    """Images in one step of fine-tuning."""
    lr: Positive = 5.0e-5
    """AdamW's learning rate of the backbone in fine-tuning."""
    fresh_head_lr: Positive = 1.0e-3
    """AdamW's learning rate of the fresh classification head in fine-tuning."""
    weight_decay: NonNegative = 0.01
    """AdamW's weight decay in fine-tuning."""
    trained_layers: Annotated[int, Field(ge=0)] | None = None
    """Last layers of the backbone that are fine-tuned, with the head; null for all of them, 0 for none."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of the training images."""


@dataclass(frozen=True)
class Training:
    """What fine-tuning did."""

    history: pd.DataFrame  # one row an epoch: loss (training, nats), val_accuracy, val_nll, seconds
    metrics: pd.DataFrame  # one row a split (train, val, test): n, accuracy, macro_f1, nll, ece
    best_epoch: int  # the one whose weights the model has now


def train(
    vit: VisionModel,
    data: ImageData,
    spec: TrainSpec,
    *,
    store: Store | None = None,
    progress: bool = True,
    resume: bool = True,
) -> Training:
    """Fine-tune ``vit`` on ``data.train`` with AdamW, and keep the epoch that is most accurate on ``data.val``.

    After each epoch weights, optimiser and history are stored, so a call that was stopped goes on after its
    last whole epoch, with the same result; one made before for the same data, model and parameters is read.
    Warns as :func:`metrics` does.

    Args:
        resume: whether to read and go on; otherwise it trains anew, over what is stored.

    Raises ``ValueError`` for held-out images, an empty split, another number of classes than the model's and
    more layers than it has, and ``FloatingPointError`` where the loss leaves the finite numbers. On any error the
    model is as it was.
    """
    if empty := [name for name, part in data.splits.items() if not len(part)]:
        raise ValueError(f"{data.name} has no {empty[0]} images")
    images, val = data.train.require_open("training"), data.val.require_open("choosing a model")
    if len(data.labels) != vit.n_labels:
        raise ValueError(f"{data.name} has {len(data.labels)} classes, {vit.name} a head for {vit.n_labels}")
    store = store or Store()
    key = entry_key(__name__, vit, data=data.hash(), spec=spec.model_dump())
    before = {name: tensor.clone() for name, tensor in vit.model.state_dict().items()}
    optimiser = torch.optim.AdamW(_groups(vit, spec), weight_decay=spec.weight_decay)
    last, best = (store.get("training", key | {"epoch": which}) if resume else None for which in ("last", "best"))
    history = from_json_tensor(last["history"]) if last and best else []  # one without the other is of no use
    try:
        if history:
            _restore(vit, optimiser, last)
        bar = tqdm(total=spec.epochs, initial=len(history), desc="fine-tuning", unit="epoch", disable=not progress)
        with bar:
            while len(history) < spec.epochs:
                start = time.perf_counter()
                loss = _epoch(vit, images, optimiser, spec, len(history), bar)
                scores = summary(val.labels, predict(vit, val))
                row = {"epoch": len(history) + 1, "loss": loss, "seconds": time.perf_counter() - start}
                history.append(row | {"val_accuracy": scores["accuracy"], "val_nll": scores["nll"]})
                state = {f"weight.{name}": tensor for name, tensor in vit.model.state_dict().items()}
                if best_epoch(history) == len(history):
                    best = {name: tensor.clone() for name, tensor in state.items()}
                    store.put("training", key | {"epoch": "best"}, best)
                state |= _moments(optimiser) | {"history": json_tensor(history)}
                store.put("training", key | {"epoch": "last"}, state)
                bar.update()
        vit.model.load_state_dict({name.removeprefix("weight."): tensor for name, tensor in best.items()})
    except BaseException:
        vit.model.load_state_dict(before)  # the next call must find what this one found, to go on where it was
        raise
    finally:
        vit.model.eval().requires_grad_(False)
    return Training(pd.DataFrame(history), metrics(vit, data), best_epoch(history))


def metrics(vit: VisionModel, data: ImageData) -> pd.DataFrame:
    """Score each split by :func:`editkit.vision.metrics.summary`; warns where val or test accuracy passes ``TOO_GOOD``.

    Returns one row a split.
    """
    rows: list[dict[str, Any]] = [
        {"split": name} | summary(part.labels, predict(vit, part)) for name, part in data.splits.items()
    ]
    if high := [row["split"] for row in rows if row["split"] != "train" and row["accuracy"] > TOO_GOOD]:
        warnings.warn(
            f"accuracy on {' and '.join(high)} is above {TOO_GOOD:.0%}: the task is too easy to need repairs, or the "
            "splits share images",
            stacklevel=3,
        )
    return pd.DataFrame(rows)


def save_checkpoint(vit: VisionModel, data: ImageData, path: str | Path) -> Path:
    """Write a model that was fine-tuned on ``data`` to one safetensors file: weights, classes, pixels, data's hash."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in vit.model.state_dict().items()}
    about = {"model": vit.name, **_belongs_to(vit, data)}
    write_atomic(path := Path(path), save_tensors(tensors, {"editkit": to_json(about)}))
    return path


def load_checkpoint(vit: VisionModel, data: ImageData, path: str | Path) -> None:
    """Put weights that :func:`save_checkpoint` wrote into the same model for the same data.

    Raises ``ValueError`` for a damaged file or one of another kind, and for another model, other classes, pixels or
    splits (whose held-out images it may have learnt from); the model is then as it was.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["editkit"])
            found = {name: about[name] for name in ("model", "labels", "pixels", "data")}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, ValueError) as problem:
        raise ValueError(f"{path} is not a checkpoint: {problem}") from None
    shapes = [{n: tuple(t.shape) for n, t in state.items()} for state in (tensors, vit.model.state_dict())]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{path} is a checkpoint of another model: {found['model']!r}, this is {vit.name!r}")
    for name, here in json.loads(json.dumps(_belongs_to(vit, data))).items():
        if found[name] != here:
            raise ValueError(f"{path} is a checkpoint of another model: {name} {found[name]}, here {here}")
    vit.model.load_state_dict(tensors)


def _belongs_to(vit: VisionModel, data: ImageData) -> dict:
    return {"labels": vit.labels, "pixels": vit.preprocessing, "data": data.hash()}


def best_epoch(history: list[dict]) -> int:
    """Find the first epoch with the highest accuracy on val; epochs count from 1."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["epoch"]))["epoch"]


def _groups(vit: VisionModel, spec: TrainSpec) -> list[dict]:
    """Make the parameters to train trainable, and group them by learning rate."""
    head = list(vit.head.parameters())
    if spec.trained_layers is None:
        own = {id(parameter) for parameter in head}
        backbone = [parameter for parameter in vit.model.parameters() if id(parameter) not in own]
    elif spec.trained_layers > vit.n_layers:
        raise ValueError(f"trained_layers = {spec.trained_layers}: {vit.name} has {vit.n_layers}")
    else:
        backbone = list(vit.layers[vit.n_layers - spec.trained_layers :].parameters())
    for parameter in (*backbone, *head):
        parameter.requires_grad_()
    groups = [{"params": backbone, "lr": spec.lr}, {"params": head, "lr": spec.fresh_head_lr}]
    return [group for group in groups if group["params"]]


def _epoch(
    vit: VisionModel, part: ImageSet, optimiser: torch.optim.Optimizer, spec: TrainSpec, epoch: int, bar: tqdm
) -> float:
    """Train on the images once, in an order drawn from seed and epoch. Returns the mean loss."""
    order = np.random.default_rng([spec.seed, epoch]).permutation(len(part))
    vit.model.train()
    total = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed * 1_000_003 + epoch)  # of dropout, where a model has some
        for begin in range(0, len(order), spec.batch_size):
            batch = part.select(order[begin : begin + spec.batch_size])
            labels = torch.tensor(batch.labels, device=vit.device)
            loss = cross_entropy(vit.forward(vit.pixels(batch.images)), labels)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"fine-tuning diverged in epoch {epoch + 1}: lower lr ({spec.lr:g})")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(batch)
            bar.set_postfix(loss=f"{loss.item():.3f}", images=f"{begin + len(batch)}/{len(part)}")
    vit.model.eval()
    return total / len(part)


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"moment.{number}.{name}": tensor for number, part in state.items() for name, tensor in part.items()}


def _restore(vit: VisionModel, optimiser: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    weights = {n.removeprefix("weight."): t for n, t in saved.items() if n.startswith("weight.")}
    vit.model.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        if key.startswith("moment."):
            _, number, name = key.split(".")
            state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
