"""The options of a study of repairs, and the names of what editors are compared with in it."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, create_model

from editkit.config import Count, NonNegative, Parameters, Positive, Seed
from editkit.editing.spec import EditSpec
from editkit.methods import TargetMethodName
from editkit.vision.controls import FinetuneMethod, FinetuneSpec, HeadMethod, HeadSpec
from editkit.vision.data import HELD_OUT, Protocol
from editkit.vision.tracing import TraceSpec
from editkit.vision.training import TrainSpec

HEADS: dict[str, HeadMethod] = {"head_closed": "closed", "head_ewc": "ewc"}  # controls that change the head alone
FINETUNED: dict[str, FinetuneMethod] = {  # controls that train the last layers and the head
    "finetuning": "plain",
    "finetuning_l2": "l2",
    "finetuning_ewc": "ewc",
    "rehearsal": "rehearsal",
}
CONTROLS = (*HEADS, *FINETUNED, "retraining")
if TYPE_CHECKING:  # what pydantic checks is made from the tables, which no type checker reads
    ControlName = str
else:
    ControlName = Literal[CONTROLS]

S = TypeVar("S", bound=Parameters)


class RepairSpec(FinetuneSpec, HeadSpec, TraceSpec, TrainSpec):
    """Every option of a study; those of fine-tuning, tracing and the head are among them under their own names."""

    seed: Seed = 0
    """Seed of the fresh head, of splits that are drawn, noise, trained, edited and traced images, and their copies."""
    data: str = "digits"
    """Images: digits, a MedMNIST flag, or the path of an .npz file in MedMNIST's layout."""
    protocol: Protocol = "official"
    """Splits of the images: official for the data set's own, held-out to set a share of all aside before anything."""
    held_out_ratio: Annotated[float, Field(gt=0, lt=1)] = HELD_OUT
    """Share of all images that is set aside where splits are drawn: under protocol held-out, and of the digits."""
    size: Count = 28
    """Pixels of MedMNIST's file: 28, 64, 128 or 224."""
    folder: str = ""
    """Folder of MedMNIST's files; empty for ~/.medmnist."""
    n_train: Annotated[int, Field(ge=0)] = 0
    """Training images that are fine-tuned on; 0 takes all."""
    image_noise: NonNegative = 0.0
    """Standard deviation of noise added to every image, as a share of the full range."""
    model: str = "dinov2-small"
    """Vision Transformer: a known name, a hub id or a local folder."""
    image_size: Annotated[int, Field(ge=0)] = 0
    """Pixels that the Vision Transformer sees; 0 for what it was trained on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that the model runs on; auto takes a GPU where there is one."""
    pin_memory: bool = True
    """Pin batches of images in memory on their way to a GPU, so that it fetches one while the CPU goes on."""
    checkpoint: str = ""
    """File with the classifier's weights, to be read instead of fine-tuning; empty fine-tunes."""
    edit_method: list[TargetMethodName] = ["emmet", "memit", "alphaedit", "rome"]
    """Editors of the images; the first one is swept over layers, and its repairs are shown in full."""
    kept_budget: Annotated[float, Field(ge=0, le=1)] = 0.98
    """Share of the right val predictions that a repair promises to keep; 0 promises nothing, λ alone decides."""
    edit_layers: list[Annotated[int, Field(ge=0)]] = []
    """Layers of the Vision Transformer to edit; empty leaves the choice to layer_selection."""
    layer_selection: Literal["swept", "traced", "last"] = "swept"
    """Layers where none are given: swept, those that fix most at the budget on val; traced; or the last ones."""
    num_edit_layers: Count = 3
    """Layers that tracing chooses, or the last ones that are edited."""
    frontier_budgets: list[Annotated[float, Field(gt=0, le=1)]] = [0.95, 0.99]
    """Further promises under which each editor repairs, for the frontier of images fixed and kept."""
    frontier_edits: list[Count] = [1, 10, 30, 100]
    """Numbers of images, besides all, that are repaired at the budget to show what each further one costs."""
    margins: Annotated[list[Positive], Field(min_length=1)] = [0.5, 1.0, 2.0]
    """Logits by which a target's class leads, tried with swept layers; the first is taken where nothing is swept."""
    max_edits: Annotated[int, Field(ge=0)] = 0
    """Misclassified images that are edited at most, drawn at random; 0 takes all."""
    sequential: bool = False
    """Edit one image after another, instead of all in one batch."""
    copies: Count = 4
    """Augmented copies of each edited image, on which generality is measured."""
    controls: list[ControlName] = [*HEADS, *FINETUNED]
    """What editors are compared with; retraining, from the start with the edited images, takes as long as training."""
    edit_options: dict[str, Any] = {}
    """Further hyperparameters of the image editors, such as nullspace_threshold, replay or edit_mode."""

    @classmethod
    def of(cls, params: "ImageParams", seed: int, data: str | None = None) -> Self:
        """Take a study's options from a report's parameters (:class:`ImageParams` and ``device``).

        Args:
            data: one of ``params.vit_data``; the first where not given.
        """
        data = data or params.vit_data[0]
        given = {name: getattr(params, f"vit_{name}") for name in cls.model_fields if name not in OWN}
        return cls(**{"seed": seed, "data": data, "device": params.device, **given, **params.options_of(data)})

    def part(self, kind: type[S]) -> S:
        """Return the options that belong to ``kind``."""
        return kind(**self.model_dump(include=set(kind.model_fields)))

    @property
    def promise(self) -> float | None:
        """Share of the right val predictions that is promised to stay; None for nothing."""
        return self.kept_budget or None

    @property
    def compared(self) -> tuple[str, ...]:
        """Editors, and what they are compared with."""
        return (*self.edit_method, *self.controls)

    def edit_spec(self, method: str, **options: Any) -> EditSpec:
        """Specify an edit by a method. Raises ``ValueError`` for options that no editor has."""
        common = {"seed": self.seed, "stop_margin": self.margins[0], "kept_budget": self.promise}
        return EditSpec(method=method, **{**common, **self.edit_options, **options})


