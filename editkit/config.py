"""Validated parameters: of one edit (:class:`EditSpec`) and of one report run (:class:`RunParams`).

Unknown keys, wrong types and impossible mixes end in a ``ValueError`` that names the key, the value and
what is allowed.
"""

import difflib
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

if TYPE_CHECKING:
    from editkit.models import EditableModel

Method = Literal["rome", "memit", "emmet", "alphaedit"]
METHODS: tuple[Method, ...] = ("rome", "memit", "emmet", "alphaedit")
TrustPart = Literal["text", "neighbours", "retention", "norm", "condition"]

LAST_LAYERS = 3  # edited where neither the user nor tracing says which, in models without defaults of their own
KEYS_PER_DIMENSION = 10  # 2 to 10 suffice (arXiv 2506.04226); the speed appendix shows the scores against it
FAST_STOP = 0.98  # stop_probability in fast mode; the speed appendix shows what it does to the scores

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Parameters(BaseModel):
    """Strictly typed, immutable parameters; errors are plain ``ValueError`` with one line a problem."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = [self._explain(problem) for problem in error.errors()]
            raise ValueError(f"{type(self).__name__}: " + "\n  ".join(lines)) from None

    @classmethod
    def _explain(cls, problem: dict) -> str:
        name, value = ".".join(map(str, problem["loc"])), problem["input"]
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, cls.model_fields, n=3)
            allowed = ", ".join(near or cls.model_fields)
            return f"unknown key {name!r}; {'did you mean' if near else 'known keys are'} {allowed}?"
        hint = ""
        if isinstance(value, str) and problem["type"] in ("float_type", "int_type") and _parse(float, value) != value:
            hint = " (YAML reads 5e-1 and 1e6 as text: write 0.5 and 1.0e+6)"
        return f"{name} = {value!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}{hint}"

    @classmethod
    def from_texts(cls, values: Mapping[str, str | list[str]]) -> Self:
        """From the words of a command line, where a dict is written as YAML; errors as from anywhere else."""
        return cls(**{name: _parse(cls.model_fields[name].annotation, text) for name, text in values.items()})


class EditSpec(Parameters):
    """What an edit is: a method and its hyperparameters, under the field's names.

    A hyperparameter left out takes the model's default, see ``editkit/hparams/*.yaml`` and
    :meth:`resolve`; a resolved spec has every value set.
    """

    method: Method
    """rome (one edit after another), memit, emmet or alphaedit (all edits of a batch at once)."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Edited layers, ascending; the target v* is optimised at the last one and spread over all."""
    v_num_grad_steps: Count | None = None
    """Steps of the target optimisation."""
    v_lr: Positive | None = None
    """Adam's learning rate there."""
    v_loss_layer: Annotated[int, Field(ge=0)] | None = None
    """Layer whose output is projected to the vocabulary; the last one in every published setting."""
    v_weight_decay: NonNegative | None = None
    """Weight of ‖δ‖ / ‖h‖² in the target's loss."""
    clamp_norm_factor: Positive | None = None
    """Upper bound of ‖δ‖ / ‖h‖, h being the hidden state at the subject's last token."""
    kl_factor: NonNegative | None = None
    """Weight of the KL divergence that keeps "{subject} is a" as it was."""
    early_stop_loss: NonNegative | None = None
    """A target whose loss is below this is finished (0.05 in the published code; 0 never stops)."""
    target_mode: Literal["exact", "fast"] = "exact"
    """exact: v* in the model's own precision. fast: attention and MLP in bfloat16 where that gains."""
    stop_probability: Annotated[float, Field(gt=0, le=1)] | None = None
    """A target under which the new object is at least this likely is finished (1 never stops, as exact mode does)."""
    target_batch: Annotated[int, Field(ge=0)] = 0
    """Suffix tokens optimised together; 0 chooses by the free memory. Halved where memory runs out."""
    n_contexts: Annotated[int, Field(ge=0)] | None = None
    """Sampled context prefixes, besides the bare prompt; for images, augmented copies besides the image itself."""
    context_length: Count | None = None
    """Their length in tokens."""
    mom2_update_weight: Positive | None = None
    """λ: weight of the second moment C (memit, emmet)."""
    update_norm_lambda: NonNegative | None = None
    """Ridge added to the weighted second moment (emmet)."""
    emmet_lambda: NonNegative | None = None
    """Slack of emmet's equality; 0 asks for equality, and a single edit always gets it."""
    nullspace_threshold: Positive | None = None
    """Eigenvalues of C below this span the null space (alphaedit)."""
    l2: Positive | None = None
    """Ridge inside the null space (alphaedit)."""
    mom2_n_tokens: Count | None = None
    """Tokens of ordinary text behind C; left out, 10 for each dimension of a key."""
    targets_from: Literal["current", "base"] = "current"
    """Model on which a sequence optimises v*: as the steps before left it, or as it was before the first."""
    norm_clamp: Annotated[float, Field(ge=1)] = math.inf
    """Upper bound of ‖W‖ / ‖W before the first edit‖; an update that passes it is scaled down."""
    replay: Literal["none", "buffer", "hold", "history"] | None = None
    """How earlier edits take part in a step: not at all; some of them again; all by their keys alone (held where they
    are); all by keys and values (pulled back). Left out: what was published, hold for alphaedit and none for others."""
    replay_rate: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the buffer that is replayed; while the buffer is smaller than the batch, that share of the batch."""
    replay_max_items: Annotated[int, Field(ge=0)] = 0
    """Edits the buffer keeps; 0 keeps all."""
    replay_weight: Positive = 1.0
    """Weight of an earlier edit against a new one."""
    replay_strategy: Literal["random", "priority", "recent"] = "random"
    """Which edits are replayed; priority prefers those that have lost most of what they asked for."""
    replay_eviction: Literal["fifo", "lru"] = "fifo"
    """Which edit leaves a full buffer: the oldest, or the one replayed longest ago."""
    trust_enable: bool = False
    """Judge the model after each step by held-out prompts."""
    trust_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Trust below this calls for the action."""
    trust_action: Literal["rollback", "scale", "warn"] = "warn"
    """rollback undoes the step, scale applies trust_scale of it, warn records and warns."""
    trust_scale: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of an update that is kept by the action scale."""
    trust_heldout_samples: Count = 8
    """Held-out texts, neighbour prompts and earlier edits that are looked at, at most so many of each."""
    trust_weights: dict[TrustPart, NonNegative] = dict.fromkeys(get_args(TrustPart), 1.0)
    """Weights of the parts of the trust score."""
    edit_mode: Literal["raw", "lora"] = "raw"
    """raw writes over the weights; lora leaves them alone and writes low-rank adapters beside them."""
    lora_stack: Literal["grow", "batch", "fixed"] = "grow"
    """Where the next batch goes: into the one adapter, whose rank grows; into an adapter of its own; into the one
    adapter, fitted again so that its rank stays."""
    lora_fit: Literal["exact", "svd", "keys", "steps"] = "keys"
    """How an update of higher rank is brought down: not at all (an error); truncated SVD; the editing problem solved
    under the bound on the rank; the same by alternating least squares. At most lora_rank edits are always exact."""
    lora_rank: Count = 32
    """Rank of a batch's update at most; with lora_stack fixed, of all of them together. For rome every fact is a batch
    of its own, so the rank of an adapter that takes in several is their number, unless lora_stack is fixed."""
    lora_alpha: NonNegative = 0.0
    """LoRA's alpha: factors are stored divided by lora_alpha / rank; 0 takes the rank, so that this scaling is 1."""
    lora_scale: Positive = 1.0
    """Strength of the overlay; 1 is the edit as solved."""
    lora_dropout: NonNegative = 0.0
    """0: closed-form factors are not trained, so there is nothing that dropout could regularise."""
    lora_fit_steps: Count = 3
    """Rounds of alternating least squares of the fit steps, which begins at svd and ends at keys."""
    lora_tolerance: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the edits' outputs that a low rank may lose before allow_fallback raises it."""
    allow_fallback: bool = False
    """Write a higher rank, with a warning, where lora_tolerance is exceeded."""
    seed: int = 0
    """Seed of the sampled context prefixes and of the replayed edits."""

    def resolve(self, lm: "EditableModel") -> Self:
        """This spec with every value left out taken from the model's defaults (its name, depth and key dimension).

        Raises ``ValueError`` where a value is missing in both places, or a layer is out of range.
        """
        model_name, n_layers = lm.name, lm.n_layers
        defaults = load_defaults(model_name) or load_defaults(lm.kind or "")
        chosen = {
            "v_loss_layer": n_layers - 1,
            "mom2_n_tokens": KEYS_PER_DIMENSION * lm.d_k,
            "stop_probability": FAST_STOP if self.target_mode == "fast" else 1.0,
            "replay": "hold" if self.method == "alphaedit" else "none",
        }
        if lm.kind:
            chosen["layers"] = list(range(max(0, n_layers - LAST_LAYERS), n_layers))
        chosen |= {**defaults.get("shared", {}), **defaults.get(self.method, {})}
        spec = type(self)(**(chosen | self.model_dump(exclude_none=True)))
        if missing := [name for name, value in spec if value is None]:
            raise ValueError(
                f"no default {', '.join(missing)} for model {model_name!r}: "
                f"give them to EditSpec, or use a model with defaults ({', '.join(known_defaults())})"
            )
        if bad := [layer for layer in (*spec.layers, spec.v_loss_layer) if layer >= n_layers]:
            raise ValueError(f"layer {bad[0]} is out of range: {model_name} has layers 0 to {n_layers - 1}")
        if spec.layers != sorted(set(spec.layers)):
            raise ValueError(f"layers = {spec.layers}: must be ascending, each once")
        if spec.method == "rome" and spec.replay != "none":
            raise ValueError(f"replay = {spec.replay!r}: rome edits one fact at a time; use emmet, its batched form")
        if spec.lora_dropout:
            raise ValueError(
                f"lora_dropout = {spec.lora_dropout:g}: must be 0; closed-form factors are not trained, so there is "
                "nothing that dropout could regularise"
            )
        share = spec.trust_enable and spec.trust_action == "scale"
        if share and spec.edit_mode == "lora" and spec.lora_stack == "fixed":
            raise ValueError("trust_action = 'scale': a share of a step has no fixed rank; use rollback or warn")
        if spec.v_loss_layer < spec.layers[-1]:
            raise ValueError(f"v_loss_layer = {spec.v_loss_layer}: must not lie below layer {spec.layers[-1]}")
        return spec


