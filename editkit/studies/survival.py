"""Do edits survive use? One batch of edits before and after training on other text, rounding, and merging.

What is done to an edited model is done to the unedited one too, so that what the edits lose can be told from what the
model does.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from editkit.cache import digest
from editkit.config import Count, Parameters, Positive
from editkit.editing.spec import EditSpec
from editkit.editing.weights import RawWeights, State
from editkit.facts import Fact
from editkit.language.drift import PIECES, PROBE_TOKENS, TextProbe, held_out
from editkit.language.metrics import evaluate
from editkit.language.texts import load_texts, other_prose
from editkit.language.use import merged, restored, round_weights, train_on
from editkit.methods import UNTOUCHED, MethodName
from editkit.models import LanguageModel
from editkit.studies import protocol
from editkit.studies.runs import Cell, measurement_key, once, warm_targets
from editkit.studies.setting import Setting

AS_IS = "as it is"
ADDED, AVERAGED, WISE = "halves, updates added", "halves, averaged", "averaged with the unedited model"
MERGES = (ADDED, AVERAGED, WISE)
MOMENT = "final"
Use = Callable[[LanguageModel], object]  # what is done to a model's weights


class SurvivalParams(Parameters):
    """Edits of one batch, and what is done to a model in use."""

    survival_facts: Annotated[int, Field(ge=0)] = 2
    """Facts of each seed at most, the first, edited at once to see whether edits survive use; 0 leaves it out."""
    survival_methods: list[MethodName] = ["memit"]
    """Editors of these facts; the unedited model is always used beside them."""
    survival_text: str = ""
    """Text to train on afterwards, read like text_path; empty: other prose, behind what is drift measured on."""
    survival_rates: list[Positive] = [0.0001]
    """Learning rates of that training; empty leaves it out."""
    survival_steps: Count = 1
    """Steps of that training."""
    survival_rows: Count = 1
    """Pieces of 64 tokens in each of its steps."""
    survival_bits: list[Annotated[int, Field(ge=2, le=8)]] = [8]
    """Bits to which the weights of linear layers are rounded; empty leaves it out."""


class Text(NamedTuple):
    """What a model is trained on, and more of the same."""

    batches: Sequence[Tensor]  # (rows, T), one a step
    heldout: Sequence[Sequence[int]]  # rows of tokens behind its perplexity

    @classmethod
    def of(cls, setting: Setting, params: SurvivalParams) -> "Text":
        """Draw text of another source than that of the second moment, and of no piece that measures drift.

        Raises ``ValueError`` for the text behind the second moment, and for one that is too short.
        """
        lm, pieces = setting.lm, params.survival_steps * params.survival_rows
        reserved = (setting.spec("memit").resolve(lm).trust_heldout_samples + PIECES) * PROBE_TOKENS
        enough: dict[str, Any] = {"lm": lm, "n_tokens": reserved + (pieces + PIECES) * PROBE_TOKENS}
        if params.survival_text:
            texts = load_texts(params.survival_text, **enough, store=setting.store, progress=setting.progress)
        else:
            texts = other_prose(setting.texts, **enough, store=setting.store)
        if not set(texts).isdisjoint(setting.texts):
            named = f"survival_text = {params.survival_text!r}"
            raise ValueError(f"{named} is the text behind the second moment: name another")
        rows = held_out(lm, texts, reserved, pieces + PIECES)
        return cls(torch.tensor(rows[:pieces]).split(params.survival_rows), rows[pieces:])

    @property
    def digest(self) -> str:
        return digest([[ids.tolist() for ids in self.batches], self.heldout])


def run_survival(setting: Setting, params: SurvivalParams) -> pd.DataFrame:
    """Edit the first facts of each seed at once by each editor, use the model, and score them before and after.

    Edits lie in the weights. The untouched model (method "pre") is used in the same ways, merging aside. Every cell,
    a method on a seed, is read from the store where it was measured before. Afterwards the model is as it was.

    Returns what :func:`editkit.language.metrics.evaluate` returns with columns method, use (``AS_IS`` first),
    perplexity (of text like that trained on, under the model then), moment, model, dataset, seed, protocol and facts;
    nothing where ``survival_facts`` is 0.
    Raises ``ValueError`` as :meth:`Text.of`, and ``FloatingPointError`` where training diverges.
    """
    if not params.survival_facts:
        return pd.DataFrame()
    setting, frames = setting.first(params.survival_facts), []
    text = Text.of(setting, params)
    asked = {"text": text.digest, "rates": params.survival_rates, "bits": params.survival_bits}
    for seed in setting.draws:
        raw = {name: setting.spec(name, seed=seed, edit_mode="raw") for name in params.survival_methods}
        warm_targets(setting, seed, list(raw.values()))
        bar = tqdm([UNTOUCHED, *raw], desc=f"use, seed {seed}", unit="cell", disable=not setting.progress)
        for name in bar:
            bar.set_postfix_str(name)
            spec = raw.get(name)
            key = measurement_key(setting, seed, __name__) | asked
            key |= {"spec": spec and spec.resolve(setting.lm).model_dump()}
            measure = partial(_measure, setting, seed, spec, uses(params, text.batches), text.heldout)
            _, frame = once(setting.store, key, measure)
            frames.append(frame.assign(method=name, moment=MOMENT, **protocol.origin(setting, seed)))
    return pd.concat(frames, ignore_index=True)


def uses(params: SurvivalParams, batches: Sequence[Tensor]) -> dict[str, Use]:
    """Name what is done to any model, edited or not: nothing, training at each rate, rounding to each width."""
    trained = {f"trained, rate {rate:g}": partial(train_on, batches=batches, lr=rate) for rate in params.survival_rates}
    narrow = {f"int{bits}": partial(round_weights, bits=bits) for bits in params.survival_bits}
    return {AS_IS: lambda lm: None, **trained, **narrow}


def merges(setting: Setting, seed: int, spec: EditSpec) -> dict[str, State]:
    """Edit all facts of a seed in one batch, and merge other copies; the model is as it was afterwards.

    Returns the weights of the edited layers ``AS_IS``, and under the names of ``MERGES``: of two copies, each with
    every second fact, their updates added, and averaged; and the average of the edited and the unedited model. One fact
    alone has no halves.
    """
    facts = setting.draws[seed].facts
    whole = edited(setting, seed, spec, facts)
    base = RawWeights(setting.lm, spec.resolve(setting.lm).layers).read()
    found = {AS_IS: whole, WISE: merged(base, [whole], 0.5)}
    if len(facts) > 1:
        halves = [edited(setting, seed, spec, facts[half::2]) for half in (0, 1)]
        found |= {ADDED: merged(base, halves, 1.0), AVERAGED: merged(base, halves, 0.5)}
    return found


def edited(setting: Setting, seed: int, spec: EditSpec, facts: Sequence[Fact]) -> State:
    """Return the weights of the edited layers with some facts edited at once; the model is as it was afterwards."""
    session = setting.session(spec, seed)
    try:
        session.edit(facts)
        return RawWeights(setting.lm, session.spec.layers).read()
    finally:
        session.undo()


def _measure(
    setting: Setting, seed: int, spec: EditSpec | None, ways: Mapping[str, Use], heldout: Sequence[Sequence[int]]
) -> Cell:
    """Score the facts of a seed under everything that is done to the model with a spec's edits, or to the untouched."""
    lm, facts = setting.lm, setting.draws[seed].facts
    found = merges(setting, seed, spec) if spec else {AS_IS: {}}
    states = dict.fromkeys(ways, found[AS_IS]) | {name: found[name] for name in MERGES if name in found}
    frames = []
    for name, state in states.items():
        with restored(lm):
            RawWeights(lm, []).put(state)
            ways.get(name, ways[AS_IS])(lm)
            perplexity = TextProbe(lm, heldout).perplexity
            frames.append(evaluate(lm, facts).assign(use=name, perplexity=perplexity))
    return {}, pd.concat(frames, ignore_index=True)
