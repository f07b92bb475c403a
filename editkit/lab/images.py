"""The laboratory of images without its looks: a classifier's mistakes, the repairs in it, and what these did.

Mistakes are edited one after another, with targets that are searched on the classifier as it came, as facts are in
:mod:`editkit.lab.bench`. What a repair does elsewhere is seen on held-out images, which it knows nothing of.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from editkit.editing.spec import EditSpec
from editkit.lab.bench import in_common
from editkit.lab.work import Worker, sentence
from editkit.methods import TargetMethodName
from editkit.studies.prepared import Prepared
from editkit.studies.repair_spec import RepairSpec
from editkit.studies.repairs import prepare
from editkit.vision.data import ImageSet
from editkit.vision.domain import RepairSession, check_spec
from editkit.vision.forward import predict
from editkit.vision.keys import repairs
from editkit.vision.tracing import cls_attention

FIRST: TargetMethodName = "alphaedit"
# A classifier of digits that is fine-tuned in a minute, and makes mistakes.
DIGITS: dict[str, Any] = {
    "n_train": 500,
    "image_noise": 0.1,
    "image_size": 42,
    "epochs": 4,
    "lr": 1e-5,
    "layer_selection": "last",
}
DIGITS |= {"max_edits": 24, "copies": 1}


class View(NamedTuple):
    """What the classifier makes of one image at one moment."""

    probabilities: np.ndarray  # (labels,)
    attention: np.ndarray  # (side, side) of the last layer, from CLS to each patch


class Moved(NamedTuple):
    """What the repairs did to images that were not edited."""

    places: np.ndarray  # of the held-out images whose class changed
    before: np.ndarray  # their classes, as predicted
    after: np.ndarray
    labels: np.ndarray  # their true ones
    held_out: int
    kept: float  # share of the right val predictions that are still right

    @property
    def fixed(self) -> int:
        return int((self.after == self.labels).sum())

    @property
    def broken(self) -> int:
        return int((self.before == self.labels).sum())


class Seen(NamedTuple):
    """A mistake before and after the repairs in the classifier, and what else they changed."""

    place: int
    before: View
    after: View
    moved: Moved


class Images:
    """A classifier, a mistake that is looked at, a choice of method, and the repairs in the classifier.

    As in :class:`editkit.lab.laboratory.Laboratory`, work is done in a thread, and what fails changes nothing.

    Args:
        spec: of the data, the classifier and its fine-tuning.
        made: makes what is worked on from the spec; takes a minute the first time.
    """

    def __init__(self, spec: RepairSpec | None = None, made: Callable[[RepairSpec], Prepared] | None = None):
        self.study = spec or RepairSpec(**DIGITS)
        self._made = made or (lambda study: prepare(study, progress=False))
        self.prepared: Prepared | None = None
        self.place: int | None = None  # of the mistake that is looked at
        self.places: list[int] = []  # of those that are edited in, in order
        self.method = FIRST
        self.chosen: dict[str, Any] = {}
        self.seen: Seen | None = None
        self.changed: Callable[[], None] = lambda: None
        self.worker = Worker(lambda: self.changed())
        self._session: RepairSession | None = None
        self._before: dict[int, View] = {}

    @property
    def mistakes(self) -> ImageSet:
        """The images that can be repaired."""
        return self.prepared.candidates

    def spec(self) -> EditSpec:
        """Return the spec as chosen. Raises ``ValueError`` for choices that do not fit."""
        prepared = self.prepared
        given = {"layers": prepared.layers, "stop_margin": prepared.choice.margin, "kept_budget": None}
        given |= {"targets_from": "base", **self.chosen}
        spec = prepared.spec.edit_spec(self.method, **given).resolve(prepared.vit)
        check_spec(spec)
        return spec

    def reasons(self) -> list[str]:
        """Say in words why the mistake cannot be edited in now; nothing where it can."""
        if self.worker.busy:
            return [self.worker.doing]
        if self.prepared is None:
            return ["open the classifier first"]
        if self.place is None:
            return ["pick one of the mistakes"]
        try:
            self.spec()
        except ValueError as problem:
            return [sentence(problem)]
        return ["this repair is in the classifier"] if self.settled and self.place in self.places else []

    @property
    def settled(self) -> bool:
        """Whether the repairs in the classifier were made under the spec that is chosen."""
        try:
            return not self.places or self._session.spec == self.spec()
        except ValueError:  # which reasons() tells
            return False

    def open(self) -> None:
        """Load the images, and fine-tune a classifier or read it from the cache."""

        def task() -> None:
            prepared = self._made(self.study)
            if not len(prepared.candidates):
                raise ValueError(f"{prepared.vit.name} makes no mistake on {prepared.data.name}: nothing to repair")
            self.prepared = prepared
            self._see(0)

        self.worker.start("fine-tuning the classifier", task)

    def pick(self, place: int) -> None:
        """Look at a mistake, by its place among them."""
        self.worker.start("looking", lambda: self._see(place))

    def choose(self, method: TargetMethodName | None = None, **fields: Any) -> None:
        """Choose a method and fields of its spec; None takes a field's default again. :meth:`again` applies it."""
        self.method = method or self.method
        self.chosen = {name: value for name, value in {**self.chosen, **fields}.items() if value is not None}
        self.changed()

    def edit(self) -> None:
        """Edit the mistake's true class in. Raises ``ValueError`` where off."""
        if reasons := self.reasons():
            raise ValueError("; ".join(reasons))
        others = [place for place in self.places if place != self.place]
        self._make("editing", [*others, self.place])

    def again(self) -> None:
        """Make the repairs in the classifier again, as is chosen now."""
        self._make("solving again", self.places)

    def undo(self) -> None:
        """Take the last repair out of the classifier."""
        self._make("taking back", self.places[:-1])

    def base(self) -> None:
        """Take all repairs out of the classifier."""
        self._make("going back to the base", [])

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is being done."""
        self.worker.wait(timeout)

    def _make(self, doing: str, places: Sequence[int]) -> None:
        spec = self.spec() if places else None

        def task() -> None:
            spec_before, places_before = self._session.spec if self._session else None, list(self.places)
            try:
                self._write(spec, places)
            except BaseException:
                self._write(spec_before, places_before)  # from the same targets, to the same bits
                raise
            self._see(self.place)

        self.worker.start(doing, task)

    def _write(self, spec: EditSpec | None, places: Sequence[int]) -> None:
        """Let the classifier hold these repairs and no others; on an error it holds none."""
        session, prepared = self._session, self.prepared
        same = session is not None and spec in (None, session.spec)  # what it has factored serves again
        kept = in_common(self.places, places) if same else 0
        if session is not None:
            session.undo(len(self.places) - kept)
        self.places = list(places[:kept])
        if not places[kept:]:
            return
        if not same:
            given: dict[str, Any] = {
                "images": prepared.candidates,
                "kept": prepared.kept,
                "tune": prepared.panels["val"],
            }
            self._session = RepairSession(prepared.vit, spec, **given, store=prepared.store, progress=False)
        try:
            for place in places[kept:]:
                self._session.edit(repairs(prepared.candidates.select([place])))
                self.places.append(place)
        except BaseException:
            self._session.undo()
            self._session, self.places = None, []
            raise

    def _see(self, place: int) -> None:
        """Look at a mistake before and after, and at what else changed."""
        prepared = self.prepared
        if not 0 <= place < len(prepared.candidates):
            raise ValueError(f"place = {place}: there are {len(prepared.candidates)} mistakes, counted from 0")
        after = self._view(place)
        if place not in self._before and not self.places:
            self._before[place] = after
        elif place not in self._before:
            with self._session.untouched():
                self._before[place] = self._view(place)
        self.place, self.seen = place, Seen(place, self._before[place], after, self._moved())

    def _view(self, place: int) -> View:
        image = self.prepared.candidates.select([place])
        return View(predict(self.prepared.vit, image)[0], cls_attention(self.prepared.vit, image.images)[0])

    def _moved(self) -> Moved:
        """Classify held-out and val images again, from the lowest edited layer on."""
        prepared = self.prepared
        before = {name: prepared.before[name].argmax(1) for name in ("test", "val")}
        after = before
        if self.places:
            lowest = self._session.spec.layers[0]
            after = {name: prepared.panels[name].predict(lowest).argmax(1) for name in before}
        test, val = prepared.data.test.labels, prepared.data.val.labels
        places = np.flatnonzero(before["test"] != after["test"])
        right = before["val"] == val
        kept = float((after["val"] == val)[right].mean()) if right.any() else float("nan")
        return Moved(places, before["test"][places], after["test"][places], test[places], len(test), kept)