def _parse(kind: Any, text: str | list[str]) -> Any:
    """The value of a type that is written as ``text``; the text itself where it is none, for validation to refuse."""
    try:
        return yaml.safe_load(text) if get_origin(kind) is dict else TypeAdapter(kind).validate_python(text)
    except (ValidationError, yaml.YAMLError):
        return text


def known_defaults() -> list[str]:
    """Names of the models that have default hyperparameters."""
    folder = resources.files("editkit") / "hparams"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def load_defaults(model_name: str) -> dict[str, dict[str, Any]]:
    """Default hyperparameters of a model, ``{"shared": {…}, "rome": {…}, …}``; empty where it has none.

    A hub id or folder is matched by its last part, so ``EleutherAI/gpt-j-6b`` finds ``gpt-j-6b``.
    """
    name = Path(model_name).name.lower()
    if name not in known_defaults():
        return {}
    return yaml.safe_load((resources.files("editkit") / "hparams" / f"{name}.yaml").read_text())


class RunParams(Parameters):
    """Every parameter of a report run; notebooks declare the ones they use.

    ``params/*.yaml`` holds them flat; a notebook's ``parameters`` cell holds the same names. The defaults
    are small, so that a notebook opened by hand runs in about a minute.
    """

    report_title: str = "Model editing, measured"
    """Title of the report."""
    model: str = "smollm2-135m"
    """Language model: a known name, a hub id or a local folder."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; auto takes a GPU where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the model's weights."""
    methods: Annotated[list[Method], Field(min_length=1)] = list(METHODS)
    """Editors to compare."""
    batch_sizes: Annotated[list[Count], Field(min_length=1)] = [1, 2]
    """Edits held by the model at once."""
    n_facts: Count = 2
    """Facts edited per seed; every batch size divides them."""
    seeds: Annotated[list[int], Field(min_length=1)] = [1]
    """Each draws other facts and other context prefixes."""
    known_only: bool = True
    """Edit only worldfacts that the model completes correctly before."""
    counterfact_path: str = ""
    """CounterFact file (path or URL); empty leaves its section out."""
    text_path: str = ""
    """Text for the second moment: a .txt or .jsonl file, or "wikipedia"; empty takes the offline default."""
    n_examples: Annotated[int, Field(ge=0)] = 2
    """Before-and-after completions shown."""
    sequence_methods: Annotated[list[Literal["memit", "emmet", "alphaedit"]], Field(min_length=1)] = ["emmet"]
    """Editors whose edits arrive in sequence; the first is the one whose replay is varied."""
    sequence_facts: Annotated[int, Field(ge=2)] = 2
    """Facts edited one batch after another per seed."""
    sequence_batch: Count = 1
    """Edits of one step; divides sequence_facts."""
    sequence_every: Count = 1
    """Steps from one measurement of all earlier edits to the next."""
    sequence_seeds: Annotated[list[int], Field(min_length=1)] = [1]
    """Each draws other facts and other context prefixes; 0 takes a file's own order."""
    targets_from: Literal["current", "base"] = "base"
    """Model on which a sequence optimises v*: as it stands, or as it was before the first edit (cached, fast)."""
    replay_rates: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [0.5]
    """Shares of the buffer that are replayed."""
    replay_strategies: Annotated[list[Literal["random", "priority", "recent"]], Field(min_length=1)] = ["random"]
    """Which edits are replayed."""
    replay_weights: Annotated[list[Positive], Field(min_length=1)] = [1.0]
    """Weights of an earlier edit against a new one."""
    replay_sizes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    """Edits a buffer keeps; 0 keeps all."""
    norm_clamps: list[Annotated[float, Field(ge=1)]] = []
    """Bounds of the growth of the edited weights to try, without replay."""
    stop_probabilities: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """Probabilities of the new object at which to stop v*, to try without replay."""
    trust_threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Trust below this rolls a step back, in the run that shows it."""
    lora_method: Literal["memit", "emmet", "alphaedit"] = "emmet"
    """Editor whose updates are brought down to a low rank."""
    lora_facts: Annotated[int, Field(ge=3)] = 3
    """Facts edited per seed."""
    lora_batches: Annotated[list[Count], Field(min_length=1)] = [1, 3]
    """Edits of one step; each divides lora_facts."""
    lora_ranks: Annotated[list[Count], Field(min_length=1)] = [1]
    """Ranks of a step's adapter; full rank is always run beside them."""
    lora_fits: Annotated[list[Literal["svd", "keys", "steps"]], Field(min_length=1)] = ["svd", "keys"]
    """Ways of bringing an update down to a rank below its own."""
    lora_replays: Annotated[list[Literal["none", "hold", "history"]], Field(min_length=1)] = ["none", "hold"]
    """How earlier edits take part."""
    lora_seeds: Annotated[list[int], Field(min_length=1)] = [1]
    """Each draws other facts and other context prefixes; 0 takes a file's own order."""
    finetune_rates: list[Positive] = [0.03]
    """Learning rates of LoRA fine-tuning, of which the best is reported; empty leaves it out."""
    finetune_steps: Count = 2
    """Steps of LoRA fine-tuning at most."""
    vit_data: str = "digits"
    """Images: digits, a MedMNIST flag, or the path of an .npz file in its layout."""
    vit_protocol: Literal["official", "held-out"] = "official"
    """The data set's own splits, or a fifth of all images set aside before anything else."""
    vit_size: Count = 28
    """Pixels of MedMNIST's file: 28, 64, 128 or 224."""
    vit_folder: str = ""
    """Where MedMNIST's files are; empty for ~/.medmnist."""
    vit_n_train: Annotated[int, Field(ge=0)] = 120
    """Training images that are fine-tuned on; 0 takes all."""
    vit_image_noise: NonNegative = 0.1
    """Standard deviation of noise added to every image, as a share of the full range."""
    vit_model: str = "dinov2-small"
    """Vision Transformer: a known name, a hub id or a local folder."""
    vit_image_size: Annotated[int, Field(ge=0)] = 28
    """Pixels that it sees; 0 for what it was trained on."""
    vit_epochs: Count = 1
    """Passes over the training images."""
    vit_batch_size: Count = 16
    """Images in one step."""
    vit_lr: Positive = 1.0e-4
    """AdamW's learning rate."""
    vit_trained_layers: Annotated[int, Field(ge=0)] | None = 2
    """Last layers that are fine-tuned, with the head; null for all of the backbone."""
    vit_seeds: Annotated[list[int], Field(min_length=1)] = [0]
    """Each draws another head and another order of the training images."""
    vit_num_ablations: Count = 2
    """Draws of the noise in tracing."""
    vit_max_samples: Count = 2
    """Misclassified images that are traced."""
    vit_edit_method: Annotated[list[Method], Field(min_length=1)] = ["alphaedit", "emmet"]
    """Editors; the first one's repairs are shown in full."""
    vit_edit_layers: list[Annotated[int, Field(ge=0)]] = [11]
    """Layers to edit; empty leaves it to tracing."""
    vit_num_edit_layers: Annotated[int, Field(ge=0)] = 3
    """Layers that tracing chooses; 0 takes the last three."""
    vit_max_edits: Annotated[int, Field(ge=0)] = 8
    """Misclassified images that are edited; 0 takes all."""
    vit_sequential: bool = False
    """One image after another, instead of all in one batch."""
    vit_ewc_lambda: NonNegative = 1000.0
    """Weight of elastic weight consolidation in editing the head."""
    vit_finetune_lr: Positive = 1.0e-5
    """Learning rate of plain fine-tuning on the edited images."""
    vit_thresholds: Annotated[list[Positive], Field(min_length=1)] = [0.01, 0.1]
    """nullspace_threshold to try, in units of the mean eigenvalue."""
    vit_edit_options: dict[str, Any] = {}
    """Further hyperparameters of the image editors, such as replay or edit_mode."""
    hyperparameters: dict[str, Any] = {
        "v_num_grad_steps": 3,
        "n_contexts": 1,
        "context_length": 4,
        "mom2_n_tokens": 2000,
    }
    """Overrides of the model's default hyperparameters, for every method."""
    run_dir: str = "../reports/notebook"
    """Folder of the run; the report command sets it."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and validate a flat YAML file. Errors name the file."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"parameter file {path} does not exist")
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold 'key: value' lines, got {type(values).__name__}")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """Validate what a notebook holds after its ``parameters`` cell: every plain value is a parameter.

        ``namespace`` is ``globals()``, before any other value is bound; Jupyter's own names are left out.
        """
        plain = (bool, int, float, str, list, dict, type(None))
        own = ("In", "Out")
        return cls(
            **{
                name: value
                for name, value in namespace.items()
                if isinstance(value, plain) and not name.startswith("_") and name not in own
            }
        )
