"""A cell of a sweep in its setting: where its result lies, how it is made, and what it took.

The store is the truth: a cell is done when its whole result is there. One that failed leaves its traceback there, and
counts as not done.
"""

import random
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, TypedDict, cast

from tqdm.auto import tqdm

from editkit.cache import Store, from_json_tensor, json_tensor
from editkit.editing.spec import EditSpec
from editkit.methods import METHODS
from editkit.models import LanguageModel
from editkit.studies import evaluation
from editkit.studies.arriving import ArrivingName, Learns
from editkit.studies.evaluation import Asked, Read, first_facts
from editkit.studies.locate import choose_layers
from editkit.studies.runs import CONTROL, baseline_specs, batches_key, measure_batches
from editkit.studies.sequences import HELD_OUT, WHOLE, courses, measured_every
from editkit.studies.setting import Setting
from editkit.studies.sweep import LeftOut, Part, SweepCell, SweepParams, grid

FAILED = "failed-cell"


@dataclass(frozen=True)
class Bench:
    """What all cells of a sweep share; without a model, which is loaded where cells are run."""

    params: SweepParams
    settings: Mapping[Part, Setting]
    _asked: dict[int, Asked] = field(default_factory=dict)

    @classmethod
    def prepare(cls, params: SweepParams, *, store: Store | None = None, progress: bool = True) -> "Bench":
        """Load the model and draw what each part needs, as the chapters do; raises as :meth:`Setting.prepare` does."""
        given: dict[str, Any] = {"store": store, "progress": progress}
        settings: dict[Part, Setting] = {}
        parts = set(params.sweep_parts)
        if parts & {"batches", "evaluation"}:
            whole = Setting.prepare(params, n_facts=params.n_facts, seeds=params.seeds, **given)
            whole = choose_layers(whole, params)
            settings["batches"] = whole
            if "evaluation" in parts and params.evaluation_facts <= params.n_facts:
                settings["evaluation"] = first_facts(whole, params)
        if "sequences" in parts:
            draws: dict[str, Any] = {
                "n_facts": params.sequence_facts,
                "seeds": params.sequence_seeds,
                "heldout": HELD_OUT,
            }
            arriving = Setting.prepare(params, **draws, **given, targets_from=params.targets_from)
            settings["sequences"] = choose_layers(arriving, params)
        lm = next(iter(settings.values())).lm  # one copy is enough
        return cls(params, {part: replace(one, lm=lm) for part, one in settings.items()})

    def without_model(self) -> "Bench":
        """Return what can be sent elsewhere."""
        return Bench(self.params, {part: replace(one, lm=None, store=None) for part, one in self.settings.items()})

    def with_model(self, lm: LanguageModel, store: Store) -> "Bench":
        """Return the same on a model and store."""
        given: dict[str, Any] = {"lm": lm, "store": store, "progress": False}
        return Bench(self.params, {part: replace(one, **given) for part, one in self.settings.items()})

    def still(self) -> "Bench":
        """Return the same to be looked at and read from: its model must stay as it is, and is hashed once."""
        some = next(iter(self.settings.values()))
        still: Any = _Still(some.lm)  # which answers as the model does
        return self.with_model(still, some.store)

    def setting(self, cell: SweepCell) -> Setting:
        """Return the setting of a cell: its seed alone, the facts in its order."""
        setting = self.settings[cell.part]
        draw = setting.draws[cell.seed]
        if not cell.order:
            return replace(setting, draws={cell.seed: draw})
        facts = list(draw.facts)
        random.Random(cell.order).shuffle(facts)
        return replace(setting, draws={cell.seed: draw._replace(facts=facts)}, drawn={cell.seed: draw.facts})

    def spec(self, cell: SweepCell) -> EditSpec | None:
        """Specify the edits of a cell; None where a control or no edit is measured.

        Raises ``ValueError`` for what the hyperparameters refuse.
        """
        if cell.method != CONTROL and cell.method not in METHODS:
            return None
        setting = self.settings[cell.part]
        if cell.method == CONTROL:
            found = baseline_specs(setting, ["emmet"]).get(CONTROL)
            if found is None:
                raise ValueError("memit has emmet's layers and weight already")
        else:
            found = setting.spec(cell.method)
        stated = found.model_dump(exclude_unset=True)
        spec = EditSpec(**(stated | dict(cell.changes) | {"seed": cell.seed}))
        spec.resolve(setting.lm)
        return spec

    def work(self, cell: SweepCell) -> "Work":
        """Say where the result of a cell lies and how it is made; raises as :meth:`spec` does."""
        setting, spec, seed = self.setting(cell), self.spec(cell), cell.seed
        if cell.part == "sequences":
            every = measured_every(self.params, cell.batch_size)
            learns = None if spec else Learns(cast(ArrivingName, cell.method), self.params)
            spec = spec or setting.spec("memit")  # whose layers and targets controls have
            (course,) = courses(setting, spec, cell.batch_size, every=every, learns=learns)
            return Work(WHOLE, course.key, setting.store, course.trajectory, _took_course)
        if cell.part == "batches":
            key = batches_key(setting, seed, spec, cell.batch_size)
            make = partial(measure_batches, setting, seed, spec, cell.batch_size)
            return Work("cell", key, setting.store, make, _took)
        about = (setting, seed, self.asked(seed), cell.method, {cell.method: spec} if spec else {})
        make = partial(evaluation.measure_cell, *about)
        return Work("cell", evaluation.cell_key(*about), setting.store, make, _took)

    def works(self, *, progress: bool = True) -> tuple[dict[SweepCell, "Work"], list[LeftOut]]:
        """Look up every cell of the grid; one that is refused, or comes to the same as another, is left out too.

        What is returned is to be looked at and read, see :meth:`still`. Raises what reading for the evaluation does.
        """
        still = self.still()
        for seed in still.settings["evaluation"].draws if "evaluation" in still.settings else ():
            still.asked(seed)  # what cannot be read is no matter of one cell
        wanted, left = grid(self.params)
        found, names = dict[SweepCell, Work](), dict[str, SweepCell]()
        for cell in tqdm(wanted, desc="cells looked up", unit="cell", disable=not progress):
            try:
                work = still.work(cell)
            except ValueError as refused:
                left.append(LeftOut(cell, str(refused)))
                continue
            if work.name in names:
                left.append(LeftOut(cell, f"the same as {names[work.name].configuration}"))
                continue
            found[cell], names[work.name] = work, cell
        return found, left

    def asked(self, seed: int) -> Asked:
        """Return what is asked about the facts of a seed in the evaluation; it is found once."""
        if seed not in self._asked:
            self._asked[seed] = Asked.of(self.settings["evaluation"], seed, self.params, self.params, self._read)
        return self._asked[seed]

    @cached_property
    def _read(self) -> Read:
        return Read.of(self.params, self.params)


