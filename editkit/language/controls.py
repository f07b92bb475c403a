"""What editors are compared with: each is made on some facts, comes into force in a block, and leaves no trace.

    control = finetune_matrix(lm, facts, LocFTSpec(layer=6))
    with control.apply() as model:
        frame = evaluate(model, facts)

Their names are rows of ``CONTROLS`` in :mod:`editkit.methods`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import pandas as pd
from tqdm.auto import tqdm

from editkit.editing.weights import State
from editkit.facts.fact import Fact
from editkit.language.domain import EditSession
from editkit.language.incontext import Oracle
from editkit.language.metrics import evaluate
from editkit.methods import UNTOUCHED
from editkit.models import LanguageModel


class Control(Protocol):
    """What was made of some facts in place of an edit."""

    @property
    def name(self) -> str:
        """Row of ``CONTROLS`` in :mod:`editkit.methods`, or of an editor."""

    @property
    def lm(self) -> LanguageModel:
        """The model as it is without the control."""

    @property
    def seconds(self) -> float:
        """Time that it took to make."""

    @property
    def delta_norm(self) -> float:
        """‖ΔW‖ (Frobenius), over all weights; nan where none is changed."""

    @property
    def parameters(self) -> int:
        """Number of values that are stored beside the model, or trained in it."""

    def apply(self) -> AbstractContextManager[LanguageModel]:
        """Yield the model under the control, to be measured as any; afterwards the model is as it was."""


@dataclass(frozen=True)
class Edited:
    """An editor's own edits, to be measured as controls are."""

    name: str
    session: EditSession
    state: State  # of the session with its edits, which are undone
    seconds: float  # of targets, where these were found before, and of all else
    delta_norm: float
    parameters: int

    @classmethod
    def of(cls, name: str, session: EditSession, facts: Sequence[Fact]) -> Self:
        """Edit facts, all in one call, in a session without edits, and undo them; raises as ``edit`` does."""
        try:
            result = session.edit(facts)
            state, parameters = session.state_dict(), session.n_parameters
        finally:
            session.undo()
        seconds = sum(result.seconds[stage] for stage in ("targets", "keys", "solve"))
        return cls(name, session, state, seconds, result.delta_norm, parameters)

    @property
    def lm(self) -> LanguageModel:
        return self.session.model

    @contextmanager
    def apply(self) -> Iterator[LanguageModel]:
        """Yield the model with the edits; afterwards it is as it was, bit for bit."""
        self.session.load_state_dict(self.state)
        try:
            yield self.session.model
        finally:
            self.session.undo()


@dataclass(frozen=True)
class Untouched:
    """The model as it is."""

    name = UNTOUCHED
    lm: LanguageModel
    seconds, delta_norm, parameters = 0.0, 0.0, 0

    @contextmanager
    def apply(self) -> Iterator[LanguageModel]:
        yield self.lm


def cost(control: Control | Oracle) -> dict[str, float]:
    """Return what a control took: ``seconds``, ``delta_norm`` and ``parameters``."""
    return {name: getattr(control, name) for name in ("seconds", "delta_norm", "parameters")}


Measure = Callable[[LanguageModel, Sequence[Fact]], pd.DataFrame]  # tidy, a row a measurement


def measure(
    control: Control | Oracle,
    facts: Sequence[Fact],
    how: Measure = evaluate,
    *,
    besides: Mapping[str, Sequence[Fact]] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Measure facts under a control, all at once; an oracle is told of each fact that it is asked for.

    Args:
        besides: further facts of which an oracle is told, by the id of the one that it is asked for.

    Returns what ``how`` returns, facts in their order.
    """
    besides, frames = besides or {}, []
    parts: list[tuple[Control, Sequence[Fact]]]
    if told := isinstance(control, Oracle):
        parts = [(control.about(fact, *besides.get(fact.id, ())), [fact]) for fact in facts]
    else:
        parts = [(control, facts)]
    for part, asked in tqdm(parts, desc=control.name, unit="fact", disable=not (progress and told)):
        with part.apply() as model:
            frames.append(how(model, asked))
    return pd.concat(frames, ignore_index=True) if frames else how(control.lm, facts)