OWN = ("seed", "device", "data")  # a report says these in its own way
# The report's defaults where they differ, so that a notebook opened by hand runs in about a minute.
SMALL: dict[str, Any] = {"n_train": 120, "image_noise": 0.1, "image_size": 28, "epochs": 1, "batch_size": 16}
SMALL |= {"lr": 1.0e-4, "trained_layers": 2, "num_ablations": 2, "max_samples": 2}
SMALL |= {"edit_method": ["emmet", "alphaedit"], "edit_layers": [8], "max_edits": 8}
SMALL |= {"controls": ["head_closed", "finetuning"], "frontier_edits": [1], "frontier_budgets": [0.9]}
FIELDS: dict[str, Any] = {
    f"vit_{name}": (
        Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation,
        Field(default=SMALL.get(name, field.default), description=field.description),
    )
    for name, field in RepairSpec.model_fields.items()
    if name not in OWN
}
Options: Any = create_model("ImageParams", __base__=Parameters, **FIELDS)  # whose fields no type checker knows


class ImageParams(Options):
    """Parameters of the chapter on images: the options of :class:`RepairSpec` as ``vit_<name>``, and more."""

    vit_edit_method: Annotated[list[TargetMethodName], Field(min_length=1)] = SMALL["edit_method"]
    """Editors of the images; the first one is swept over layers, and its repairs are shown in full."""
    vit_data: Annotated[list[str], Field(min_length=1)] = ["digits"]
    """Images: digits, a MedMNIST flag, or the path of an .npz file in its layout. The first is shown in full."""
    vit_data_options: dict[str, dict[str, Any]] = {}
    """Options that differ for one of vit_data, by its name, such as {pneumoniamnist: {n_train: 1500}}."""
    vit_seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Seeds of the repairs; each draws another head, other noise, training images and, unless official, splits."""
    vit_thresholds: Annotated[list[Positive], Field(min_length=1)] = [0.01, 0.1]
    """Values of nullspace_threshold to try on images, in units of the mean eigenvalue."""

    def options_of(self, data: str) -> dict[str, Any]:
        """Return the options that differ for one of ``vit_data``. Raises ``ValueError`` for unknown names."""
        if odd := sorted(self.vit_data_options.keys() - {*self.vit_data}):
            raise ValueError(f"vit_data_options of {odd[0]!r}: vit_data has {', '.join(self.vit_data)}")
        options = self.vit_data_options.get(data, {})
        if bad := sorted({"data", "seed"} & options.keys()):
            raise ValueError(f"vit_data_options of {data}: {bad[0]} is said by vit_data and vit_seeds")
        return options
