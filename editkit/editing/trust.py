"""Trust in an edited model: what is asked of a step, and what is decided. A domain measures the parts."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from editkit.config import Count, NonNegative, Parameters

TrustPart = Literal["text", "neighbours", "retention", "norm", "condition"]


class TrustSpec(Parameters):
    """Whether and how a step is judged after it was made."""

    trust_enable: bool = False
    """Judge the model after each step by held-out prompts."""
    trust_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Trust below this calls for the action."""
    trust_action: Literal["rollback", "scale", "warn"] = "warn"
    """rollback undoes the step, scale applies trust_scale of it, warn records and warns."""
    trust_scale: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of an update that is kept by the action scale."""
    trust_heldout_samples: Count = 8
    """Held-out texts, neighbour prompts and earlier edits that are looked at, at most so many of each."""
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
