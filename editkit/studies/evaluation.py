"""Editors and controls on the same facts, by all there is: every rung, free texts, consequences, other abilities.

Each of them holds the first facts of a seed all at once, made in the untouched model. One cell, editor or control and
seed, is stored as a whole, so that an interrupted study goes on where it was.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from tqdm.auto import tqdm

from editkit.cache import digest
from editkit.config import Count, shown
from editkit.editing.spec import EditSpec
from editkit.facts import KINDS, Fact, Probe, data_hash, read_probes, snippets
from editkit.language.controls import Control, Edited, Untouched, cost, measure
from editkit.language.downstream import DownstreamParams, Task, measure_downstream, prepare
from editkit.language.incontext import Oracle
from editkit.language.metrics import RUNGS, evaluate, summarize
from editkit.language.probes import evaluate_probes, known_probes
from editkit.language.zsre import evaluate_tokens, summarize_tokens
from editkit.methods import UNTOUCHED
from editkit.models import LanguageModel
from editkit.models.peak import peak_mb, reset_peak
from editkit.studies import protocol
from editkit.studies.controls import MAKERS, ControlParams, own_parameters
from editkit.studies.runs import Cell, measurement_key, once
from editkit.studies.setting import Setting, SettingParams

MOMENT = "immediate"
if TYPE_CHECKING:  # what pydantic checks is made from the table, which no type checker reads
    KindName = str
else:
    KindName = Literal[*KINDS]


class EvaluationParams(DownstreamParams, ControlParams):
    """Editors and controls, measured by everything there is."""

    evaluation_facts: Count = 1
    """Facts of each seed of the baselines, the first of them, that are held at once and measured by everything."""
    evaluation_texts: Annotated[int, Field(ge=0)] = 1
    """Of these, the first whose generation prompts are written on for GE; 0 leaves it out."""
    probe_kinds: list[KindName] | None = None
    """Consequences of edits that are asked for, where the untouched model knows what was right before; null: all."""
    snippets_path: str = ""
    """Path or URL of CounterFact's attribute_snippets.json, for RS; empty: no reference texts."""


class Evaluation(NamedTuple):
    """Tables with the columns method, seed, moment, protocol and facts."""

    scores: pd.DataFrame  # a row an editor or control and seed: scores of every rung, GE, seconds, delta_norm, …
    prompts: pd.DataFrame  # as of editkit.language.metrics.evaluate
    probes: pd.DataFrame  # as of editkit.language.probes.evaluate_probes
    downstream: pd.DataFrame  # as of editkit.language.downstream.measure_downstream


def run_evaluation(
    setting: Setting, params: EvaluationParams, specs: Mapping[str, EditSpec], where: SettingParams
) -> Evaluation:
    """Measure each spec and each control of the parameters on the first facts of each seed, and the untouched model.

    Args:
        specs: by the names of their rows.
        where: says where the facts and probes are from.

    Raises ``ValueError`` where a seed has fewer facts, for snippets beside another source than CounterFact, and what
    reading of probes, snippets and tasks raises.
    """
    read, setting = Read.of(params, where), first_facts(setting, params)
    tables: tuple[list[pd.DataFrame], ...] = ([], [], [], [])
    for seed in setting.draws:
        asked, origin = Asked.of(setting, seed, params, where, read), protocol.origin(setting, seed)
        names, quiet = [UNTOUCHED, *specs, *params.controls], not setting.progress
        bar = tqdm(names, desc=f"by everything, seed {seed}", unit="cell", disable=quiet)
        for name in bar:
            bar.set_postfix_str(name)
            cell = measure_cell(setting, seed, asked, name, specs)
            for table, part in zip(tables, placed(origin, name, cell), strict=True):
                table.append(part)
    return joined(tables)


def first_facts(setting: Setting, params: EvaluationParams) -> Setting:
    """Return the setting with the facts of each seed that are measured by everything, raising as that does."""
    some = setting.first(params.evaluation_facts)
    if few := [seed for seed, draw in some.draws.items() if len(draw.facts) < params.evaluation_facts]:
        has = len(some.draws[few[0]].facts)
        raise ValueError(f"evaluation_facts = {params.evaluation_facts}: seed {few[0]} has {has} facts to edit")
    return some


