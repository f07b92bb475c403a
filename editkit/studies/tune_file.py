"""What a search found: as a file of defaults that says how its values came about, and as tables."""

import math
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from editkit.cache import LIBRARIES, digest, write_atomic
from editkit.config import shown
from editkit.editing.spec import PUBLISHED, EditSpec, defaults_name, tuned_folder
from editkit.facts import data_hash
from editkit.methods import METHODS, label
from editkit.studies.tune import FINISHED, SCORES, TuneParams, Tuning, measured
from editkit.studies.tune_space import LAST, WINDOW, setting_at

VERSIONED = ("editkit", "optuna", *LIBRARIES)
STUDY = "# Study "  # begins the line of a file that names the study it comes from
ENOUGH = 5  # measured trials from which on hyperparameters are said to matter more or less
COLUMNS = ["trial", "hyperparameter", "value", "log", "S", *SCORES, "moment", "start", "best", "seconds"]


def yaml_path(params: TuneParams) -> Path:
    """Return where the file of defaults will be written.

    Raises ``ValueError`` for one that is there already, unless it may be replaced, and for a published one, which never
    may.
    """
    name = defaults_name(params.model)
    if name in ("", ".."):
        raise ValueError(f"model = {shown(params.model)}: its last part names the file; give the folder by its name")
    path = (Path(params.out).expanduser() if params.out else tuned_folder()) / f"{name}.yaml"
    if path.parent.exists() and not path.parent.is_dir():
        raise ValueError(f"out = {shown(str(path.parent))} is a file; a folder is needed")
    if path.resolve().parent == PUBLISHED.resolve() and path.exists():
        raise ValueError(f"{path} holds published values and is never overwritten: --out names another folder")
    if path.exists() and not params.force:
        raise ValueError(f"{path} exists: --force replaces it, --out names another folder")
    return path


def write(path: Path, tuning: Tuning, found: Mapping[str, Study], params: TuneParams) -> None:
    """Write the file of defaults; one that came to be there since may be replaced by the same study alone."""
    if path.exists() and f"{STUDY}{tuning.key[:16]}" not in path.read_text(encoding="utf-8", errors="replace"):
        yaml_path(params)
    write_atomic(path, render(tuning, found, params).encode())


def render(tuning: Tuning, found: Mapping[str, Study], params: TuneParams) -> str:
    """Write a file of defaults as text: where searches began, what each found, and how.

    Args:
        found: a study for each method that was tuned, of :func:`editkit.studies.tune.studies`.
    """
    lines = [*_about(tuning, params), *(line for method, study in found.items() for line in _story(method, study))]
    held = {name: value for name, value in tuning.held.items() if _has_default(name)}
    given = dict.fromkeys(held, "given")
    origin = "published, see editkit/hparams" if tuning.published else "start, not tuned"
    sections = {"shared": _section({**tuning.start["shared"], **held}, given, origin)}
    for method in METHODS:
        values, notes = {**tuning.start.get(method, {}), **(held if method in tuning.start else {})}, dict(given)
        if method in found:
            tuned = setting_at(best(found[method]).params, tuning.begin(method))
            values, notes = values | tuned, notes | _ranges(tuning, method, tuned)
        sections[method] = _section(values, notes, origin)
    body = (line for name, rows in sections.items() if rows for line in (f"{name}:", *rows))
    return "\n".join([*lines, *body, ""])


def best(study: Study) -> FrozenTrial:
    """Return the trial of the highest S; the earlier one of two."""
    return max(measured(study), key=lambda trial: trial.value)


def tell(method: str, study: Study) -> str:
    """Say in a line what a search found."""
    start = [trial.value for trial in measured(study) if "start" in trial.user_attrs]
    begun = f"S {start[0]:.3f} where it began" if start else "where it began, S could not be measured"
    count = len(study.get_trials(deepcopy=False, states=FINISHED))
    return f"{label(method)}: {_scored(best(study))} after {count} trial{'s' * (count != 1)}; {begun}"


