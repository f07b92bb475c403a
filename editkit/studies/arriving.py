"""What takes in the facts of a sequence step by step: a session of edits, or a control that goes on learning."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from editkit.cache import digest
from editkit.editing.spec import EditSpec
from editkit.editing.weights import State
from editkit.facts import Fact
from editkit.language.controls import Control
from editkit.language.finetune import finetune_matrix
from editkit.methods import label
from editkit.models import LanguageModel
from editkit.models.peak import peak_mb, reset_peak
from editkit.studies.controls import ControlParams, locft_spec, look_up, own_parameters
from editkit.studies.interference import Interference
from editkit.studies.setting import Setting
from editkit.studies.steps import described

ArrivingName = Literal["locft", "grace"]


class Run(NamedTuple):
    """What tells a configuration from every other one of a setting: an id for tables, a label for people."""

    id: str
    label: str


class Arrival(Protocol):
    """The model of a sequence, and what is done to it; afterwards it is put back."""

    @property
    def model(self) -> LanguageModel:
        """The model as it stands after the last step."""

    def step(self, facts: Sequence[Fact]) -> dict[str, Any]:
        """Take in the facts of the next step; returns what is noted of it, besides its scores."""

    def look(self, begin: int) -> dict[str, list[float]]:
        """Return what was done to all facts from number ``begin`` (from 0) on since they were last looked at."""

    def state_dict(self) -> State:
        """Return what another one needs to go on from here."""

    def load_state_dict(self, state: State) -> None:
        """Go on where another one stood, before any step of its own."""

    def undo(self) -> None:
        """Put the model back as it was before the first step."""


class Editing:
    """Edits by a session, and their interference with earlier ones.

    Args:
        spec: resolved, with the seed.
    """

    def __init__(self, setting: Setting, spec: EditSpec):
        self._session = setting.session(spec, spec.seed)
        self._done_to = Interference(setting.lm, spec.layers)
        self.model = self._session.model

    def step(self, facts: Sequence[Fact]) -> dict[str, Any]:
        result = self._session.edit(facts)
        self._done_to.step(facts, result.updates)
        self._session.settle()
        return {"parameters": self._session.n_parameters, **described(result)}

    def look(self, begin: int) -> dict[str, list[float]]:
        return self._done_to.look(begin)

    def state_dict(self) -> State:
        return self._session.state_dict() | self._done_to.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._session.load_state_dict(state)
        self._done_to.load_state_dict(state)

    def undo(self) -> None:
        self._session.undo()


@dataclass(frozen=True)
class Learns:
    """A control that learns the facts of each step when they arrive, by which parameters."""

    name: ArrivingName
    params: ControlParams

    @property
    def own(self) -> dict[str, Any]:
        """Its own parameters, by their names."""
        return own_parameters(self.name, self.params)

    def identify(self, batch_size: int, **how: Any) -> Run:
        """Name what it comes to in steps of a size, measured as ``how`` says."""
        return Run(
            digest({"method": self.name, "batch_size": batch_size, **how, "own": self.own})[:8], label(self.name)
        )

    def begin(self, setting: Setting, seed: int) -> "Learning":
        """Return one that has learnt nothing yet."""
        return {"locft": Tuning, "grace": LookingUp}[self.name](setting, seed, self.params)


class Learning(ABC):
    """A control that goes on with every step from what it had learnt."""

    def __init__(self, setting: Setting, seed: int, params: ControlParams):
        self.setting, self.seed, self.params, self.model = setting, seed, params, setting.lm
        self._under = ExitStack()  # holds the model under the control

    def step(self, facts: Sequence[Fact]) -> dict[str, Any]:
        self._under.close()
        reset_peak(self.setting.device)
        control, cost = self.learn(facts)
        cost |= {"parameters": control.parameters, "peak_memory_mb": peak_mb(self.setting.device), "action": ""}
        self._under.enter_context(control.apply())
        return cost

    @abstractmethod
    def learn(self, facts: Sequence[Fact]) -> tuple[Control, dict[str, Any]]:
        """Learn the facts of a step on the plain model; returns the control, with ``seconds`` and ``growth`` so far."""

    def look(self, begin: int) -> dict[str, list[float]]:
        return {}  # there is no solver to foretell anything

    @abstractmethod
    def state_dict(self) -> State:
        """Return what another one needs to go on from here."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Go on where another one stood, before any step of its own."""

    def undo(self) -> None:
        self._under.close()


class Tuning(Learning):
    """LocFT-BF, which trains its matrix further with the facts of each step, for all its epochs."""

    _weight: Tensor | None = None

    def learn(self, facts: Sequence[Fact]) -> tuple[Control, dict[str, Any]]:
        spec, lm = locft_spec(self.setting, self.seed, self.params), self.setting.lm
        tuned = finetune_matrix(lm, facts, spec, progress=False, start=self._weight)
        self._weight = tuned.weight
        growth = (tuned.weight.norm() / lm.weight(tuned.layer).norm()).item()
        return tuned, {"seconds": tuned.seconds, "growth": growth}

    def state_dict(self) -> State:
        return {"learnt.weight": self._weight}

    def load_state_dict(self, state: State) -> None:
        self._weight = state["learnt.weight"].to(self.setting.device)


class LookingUp(Learning):
    """GRACE, whose table of keys and targets grows with the facts of each step; the radii are those of all so far."""

    def __init__(self, setting: Setting, seed: int, params: ControlParams):
        super().__init__(setting, seed, params)
        self._learnt, self._seconds = 0, 0.0  # facts, and time until now

    def learn(self, facts: Sequence[Fact]) -> tuple[Control, dict[str, Any]]:
        self._learnt += len(facts)
        so_far = self.setting.draws[self.seed].facts[: self._learnt]
        table = look_up(self.setting, self.seed, so_far, self.params)
        seconds, self._seconds = table.seconds - self._seconds, table.seconds
        return table, {"seconds": seconds, "growth": 1.0}

    def state_dict(self) -> State:
        return {"learnt.facts": torch.tensor(self._learnt), "learnt.seconds": torch.tensor(self._seconds).double()}

    def load_state_dict(self, state: State) -> None:
        self._learnt, self._seconds = int(state["learnt.facts"]), float(state["learnt.seconds"])
