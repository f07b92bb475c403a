"""Trust in an edited model: a number in [0, 1] from held-out prompts, and what to do when it is low."""

import math
from collections.abc import Sequence

from editkit.config import EditSpec
from editkit.editing.result import TrustDecision
from editkit.facts import Fact
from editkit.language.drift import TextProbe, held_out
from editkit.language.metrics import scored_prompts
from editkit.models import LanguageModel
from editkit.scoring import score

DIGITS = 16  # decimal digits of float64: a condition number of 10^16 leaves none


class TrustMonitor:
    """Compares the model with what it was when the monitor was made.

    Args:
        lm: the model before its first edit.
        texts: ordinary text; what lies behind the tokens of the second moment is held out.
        heldout: facts that are never edited; their neighbourhood prompts are watched.
        spec: the trust parameters, resolved.
    """

    def __init__(self, lm: LanguageModel, texts: Sequence[str], heldout: Sequence[Fact], spec: EditSpec):
        self.spec, self._samples = spec, spec.trust_heldout_samples
        self._text = TextProbe(lm, held_out(lm, texts, spec.mom2_n_tokens, self._samples))
        prompts = [
            (prompt, objects[1:])
            for fact in heldout
            for kind, prompt, objects in scored_prompts(fact)
            if kind == "neighbourhood"
        ]
        self._neighbours = prompts[: self._samples]
        self._before = _true_logprobs(lm, self._neighbours)

    def judge(
        self, lm: LanguageModel, earlier: Sequence[Fact], relative_norm: float, condition: float
    ) -> TrustDecision:
        """Judge the model as it stands after a step.

        Args:
            earlier: facts edited before this step, in order; an even sample of them is looked at.
            relative_norm: largest ‖ΔW‖ / ‖W‖ of the step.
            condition: largest condition number that was solved.
        """
        count = min(len(earlier), self._samples)
        evenly = [earlier[i * len(earlier) // count] for i in range(count)]
        parts = self._parts(lm, evenly, relative_norm, condition)
        weights = {name: self.spec.trust_weights.get(name, 0.0) for name in parts}
        total = sum(weights.values())
        trust = sum(weights[name] * parts[name] for name in parts) / total if total else 1.0
        if trust >= self.spec.trust_threshold:
            return TrustDecision(trust, parts, "accept", [])
        low = sorted((value, name) for name, value in parts.items() if weights[name] and value < 1)
        return TrustDecision(trust, parts, self.spec.trust_action, [f"{name} {value:.2f}" for value, name in low])

    def _parts(
        self, lm: LanguageModel, earlier: Sequence[Fact], relative_norm: float, condition: float
    ) -> dict[str, float]:
        _, divergence = self._text.measure(lm)
        parts = {
            "text": math.exp(-divergence),
            "norm": math.exp(-relative_norm),
            "condition": min(1.0, max(0.0, 1 - math.log10(condition) / DIGITS)),
        }
        if self._neighbours:
            now = _true_logprobs(lm, self._neighbours)
            drift = sum(abs(a - b) for a, b in zip(now, self._before, strict=True)) / len(now)
            parts["neighbours"] = math.exp(-drift)
        if earlier:
            held = score(lm, [(fact.text, [fact.target_new, fact.target_true]) for fact in earlier])
            parts["retention"] = sum(new.logprob > true.logprob for new, true in held) / len(held)
        return {name: value if math.isfinite(value) else 0.0 for name, value in parts.items()}


def _true_logprobs(lm: LanguageModel, prompts: Sequence[tuple[str, list[str]]]) -> list[float]:
    return [scores[0].logprob for scores in score(lm, prompts)] if prompts else []