def cell_key(setting: Setting, seed: int, asked: "Asked", name: str, specs: Mapping[str, EditSpec]) -> dict[str, Any]:
    """Return what determines the measurement of one editor or control by everything."""
    return asked.key | {"name": name, **_determines(setting, seed, name, specs, asked.params)}


def measure_cell(setting: Setting, seed: int, asked: "Asked", name: str, specs: Mapping[str, EditSpec]) -> Cell:
    """Measure an editor (of ``specs``), a control or the untouched model by everything, or read what was found."""

    def make() -> Control | Oracle:
        if name == UNTOUCHED:
            return Untouched(setting.lm)
        if name in specs:
            return _edited(setting, seed, name, specs[name])
        return MAKERS[name](setting, seed, asked.facts, asked.params)

    key = cell_key(setting, seed, asked, name, specs)
    return once(setting.store, key, partial(_measure, asked, make, setting.progress))


def placed(origin: Mapping[str, Any], name: str, cell: Cell) -> Evaluation:
    """Say of a measured cell where it belongs: its method, its moment, and its origin as protocol states it."""
    row, prompts = cell
    about = {"method": name, "moment": UNTOUCHED if name == UNTOUCHED else MOMENT, **origin}
    parts = pd.DataFrame([row["scores"]]), prompts, pd.DataFrame(row["probes"]), pd.DataFrame(row["downstream"])
    return Evaluation(*(part.assign(**about) for part in parts))


def joined(tables: Sequence[Sequence[pd.DataFrame]]) -> Evaluation:
    """Put parts of each table under one another."""
    return Evaluation(*(_joined(parts) for parts in tables))


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(parts, ignore_index=True)
    return frame.astype({name: "boolean" for name in ("success", "accuracy") if name in frame and "known" in frame})


def _edited(setting: Setting, seed: int, name: str, spec: EditSpec) -> Control:
    return Edited.of(name, setting.session(spec.model_copy(update={"seed": seed}), seed), setting.draws[seed].facts)


def _determines(
    setting: Setting, seed: int, name: str, specs: Mapping[str, EditSpec], params: ControlParams
) -> dict[str, Any]:
    """Return what an editor or control depends on, besides what all of them do."""
    spec = specs.get(name) or setting.spec("memit")  # controls take layers and targets from it
    promised = {"tune": data_hash(setting.tune)} if spec.neighbour_budget is not None else {}
    seeded = spec.model_copy(update={"seed": seed}).resolve(setting.lm)
    return {"spec": seeded.model_dump(), "own": {} if name in specs else own_parameters(name, params), **promised}


class Read(NamedTuple):
    """What is read once for all seeds."""

    references: Mapping[str, Sequence[str]]  # by the id of a fact
    collection: Sequence[Sequence[str]]  # all reference texts there are, of which words get their weights
    tasks: Mapping[str, Task]

    @classmethod
    def of(cls, params: EvaluationParams, where: SettingParams) -> "Read":
        """Read it. Raises ``ValueError`` for snippets beside another source than CounterFact, and what reading does."""
        if params.snippets_path and where.facts_source != "counterfact":
            raise ValueError(
                f"snippets_path = {shown(params.snippets_path)}: reference texts are of CounterFact's facts, and "
                f"facts_source is {where.facts_source}"
            )
        texts = snippets.read(params.snippets_path) if params.snippets_path else {}
        references = snippets.references(where.facts_path, texts) if texts else {}
        return cls(references, [texts[about] for about in sorted(texts)], prepare(params))


