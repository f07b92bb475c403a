"""Search for a model's hyperparameters by S of one batch of facts of the part for tuning, with optuna.

The search of each method is a study in an SQLite file in the cache, named by all that determines what a trial measures.
So one that was stopped or killed goes on where it was, and several processes may search at once.

New targets v* are nearly all of a trial's time, and the store holds those found before. So one trial in ``EVERY`` looks
for new ones; those between keep the targets of the best trial so far and vary the solver and the window of layers. A
trial that does worse than most on a small first batch ends there.
"""

import math
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, TrialPruned
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from tqdm.auto import tqdm

from editkit.cache import Store, digest
from editkit.config import Count, Positive, Seed
from editkit.editing.moments import KEYS_PER_DIMENSION
from editkit.editing.session import Session
from editkit.editing.spec import EditSpec, defaults_name, published_defaults
from editkit.facts import Fact
from editkit.language.keys import sample_contexts
from editkit.language.known import load_facts
from editkit.language.metrics import evaluate, summarize
from editkit.language.moments import second_moments
from editkit.language.texts import load_texts
from editkit.methods import METHODS, MethodName
from editkit.models import LanguageModel, load_lm
from editkit.studies.runs import measurement_key, untouched
from editkit.studies.setting import Draw, Setting, SettingParams
from editkit.studies.tune_space import TARGETS, Space, Start, derived, setting_at, space, starting_point, suggest
from editkit.studies.tune_space import threshold as free_directions

SCORES = ("ES", "PS", "NS")
EVERY = 4  # trials, of which one looks for new targets
BEAT = 60  # seconds between signs of life of a trial; after two without one it has been killed
GIVE_UP = 10  # trials that could not be measured, when none could
WAIT = 60  # seconds for another process to finish writing
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class TuneParams(SettingParams):
    """A search for a model's hyperparameters."""

    facts_part: Literal["tune"] = "tune"
    """Part of the facts: tune, so that none of a reported number takes part."""
    known_only: bool = True
    """Tune on facts alone that the model completes correctly before, whatever their source."""
    hyperparameters: dict[str, Any] = {}
    """Hyperparameters that are held instead of searched, such as {v_lr: 0.1, target_mode: fast}."""
    method: Annotated[list[MethodName], Field(min_length=1)] = ["memit"]
    """Editing methods to tune, one after another."""
    minutes: Positive = 20.0
    """Minutes of search, shared by the methods evenly; the trial that runs at the end is finished."""
    trials: Annotated[int, Field(ge=0)] = 0
    """Trials of each method after which its search ends, those of earlier runs included; 0 sets no bound."""
    n_facts: Count = 64
    """Facts edited at once in a trial."""
    first_batch: Count = 16
    """Facts that are edited and scored first; a trial that does worse on them than most others ends there."""
    seed: Seed = 1
    """Draws the facts, the context prefixes and the trials."""
    out: str = ""
    """Folder of the YAML and the figures; empty for $EDITKIT_HPARAMS where set, else ./hparams."""
    force: bool = False
    """Replace a file that is there."""

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of :func:`editkit.load_lm`, besides the name; every layer can be edited."""
        return {name: value for name, value in super().loading.items() if name != "float_layers"}


@dataclass(frozen=True)
class Tuning:
    """What all trials share."""

    setting: Setting  # with one seed
    first: int  # facts of the first batch
    start: Start  # where searches begin, in the layout of a file of defaults
    held: Mapping[str, Any]  # hyperparameters that are not searched
    published: bool  # whether the start is a published setting
    before: Mapping[str, float]  # scores of the untouched model

    @property
    def seed(self) -> int:
        return next(iter(self.setting.draws))

    @property
    def facts(self) -> Sequence[Fact]:
        return self.setting.draws[self.seed].facts

    @cached_property
    def key(self) -> str:
        """Hash of all that determines what a trial measures, besides its method and hyperparameters."""
        about = {"start": self.start, "held": self.held, "first": self.first, "optuna": metadata.version("optuna")}
        return digest(measurement_key(self.setting, self.seed, __name__) | about)

    @cached_property
    def file(self) -> Path:
        """SQLite file of the studies, one a method."""
        return self.setting.store.root / "tune" / f"{defaults_name(self.setting.lm.name)}-{self.key[:16]}.db"

    def begin(self, method: str) -> dict[str, Any]:
        """Return the hyperparameters at which a method's search begins."""
        return {**self.start["shared"], **self.start.get(method, {}), **self.held, **METHODS[method].asks}

    def space(self, method: str) -> Space:
        return space(self.setting.lm, method, self.begin(method), self.held)

    def spec(self, method: str, point: Mapping[str, Any]) -> EditSpec:
        """Specify an edit at a point of the method's space."""
        begin = self.begin(method)
        return EditSpec(**{"method": method, "seed": self.seed, **begin, **setting_at(point, begin)})