def trial_table(study: Study) -> pd.DataFrame:
    """Tabulate what trials tried and scored, a row a trial and hyperparameter.

    Columns ``trial``, ``hyperparameter`` (layers as :data:`LAST` and :data:`WINDOW`), ``value``, ``log`` (whether it is
    searched on a logarithmic scale), ``S`` and, on the whole batch, ``ES PS NS``; ``moment`` ("batch", or "first" for
    trials that ended after the first batch; those that were refused have no row), ``start``, ``best``, ``seconds``.
    """
    rows, chosen = [], best(study).number
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        whole, attributes = trial.state == TrialState.COMPLETE, trial.user_attrs
        S = trial.value if whole else next(iter(trial.intermediate_values.values()), None)
        if S is None or "problem" in attributes:
            continue
        about = {"S": S, **{name: attributes.get(name) for name in SCORES}, "seconds": attributes["seconds"]}
        about |= {"moment": "batch" if whole else "first"}
        about |= {"start": "start" in attributes, "best": trial.number == chosen, "trial": trial.number}
        ranges: Mapping[str, Any] = trial.distributions  # of numbers, as in tune_space.Space
        for name, value in trial.params.items():
            rows.append({"hyperparameter": name, "value": value, "log": ranges[name].log, **about})
    return pd.DataFrame(rows, columns=COLUMNS)


def importances(study: Study) -> pd.DataFrame:
    """Tabulate how much each hyperparameter decides whether S is high, by optuna's PED-ANOVA (arXiv 2304.10255).

    Columns ``hyperparameter`` and ``importance``, which add up to 1, largest first; no row where too few trials were
    measured.
    """
    found = {}
    if len(measured(study)) >= ENOUGH:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few trials
            found = optuna.importance.get_param_importances(study)
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return pd.DataFrame(ranked, columns=["hyperparameter", "importance"])


def _has_default(name: str) -> bool:
    """Return whether a file of defaults can say a hyperparameter: others have one value whatever the model."""
    return EditSpec.model_fields[name].default is None and name not in ("target_mode", "targets_from")


def _about(tuning: Tuning, params: TuneParams) -> list[str]:
    setting, facts = tuning.setting, tuning.facts
    lm, identity = setting.lm, setting.lm.fingerprint()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONED)
    known = " that the model completes correctly" if params.known_only else ""
    others = ", ".join(f"{name}: {shown(value)}" for name, value in tuning.held.items() if not _has_default(name))
    text = Path(params.text_path).name or "the model's own samples"
    return [
        f"# {shown(defaults_name(lm.name))}: chosen by S of one batch, with python -m editkit tune.",
        f"# Facts: {len(facts)} of {setting.dataset}{known}, tune part, seed {tuning.seed}, hash "
        f"{data_hash(facts)[:16]}; none of the test part took part.",
        f"# Before any edit: {_listed(tuning.before)}.",
        f"# Text behind C: {text!r}, seed {params.text_seed}, hash {digest(list(setting.texts))[:16]}.",
        f"# Model: weights {identity}, {params.dtype}, quantization {params.quantization}, on {lm.device.type}.",
        *[f"# Edits were made with {others}, which is not a model's default."] * bool(others),
        f"{STUDY}{tuning.key[:16]}; {versions}.",
    ]


def _story(method: str, study: Study) -> list[str]:
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    whole, refused = len(measured(study)), sum("problem" in trial.user_attrs for trial in trials)
    seconds = sum(trial.user_attrs["seconds"] for trial in trials)
    counts = f"{whole} on the whole batch, {len(trials) - whole - refused} on the first one alone, {refused} refused"
    return [f"# {tell(method, study)}", f"#   ({counts}; {seconds:.0f} seconds)."]


def _ranges(tuning: Tuning, method: str, tuned: Mapping[str, Any]) -> dict[str, str]:
    """Say of each tuned value what it was chosen from."""
    space = tuning.space(method)
    said = {name: f"tuned, {space[name].low:.3g} to {space[name].high:.3g}" for name in tuned if name in space}
    if "layers" in tuned:
        ends, counts = (f"{space[name].low} to {space[name].high}" if name in space else "" for name in (LAST, WINDOW))
        parts = [f"last one {ends}"] * bool(ends) + [f"number {counts}"] * bool(counts)
        said["layers"] = f"tuned, {', '.join(parts)}"
    return said


def _section(values: Mapping[str, Any], notes: Mapping[str, str], origin: str) -> list[str]:
    def written(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()

    return [f"  {name}: {written(value)}  # {notes.get(name, origin)}" for name, value in values.items()]


def _scored(trial: FrozenTrial) -> str:
    return _listed({"S": trial.value, **{name: trial.user_attrs[name] for name in SCORES}})


def _listed(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {scores[name]:.3f}" for name in ("S", *SCORES))
