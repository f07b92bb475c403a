"""A budget instead of a λ: the smallest weight on what is kept under which a promise just holds.

The weight ``w`` adds ``w · σ̄`` to the slack ``D⁻¹`` of new edits, σ̄ being the mean eigenvalue of ``KᵀMK``: it says how
much more what is kept counts than what is asked for. The factor of the precision does not depend on it and the system
is n × n, so that a try costs a solve and a look at the data on which the promise is held.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from editkit.config import Parameters

SMALLEST, LARGEST = 1e-3, 1e4  # weights between which one is searched for
HALVINGS = 8  # of the logarithm of that range: the weight is then known to 7 %

Share = Annotated[float, Field(gt=0, le=1)]


class BudgetSpec(Parameters):
    """What an edit may cost, as shares that must stay; none is promised where nothing is given, and λ alone decides."""

    kept_budget: Share | None = None
    """Share of an image classifier's right predictions on images for tuning that must stay right after an edit."""
    neighbour_budget: Share | None = None
    """Share of the neighbourhood success (NS) before the first edit that must stay, on facts for tuning."""
    text_budget: Share | None = None
    """Share of a language model's probability of a token of prose (1 / perplexity) that must stay after an edit."""

    @property
    def promised(self) -> dict[str, float]:
        """The promises that were made, by what is kept: ``kept``, ``neighbour``, ``text``."""
        given = {name: getattr(self, f"{name}_budget") for name in ("kept", "neighbour", "text")}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Budget:
    """What was promised, under which weight it holds, and what was seen."""

    promised: dict[str, float]
    weight: float  # the smallest one found; nan where nothing could be written
    measured: dict[str, float]  # shares that stay on the data for tuning, under that weight
    tries: dict[float, dict[str, float]]  # what was measured, by the weight tried

    @property
    def holds(self) -> bool:
        """Whether a weight was found: else the promise was broken before, by earlier edits, and nothing is written."""
        return not math.isnan(self.weight)

    def __str__(self) -> str:
        told = ", ".join(f"{name} {self.measured[name]:.3f} of {value:g}" for name, value in self.promised.items())
        return f"budget: {told}; " + (f"weight {self.weight:.3g}" if self.holds else "nothing is written")


def spend(promised: dict[str, float], attempt: Callable[[float], dict[str, float]]) -> Budget:
    """Search for the smallest weight under which all promises hold, by bisection of its logarithm.

    A weight of 0, which leaves an edit as its method has it, is tried first. What is kept need not grow with every
    step of the weight: the one returned was itself seen to hold.

    Args:
        attempt: writes an edit under a weight in place of what it wrote before, and measures what is kept.
    """
    tries: dict[float, dict[str, float]] = {}

    def holds(weight: float) -> bool:
        tries[weight] = attempt(weight)
        return all(tries[weight][name] >= value for name, value in promised.items())

    if holds(0.0):
        return Budget(promised, 0.0, tries[0.0], tries)
    if not holds(LARGEST):
        return Budget(promised, math.nan, tries[LARGEST], tries)
    low, best = math.log(SMALLEST), LARGEST
    for _ in range(HALVINGS):
        middle = (low + math.log(best)) / 2
        if holds(math.exp(middle)):
            best = math.exp(middle)
        else:
            low = middle
    return Budget(promised, best, tries[best], tries)