def prepare(params: TuneParams, *, store: Store | None = None, progress: bool = True) -> Tuning:
    """Load the model, facts that it knows, and what their edits need.

    Raises ``ValueError`` where there are no such facts, or none that S can be measured on, and for held hyperparameters
    that are unknown or do not fit.
    """
    lm = load_lm(params.model, **params.loading)
    known: dict[str, Any] = {"known_only": lm} if params.known_only else {}
    source: dict[str, Any] = {
        "path": params.facts_path or None,
        "n": params.n_facts,
        "seed": params.seed,
        "part": params.facts_part,
    }
    facts = load_facts(params.facts_source, **source, **known)
    if not facts:
        raise ValueError(
            f"{lm.name} completes none of the {params.facts_source} facts for tuning correctly; --no-known-only tunes "
            "on facts that it does not know"
        )
    return tuning_of(lm, facts, params, store=store, progress=progress)


def tuning_of(
    lm: LanguageModel, facts: Sequence[Fact], params: TuneParams, *, store: Store | None = None, progress: bool = True
) -> Tuning:
    """Prepare a search on given facts; raises as :func:`prepare` does."""
    store, held, seed = store or Store(), params.hyperparameters, params.seed
    if "method" in held:
        raise ValueError("hyperparameters holds 'method': a parameter of its own says it")
    published = published_defaults(lm.name)
    start = published or derived(lm)
    shared = start["shared"] = {**start["shared"]}
    common = {**shared, **held}
    EditSpec(**{"method": "memit", **common})  # before these steer anything
    n_tokens = common.get("mom2_n_tokens") or KEYS_PER_DIMENSION * lm.d_k
    cached: dict[str, Any] = {"store": store, "progress": progress}
    texts = load_texts(params.text_path, lm=lm, n_tokens=n_tokens, seed=params.text_seed, **cached)
    if "nullspace_threshold" not in shared:
        last = shared["layers"][-1]
        shared["nullspace_threshold"] = free_directions(second_moments(lm, [last], texts, n_tokens, **cached)[last])
    contexts = sample_contexts(lm, common["n_contexts"], common["context_length"], seed)
    draws = {seed: Draw(list(facts), [], len(facts))}
    setting = Setting(lm, params.facts_source, draws, {seed: contexts}, texts, {}, store, progress)
    before = untouched(setting, seed)[0]
    if math.isnan(before["S"]):
        raise ValueError(f"S cannot be measured: the {len(facts)} facts have no paraphrases, or no neighbours")
    tuning = Tuning(setting, params.first_batch, start, held, bool(published), before)
    for method in params.method:
        tuning.spec(method, {}).resolve(lm)
        if not tuning.space(method):
            raise ValueError(f"hyperparameters = {held}: nothing of {method} is left to search")
    return tuning


def search(tuning: Tuning, method: str, *, until: float, trials: int = 0) -> Study:
    """Search for a method's hyperparameters, or go on with it; the first trial is the start.

    Args:
        until: value of ``time.monotonic()`` after which no trial begins, unless none was finished yet.
        trials: number of finished trials after which no further one begins; 0 sets no bound.

    A trial whose edit is refused counts as finished. Raises ``ValueError`` where no trial could be measured,
    ``OSError`` where the study's file cannot be used.
    """
    with usable(tuning.file):
        study = open_study(tuning, method)
        bar = tqdm(total=trials or None, desc=f"tuning {method}", unit="trial", disable=not tuning.setting.progress)
        with bar:
            while True:
                done = study.get_trials(deepcopy=False, states=FINISHED)
                best = max((trial.value for trial in measured(study)), default=math.nan)
                bar.n = len(done)
                bar.set_postfix_str(f"S {best:.3f} at best")
                if len(done) >= GIVE_UP and math.isnan(best):
                    break
                if done and (time.monotonic() >= until or 0 < trials <= len(done)):
                    break
                _try_one(study, tuning, method)
        if not measured(study):
            problem = done[-1].user_attrs.get("problem", "")
            raise ValueError(f"none of {len(done)} trials of {method} could be measured; the last: {problem}")
        return study


