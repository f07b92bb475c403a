"""Trust in an edited model: what is asked of a step, and what is decided. A domain measures the parts."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from pydantic import Field

from editkit.config import Count, NonNegative, Parameters

TrustPart = Literal[
    "text",
    "neighbours",
    "retention",
    "norm",
    "condition",
    "edits",
    "text_total",
    "neighbours_total",
    "retention_total",
    "norm_total",
]


class TrustSpec(Parameters):
    """Whether and how a step is judged once it is written."""

    trust_enable: bool = False
    """Judge the model after each step by held-out prompts."""
    trust_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Trust score below which trust_action is taken; a part is 0.5 where its harm is just what is allowed."""
    trust_action: Literal["rollback", "scale", "warn"] = "warn"
    """What a step of too little trust calls for: rollback undoes it, scale keeps trust_scale of it, warn only warns."""
    trust_scale: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of an update that is kept where trust_action is scale, if that share is trusted; else it is undone."""
    trust_heldout_samples: Count = 8
    """Largest number of pieces of text, of held-out facts and of earlier edits that a step is judged by."""
    trust_weights: dict[TrustPart, NonNegative] = dict.fromkeys(get_args(TrustPart), 1.0)
    """Exponents of the parts of the trust score; a part that is not named, or has 0, does not count."""


@dataclass(frozen=True)
class TrustDecision:
    """What was found after a step, and what was done."""

    score: float  # the lowest part, each to the power of its weight: nothing makes up for one ruined part
    parts: dict[str, float]  # each in [0, 1]; 1 is no harm
    action: str  # accept, rollback, scale or warn
    reasons: list[str]  # where the action is not accept: the parts that counted against the step, worst first

    @classmethod
    def of(cls, parts: dict[str, float], spec: TrustSpec) -> "TrustDecision":
        """Decide on a step: accept it, or take the action of ``spec`` where the score is below its threshold."""
        weights = spec.trust_weights.items()
        counted = {name: parts[name] ** weight for name, weight in weights if weight and name in parts}
        score = min(counted.values(), default=1.0)
        if score >= spec.trust_threshold:
            return cls(score, parts, "accept", [])
        low = sorted((value, name) for name, value in counted.items() if value < spec.trust_threshold)
        return cls(score, parts, spec.trust_action, [f"{name} {parts[name]:.2f}" for _, name in low])

    def of_share(self, first: "TrustDecision") -> "TrustDecision":
        """Conclude from this decision on a share of a step and the ``first`` on the whole: keep the share, or nothing.

        Score and parts are those of the share.
        """
        if self.action == "accept":
            return replace(self, action="scale", reasons=first.reasons)
        return replace(self, action="rollback", reasons=[*first.reasons, *(f"scaled: {why}" for why in self.reasons)])

    def __str__(self) -> str:
        return f"trust {self.score:.2f}: {self.action}" + (f" ({'; '.join(self.reasons)})" if self.reasons else "")
