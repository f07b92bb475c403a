"""The parts of the trust in an edited language model, measured on held-out prompts."""

import math
from collections.abc import Sequence

from editkit.editing.trust import TrustDecision, TrustSpec
from editkit.facts.fact import Fact
from editkit.language.drift import TextProbe, held_out
from editkit.language.forward.scoring import score
from editkit.language.metrics import scored_prompts
from editkit.models import LanguageModel

DIGITS = 16  # decimal digits of float64: a condition number of 10^16 leaves none


class TrustMonitor:
    """A comparison of the model after each step with what it was when the monitor was made.

    Args:
        lm: the model before its first edit.
        texts: ordinary text; its first ``reserved`` tokens are used elsewhere.
        heldout: facts that are never edited; their neighbourhood prompts are watched.
    """

    def __init__(
        self, lm: LanguageModel, texts: Sequence[str], heldout: Sequence[Fact], spec: TrustSpec, reserved: int
    ):
        self.spec, self._samples = spec, spec.trust_heldout_samples
        self._text = TextProbe(lm, held_out(lm, texts, reserved, self._samples))
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
            earlier: facts edited before this step, in order; an even sample of them is scored.
            relative_norm: largest ‖ΔW‖ / ‖W‖ of the step.
            condition: largest condition number of the systems solved in the step.
        """
        count = min(len(earlier), self._samples)
        evenly = [earlier[i * len(earlier) // count] for i in range(count)]
        return TrustDecision.of(self._parts(lm, evenly, relative_norm, condition), self.spec)

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
