"""The parts of the trust in an edited language model, measured on held-out prompts.

A step is judged by what it changed itself, against the model right before it, and by what has come together since the
first edit (``…_total``), against the untouched model. Each has an allowance of its own, so that many harmless steps are
accepted, and many that each do a little harm are not. A part is 2^(−harm / allowance).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from torch import Tensor

from editkit.editing.result import LayerUpdate
from editkit.editing.trust import TrustDecision, TrustSpec
from editkit.facts.fact import Fact
from editkit.language.drift import TextProbe, divergence, held_out, sentences
from editkit.language.forward.scoring import score
from editkit.language.metrics import scored_prompts
from editkit.models import LanguageModel

ALLOWED = {
    "text": 0.25,  # nats: KL of the kind of text that moved most
    "text_total": 1.0,
    "neighbours": 1.0,  # nats: drop of the right object's log-probability in the worst group
    "neighbours_total": 3.0,
    "norm": 1.0,  # ‖ΔW‖ / ‖W‖
    "norm_total": 1.0,  # growth of ‖W‖ over 1
}
DIGITS, ENOUGH = 16, 8  # decimal digits of float64, and those left by a condition number that does no harm
GROUP = 2  # neighbourhood prompts of one held-out fact


class Reading(NamedTuple):
    """What is seen of a model at one moment."""

    text: dict[str, Tensor]  # log-probabilities by kind of text
    neighbours: list[float]  # log-probability of the right object after each prompt
    held: list[bool]  # whether each of the sampled earlier edits has success


class TrustMonitor:
    """A comparison of the model after each step with what it was before the step, and before the first one.

    Args:
        lm: the model before its first edit.
        prose: ordinary text of another source than that of the second moment, see :mod:`editkit.language.drift`.
        heldout: facts that are never edited; what is said of them and of their neighbours is watched.
    """

    def __init__(self, lm: LanguageModel, prose: Sequence[str], heldout: Sequence[Fact], spec: TrustSpec):
        self.spec, self._samples = spec, spec.trust_heldout_samples
        near = sentences(lm, [], heldout, -(-self._samples // 2))
        rows = {"prose": held_out(lm, prose, 0, self._samples), "subjects": near}
        self._probes = {kind: TextProbe(lm, tokens) for kind, tokens in rows.items() if tokens}
        self._groups = _groups(heldout, self._samples)
        self._earlier: list[Fact] = []
        base = {kind: probe.reference for kind, probe in self._probes.items()}
        self._base = Reading(base, self._neighbours(lm), [])
        self._base_mark = lm.fingerprint()
        self._last = (self._base_mark, self._base)
        self._before = self._base

    def watch(self, lm: LanguageModel, earlier: Sequence[Fact]) -> None:
        """Look at the model right before a step.

        Args:
            earlier: facts edited before, in order; an even sample of them is scored.
        """
        count = min(len(earlier), self._samples)
        self._earlier = [earlier[i * len(earlier) // count] for i in range(count)]
        self._before = self._read(lm)

    def judge(self, lm: LanguageModel, edited: Sequence[Fact], updates: Sequence[LayerUpdate]) -> TrustDecision:
        """Judge the model as it stands after the step that was watched and edited ``edited`` by ``updates``."""
        now = self._read(lm)
        parts = {"edits": _share(_success(lm, edited))} | _weights(updates)
        for suffix, before in (("", self._before), ("_total", self._base)):
            moved = [divergence(before.text[kind], now.text[kind]) for kind in now.text]
            parts[f"text{suffix}"] = _part(f"text{suffix}", moved)
            if self._groups:
                parts[f"neighbours{suffix}"] = _part(f"neighbours{suffix}", self._drops(before, now))
        if any(self._before.held):
            parts["retention"] = _share([a for a, b in zip(now.held, self._before.held, strict=True) if b])
        if now.held:
            parts["retention_total"] = _share(now.held) ** 0.5  # a quarter is allowed to be left
        return TrustDecision.of(parts, self.spec)

    def _read(self, lm: LanguageModel) -> Reading:
        """Read the model as it stands; weights that were read first or last are not read again: that takes longest."""
        if (mark := lm.fingerprint()) == self._base_mark:
            return self._base._replace(held=_success(lm, self._earlier))
        if mark != self._last[0]:
            text = {kind: probe.read(lm) for kind, probe in self._probes.items()}
            self._last = (mark, Reading(text, self._neighbours(lm), []))
        return self._last[1]._replace(held=_success(lm, self._earlier))

    def _neighbours(self, lm: LanguageModel) -> list[float]:
        prompts = [prompt for group in self._groups for prompt in group]
        return [scores[0].logprob for scores in score(lm, prompts)] if prompts else []

    def _drops(self, before: Reading, now: Reading) -> list[float]:
        """Say by how much the right object has become less probable, in the mean of each group of prompts."""
        lost = (a - b for a, b in zip(before.neighbours, now.neighbours, strict=True))
        return [sum(next(lost) for _ in group) / len(group) for group in self._groups]


def _groups(heldout: Sequence[Fact], n: int) -> list[list[tuple[str, list[str]]]]:
    """Choose ``n`` facts that have neighbours, in turn from every relation; up to ``GROUP`` prompts of each."""
    relations = defaultdict(list)
    for fact in heldout:
        asked = [(prompt, objects[1:]) for kind, prompt, objects in scored_prompts(fact) if kind == "neighbourhood"]
        if asked:
            relations[fact.relation].append(asked[:GROUP])
    return [group for turn in zip_longest(*relations.values()) for group in turn if group][:n]


def _weights(updates: Sequence[LayerUpdate]) -> dict[str, float]:
    condition = max(item.update.condition for item in updates)
    digits = DIGITS - math.log10(max(1.0, condition)) if math.isfinite(condition) else 0.0
    return {
        "norm": _part("norm", [item.norm / item.weight_norm for item in updates]),
        "norm_total": _part("norm_total", [item.growth - 1 for item in updates]),
        "condition": min(1.0, max(0.0, digits / ENOUGH)),
    }


def _part(name: str, harms: Sequence[float]) -> float:
    """Turn the worst of some harms into a part of the score."""
    if not all(map(math.isfinite, harms)):
        return 0.0
    return 2 ** (-max([0.0, *harms]) / ALLOWED[name])


def _success(lm: LanguageModel, facts: Sequence[Fact]) -> list[bool]:
    scores = score(lm, [(fact.text, [fact.target_new, fact.target_true]) for fact in facts]) if facts else []
    return [new.logprob > true.logprob for new, true in scores]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
