"""What a sweep will do: its cells by name, those that are finished, what they share, and what they will take."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from editkit.cache import Store, digest, entry_key
from editkit.editing.spec import EditSpec
from editkit.editing.targets import DECISIVE
from editkit.facts import data_hash
from editkit.language.forward.precision import choose_precision
from editkit.language.moments import second_moments
from editkit.language.targets import optimise_targets, stored_targets
from editkit.models import LanguageModel
from editkit.studies import sweep_cells
from editkit.studies.runs import untouched
from editkit.studies.sweep import LeftOut, Part, SweepCell, SweepParams, facts_of
from editkit.studies.sweep_cells import Bench, Failure, failure
from editkit.studies.sweep_cost import Pace, Probe, memory_mb, shown

PACKED = 256  # facts whose targets are optimised by one call; whoever makes them, they are packed alike
TOLD = 12  # reasons and failures shown at most


@dataclass(frozen=True)
class Job:
    """What cells share and what is therefore made before them, once."""

    what: Literal["moments", "targets", "untouched"]
    part: Part
    seed: int = 0
    begin: int = 0  # of the facts
    spec: EditSpec | None = None
    layers: tuple[int, ...] = ()

    def run(self, bench: Bench) -> None:
        """Make it, unless the store has it."""
        setting = bench.settings[self.part]
        how: dict[str, Any] = {"store": setting.store, "progress": False}
        if self.what == "moments":
            second_moments(setting.lm, self.layers, setting.texts, self.spec.mom2_n_tokens, **how)
        elif self.what == "untouched":
            untouched(setting, self.seed)
        else:
            optimise_targets(setting.lm, self.facts(bench), self.spec, setting.contexts[self.seed], **how)

    def facts(self, bench: Bench) -> Sequence[Any]:
        return bench.settings[self.part].draws[self.seed].facts[self.begin : self.begin + PACKED]


@dataclass(frozen=True)
class Plan:
    """A sweep before anything of it is run; it can be sent elsewhere."""

    bench: Bench  # without a model
    root: str  # of the store
    surroundings: Mapping[str, Any]  # see surroundings_of
    cells: Mapping[str, SweepCell]  # by the name of their entry
    left_out: Sequence[LeftOut]
    seconds: Mapping[str, float]  # measured, by the names of those that are finished
    failed: Mapping[str, Failure]  # those that failed when they were last run
    jobs: Sequence[Job]
    targets_missing: int  # of those that cells share
    own_targets: Mapping[SweepCell, int]  # v* that pending cells find step by step, on the model as it then stands
    probe: Probe | None
    memory_mb: float  # of a worker, at least

    @property
    def id(self) -> str:
        """What tells this sweep from others that the same workers may run."""
        return f"sweep-{digest([self.root, self.surroundings, self.bench.params.model_dump()])[:16]}"

    def sees_store(self) -> bool:
        """Return whether the store of this process is that of the plan, and not just a folder of its name."""
        return Store(self.root).path(*_mark(self.surroundings)).exists()

    @property
    def pending(self) -> dict[str, SweepCell]:
        return {name: cell for name, cell in self.cells.items() if name not in self.seconds}

    @property
    def pace(self) -> Pace:
        """What the finished cells tell of the others."""
        pace = Pace(self.bench.params, self.probe, self.own_targets)
        for name, seconds in self.seconds.items():
            pace.learn(self.cells[name], seconds)
        return pace


def survey(params: SweepParams, *, store: Store | None = None, probe: bool = False, progress: bool = True) -> Plan:
    """Prepare a sweep and look up what of it is finished.

    Args:
        probe: time scoring and targets on a few facts, to say what cells take of which none that is alike was measured.

    Raises ``ValueError`` where nothing is left to run, and as :meth:`editkit.studies.setting.Setting.prepare` does.
    """
    store = store or Store()
    bench = Bench.prepare(params, store=store, progress=progress)
    setting = next(iter(bench.settings.values()))
    works, left = bench.works(progress=progress)
    if not works:
        raise ValueError(f"nothing is left to run: {left[0].cell}: {left[0].reason}")
    cells = {work.name: cell for cell, work in works.items()}
    seconds = {work.name: took for work in works.values() if (took := work.seconds()) is not None}
    pending = {name: cell for name, cell in cells.items() if name not in seconds}
    specs = {cell: spec.resolve(setting.lm) for cell in pending.values() if (spec := bench.spec(cell))}
    jobs = list(_jobs(bench, specs))
    layers = {layer for spec in specs.values() for layer in spec.layers}
    surroundings = surroundings_of(setting.lm, store)
    store.plain(*_mark(surroundings), dict)
    return Plan(
        bench.without_model(),
        str(store.root.absolute()),
        surroundings,
        cells,
        left,
        seconds,
        {name: told for name in pending if (told := failure(store, name))},
        jobs,
        sum(_missing(bench, job) for job in jobs if job.what == "targets"),
        {cell: facts_of(params, cell.part) for cell, spec in specs.items() if _own_targets(params, spec, cell)},
        Probe.take(setting) if probe and specs else None,
        memory_mb(setting, layers),
    )


def surroundings_of(lm: LanguageModel, store: Store) -> dict[str, Any]:
    """Return what determines all results of a sweep, and must be the same wherever its cells are run."""
    return entry_key(sweep_cells.__name__, lm) | {"precision in fast mode": choose_precision(lm, "fast", store)}


def _jobs(bench: Bench, specs: Mapping[SweepCell, EditSpec]) -> Iterator[Job]:
    """Yield what pending cells share: second moments in one pass, v* by hundreds, scores of the untouched model.

    Parts draw alike, so what one of them covers for another is made once.
    """
    drawn = {cell: bench.settings[cell.part].draws[cell.seed].facts for cell in specs}
    ordered = sorted(specs, key=lambda cell: -len(drawn[cell]))
    tokens: dict[int, list[SweepCell]] = {}
    for cell in ordered:
        tokens.setdefault(specs[cell].mom2_n_tokens, []).append(cell)
    for cells in tokens.values():
        layers = {layer for cell in cells for layer in specs[cell].layers}
        yield Job("moments", cells[0].part, spec=specs[cells[0]], layers=tuple(sorted(layers)))
    covered: dict[tuple[int, str], set[str]] = {}
    for cell in ordered:
        spec, facts = specs[cell], drawn[cell]
        if spec.target_mode == "gradient" or _own_targets(bench.params, spec, cell):
            continue
        decisive = [spec.layers[-1], spec.target_mode, *(getattr(spec, name) for name in DECISIVE)]
        where = cell.seed, digest([decisive, bench.settings[cell.part].contexts[cell.seed]])
        if not {fact.id for fact in facts} <= (found := covered.setdefault(where, set())):
            found |= {fact.id for fact in facts}
            yield from (Job("targets", cell.part, cell.seed, begin, spec) for begin in range(0, len(facts), PACKED))
    untouched_on = {(cell.seed, data_hash(drawn[cell])): cell for cell in ordered if cell.part != "evaluation"}
    yield from (Job("untouched", cell.part, cell.seed) for cell in untouched_on.values())


def _own_targets(params: SweepParams, spec: EditSpec, cell: SweepCell) -> bool:
    """Say whether each step of a cell finds its own v*, on the model as it stands."""
    current = spec.targets_from == "current" and spec.target_mode != "gradient"
    return current and cell.part == "sequences" and cell.batch_size < facts_of(params, cell.part)


def _mark(surroundings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return kind and key of the entry by which workers know the store of a plan."""
    return "sweep", {"surroundings": dict(surroundings)}