class _Still:
    """A model that nobody changes while this stands for it, so that its weights are hashed once."""

    def __init__(self, lm: LanguageModel):
        self._lm, self._identity, self._mark = lm, lm.identity(), lm.fingerprint()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def identity(self) -> dict[str, Any]:
        return self._identity

    def fingerprint(self) -> str:
        return self._mark


class Outcome(NamedTuple):
    """What became of a cell that was run."""

    name: str
    seconds: float
    problem: str = ""  # in one line; empty where it is done


@dataclass(frozen=True)
class Work:
    """A cell as an entry of the store."""

    kind: str
    key: dict[str, Any]
    store: Store
    make: Callable[[], Any]  # computes and stores the entry, or reads it
    took: Callable[[dict[str, Any]], float]  # seconds of the result

    @property
    def name(self) -> str:
        """Hash of all that determines the cell, which names its entry."""
        return self.store.path(self.kind, self.key).stem

    def seconds(self) -> float | None:
        """Return the seconds that the result took, as they are stored with it; None where there is none."""
        entry = self.store.get(self.kind, self.key)
        return None if entry is None else self.took(entry)

    def run(self) -> Outcome:
        """Make the result, unless it is there; a failure is stored with its traceback."""
        begun = time.perf_counter()
        failed = self.store.path(FAILED, failure_key(self.name))
        try:
            self.make()
        except Exception as error:  # whatever it is: other cells are not concerned
            note_failure(self.store, self.name, error)
            return Outcome(self.name, time.perf_counter() - begun, in_one_line(error))
        failed.unlink(missing_ok=True)
        return Outcome(self.name, self.seconds() or time.perf_counter() - begun)


class Failure(TypedDict):
    """Why a cell failed."""

    problem: str  # in one line
    traceback: str


def failure_key(name: str) -> dict[str, str]:
    return {"cell": name}


def note_failure(store: Store, name: str, error: BaseException) -> None:
    """Keep why a cell failed, with its traceback."""
    lines = traceback.format_exception(error)
    about = {"problem": in_one_line(error), "traceback": "".join(lines)}
    store.put(FAILED, failure_key(name), {"json": json_tensor(about)})


def failure(store: Store, name: str) -> Failure | None:
    """Return why a cell failed when it was last run, else None."""
    entry = store.get(FAILED, failure_key(name))
    return None if entry is None else from_json_tensor(entry["json"])


def in_one_line(error: BaseException) -> str:
    """Return what kind of error it is and what it says."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _took(entry: dict[str, Any]) -> float:
    row = from_json_tensor(entry["json"])["row"]
    row = row.get("scores", row)
    return row["seconds"] + row["seconds_scoring"]


def _took_course(entry: dict[str, Any]) -> float:
    return sum(step["seconds"] + step["seconds_scoring"] for step in from_json_tensor(entry["record"])["steps"])