def open_study(tuning: Tuning, method: str) -> Study:
    """Open the study of a method, with what earlier runs found."""
    how: dict[str, Any] = {"direction": "maximize", "pruner": MedianPruner(), "load_if_exists": True}
    return optuna.create_study(storage=_storage(tuning), study_name=method, **how)


def studies(tuning: Tuning) -> dict[str, Study]:
    """Return the studies of all methods in which a trial was measured, by method."""
    with usable(tuning.file):
        names = {study.study_name for study in _storage(tuning).get_all_studies()}
        found = {method: open_study(tuning, method) for method in METHODS if method in names}
        return {method: study for method, study in found.items() if measured(study)}


def _storage(tuning: Tuning) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tuning.file.parent.mkdir(parents=True, exist_ok=True)
    url = URL.create("sqlite", database=str(tuning.file.absolute())).render_as_string()
    with _alone(tuning.file), warnings.catch_warnings():  # two processes must not make the tables at once
        warnings.simplefilter("ignore", ExperimentalWarning)  # signs of life
        return RDBStorage(url, {"connect_args": {"timeout": WAIT}}, heartbeat_interval=BEAT)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other processes that search in a study's folder waiting; the lock ends with its process."""
    lock = sqlite3.connect(file.with_name("lock"), timeout=WAIT, isolation_level=None)
    with closing(lock):
        lock.execute("begin exclusive")
        yield


def measured(study: Study) -> list[FrozenTrial]:
    """List the trials that were scored on the whole batch."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


@contextmanager
def usable(file: Path) -> Iterator[None]:
    """Say what is wrong with a study's file in one line."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as problem:
        cause = str(getattr(problem, "orig", None) or problem.__cause__ or problem).split("\n")[0]
        raise OSError(f"the study {file} cannot be used ({cause}); without that file the search begins anew") from None


def _try_one(study: Study, tuning: Tuning, method: str) -> None:
    """Measure the next trial, which one process alone takes: SQLite would give one that waits to two of them."""
    with ExitStack() as taking:
        taking.enter_context(_alone(tuning.file))
        _plan(study, tuning, method)

        def measure(trial: Trial) -> float:
            taking.close()
            return _measure(tuning, method, trial)

        study.optimize(measure, n_trials=1)


def _plan(study: Study, tuning: Tuning, method: str) -> None:
    """Say of the next trial what is not left to the sampler: all of it, its targets, or nothing."""
    space, trials = tuning.space(method), study.get_trials(deepcopy=False)
    if any(trial.state == TrialState.WAITING for trial in trials):
        return
    if not any("start" in trial.user_attrs for trial in trials):
        return study.enqueue_trial(starting_point(space, tuning.begin(method)), user_attrs={"start": True})
    tried = [trial.params for trial in trials]
    for trial in trials:  # one that was stopped or killed is made up for, once
        if trial.state == TrialState.FAIL and trial.params.keys() == space.keys() and tried.count(trial.params) == 1:
            return study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
    best = max(measured(study), key=lambda trial: trial.value, default=None)
    free = [name for name, values in space.items() if name not in TARGETS and isinstance(values.low, float)]
    if best and free and len(trials) % EVERY:
        study.enqueue_trial({name: best.params[name] for name in TARGETS if name in space})


def _measure(tuning: Tuning, method: str, trial: Trial) -> float:
    """Measure S of one batch; a trial that does worse than most on the first facts, or is refused, is pruned."""
    begun, facts = time.perf_counter(), tuning.facts
    # A trial's draw depends on its number alone: a search in two runs is that in one, and two processes draw apart.
    trial.study.sampler = TPESampler(seed=int(digest([tuning.seed, trial.number])[:8], 16))
    point = suggest(trial, tuning.space(method))
    try:
        session = tuning.setting.session(tuning.spec(method, point), tuning.seed)
        if tuning.first < len(facts):
            trial.report(_scores(session, facts[: tuning.first])["S"], step=tuning.first)
            if trial.should_prune() and "start" not in trial.user_attrs:
                raise TrialPruned
        scores = _scores(session, facts)
    except (ValueError, FloatingPointError) as problem:
        trial.set_user_attr("problem", str(problem))
        raise TrialPruned from None
    finally:
        trial.set_user_attr("seconds", time.perf_counter() - begun)
    for name in SCORES:
        trial.set_user_attr(name, scores[name])
    return scores["S"]


def _scores(session: Session, facts: Sequence[Fact]) -> dict[str, float]:
    """Score a batch of edits and take it back."""
    try:
        session.edit(facts)
        return summarize(evaluate(session.model, facts))
    finally:
        if session.results:
            session.undo()
