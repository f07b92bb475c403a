"""Closed form against fine-tuning done right, on the same facts at once: at equal seconds and at equal KL.

An editor is a point: what its edits score, the seconds that they took, and how far they moved the model on other prose.
Fine-tuning is a curve over its budget. Each budget has the learning rate that scores best there on facts for tuning,
and a training is looked at on its way, since none of its rates falls: what there is after four epochs is what a
training of four epochs makes.

Seconds depend on the machine and on what else it does. Beside them stand *passes*: tokens that ran through a layer,
forward, and tokens of which a gradient came back to it, backward, each over the number of layers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from editkit.config import Count, Positive
from editkit.editing.spec import EditSpec
from editkit.editing.targets import DECISIVE
from editkit.facts import Fact
from editkit.language.controls import Control, Edited, Untouched, cost
from editkit.language.drift import TextProbe
from editkit.language.metrics import evaluate, summarize
from editkit.language.moments import second_moments
from editkit.language.targets import optimise_targets
from editkit.methods import UNTOUCHED, TargetMethodName
from editkit.models import LanguageModel
from editkit.models.hooks import count_tokens
from editkit.studies import protocol
from editkit.studies.controls import TRAINERS, ControlParams, own_parameters
from editkit.studies.probed import text_probes
from editkit.studies.runs import Cell, Rows, measurement_key, once
from editkit.studies.setting import Draw, Setting

MOMENT = "final"
MEASURED = ("seconds", "forward", "backward", "kl", "perplexity")  # beside the scores
NOTHING = {"forward": 0, "backward": 0}  # passes of the untouched model


class EqualCostParams(ControlParams):
    """Closed forms, and fine-tuning over its budgets."""

    equal_facts: Annotated[int, Field(ge=0)] = 0
    """Facts of each seed at most, the first, on which editors and fine-tuning are compared at equal cost; 0: none."""
    equal_methods: Annotated[list[TargetMethodName], Field(min_length=1)] = ["memit"]
    """Editors that are compared there."""
    equal_targets: Annotated[list[Literal["exact", "fast"]], Field(min_length=1)] = ["fast"]
    """How their targets are found, each a point of its own."""
    equal_controls: Annotated[list[Literal["locft", "lora"]], Field(min_length=1)] = ["locft"]
    """Fine-tuning that they are compared with."""
    equal_locft_rates: Annotated[list[Positive], Field(min_length=1)] = [0.02]
    """Learning rates among which each budget of LocFT-BF chooses."""
    equal_locft_epochs: Annotated[list[Count], Field(min_length=1)] = [1, 2]
    """Budgets of LocFT-BF: epochs at most."""
    equal_lora_rates: Annotated[list[Positive], Field(min_length=1)] = [0.01]
    """Learning rates among which each budget of LoRA chooses."""
    equal_lora_steps: Annotated[list[Count], Field(min_length=1)] = [1, 2]
    """Budgets of LoRA: steps at most, each on all facts."""
    equal_tune_facts: Count = 2
    """Facts of the part for tuning on which rates, and the budget within an editor's seconds, are chosen."""


class Found(NamedTuple):
    """What editors and fine-tuning come to; both tables carry method, variant and the origin of their rows.

    A variant is how an editor's targets were found, or the budget of fine-tuning ("4 epochs").
    """

    scores: pd.DataFrame  # a row a variant and seed: scores, seconds, passes, kl, perplexity; of tuning rate, tuned_S
    prompts: pd.DataFrame  # as of editkit.language.metrics.evaluate
    rates: pd.DataFrame  # of tune facts: a row a control, rate and budget: S


