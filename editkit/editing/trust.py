"""Trust in an edited model: what is asked of a step, and what is decided. A domain measures the parts."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from editkit.config import Count, NonNegative, Parameters

TrustPart = Literal["text", "neighbours", "retention", "norm", "condition"]


class TrustSpec(Parameters):
    """Whether and how a step is judged once it is written."""

    trust_enable: bool = False
    """Judge the model after each step by held-out prompts."""
    trust_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Trust score below which trust_action is taken."""
    trust_action: Literal["rollback", "scale", "warn"] = "warn"
    """What a step of too little trust calls for: rollback undoes it, scale keeps trust_scale of it, warn only warns."""
    trust_scale: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of an update that is kept where trust_action is scale."""
    trust_heldout_samples: Count = 8
    """Largest number of held-out texts, of neighbour prompts and of earlier edits that a step is judged by."""
    trust_weights: dict[TrustPart, NonNegative] = dict.fromkeys(get_args(TrustPart), 1.0)
    """Weights of the parts of the trust score."""


@dataclass(frozen=True)
class TrustDecision:
    """What was found after a step, and what was done."""

    score: float  # weighted mean of the parts
    parts: dict[str, float]  # each in [0, 1]; 1 is no harm
    action: str  # accept, rollback, scale or warn
    reasons: list[str]  # where the action is not accept: the parts below the threshold, worst first

    @classmethod
    def of(cls, parts: dict[str, float], spec: TrustSpec) -> "TrustDecision":
        """Decide on a step: accept it, or take the action of ``spec`` where the score is below its threshold."""
        weights = {name: spec.trust_weights.get(name, 0.0) for name in parts}
        total = sum(weights.values())
        score = sum(weights[name] * parts[name] for name in parts) / total if total else 1.0
        if score >= spec.trust_threshold:
            return cls(score, parts, "accept", [])
        low = sorted((value, name) for name, value in parts.items() if weights[name] and value < 1)
        return cls(score, parts, spec.trust_action, [f"{name} {value:.2f}" for value, name in low])

    def __str__(self) -> str:
        return f"trust {self.score:.2f}: {self.action}" + (f" ({'; '.join(self.reasons)})" if self.reasons else "")