def _missing(bench: Bench, job: Job) -> int:
    setting, facts = bench.settings[job.part], job.facts(bench)
    found = stored_targets(setting.lm, facts, job.spec, setting.contexts[job.seed], setting.store)
    return len(facts) - found


def tell(plan: Plan, workers: int) -> Iterator[str]:
    """Say what a sweep will do: cells, those left out with the reasons, hours and memory."""
    pending = plan.pending
    done = f"{len(plan.seconds)} finished, {len(pending)} to run"
    yield f"{len(plan.cells)} cells in {plan.root}: {done}" + f", {len(plan.failed)} of them failed before" * bool(
        plan.failed
    )
    yield from _grouped(pending.values())
    yield f"{len(plan.left_out)} cells are left out"
    reasons = Counter(left.reason for left in plan.left_out)
    for reason, number in reasons.most_common(TOLD):
        example = next(left.cell for left in plan.left_out if left.reason == reason)
        yield f"  {number} × {reason} (such as {example})"
    yield from _more(len(reasons) - TOLD, "reasons")
    for name, told in list(plan.failed.items())[:TOLD]:
        yield f"  failed before: {plan.cells[name]}: {told['problem']}"
    yield from _more(len(plan.failed) - TOLD, "failures")
    yield estimate(plan, workers)


def tell_failed(plan: Plan, workers: int) -> Iterator[str]:
    """Tell the cells that failed when they were last run, each with its traceback."""
    for name, told in plan.failed.items():
        yield f"{plan.cells[name]}: {told['problem']}"
        yield from (f"  {line}" for line in told["traceback"].splitlines())
    yield f"{len(plan.failed)} of {len(plan.cells)} cells failed when they were last run"


def _grouped(cells: Iterable[SweepCell]) -> Iterator[str]:
    counts = Counter((cell.part, cell.batch_size, cell.method, dict(cell.changes).get("replay", "")) for cell in cells)
    for (part, size, method, replay), number in sorted(counts.items()):
        yield f"  run {number} × {part}, {method}, {size} at once" + f", replay {replay}" * bool(replay)


def _more(number: int, what: str) -> Iterator[str]:
    if number > 0:
        yield f"  and {number} more {what}"


def estimate(plan: Plan, workers: int) -> str:
    """Say what the pending cells will take, and on what that rests."""
    if not plan.pending:
        return "nothing is left to run"
    memory = f"memory: at least {plan.memory_mb:,.0f} MB a worker, {plan.memory_mb * workers:,.0f} MB in all"
    left, own = plan.pace.left(plan.pending.values()), sum(plan.own_targets.values())
    shared = f"{plan.targets_missing} v* to find before" + f", {own} in steps" * bool(own)
    if not plan.probe and left.unknown == len(plan.pending):
        unknown = f"none that is alike has been measured of {left.unknown} cells; --plan times a few facts"
        return f"how long it takes is not known: {unknown} ({shared}); {memory}"
    rests = f"{len(plan.seconds)} finished cells"
    if left.unknown:
        counted = "only their scoring and v* are" if plan.probe else "they are not"
        rests += f"; of {left.unknown} cells none that is alike has been measured, {counted} counted"
    targets = plan.targets_missing * plan.probe.target if plan.probe else 0.0
    at_once = min(workers, sum(job.what == "targets" for job in plan.jobs))
    seconds = left.on(workers) + targets / max(at_once, 1)
    least = "at least " * bool(left.unknown or (plan.targets_missing and not plan.probe))
    told = f"estimated: {least}{shown(seconds)} on {workers} worker" + "s" * (workers > 1)
    shared += f", those before {shown(targets)} of one worker" if plan.probe else ", not timed"
    return f"{told} ({shared}; the longest cell {shown(left.longest)}), from {rests}; {memory}"