def run(setting: Setting, params: EqualCostParams) -> Found:
    """Edit, and fine-tune on, the first facts of each seed at once, and score what there is; the model stays as it is.

    Every editor, and every training, is read from the store where it was measured before, seconds and all. The rows of
    the untouched model come first (method and variant "pre").

    Raises ``ValueError`` where there are no facts for tuning, and where every rate of a control diverges on them.
    """
    setting = setting.first(params.equal_facts)
    rates = tuned_rates(setting, params)
    rows: Rows = []
    prompts = []
    for seed in setting.draws:
        probes = text_probes(setting, setting.spec("memit", seed=seed).resolve(setting.lm))
        one, origin = _OneSeed(setting, seed, params, probes["prose"]), protocol.origin(setting, seed)
        editors = [(method, mode) for mode in params.equal_targets for method in params.equal_methods]
        plan = [one.untouched, *(partial(one.edited, *editor) for editor in editors)]
        plan += [partial(one.trained, *training) for training in trainings(rates)]
        for measure in tqdm(plan, desc=f"equal cost, seed {seed}", unit="cell", disable=not setting.progress):
            found, frame = measure()
            rows += [row | origin for row in found["rows"]]
            prompts.append(frame.assign(moment=MOMENT, **origin))
    best = rates.groupby(["method", "variant"], as_index=False).S.max().rename(columns={"S": "tuned_S"})
    scores = pd.DataFrame(rows).astype(dict.fromkeys(MEASURED, float))
    return Found(scores.merge(best, "left"), pd.concat(prompts, ignore_index=True), rates)


def tuned_rates(setting: Setting, params: EqualCostParams) -> pd.DataFrame:
    """Train on facts for tuning at every rate, and score what there is at every budget.

    Returns columns method, rate, variant, budget, S; a budget that a training did not reach, as it diverged, is left
    out. Raises ``ValueError`` as :func:`run`.
    """
    facts = list(setting.tune[: params.equal_tune_facts])
    if not facts:
        raise ValueError(f"{setting.dataset} has no facts of the part for tuning, on which rates are chosen")
    seed = next(iter(setting.draws))
    one = _OneSeed(replace(setting, draws={seed: Draw(facts, [], len(facts))}), seed, params)
    rows: Rows = []
    for name in params.equal_controls:
        tried, budgets = (getattr(params, f"equal_{name}_{what}s") for what in ("rate", TRAINERS[name].unit))
        for rate in tqdm(tried, desc=f"rates of {name}", unit="rate", disable=not setting.progress):
            rows += one.trained(name, rate, sorted(set(budgets)))[0]["rows"]
        if not any(row["method"] == name for row in rows):
            raise ValueError(f"equal_{name}_rates = {tried}: {name} diverges at each of them")
    return pd.DataFrame(rows)[["method", "rate", "variant", "budget", "S"]].astype({"S": float})


def trainings(rates: pd.DataFrame) -> list[tuple[str, float, list[int]]]:
    """List what is trained: of each control every rate that is best at some budget, and these budgets."""
    best = rates.loc[rates.groupby(["method", "budget"], sort=False).S.idxmax()]
    groups = best.groupby(["method", "rate"], sort=False).budget
    return [(str(name), float(rate), sorted(map(int, budgets))) for (name, rate), budgets in groups]


