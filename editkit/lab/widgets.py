"""The laboratory in JupyterLab: widgets over :class:`editkit.lab.laboratory.Laboratory`, and nothing else."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as w

from editkit.cache import Store
from editkit.facts import Fact, part_of, read_facts
from editkit.lab import markup
from editkit.lab.image_widgets import ImageRoom
from editkit.lab.images import Images
from editkit.lab.laboratory import CHOICES, Laboratory
from editkit.lab.room import WIDE, WRAP, Room
from editkit.methods import COMPARED, METHODS, label
from editkit.models import LanguageModel, load_lm

OFFERED = 300  # facts to pick from
HELD_OUT = 16  # facts of the tune part, which trust is measured on
REPLAY = {"as published": None, "none": "none", "buffer": "buffer", "hold": "hold", "history": "history"}
SEARCHES = {"as published": "exact", "fast": "fast"}
FORMS = {"over the weights": "raw", "adapter": "lora"}
DECADES = 2  # that a slider of a weight reaches to both sides of its default


def playground(
    model: str | LanguageModel = "smollm2-135m",
    *,
    facts: Sequence[Fact] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    store: Store | None = None,
    images: Images | None = None,
) -> "Playground":
    """Open the laboratory: edit facts into a model, and repairs into a classifier, see what that does, take it back.

    Args:
        model: a model, whose weights the edits change, or what :func:`editkit.load_lm` takes.
        facts: to pick from; some of worldfacts where not given.
        hyperparameters: fields of :class:`editkit.EditSpec`, over the model's defaults.
        store: where targets and second moments are cached.
        images: the classifier and its images, for the second tab; of digits where not given.
    """
    lm = load_lm(model) if isinstance(model, str) else model
    world = read_facts("worldfacts", seed=1, part="all")
    heldout = [fact for fact in world if part_of(fact) == "tune"][:HELD_OUT]
    facts = [fact for fact in world if part_of(fact) == "test"][:OFFERED] if facts is None else facts
    lab = Laboratory(lm, facts=facts, hyperparameters=hyperparameters, store=store, heldout=heldout)
    return Playground(FactRoom(lab), ImageRoom(images or Images()))


class Playground(w.Tab):
    """The laboratory's rooms, a tab each; :attr:`lab` is what the first one shows."""

    def __init__(self, facts: "FactRoom", images: ImageRoom):
        super().__init__([facts, images], titles=("Facts", "Images"))
        self.facts, self.images, self.lab = facts, images, facts.lab


