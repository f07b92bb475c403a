"""Edits that arrive one batch after another: what becomes of earlier ones, and of the model?"""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from editkit.cache import digest, from_json_tensor, json_tensor
from editkit.config import Count, Parameters, Positive, Seed
from editkit.editing.spec import EditSpec, refreshes
from editkit.editing.weights import State
from editkit.facts import Fact, data_hash
from editkit.language.drift import TextProbe, measure_all
from editkit.language.metrics import evaluate, places, summarize
from editkit.methods import METHODS, UNTOUCHED, SequenceMethodName, label
from editkit.studies import protocol
from editkit.studies.arriving import Arrival, Editing, Learns, Run
from editkit.studies.probed import prose, text_probes
from editkit.studies.runs import averaged, check_batches, free_speech, measurement_key, untouched, warm_targets
from editkit.studies.setting import Setting

WHOLE, PART = "sequence", "sequence-part"  # entries of a sequence, and of one that is not at its end
HELD_OUT = 8  # facts of a seed that no sequence edits
RECORDED = ("steps", "retention", "edits", "prompts", "spoken")
Record = dict[str, list]  # these so far, as plain values


class SequenceParams(Parameters):
    """The chapter on replay."""

    sequence_methods: Annotated[list[SequenceMethodName], Field(min_length=1)] = ["emmet"]
    """Editors whose edits arrive in sequence; the first is the one whose replay is varied."""
    sequence_facts: Annotated[int, Field(ge=2)] = 2
    """Facts edited one batch after another per seed."""
    sequence_batch: Count = 1
    """Edits of one step; divides sequence_facts."""
    sequence_every: Count = 2
    """Steps from one measurement of all earlier edits to the next."""
    sequence_seeds: Annotated[list[Seed], Field(min_length=1)] = [1]
    """Each draws other facts and other context prefixes; 0 takes a file's own order."""
    targets_from: Literal["current", "base"] = "base"
    """Model on which a sequence optimises v*: as it stands, or as it was before the first edit (cached, fast)."""
    replay_rates: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] = [0.5]
    """Earlier edits replayed, as shares of a new batch; 0 is none. The largest stands for the buffer among kinds."""
    replay_strategies: Annotated[list[Literal["random", "priority", "recent"]], Field(min_length=1)] = ["random"]
    """Which edits are replayed."""
    replay_weights: Annotated[list[Positive], Field(min_length=1)] = [1.0]
    """Weights of an earlier edit against a new one, where a method weighs them (memit, alphaedit)."""
    replay_sizes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    """Edits a buffer keeps; 0 keeps all."""
    norm_clamps: list[Annotated[float, Field(ge=1)]] = []
    """Bounds of the growth of the edited weights to try, without replay."""
    stop_probabilities: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """Probabilities of the new object at which to stop v*, to try without replay."""
    trust_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Trust below this rolls a step back, in the run that shows it."""


class Trajectory(NamedTuple):
    """One sequence of edits or several, measured along the way; every table carries ``run``, ``run_id`` and seed."""

    scores: pd.DataFrame  # one row a moment (pre, immediate, final): ES, PS, NS, S, …, and every hyperparameter
    steps: pd.DataFrame  # one row a step: what the solver said, growth, trust, seconds, drift by kind of text
    retention: pd.DataFrame  # one row for the edits of step ``edited_at`` as they stand at step ``measured_at``
    edits: pd.DataFrame  # one row an edit as it stands then, with what was done to it since it was last measured
    prompts: pd.DataFrame  # one row a prompt and moment, see :func:`editkit.language.metrics.evaluate`


def kinds(params: SequenceParams) -> list[dict[str, Any]]:
    """List the ways of remembering, as changes of a spec: none, buffer (where a rate is above 0), hold, history."""
    rate = max(params.replay_rates)
    buffer = [{"replay": "buffer", "replay_rate": rate}] if rate else []
    return [{"replay": "none"}, *buffer, {"replay": "hold"}, {"replay": "history"}]


def ablation_grid(params: SequenceParams) -> list[dict[str, Any]]:
    """List what is varied of the first method, as changes of a spec; the first one has nothing of it.

    Buffers come with every rate above 0, strategy, weight and size, *hold* and *history* with every weight; a method
    of equality, where a weight cannot act, has the weight 1 alone. What needs no memory are bounds of the weights'
    norm, and targets that stop early.
    """
    weights = [1.0] if METHODS[params.sequence_methods[0]].equality else params.replay_weights
    rates = [rate for rate in params.replay_rates if rate]
    buffers = itertools.product(rates, params.replay_strategies, weights, params.replay_sizes)
    names = ("replay_rate", "replay_strategy", "replay_weight", "replay_max_items")
    grid = [{"replay": "buffer", **dict(zip(names, values, strict=True))} for values in buffers]
    grid += [{"replay": kind, "replay_weight": w} for kind in ("hold", "history") for w in weights]
    plain = {"replay": "none"}
    return [
        plain,
        *grid,
        *(plain | {"norm_clamp": bound} for bound in params.norm_clamps),
        *(plain | {"stop_probability": p} for p in params.stop_probabilities),
    ]


def run_grid(
    setting: Setting,
    params: SequenceParams,
    method: str,
    grid: Iterable[Mapping[str, Any]],
    batch_size: int | None = None,
) -> Trajectory:
    """Run a method with each of some changes, in steps of ``batch_size`` (``sequence_batch`` where not given).

    Counted in edits, all of them are measured as often as the parameters ask for. Raises ``ValueError``, before
    anything is run, where two of the changes come to one configuration.
    """
    size = batch_size or params.sequence_batch
    cells = [(setting.spec(method, **changes), size) for changes in grid]
    return run_all(setting, cells, every=measured_every(params, size))


def measured_every(params: SequenceParams, batch_size: int) -> int:
    """Return the steps of a size from one measurement of all earlier edits to the next: as many edits at any size."""
    return max(1, params.sequence_every * params.sequence_batch // batch_size)


def run_all(setting: Setting, cells: Sequence[tuple[EditSpec, int]], **how: Any) -> Trajectory:
    """Run each spec in steps of the size beside it, measured as ``how`` says, see :func:`run_sequence`.

    Raises ``ValueError``, before anything is run, where two cells come to one configuration.
    """
    check_distinct([identify(setting, spec, size, **how) for spec, size in cells])
    return join([run_sequence(setting, spec, size, **how) for spec, size in cells])


def run_sequence(
    setting: Setting, spec: EditSpec, batch_size: int, *, every: int = 1, drift: bool = True
) -> Trajectory:
    """Edit each seed's facts in batches, one after another, into the same model, which is put back at the end.

    ``batch_size`` 1 gives single edits, all facts one batch. Each batch is scored right after its own step
    (*immediate*); every ``every`` steps, and after the last one (*final*), all edits so far are scored again, and
    perplexity and divergence are taken on three kinds of text, see :mod:`editkit.language.drift`. *pre* is the
    untouched model, the control without any edit.

    The state after each step is stored, so a run that was stopped at any moment goes on after its last whole step, with
    the same result; a run done before with the same model, data, parameters and code is read.

    Args:
        drift: take perplexity and divergence; they are nan otherwise.

    Raises ``ValueError`` for a batch size that does not divide the facts, and for held-out facts that are edited.
    """
    return stack([course.trajectory() for course in courses(setting, spec, batch_size, every=every, drift=drift)])


def courses(
    setting: Setting,
    spec: EditSpec,
    batch_size: int,
    *,
    every: int = 1,
    drift: bool = True,
    learns: Learns | None = None,
) -> list["Course"]:
    """Plan what :func:`run_sequence` runs, seed by seed; raises as it does.

    Args:
        learns: a control that learns the facts of each step in place of edits, at the last of the spec's layers.
    """
    for draw in setting.draws.values():
        check_batches(len(draw.facts), [batch_size])
        if shared := {fact.id for fact in draw.facts} & {fact.id for fact in draw.heldout}:
            raise ValueError(f"held-out facts must not be edited, but {sorted(shared)[0]} is")
    how: dict[str, Any] = {"every": every, "drift": drift}
    run = learns.identify(batch_size, **how) if learns else identify(setting, spec, batch_size, **how)
    seeded = [spec.resolve(setting.lm).model_copy(update={"seed": seed}) for seed in setting.draws]
    return [Course(setting, one, batch_size, every, drift, run, learns) for one in seeded]


def identify(setting: Setting, spec: EditSpec, batch_size: int, *, every: int = 1, drift: bool = True) -> Run:
    """Name a configuration by what differs from the setting's own spec of its method, and by how it is measured.

    The label tells method, replay and what is unusual about them; anything else that differs follows as
    ``name = value``.
    """
    base, spec = setting.spec(spec.method).resolve(setting.lm), spec.resolve(setting.lm)
    differs = {name: value for name, value in spec if name != "seed" and value != getattr(base, name)}
    how = {"method": spec.method, "batch_size": batch_size, "every": every, "drift": drift}
    text, told = _describe_spec(spec)
    rest = [f", {name} = {value}" for name, value in differs.items() if name not in told]
    return Run(digest(how | {"spec": differs})[:8], text + "".join(rest))


def join(trajectories: Sequence[Trajectory]) -> Trajectory:
    """Put the tables of several runs under one another.

    Raises ``ValueError`` where two of them are runs of one configuration.
    """
    check_distinct(
        run for one in trajectories for run in dict.fromkeys(zip(one.scores.run_id, one.scores.run, strict=True))
    )
    return stack(trajectories)


def check_distinct(runs: Iterable[tuple[str, str]]) -> None:
    """Raise ``ValueError`` with the label where two runs (id, label) have one id."""
    seen = set()
    for run_id, text in runs:
        if run_id in seen:
            raise ValueError(f"{text!r} is asked for twice: two configurations of a grid come to the same run")
        seen.add(run_id)


def stack(trajectories: Sequence[Trajectory]) -> Trajectory:
    """Put the tables of trajectories under one another, whatever they are of."""
    return Trajectory(*(pd.concat(tables, ignore_index=True) for tables in zip(*trajectories, strict=True)))


def _describe_spec(spec: EditSpec) -> tuple[str, set[str]]:
    """Name a resolved spec in short, and say which of its fields the name tells."""
    text, told = f"{label(spec.method)}, {spec.replay}", {"method", "replay", "norm_clamp", "trust_enable", "edit_mode"}
    told.add("replay_refresh")
    if spec.replay == "buffer":
        told |= {"replay_rate", "replay_base", "replay_strategy", "replay_max_items"}
        text += f" r={spec.replay_rate:g}" + " of all" * (spec.replay_base == "buffer")
        text += f" {spec.replay_strategy}" * (spec.replay_strategy != "random")
        if spec.replay_max_items:
            told.add("replay_eviction")
            text += f" of {spec.replay_max_items} {spec.replay_eviction}"
    if spec.replay != "none":
        told.add("replay_weight")
        text += f" w={spec.replay_weight:g}" * (spec.replay_weight != 1)
    if spec.replay_refresh != refreshes(spec.method, spec.replay):
        text += ", keys read again" if spec.replay_refresh else ", keys as stored"
    if spec.target_mode == "exact":
        told.add("stop_probability")
        text += f", v* until P = {spec.stop_probability:g}" * (spec.stop_probability < 1)
    text += f", norm ≤ {spec.norm_clamp:g}" * (spec.norm_clamp != float("inf"))
    if spec.trust_enable:
        told.add("trust_action")
        text += f", trust {spec.trust_action}"
    if spec.edit_mode == "lora":
        told |= {"lora_fit", "lora_rank", "lora_stack"}
        text += f", LoRA {spec.lora_fit} r={spec.lora_rank}"
        text += f" {spec.lora_stack}" * (spec.lora_stack != "grow")
    return text, told


@dataclass(frozen=True)
class Course:
    """The sequence of one seed: what is edited, in steps of which size, and what is measured when."""

    setting: Setting
    spec: EditSpec  # resolved, with the seed
    batch_size: int
    every: int
    drift: bool
    run: Run
    learns: Learns | None = None  # a control in place of edits, which has layers and targets of the spec

    @property
    def facts(self) -> list[Fact]:
        return self.setting.draws[self.spec.seed].facts

    @property
    def total(self) -> int:
        return len(self.facts) // self.batch_size

    def measured(self, step: int) -> bool:
        """Say whether all edits so far are measured after this step."""
        return step % self.every == 0 or step == self.total

    @cached_property
    def key(self) -> dict[str, Any]:
        """What determines all that is measured along the sequence."""
        setting, seed = self.setting, self.spec.seed
        return measurement_key(setting, seed, __name__) | {
            "spec": self.spec.model_dump(),
            "heldout": data_hash(setting.draws[seed].heldout),
            "batch_size": self.batch_size,
            "every": self.every,
            "drift": self.drift,
            "prose": digest(prose(setting, self.spec)),
            **({"control": self.learns.name, "own": self.learns.own} if self.learns else {}),
        }

    def stored(self) -> tuple[State | None, Record]:
        """Read how far the sequence has come: the session's state after the last step, and what was measured."""
        state = self.setting.store.get(WHOLE, self.key) or self.setting.store.get(PART, self.key)
        return state, from_json_tensor(state["record"]) if state else {name: [] for name in RECORDED}

    def trajectory(self) -> Trajectory:
        """Read the sequence from the store, or go on with it from where it stands there."""
        before, prompts = untouched(self.setting, self.spec.seed)
        state, record = self.stored()
        if len(record["steps"]) < self.total:
            self._continue(state, record)
        return self._tabulate(prompts.assign(moment=UNTOUCHED), before, record)

    def _begin(self) -> Arrival:
        """Start on the untouched model."""
        if self.learns:
            return self.learns.begin(self.setting, self.spec.seed)
        if self.spec.targets_from == "base":
            warm_targets(self.setting, self.spec.seed, [self.spec])
        return Editing(self.setting, self.spec)

    def _continue(self, state: State | None, record: Record) -> None:
        """Make the steps that ``record`` does not hold yet, and store it with the session's state after each."""
        setting, spec, done = self.setting, self.spec, len(record["steps"])
        arrival = self._begin()
        probes = text_probes(setting, spec) if self.drift else {}
        bar = tqdm(total=self.total, initial=done, desc=self.run.label, unit="step", disable=not setting.progress)
        try:
            if state:
                arrival.load_state_dict({name: tensor for name, tensor in state.items() if name != "record"})
            with bar:
                for step in range(done + 1, self.total + 1):
                    _step(arrival, self, step, probes, record)
                    state = arrival.state_dict()
                    memory = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("memory."))
                    record["steps"][-1]["memory_mb"] = memory / 2**20
                    kind, kept = (PART, state) if step < self.total else (WHOLE, {})
                    setting.store.put(kind, self.key, {"record": json_tensor(record)} | kept)
                    bar.update()
        finally:
            arrival.undo()
        setting.store.path(PART, self.key).unlink(missing_ok=True)  # the whole is an entry that no part writes over

    def _tabulate(self, pre: pd.DataFrame, before: Mapping[str, Any], record: Record) -> Trajectory:
        spec, method = self.spec, self.learns.name if self.learns else self.spec.method
        where: dict[str, Any] = {"run": self.run.label, "run_id": self.run.id, "method": method}
        where |= {
            "replay": "none" if self.learns else spec.replay,
            "batch_size": self.batch_size,
            **protocol.origin(self.setting, spec.seed),
        }
        prompts = pd.concat([pre, *(pd.DataFrame(rows) for rows in record["prompts"])], ignore_index=True)
        spoken = averaged(record["spoken"])
        free = {UNTOUCHED: {name: before[name] for name in spoken}, "final": spoken}
        by_moment = prompts.groupby("moment", sort=False)
        rows = [{"moment": moment} | summarize(part) | free.get(moment, {}) for moment, part in by_moment]
        steps, knobs = pd.DataFrame(record["steps"]), {name: value for name, value in spec if name not in where}
        if self.learns:
            knobs = {"layers": spec.layers[-1:], **self.learns.own}
        costs = {
            "n_facts": len(self.facts),
            "parameters": steps.parameters.iloc[-1],
            "seconds": steps.seconds.sum(),
            "peak_memory_mb": steps.peak_memory_mb.max(),
        }
        return Trajectory(
            scores=pd.DataFrame([where | row | costs | knobs for row in rows]),
            steps=steps.assign(**where),
            retention=pd.DataFrame(record["retention"]).assign(**where),
            edits=pd.concat(map(pd.DataFrame, record["edits"]), ignore_index=True).assign(**where),
            prompts=prompts.assign(**where),
        )