@dataclass(frozen=True)
class Asked:
    """What is asked about the facts of one seed."""

    facts: Sequence[Fact]
    probes: Sequence[Probe]
    known: Sequence[bool]  # which of them the untouched model answers
    references: Mapping[str, Sequence[str]]
    read: Read
    params: EvaluationParams
    key: dict[str, Any]  # what determines the answers of a model
    published: bool  # whether zsRE's own scores are taken too
    device: torch.device

    @classmethod
    def of(cls, setting: Setting, seed: int, params: EvaluationParams, where: SettingParams, read: Read) -> "Asked":
        facts, kinds = setting.draws[seed].facts, KINDS if params.probe_kinds is None else params.probe_kinds
        probes = read_probes(where.facts_source, facts, path=where.facts_path or None, kinds=kinds)
        known = known_probes(setting.lm, probes, store=setting.store, progress=setting.progress)
        own = {fact.id: read.references[fact.id] for fact in facts if fact.id in read.references}
        tasks = [[name, shots, tests] for name, (_, shots, tests, _) in read.tasks.items()]
        key = measurement_key(setting, seed, __name__) | {
            "probes": digest([repr(probes), known]),
            "references": digest([own, read.collection]),
            "evaluation_texts": params.evaluation_texts,
            "downstream": digest(tasks),
            "packages": {name: version(name) for name in ("lm_eval", "nltk", "scikit-learn")},
        }
        published = where.facts_source == "zsre"
        return cls(facts, probes, known, own, read, params, key, published, setting.device)

    @cached_property
    def written(self) -> list[Fact]:
        """The facts whose generation prompts are written on."""
        return [fact for fact in self.facts[: self.params.evaluation_texts] if fact.generation]

    def of_prompts(self, control: Control | Oracle, progress: bool) -> tuple[pd.DataFrame, dict[str, float]]:
        """Score the facts' own prompts, and free texts on them; returns every prompt's scores, and their averages."""
        from editkit.language.fluency import fit_vectorizer, fluency  # NLTK, which nothing else needs, takes a second

        prompts, texts = measure(control, self.facts, partial(evaluate, rungs=RUNGS), progress=progress), None
        if self.written:
            fitted = fit_vectorizer(self.read.collection) if self.references else None
            how = partial(fluency, references=self.references, vectorizer=fitted)
            texts = measure(control, self.written, how, progress=progress)
        scores = summarize(prompts)
        scores |= {name: float(texts[name].mean()) for name in ("GE", "RS")} if texts is not None else {}
        if self.published:
            tokens = summarize_tokens(measure(control, self.facts, evaluate_tokens, progress=progress))
            scores |= {f"zsRE {name}": value for name, value in tokens.items()}
        return prompts, scores

    def of_probes(self, control: Control | Oracle, progress: bool) -> dict[str, list]:
        """Score the probes, in plain values."""
        own = {probe.fact for probe in self.probes}
        facts = [fact for fact in self.facts if fact.id in own]
        if not facts:
            return {}

        def score(model: LanguageModel, some: Sequence[Fact]) -> pd.DataFrame:
            names = {fact.id for fact in some}
            both = [pair for pair in zip(self.probes, self.known, strict=True) if pair[0].fact in names]
            return evaluate_probes(model, *zip(*both, strict=True))

        named = {fact.id: fact for fact in self.facts}
        needed = {probe.fact: [named[name] for name in probe.needs] for probe in self.probes if probe.needs}
        frame = measure(control, facts, score, besides=needed, progress=progress)
        return frame.astype(object).where(frame.notna(), None).to_dict(orient="list")


def _measure(asked: Asked, make: Callable[[], Control | Oracle], progress: bool) -> Cell:
    """Make a control and measure the model under it."""
    reset_peak(asked.device)
    control = make()
    memory, start = peak_mb(asked.device), time.perf_counter()
    prompts, scores = asked.of_prompts(control, progress)
    probes = asked.of_probes(control, progress)
    # An oracle is told nothing where no fact is asked for.
    under: Control = Untouched(control.lm) if isinstance(control, Oracle | Untouched) else control
    with under.apply() as model:
        step = 0 if isinstance(under, Untouched) else len(asked.facts)
        downstream = measure_downstream(model, asked.params, tasks=asked.read.tasks, step=step, progress=False)
    row = {"n_facts": len(asked.facts), "n_texts": len(asked.written), **scores, **cost(control)}
    row |= {"seconds_scoring": time.perf_counter() - start, "peak_memory_mb": memory}
    return {"scores": row, "probes": probes, "downstream": downstream.to_dict(orient="list")}, prompts
