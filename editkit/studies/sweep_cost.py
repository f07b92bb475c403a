"""What a sweep costs: seconds by what was measured, of cells that are alike; memory by what a worker holds."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from editkit.editing.moments import STATISTIC_BYTES
from editkit.facts import Fact
from editkit.language.metrics import evaluate
from editkit.language.targets import optimise_targets
from editkit.studies.runs import free_speech
from editkit.studies.sequences import measured_every
from editkit.studies.setting import Setting
from editkit.studies.sweep import SweepCell, SweepParams, facts_of

TRIED = 4  # facts by which scoring and v* are timed before anything has been measured
ALIKE = 2  # what cells must share at least, part and batch size, for one to say how long another takes
PROCESS_MB = 500  # of a process that has loaded PyTorch and transformers; a GPU holds none of it


@dataclass(frozen=True)
class Probe:
    """Seconds of the pieces that cells consist of, as timed on a few facts."""

    score: float  # of scoring a fact
    target: float  # of optimising v* of a fact
    text: float = 0.0  # of writing on a fact's prompts for GE, where tables have it
    said: float = 0.0  # of answering a fact's prompts freely, where tables have that

    @classmethod
    def take(cls, setting: Setting) -> "Probe":
        """Time them on the first facts of a setting; the targets are kept, for cells that want them."""
        seed, draw = next(iter(setting.draws.items()))
        facts, spec = draw.facts[:TRIED], setting.spec("memit").resolve(setting.lm)
        how: dict[str, Any] = {"store": setting.store, "progress": False}
        gradient = spec.target_mode == "gradient"  # without v*
        seconds = 0.0 if gradient else optimise_targets(setting.lm, facts, spec, setting.contexts[seed], **how).seconds
        evaluate(setting.lm, facts[:1])  # what is made once
        begun = time.perf_counter()
        evaluate(setting.lm, facts)
        scored = (time.perf_counter() - begun) / len(facts)
        text = _spoken(replace(setting, said_facts=0), seed, facts)
        said = _spoken(replace(setting, fluency_facts=0), seed, facts)
        return cls(scored, seconds / len(facts), text, said)

    def scoring(self, params: SweepParams, cell: SweepCell) -> float:
        """Return the seconds of all scoring of a cell, which is the least that it takes."""
        facts, size = facts_of(params, cell.part), cell.batch_size
        written = params.evaluation_texts if cell.part == "evaluation" else params.fluency_facts
        said = 0 if cell.part == "evaluation" else params.said_facts
        free = self.text * min(written, facts) + self.said * min(said, facts)
        if cell.part != "sequences":
            return self.score * facts + free
        steps, every = facts // size, measured_every(params, size)
        whole = [step % every == 0 or step == steps for step in range(1, steps + 1)]
        return self.score * sum(step * size if all_ else size for step, all_ in enumerate(whole, start=1)) + free


def _spoken(setting: Setting, seed: int, facts: Sequence[Fact]) -> float:
    """Time what a model says freely about a fact; 0 where nothing is asked."""
    free_speech(setting, seed, setting.lm, facts[:1])  # what is made once
    begun = time.perf_counter()
    about = {row["fact"] for row in free_speech(setting, seed, setting.lm, facts)}
    return (time.perf_counter() - begun) / len(about) if about else 0.0


class Left(NamedTuple):
    """What is left to do."""

    seconds: float  # one cell after another
    unknown: int  # cells of which none that is alike was measured: the least that they take is counted
    longest: float  # seconds of the longest cell, which no number of workers shortens

    def on(self, workers: int) -> float:
        """Return the seconds that several workers take, at least."""
        return max(self.seconds / max(workers, 1), self.longest)


@dataclass
class Pace:
    """How long cells take, learnt from those that are finished."""

    params: SweepParams
    probe: Probe | None = None
    targets: Mapping[SweepCell, int] = field(default_factory=dict)  # v* that a cell finds by itself, step by step
    _measured: dict[tuple, list[float]] = field(default_factory=lambda: defaultdict(list))

    def learn(self, cell: SweepCell, seconds: float) -> None:
        for end in range(ALIKE, len(cell.like) + 1):
            self._measured[cell.like[:end]].append(seconds)

    def expect(self, cell: SweepCell) -> float | None:
        """Return the mean seconds of the finished cells that are most alike; None where none is."""
        for end in range(len(cell.like), ALIKE - 1, -1):
            if found := self._measured.get(cell.like[:end]):
                return sum(found) / len(found)
        return None

    def left(self, cells: Iterable[SweepCell]) -> Left:
        """Add up what cells take; of those of which none that is alike was measured, what the probe tells."""
        cells = list(cells)
        known = [self.expect(cell) for cell in cells]
        each = [self._least(cell) if told is None else told for cell, told in zip(cells, known, strict=True)]
        return Left(sum(each), known.count(None), max(each, default=0.0))

    def _least(self, cell: SweepCell) -> float:
        """Return the seconds of a cell's scoring and of its own targets; 0 where nothing has been timed."""
        if not self.probe:
            return 0.0
        return self.probe.scoring(self.params, cell) + self.probe.target * self.targets.get(cell, 0)


def memory_mb(setting: Setting, layers: Iterable[int]) -> float:
    """Return what a worker holds at least, in MB: weights, and of edited layers second moments and what is computed
    with them."""
    held = sum(tensor.nbytes for tensor in setting.lm.model.state_dict().values())
    for layer in set(layers):
        d_v, d_k = setting.lm.weight(layer).shape
        held += STATISTIC_BYTES * d_k**2 + 8 * d_v * d_k
    return held / 2**20 + PROCESS_MB * (setting.device.type == "cpu")


def shown(seconds: float) -> str:
    """Write a duration: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
