"""The laboratory without its looks: what was typed and chosen, what the model holds, and what came of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from editkit.cache import Store
from editkit.editing.result import EditResult
from editkit.editing.spec import EditSpec
from editkit.facts import Fact, Probe, read_probes
from editkit.facts.worldprobes import PREFIX, World
from editkit.lab.bench import Bench
from editkit.lab.form import Form
from editkit.lab.program import program
from editkit.lab.reading import Look, Reading, ask, hold, look, read, write
from editkit.lab.work import Worker, sentence
from editkit.language.probes import known_probes
from editkit.methods import METHODS, TargetMethodName
from editkit.models import LanguageModel

CHOICES = get_args(TargetMethodName)  # methods with a v*, whose search can be watched
FIRST = "alphaedit"
STAYS = "the edits stay, the rest was not read"
NOTHING = Look([], [], None, None)


@dataclass(frozen=True)
class Entry:
    """An edit on the list: in the model, or switched off."""

    fact: Fact
    on: bool = True
    holds: bool = False  # whether the model says the new object, every token of it greedily


class Seen(NamedTuple):
    """A fact before and after the edits in the model."""

    fact: Fact
    before: Reading
    after: Reading


class Laboratory:
    """A model, a form, a choice of method, and a list of edits.

    Whatever takes time is done in a thread of its own; :attr:`changed` is called when something has changed, and
    :meth:`wait` waits. A task that fails or is stopped leaves model and list as they were. An edit that is in stays:
    only what is still to be read of it is left out then.

    Args:
        lm: the model; its weights change with the edits.
        facts: to pick from.
        hyperparameters: of every spec, over the model's defaults.
        store, heldout: as in :class:`editkit.lab.bench.Bench`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        facts: Sequence[Fact] = (),
        hyperparameters: Mapping[str, Any] | None = None,
        store: Store | None = None,
        heldout: Sequence[Fact] = (),
    ):
        self.lm, self.facts = lm, list(facts)
        self.bench = Bench(lm, store=store or Store(), heldout=heldout)
        self.form = Form()
        self.method = FIRST
        self.chosen: dict[str, Any] = {}  # fields of a spec that somebody chose
        self.entries: list[Entry] = []
        self.seen: Seen | None = None
        self.compared: dict[str, Reading] = {}
        self.saved: Path | None = None
        self.changed: Callable[[], None] = lambda: None
        self.worker = Worker(lambda: self.changed())
        self._hyperparameters = {**(hyperparameters or {}), "targets_from": "base"}
        self._made: EditSpec | None = None  # what was chosen for the edits in the model
        self._before: dict[Fact, Reading] = {}  # with the model as it came
        self._after: dict[Fact, Reading] = {}  # what was last written: much of it is written again
        self._probes: dict[Fact, list[Probe]] = {}  # that the model as it came answers
        self._world: World | None = None

    def spec(self, method: str | None = None) -> EditSpec:
        """Return the spec as chosen, or that of another method. Raises ``ValueError`` for choices that do not fit."""
        spec = self._stated(method or self.method).resolve(self.lm)
        if self.bench.loaded and spec.edit_mode == "raw":
            raise ValueError("an adapter lies beside the weights: choose 'adapter', or go back to the base")
        return spec

    def look(self) -> tuple[Look, list[str]]:
        """Return what the model makes of the form, and why that cannot be edited in now: no reason where it can.

        While something is being done, nothing is looked at.
        """
        if self.worker.busy:
            return NOTHING, [self.worker.doing]
        try:
            with self.worker.lock:
                found, spec = look(self.lm, self.form), self.spec()
        except ValueError as problem:
            return NOTHING, [sentence(problem)]
        reasons = self.form.reasons()
        if not reasons and spec == self.bench.spec and self.form.fact() in self.bench.facts:
            reasons = ["this edit is in the model"]
        return found, reasons

    @property
    def settled(self) -> bool:
        """Whether the edits in the model were made under the spec that is chosen."""
        try:
            return not self.bench.facts or self.bench.spec == self.spec()
        except ValueError:  # which look() tells
            return False

    def type(self, **fields: Any) -> None:
        """Type into fields of the form."""
        self.form = replace(self.form, **fields)
        self.changed()

    def pick(self, fact: Fact | None) -> None:
        """Fill the form with a fact; None empties it."""
        self.form = Form.of(fact) if fact else Form()
        self.changed()

    def choose(self, method: str | None = None, **fields: Any) -> None:
        """Choose a method and fields of its spec; None takes a field's default again.

        Edits in the model are solved again at once where all their targets are there; else :meth:`again` does it.
        """
        self.method = method or self.method
        self.chosen = {name: value for name, value in {**self.chosen, **fields}.items() if value is not None}
        try:
            ready = not self.worker.busy and not self.settled and self._found()
        except ValueError:  # which look() tells
            ready = False
        if ready:
            self.again()
        self.changed()

    def edit(self) -> None:
        """Edit the form's fact in, in place of an earlier edit of the same topic. Raises ``ValueError`` where off."""
        if reasons := self.look()[1]:
            raise ValueError("; ".join(reasons))
        fact = self.form.fact()
        self._make("editing", [*self._others(fact), Entry(fact)], fact)

    def again(self) -> None:
        """Make the edits in the model again, as is chosen now."""
        self._make("solving again", self.entries)

    def undo(self) -> None:
        """Take the last edit off the list, and out of the model."""
        self._make("taking back", self.entries[:-1])

    def switch(self, place: int) -> None:
        """Take an edit out of the model but leave it on the list, or take it in again."""
        entry = self.entries[place]
        changed = replace(entry, on=not entry.on)
        self._make("switching", [*self.entries[:place], changed, *self.entries[place + 1 :]], entry.fact)

    def move(self, place: int, to: int) -> None:
        """Move an edit to another place on the list: it is made there then."""
        entries = [*self.entries[:place], *self.entries[place + 1 :]]
        entries.insert(to, self.entries[place])
        self._make("making in another order", entries)

    def remove(self, place: int) -> None:
        """Take an edit off the list, and out of the model."""
        self._make("taking out", [*self.entries[:place], *self.entries[place + 1 :]])

    def base(self) -> None:
        """Take everything back, loaded adapters too."""

        def task() -> None:
            self.bench.close()
            self.entries, self.seen, self.compared = [], None, {}
            self._forget()

        self.worker.start("going back to the base", task)

    def show(self, place: int) -> None:
        """Read an edit on the list before and after."""
        fact = self.entries[place].fact
        self.worker.start("reading", lambda: self._read(fact))

    def compare(self, methods: Sequence[str]) -> None:
        """Edit the form's fact in by several methods, each beside the edits there are; the model stays as it is."""
        fact = self.form.fact()
        facts = [entry.fact for entry in self._others(fact) if entry.on] + [fact]
        specs = {method: self.spec(method) for method in methods}

        def task() -> None:
            before = self._written_before(fact)

            def after() -> Reading:
                return write(self.lm, fact, read(self.lm, fact), before)

            self.compared = self.bench.compare(specs, facts, after, self.worker.watch)

        self.worker.start("comparing", task)

    def save(self, directory: str | Path) -> None:
        """Write the edits in the model as one adapter."""

        def task() -> None:
            self.saved = self.bench.save(Path(directory).expanduser())

        self.worker.start("saving", task)

    def load(self, directory: str | Path) -> None:
        """Lay a saved adapter beside the weights; edits are made as adapters from then on."""

        def task() -> None:
            self.bench.load(Path(directory).expanduser())
            self.chosen["edit_mode"] = "lora"
            self._forget()

        self.worker.start("loading", task)

    def stop(self) -> None:
        """Ask for an end between two steps of a search."""
        self.worker.stop()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is being done."""
        self.worker.wait(timeout)

    def as_python(self) -> str:
        """Return a program that edits the model as it is edited now."""
        spec = self._made if self.bench.facts else self._stated(self.method)
        return program(self.lm.name, spec, self.bench.facts, self.bench.loaded)

    @property
    def result(self) -> EditResult | None:
        """What the last edit in the model did."""
        return self.bench.result

    def _stated(self, method: str) -> EditSpec:
        """Return a method's spec with what was chosen, less the weights that only other methods have."""
        others = {knob for other in METHODS.values() for knob in other.searched} - {*METHODS[method].searched}
        chosen = {name: value for name, value in self.chosen.items() if name not in others}
        return EditSpec(method=method, **{**self._hyperparameters, **chosen})

    def _found(self) -> bool:
        """Tell whether no target has to be searched to make the edits in the model again."""
        with self.worker.lock:
            return not self.bench.missing(self.spec(), self.bench.facts)

    def _others(self, fact: Fact) -> list[Entry]:
        return [entry for entry in self.entries if entry.fact.topic != fact.topic]

    def _make(self, doing: str, entries: Sequence[Entry], shown: Fact | None = None) -> None:
        """Let the model hold the entries that are on, and then read; the list changes once they are in."""
        stated, spec, facts = self._stated(self.method), self.spec(), [entry.fact for entry in entries]

        def task() -> None:
            self.bench.make(spec, [entry.fact for entry in entries if entry.on], self.worker.watch)
            self._made = stated
            self.entries = [replace(e, holds=held) for e, held in zip(entries, hold(self.lm, facts), strict=True)]
            fact = shown or (self.seen.fact if self.seen and self.seen.fact in facts else None)
            self._read(fact or (facts[-1] if facts else None))

        self.worker.start(doing, task)

    def _read(self, fact: Fact | None) -> None:
        """Read a fact before and after: what one pass tells, and then, as long as nobody stops it, the rest."""
        if fact is None:
            self.seen = None
            return
        if fact not in self._before:
            with self.bench.untouched():
                self._before[fact] = read(self.lm, fact)
        self.seen = Seen(fact, self._before[fact], read(self.lm, fact))
        for doing, part in (("writing sentences", self._write), ("asking what follows", self._ask)):
            self.worker.go_on(doing, STAYS)
            part(fact)
        if self.bench.judgeable:
            self.worker.go_on("judging", STAYS)
            self.bench.judge()

    def _write(self, fact: Fact) -> None:
        before = self._written_before(fact)
        self._after[fact] = write(self.lm, fact, self.seen.after, self._after.get(fact, before))
        self.seen = Seen(fact, before, self._after[fact])

    def _written_before(self, fact: Fact) -> Reading:
        """Return the sentences of the model as it came, written once."""
        before = self._before.get(fact)
        if before is None or not before.written:
            with self.bench.untouched():
                before = self._before[fact] = write(self.lm, fact, before or read(self.lm, fact))
        return before

    def _ask(self, fact: Fact) -> None:
        """Ask what follows from the fact, as far as the model as it came answers it."""
        if fact not in self._probes:
            if self._world is None and fact.id.startswith(PREFIX):
                self._world = World()
            probes = read_probes("worldfacts", [fact], world=self._world)  # of others those that their own text makes
            with self.bench.untouched():
                known = known_probes(self.lm, probes, store=self.bench.store)
                self._probes[fact] = [probe for probe, counts in zip(probes, known, strict=True) if counts]
                self._before[fact] = ask(self.lm, self._before[fact], self._probes[fact])
        self.seen = Seen(fact, self._before[fact], ask(self.lm, self.seen.after, self._probes[fact]))

    def _forget(self) -> None:
        """Drop what was read of the model as it came, which is another one now."""
        self._before.clear()
        self._after.clear()
        self._probes.clear()