@dataclass(frozen=True)
class _OneSeed:
    """The facts of one seed, and how everything is measured on them; cells are a list of rows, and prompts."""

    setting: Setting
    seed: int
    params: EqualCostParams
    probe: TextProbe | None = None  # what tells how far the model moves; of facts for tuning that is not asked

    @property
    def facts(self) -> Sequence[Fact]:
        return self.setting.draws[self.seed].facts

    def untouched(self) -> Cell:
        return self._once({}, lambda: [self._scored(Untouched(self.setting.lm), UNTOUCHED, NOTHING)])

    def edited(self, method: str, mode: str) -> Cell:
        """Measure an editor whose targets are found in a mode."""
        setting = self.setting
        spec = setting.spec(method, target_mode=mode, edit_mode="raw", seed=self.seed)
        resolved = spec.resolve(setting.lm)

        def measure() -> list[Cell]:
            how: dict[str, Any] = {"store": setting.store, "progress": setting.progress}
            second_moments(setting.lm, resolved.layers, setting.texts, resolved.mom2_n_tokens, **how)  # no edit's cost
            searched = self._searched(resolved)
            with _counted(setting.lm) as seen:
                control = Edited.of(method, setting.session(spec, self.seed), self.facts)
            passes = {name: None if before is None else before + seen[name] for name, before in searched.items()}
            return [self._scored(control, mode, passes)]

        return self._once({"spec": resolved.model_dump()}, measure)

    def trained(self, name: str, rate: float, budgets: Sequence[int]) -> Cell:
        """Measure fine-tuning at some budgets, all of one training; those that it does not reach are left out.

        A training that has learnt its facts ends: larger budgets are then what it ended with.
        """
        trainer = TRAINERS[name]
        own = self.params.model_copy(update={trainer.rate: rate, trainer.budget: max(budgets)})

        def measure() -> list[Cell]:
            kept = {}
            with _counted(self.setting.lm) as seen:

                def watch(done: int, now: Callable[[], Control]) -> None:
                    if done in budgets:
                        kept[done] = now(), dict(seen)

                try:
                    end = trainer.train(self.setting, self.seed, self.facts, own, watch)
                    kept |= {budget: (end, dict(seen)) for budget in budgets if budget not in kept}
                except FloatingPointError:  # what was kept before stands
                    pass
            return [
                self._scored(control, _told(budget, trainer.unit), passes, rate=rate, budget=budget)
                for budget, (control, passes) in sorted(kept.items())
            ]

        key = {"control": name, "own": own_parameters(name, own), "budgets": list(budgets)}
        return self._once(key | {"layers": self._shared.layers}, measure)

    @property
    def _shared(self) -> EditSpec:
        """What editors and fine-tuning share: the layers, and how much prose is set aside."""
        return self.setting.spec("memit").resolve(self.setting.lm)

    def _key(self) -> dict[str, Any]:
        probed = self._shared.trust_heldout_samples if self.probe else None
        return measurement_key(self.setting, self.seed, __name__) | {"probed": probed}

    def _once(self, own: dict[str, Any], measure: Callable[[], list[Cell]]) -> Cell:
        def cell() -> Cell:
            rows, frames = zip(*cells, strict=True) if (cells := measure()) else ([], [pd.DataFrame()])
            return {"rows": list(rows)}, pd.concat(frames, ignore_index=True)

        return once(self.setting.store, self._key() | own, cell)

    def _searched(self, spec: EditSpec) -> Mapping[str, int | None]:
        """Find the targets, so that they are in the store. Returns the passes; None where some were there before."""
        lm, contexts = self.setting.lm, self.setting.contexts[self.seed]
        how: dict[str, Any] = {"store": self.setting.store, "progress": self.setting.progress}
        decisive = {name: getattr(spec, name) for name in (*DECISIVE, "target_mode")}

        def search() -> dict[str, int | None]:
            with _counted(lm) as seen:
                found = optimise_targets(lm, self.facts, spec, contexts, **how)
            return dict.fromkeys(seen) if found.cached else dict(seen)

        return self.setting.store.plain("passes", self._key() | {"layer": spec.layers[-1], "targets": decisive}, search)

    def _scored(self, control: Control, variant: str, passes: Mapping[str, int | None], **about: Any) -> Cell:
        """Score the facts under a control, and say what it took and how far it moves the model on other prose."""
        with control.apply() as model:
            frame = evaluate(model, self.facts)
            moved = zip(("perplexity", "kl"), self.probe.measure(model) if self.probe else (), strict=False)
        named, n_layers = {"method": control.name, "variant": variant}, self.setting.lm.n_layers
        spent = {name: number and number / n_layers for name, number in passes.items()}
        row = {
            **named,
            **about,
            "n_facts": len(self.facts),
            **summarize(frame),
            **dict(moved),
            **cost(control),
            **spent,
        }
        return row, frame.assign(**named)


def _counted(lm: LanguageModel) -> AbstractContextManager[dict[str, int]]:
    """Count the tokens that pass each layer, by its MLP's last product."""
    return count_tokens([lm.mlp_out(layer) for layer in range(lm.n_layers)])


def _told(budget: int, unit: str) -> str:
    return f"{budget} {unit}{'s' * (budget > 1)}"
