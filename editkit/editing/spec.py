"""The specification of an edit: a method and its hyperparameters, composed of what each room asks for."""

import math
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field

from editkit.cache import PACKAGE
from editkit.config import Count
from editkit.editing.budget import BudgetSpec
from editkit.editing.gradients import GradientSpec
from editkit.editing.lowrank import LoraSpec
from editkit.editing.moments import KEYS_PER_DIMENSION, MomentSpec
from editkit.editing.replay import ReplaySpec
from editkit.editing.restraint import RestraintSpec
from editkit.editing.targets import FAST_PROMPTS, FAST_STEPS, FAST_STOP, TargetSpec
from editkit.editing.trust import TrustSpec
from editkit.methods import METHODS, MethodName, SolverSpec
from editkit.models import EditableModel
from editkit.plain import decode

PUBLISHED = PACKAGE / "hparams"
TUNED = "hparams"  # in the working directory: models that somebody tuned there
LAST_LAYERS = 3  # edited by a study that is given no layers and does not choose any
GRADIENT_LR = 1e-6  # config/editor/ultraedit.yaml of github.com/XiaojieGu/UltraEdit, for every model
DEPTH = (2, 3)  # two thirds: where a Vision Transformer's one layer lies that is edited by default and keeps most


class EditSpec(
    BudgetSpec, TrustSpec, LoraSpec, RestraintSpec, ReplaySpec, MomentSpec, SolverSpec, GradientSpec, TargetSpec
):
    """What an edit is: a method and its hyperparameters, named as in the literature.

    A hyperparameter left out takes the model's default, see ``editkit/hparams/*.yaml`` and
    :meth:`resolve`; a resolved spec has every value set but the budgets that nobody asked for.
    """

    method: MethodName
    """Editing method: rome (one edit after another), memit, emmet, alphaedit, memit_rls, ultraedit, encore or betaedit
    (all edits of a batch at once)."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Edited layers, ascending; the target v* is optimised at the last one and spread over all."""
    n_contexts: Annotated[int, Field(ge=0)] | None = None
    """Number of sampled context prefixes besides the bare prompt; for images, of augmented copies besides the image."""
    context_length: Count | None = None
    """Length in tokens of each sampled context prefix."""
    targets_from: Literal["current", "base"] | None = None
    """Model on which v* is optimised: current, as earlier edits left it, or base, as it was before the first. Left out:
    as the method has it (base for memit_rls, else current)."""
    norm_clamp: Annotated[float, Field(ge=1)] = math.inf
    """Upper bound of ‖W‖ / ‖W before the first edit‖; an update that would pass it is scaled down."""
    seed: int = 0
    """Seed of the sampled context prefixes and of the replayed edits."""

    def resolve(self, model: EditableModel) -> Self:
        """Return this spec with values left out taken from the model's defaults, by its name, depth and key dimension.

        Raises ``ValueError`` where a value is missing in both places, or a layer is out of range.
        """
        model_name, n_layers = model.name, model.n_layers
        defaults, method = load_defaults(model_name) or load_defaults(model.kind or ""), METHODS[self.method]
        # What makes a method itself stands above what a model's file says of all, and below what it says of this one.
        stated = {**defaults.get("shared", {}), **method.asks, **defaults.get(self.method, {})}
        stated |= self.model_dump(exclude_none=True)
        fast = stated.get("target_mode") == "fast"
        in_turn = fast and not stated.get("most_probable_steps") and self.prompts_per_step is None
        if in_turn and self.v_num_grad_steps is None and "v_num_grad_steps" in stated:
            stated["v_num_grad_steps"] = math.ceil(FAST_STEPS * stated["v_num_grad_steps"])
        chosen = {
            "v_loss_layer": n_layers - 1,
            "mom2_n_tokens": KEYS_PER_DIMENSION * model.d_k,
            "stop_probability": FAST_STOP if fast else 1.0,
            "prompts_per_step": FAST_PROMPTS if in_turn else 0,
            "stop_margin": math.inf,
            "most_probable_steps": 0,
            "gradient_lr": GRADIENT_LR,
            "target_mode": "exact",
            "targets_from": "current",
            "replay": method.replay,
            **method.usual,
        }
        if model.kind:
            chosen["layers"] = [DEPTH[0] * n_layers // DEPTH[1]]
        values = chosen | stated
        fresh = values["target_mode"] != "gradient" and refreshes(self.method, values["replay"])
        spec = type(self)(**{"replay_refresh": fresh, **values})
        if missing := [name for name, value in spec if value is None and name not in BudgetSpec.model_fields]:
            raise ValueError(
                f"no default {', '.join(missing)} for model {model_name!r}: give them to EditSpec, or let "
                f"'python -m editkit tune --model {model_name} --method {self.method}' find them; known by the last "
                f"part of a model's name are {', '.join(known_defaults())}"
            )
        spec._check(model_name, n_layers)
        return spec

    def _check(self, model_name: str, n_layers: int) -> None:
        """Raise ``ValueError`` for values that do not fit each other or the model."""
        if bad := [layer for layer in (*self.layers, self.v_loss_layer) if layer >= n_layers]:
            raise ValueError(f"layer {bad[0]} is out of range: {model_name} has layers 0 to {n_layers - 1}")
        if self.layers != sorted(set(self.layers)):
            raise ValueError(f"layers = {self.layers}: must be ascending, each once")
        if METHODS[self.method].one_at_a_time and self.replay != "none":
            raise ValueError(
                f"replay = {self.replay!r}: {self.method} edits one fact at a time; use emmet, its batched form"
            )
        if METHODS[self.method].equality and self.replay != "none" and self.replay_weight != 1:
            raise ValueError(
                f"replay_weight = {self.replay_weight:g}: must be 1 for {self.method}, whose equality meets new and "
                "earlier edits alike, whatever they weigh"
            )
        if METHODS[self.method].renewed and self.nullspace == "kept":  # where C is 0: nothing is left of its weight
            raise ValueError(f"nullspace = 'kept': must be 'threshold' for {self.method}, which would be alphaedit")
        if self.lora_dropout:
            raise ValueError(
                f"lora_dropout = {self.lora_dropout:g}: must be 0; closed-form factors are not trained, so there is "
                "nothing that dropout could regularise"
            )
        share = self.trust_enable and self.trust_action == "scale"
        if share and self.edit_mode == "lora" and self.lora_stack == "fixed":
            raise ValueError("trust_action = 'scale': a share of a step has no fixed rank; use rollback or warn")
        if self.edit_mode == "lora" and self.delta_map != "none":
            raise ValueError(
                f"delta_map = {self.delta_map!r}: must be 'none' with edit_mode 'lora', whose rank it breaks"
            )
        if self.most_probable_steps and self.prompts_per_step:
            raise ValueError(
                f"prompts_per_step = {self.prompts_per_step}: must be 0 with most_probable_steps, which looks at every "
                "context"
            )
        if self.target_mode == "gradient":
            self._check_gradient()
        if self.v_loss_layer < self.layers[-1]:
            raise ValueError(f"v_loss_layer = {self.v_loss_layer}: must not lie below layer {self.layers[-1]}")

    def _check_gradient(self) -> None:
        """Raise ``ValueError`` for what needs a target, where residuals come from a gradient."""
        if self.replay not in ("none", "hold"):
            raise ValueError(
                f"replay = {self.replay!r}: must be none or hold with target_mode 'gradient', which leaves no value "
                "of an edit to go back to"
            )
        if self.replay_refresh:
            raise ValueError(
                "replay_refresh = True: must be False with target_mode 'gradient', whose keys stay as read"
            )
        if self.norm_anchor:
            raise ValueError(
                f"norm_anchor = {self.norm_anchor:g}: must be 0 with target_mode 'gradient', which has no v*"
            )


def refreshes(method: MethodName, replay: str) -> bool:
    """Return whether earlier edits' keys are read anew by default: not in a method's own, published kind of replay."""
    return replay != METHODS[method].replay


def default_layers(model_name: str) -> list[int]:
    """Return the layers that one method or another edits by default; none for a model without defaults."""
    layers = (given.get("layers", []) for given in load_defaults(model_name).values())
    return sorted({*chain.from_iterable(layers)})


def tuned_folder() -> Path:
    """Return where a user's own defaults lie: ``$EDITKIT_HPARAMS`` where set, else ``hparams`` where one works."""
    return Path(os.environ.get("EDITKIT_HPARAMS") or TUNED).expanduser()


def known_defaults() -> list[str]:
    """Return the names of the models that have default hyperparameters."""
    return sorted({path.stem.lower() for folder in _folders() for path in folder.glob("*.yaml")})


def load_defaults(model_name: str) -> dict[str, dict[str, Any]]:
    """Return the default hyperparameters of a model, ``{"shared": {…}, "rome": {…}, …}``; empty where it has none.

    A hub id or folder is matched by its last part, so ``EleutherAI/gpt-j-6b`` finds ``gpt-j-6b``. The first file counts
    of those in ``$EDITKIT_HPARAMS``, the published ones, and ``hparams`` in or beside the working directory: what lies
    there fills a gap, and only who names a folder sets published values aside.
    Raises ``ValueError`` for a file of another layout.
    """
    return _read(path) if (path := defaults_file(model_name)) else {}


def published_defaults(model_name: str) -> dict[str, dict[str, Any]]:
    """Return what :func:`load_defaults` does, of the published ones alone."""
    return _read(path) if (path := defaults_file(model_name, [PUBLISHED])) else {}


def defaults_name(model_name: str) -> str:
    """Return the name of a model's file of defaults, without its ending."""
    return Path(model_name).name.lower()


def defaults_file(model_name: str, folders: Sequence[Path] | None = None) -> Path | None:
    """Return the file of a model's defaults: the first in some folders, or in those of :func:`load_defaults`."""
    name, folders = defaults_name(model_name), _folders() if folders is None else folders
    files = (path for folder in folders for path in sorted(folder.glob("*.yaml")))
    return next((path for path in files if path.stem.lower() == name), None)


def _folders() -> list[Path]:
    named = [tuned_folder()] if os.environ.get("EDITKIT_HPARAMS") else []
    return [*named, PUBLISHED, Path(TUNED), Path("..", TUNED)]  # a chapter works in a folder beside it


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        stated = yaml.safe_load(decode(path.read_bytes(), path, "YAML"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split()):.300}") from None
    sections = ("shared", *METHODS)
    if not isinstance(stated, dict) or not all(isinstance(values, dict) for values in stated.values()):
        raise ValueError(f"{path}: sections of 'key: value' lines are needed; they are called {', '.join(sections)}")
    if odd := [section for section in stated if section not in sections]:
        raise ValueError(f"{path} has a section {odd[0]!r}: allowed are {', '.join(sections)}")
    return stated