def _step(arrival: Arrival, plan: Course, step: int, probes: Mapping[str, TextProbe], record: Record) -> None:
    """Make step number ``step`` (from 1), measure it, and note it in ``record`` as plain values."""
    facts, size, measured = plan.facts, plan.batch_size, plan.measured(step)
    end = step * size
    noted = arrival.step(facts[end - size : end])
    start = time.perf_counter()
    begin = 0 if measured else end - size
    frame = evaluate(arrival.model, facts[begin:end])
    frame["edited_at"] = (begin + places(facts[begin:end])) // size + 1  # by place: a fact may come twice
    moments = [("immediate", frame[frame.edited_at == step])] + [("final", frame)] * (end == len(facts))
    record["prompts"] += [part.assign(moment=moment).to_dict(orient="list") for moment, part in moments]
    edits = frame.loc[frame.kind == "rewrite", ["fact", "relation", "edited_at", "success", "accuracy"]]  # one an edit
    record["edits"].append(edits.assign(measured_at=step, **arrival.look(begin)).to_dict(orient="list"))
    for edited_at, part in frame.groupby("edited_at"):
        record["retention"].append({"edited_at": edited_at, "measured_at": step} | summarize(part))
    if end == len(facts):
        record["spoken"] = free_speech(plan.setting, plan.spec.seed, arrival.model, facts)
    drift = measure_all(arrival.model, probes, measured)
    scoring = time.perf_counter() - start
    where = {"step": step, "edits": end, "measured": measured}
    record["steps"].append(where | noted | drift | {"seconds_scoring": scoring})