class FactRoom(Room):
    """Edits of facts by hand; :attr:`lab` is what the widgets show."""

    def __init__(self, lab: Laboratory):
        super().__init__()
        self.lab = lab
        self.head, self.tokens, self.says, self.reasons = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.loss, self.result, self.comparison = w.HTML(), w.HTML(), w.HTML()
        self.entries, self.python = w.VBox(), w.Textarea(layout=w.Layout(width="98%", height="14em"))
        self.fields = self._fields()
        self.settings = self._settings()
        self.buttons = self._buttons()
        self.children = [*self._asking(), *self._choosing(), *self._acting(), *self._showing()]
        lab.changed = self._changed
        if lab.facts:
            lab.pick(lab.facts[0])
        self._changed()

    def _fields(self) -> dict[str, w.Widget]:
        wide = w.Layout(width="24em")
        names = {"subject": "subject", "prompt": "prompt", "new": "new object", "true": "true object"}
        fields: dict[str, w.Widget] = {n: w.Text(description=words, layout=wide) for n, words in names.items()}
        fields["prompt"].placeholder = "{} is the capital of"
        for name in ("paraphrases", "neighbours"):
            fields[name] = w.Textarea(description=name, placeholder="full texts, one a line", layout=WIDE)
        for name, field in fields.items():
            field.observe(self._guarded(partial(self._type, name)), "value")
        titles = [("my own", None), *((f"{fact.text} → {fact.target_true}", fact) for fact in self.lab.facts)]
        fields["fact"] = w.Dropdown(options=titles, description="pick a fact", layout=WIDE)
        fields["fact"].observe(self._guarded(lambda change: self.lab.pick(change.new)), "value")
        return fields

    def _type(self, name: str, change: Any) -> None:
        self.lab.type(**{name: change.new})

    def _choose(self, chosen: Callable[[Any], dict[str, Any]], change: Any) -> None:
        self.lab.choose(**chosen(change.new))

    def _settings(self) -> dict[str, w.Widget]:
        last = self.lab.lm.n_layers - 1
        once = {"continuous_update": False}
        settings: dict[str, w.Widget] = {
            "method": w.ToggleButtons(options=[(label(name), name) for name in CHOICES]),
            "layers": w.IntRangeSlider(min=0, max=last, description="layers", **once),
            "v_num_grad_steps": w.IntSlider(min=1, max=50, description="steps", **once),
            "target_mode": w.Dropdown(options=list(SEARCHES.items()), description="search"),
            "replay": w.Dropdown(options=list(REPLAY.items()), description="replay"),
            "edit_mode": w.ToggleButtons(options=list(FORMS.items())),
            "lora_rank": w.IntSlider(min=1, max=32, description="rank", **once),
        }
        take: dict[str, Callable[[Any], dict[str, Any]]] = {
            "layers": lambda value: {"layers": list(range(value[0], value[1] + 1))},
            "edit_mode": lambda value: {"edit_mode": value, "lora_stack": "fixed" if value == "lora" else None},
        }
        for name, setting in settings.items():
            chosen = take.get(name, lambda value, name=name: {name: value})
            setting.observe(self._guarded(partial(self._choose, chosen)), "value")
        settings["knobs"] = w.HBox(layout=WRAP)
        return settings

    def _buttons(self) -> dict[str, w.Widget]:
        lab = self.lab
        acts: dict[str, tuple[str, Callable[[], None]]] = {
            "edit": ("▶ Edit", lab.edit),
            "stop": ("■ Stop", lab.stop),
            "undo": ("↶ Undo", lab.undo),
            "base": ("⟲ Base", lab.base),
            "again": ("Make again", lab.again),
            "compare": ("Compare", lambda: lab.compare(self.compared.value)),
            "save": ("Save adapter", lambda: lab.save(self.folder.value)),
            "load": ("Load adapter", lambda: lab.load(self.folder.value)),
        }
        buttons = {name: self._button(words, act) for name, (words, act) in acts.items()}
        self.compared = w.SelectMultiple(options=[(label(n), n) for n in CHOICES], value=COMPARED, rows=4)
        self.folder = w.Text(value="adapters/mine", description="folder")
        return buttons

    def _asking(self) -> list[w.Widget]:
        own = w.Accordion([w.VBox([self.fields["paraphrases"], self.fields["neighbours"]])])
        own.set_title(0, "Paraphrases and neighbours")
        typed = w.HBox([self.fields[name] for name in ("subject", "prompt", "new", "true")], layout=WRAP)
        return [self.head, self.fields["fact"], typed, self.tokens, self.says, own]

    def _choosing(self) -> list[w.Widget]:
        s = self.settings
        rows = (
            ["method"],
            ["layers", "target_mode", "v_num_grad_steps", "replay"],
            ["edit_mode", "lora_rank"],
            ["knobs"],
        )
        return [w.HBox([s[name] for name in row], layout=WRAP) for row in rows]

    def _acting(self) -> list[w.Widget]:
        b = self.buttons
        first = w.HBox([*(b[n] for n in ("edit", "stop", "undo", "base", "again")), self.loss], layout=WRAP)
        return [first, self.reasons, self.notice]

    def _showing(self) -> list[w.Widget]:
        b = self.buttons
        files = w.HBox([self.folder, b["save"], b["load"]], layout=WRAP)
        comparing = w.VBox([w.HBox([self.compared, b["compare"]], layout=WRAP), self.comparison])
        tabs = w.Tab([self.result, w.VBox([self.entries, files]), comparing, self.python])
        for place, title in enumerate(("Before and after", "Edits in the model", "Compare", "As Python")):
            tabs.set_title(place, title)
        return [tabs]

    def _changed(self) -> None:
        """Show the laboratory as it is; while it works only what the model holds by now and how far it is."""
        worker, b = self.lab.worker, self.buttons
        self._show_head()
        self.loss.value = markup.losses(worker.steps)
        b["stop"].disabled = not worker.busy
        if worker.busy:
            self._show_seen()
            self.reasons.value = markup.notice([f"{worker.doing} …"])
            for name in b.keys() - {"stop"}:
                b[name].disabled = True
            return
        with self._quiet():
            self._show_form()
            self._show_settings()
            self._show_edits()
        self.notice.value = markup.notice(worker.notes, worker.error)

    def _show_form(self) -> None:
        lab, (look, reasons) = self.lab, self.lab.look()
        for name in ("subject", "prompt", "new", "true", "paraphrases", "neighbours"):
            self.fields[name].value = getattr(lab.form, name)
        self.fields["fact"].value = lab.form.picked if lab.form.picked in lab.facts else None
        self.tokens.value, self.says.value = markup.tokens(look), markup.answer(look)
        self.reasons.value = markup.notice(reasons)
        self.buttons["edit"].disabled = bool(reasons)
        self.buttons["compare"].disabled = bool(lab.form.reasons())

    def _show_settings(self) -> None:
        s, lab = self.settings, self.lab
        try:
            spec = lab.spec()
        except ValueError:  # told beside the button
            return
        s["method"].value, s["layers"].value = spec.method, (spec.layers[0], spec.layers[-1])
        s["target_mode"].value = spec.target_mode
        s["v_num_grad_steps"].max = max(50, spec.v_num_grad_steps)
        s["v_num_grad_steps"].value = spec.v_num_grad_steps
        s["replay"].value, s["edit_mode"].value = lab.chosen.get("replay"), spec.edit_mode
        s["lora_rank"].value, s["lora_rank"].disabled = min(32, spec.lora_rank), spec.edit_mode == "raw"
        names = METHODS[spec.method].searched
        if [knob.description for knob in s["knobs"].children] != list(names):
            s["knobs"].children = [self._knob(name, getattr(spec, name)) for name in names]

    def _knob(self, name: str, default: float) -> w.Widget:
        """Make the slider of a weight, on a logarithmic axis around its default."""
        places = [round(math.log10(default or 1) - DECADES + step / 4, 6) for step in range(8 * DECADES + 1)]
        values = [0.0] * (default == 0) + [10**place for place in places]
        nearest = min(values, key=lambda value: abs(value - default))
        values[values.index(nearest)] = default
        options = [(f"{value:.3g}", value) for value in values]
        layout = w.Layout(width="30em")
        knob = w.SelectionSlider(
            options=options,
            value=default,
            description=name,
            continuous_update=False,
            layout=layout,
            style={"description_width": "12em"},
        )
        knob.observe(self._guarded(lambda change: self.lab.choose(**{name: change.new})), "value")
        return knob

    def _show_head(self) -> None:
        lab, n = self.lab, len(self.lab.bench.facts)
        state = f"{n} edit{'s'[: n != 1]} in the model" if n else "clean model"
        state += "" if lab.worker.busy or lab.settled else ", made under other settings: make them again"
        state += "".join(f" · with {folder}" for folder in lab.bench.loaded)
        self.head.value = f"<b>editkit</b> {markup.text(f'{lab.lm.name} · {lab.lm.device} · {state}')}"

    def _show_edits(self) -> None:
        lab, b, n = self.lab, self.buttons, len(self.lab.bench.facts)
        b["undo"].disabled, b["again"].disabled = not lab.entries, lab.settled
        b["base"].disabled = not (lab.entries or lab.bench.loaded)
        b["save"].disabled, b["load"].disabled = not n, bool(n)
        self.entries.children = [self._entry(place) for place in range(len(lab.entries))]
        self._show_seen()
        self.comparison.value = markup.comparison(lab.compared)
        self.python.value = lab.as_python()

    def _show_seen(self) -> None:
        lab = self.lab
        self.result.value = markup.before_after(*lab.seen) + markup.trust(lab.bench.trust) if lab.seen else ""

    def _entry(self, place: int) -> w.Widget:
        lab, entry = self.lab, self.lab.entries[place]
        state = ("holds" if entry.holds else "does not hold") if entry.on else "off"
        said = f"#{place + 1} {entry.fact.text} → {entry.fact.target_new}: {state}"
        acts: dict[str, Callable[[], None]] = {
            "show": lambda: lab.show(place),
            "off" if entry.on else "on": lambda: lab.switch(place),
            "remove": lambda: lab.remove(place),
        }
        acts |= {"earlier": lambda: lab.move(place, place - 1)} if place else {}
        acts |= {"later": lambda: lab.move(place, place + 1)} if place + 1 < len(lab.entries) else {}
        buttons = [self._button(words, act) for words, act in acts.items()]
        return w.HBox([w.HTML(markup.text(said)), *buttons], layout=WRAP)
