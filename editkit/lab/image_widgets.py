"""The laboratory of images in JupyterLab: widgets over :class:`editkit.lab.images.Images`, and nothing else."""

import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go

from editkit import figures
from editkit.figures.images import GALLERY
from editkit.lab import markup
from editkit.lab.images import Images, Seen
from editkit.lab.laboratory import CHOICES
from editkit.lab.room import WRAP, Room, draw
from editkit.methods import label

SIDE = "56px"  # of a thumbnail
CLASSES = 3  # the likeliest ones, before and after
PROMISES = {"nothing": None, "95%": 0.95, "98%": 0.98, "99%": 0.99}


class ImageRoom(Room):
    """Repairs of an image classifier by hand; :attr:`lab` is what the widgets show."""

    def __init__(self, lab: Images):
        super().__init__()
        self.lab = lab
        self.head, self.reasons, self.result, self.moved = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.thumbnails, self.looks, self.changes = w.Box(layout=WRAP), w.Output(), w.Output()
        self.settings, self.buttons = self._settings(), self._buttons()
        s, b = self.settings, self.buttons
        acts = w.HBox([b[name] for name in ("edit", "undo", "base", "again")], layout=WRAP)
        chosen = w.HBox([s["layers"], s["stop_margin"], s["kept_budget"]], layout=WRAP)
        shown = [self.result, self.looks, self.moved, self.changes]
        self.work = w.VBox([self.thumbnails, s["method"], chosen, acts, self.reasons, *shown])
        self.children = [self.head, b["open"], self.notice, self.work]
        lab.changed = self._changed
        self._changed()

    def _settings(self) -> dict[str, w.Widget]:
        once = {"continuous_update": False}
        settings: dict[str, w.Widget] = {
            "method": w.ToggleButtons(options=[(label(name), name) for name in CHOICES]),
            "layers": w.IntRangeSlider(min=0, max=0, description="layers", **once),
            "stop_margin": w.FloatSlider(min=0.1, max=5.0, step=0.1, description="margin", **once),
            "kept_budget": w.Dropdown(options=list(PROMISES.items()), description="promise"),
        }
        take: dict[str, Callable[[Any], Any]] = {"layers": lambda ends: list(range(ends[0], ends[1] + 1))}
        for name, setting in settings.items():
            setting.observe(self._guarded(partial(self._choose, name, take.get(name, lambda value: value))), "value")
        return settings

    def _choose(self, name: str, read: Callable[[Any], Any], change: Any) -> None:
        self.lab.choose(**{name: read(change.new)})

    def _buttons(self) -> dict[str, w.Button]:
        lab = self.lab
        acts = {"open": ("Open the classifier", lab.open), "edit": ("▶ Edit", lab.edit), "undo": ("↶ Undo", lab.undo)}
        acts |= {"base": ("⟲ Base", lab.base), "again": ("Make again", lab.again)}
        return {name: self._button(words, act) for name, (words, act) in acts.items()}

    def _changed(self) -> None:
        """Show the state as it is; while something is done only what."""
        lab, worker, b = self.lab, self.lab.worker, self.buttons
        self.reasons.value = markup.notice(lab.reasons())
        b["open"].disabled = worker.busy or lab.prepared is not None
        if worker.busy:
            self.notice.value = markup.notice([f"{worker.doing} …"])
            for button in (*b.values(), *self._picks()):
                button.disabled = True
            return
        self.notice.value = markup.notice(worker.notes, worker.error)
        self.work.layout.display = "none" if lab.prepared is None else ""
        b["open"].layout.display = "" if lab.prepared is None else "none"
        if lab.prepared is None:
            self.head.value = "<b>editkit</b> an image classifier is fine-tuned first, which takes a minute once"
            return
        with self._quiet():
            self._show()

    def _show(self) -> None:
        lab, b, n = self.lab, self.buttons, len(self.lab.places)
        state = f"{n} repair{'s'[: n != 1]} in the classifier" if n else "clean classifier"
        state += "" if lab.settled else ", made under other settings: make them again"
        about = f"{lab.prepared.vit.name} · {lab.prepared.data.name} · {state}"
        self.head.value = f"<b>editkit</b> {markup.text(about)}"
        self._show_settings()
        b["edit"].disabled = bool(lab.reasons())
        b["undo"].disabled = b["base"].disabled = not n
        b["again"].disabled = lab.settled
        if not self.thumbnails.children:
            self.thumbnails.children = [self._thumbnail(place) for place in range(len(lab.mistakes))]
        for place, pick in enumerate(self._picks()):
            pick.disabled = False
            pick.button_style = "primary" if place == lab.place else "success" if place in lab.places else ""
        self._show_seen(lab.seen)

    def _show_settings(self) -> None:
        s, lab = self.settings, self.lab
        try:
            spec = lab.spec()
        except ValueError:  # told beside the button
            return
        s["layers"].max = lab.prepared.vit.n_layers - 1
        s["method"].value, s["layers"].value = spec.method, (spec.layers[0], spec.layers[-1])
        s["stop_margin"].value, s["kept_budget"].value = spec.stop_margin, spec.kept_budget

    def _picks(self) -> list[w.Button]:
        return [thumbnail.children[1] for thumbnail in self.thumbnails.children]

    def _thumbnail(self, place: int) -> w.Widget:
        lab, names = self.lab, self.lab.prepared.data.labels
        said = names[lab.prepared.before["edited"][place].argmax()]
        image = w.Image(value=png(lab.mistakes.images[place]), format="png", width=SIDE, height=SIDE)
        true = names[lab.mistakes.labels[place]]
        return w.VBox([image, self._button(f"{said}, is {true}", lambda: lab.pick(place))])

    def _show_seen(self, seen: Seen | None) -> None:
        if seen is None:
            return
        names, image = self.lab.prepared.data.labels, self.lab.mistakes.images[seen.place]
        columns = [markup.bars(_likeliest(view, names), title) for title, view in _views(seen)]
        self.result.value = f'<div style="display:flex;flex-wrap:wrap;gap:2em">{"".join(columns)}</div>'
        draw(self.looks, attention(image, seen, names))
        self.moved.value = f"<div>{markup.text(told(seen))}</div>"
        draw(self.changes, changed(self.lab.prepared.data.test.images, seen, names))


def attention(image: np.ndarray, seen: Seen, names: tuple[str, ...]) -> go.Figure:
    """Draw an image with where its CLS token looks, before and after."""
    captions = [f"{title}: {names[view.probabilities.argmax()]}" for title, view in _views(seen)]
    figure = figures.gallery(np.stack([image, image]), np.stack([view.attention for _, view in _views(seen)]), captions)
    words = {"text": "Where the CLS token looks", "subtitle_text": "below, the last layer's attention, mean over heads"}
    return figure.update_layout(title=words)


def changed(images: np.ndarray, seen: Seen, names: tuple[str, ...]) -> go.Figure | None:
    """Draw the held-out images whose class changed, as many as a gallery holds; None where there is none."""
    moved = seen.moved
    if not len(moved.places):
        return None
    rows = zip(moved.before, moved.after, moved.labels, strict=True)
    captions = [f"{names[before]} → {names[after]}, is {names[true]}" for before, after, true in rows]
    figure = figures.gallery(images[moved.places[:GALLERY]], None, captions[:GALLERY])
    return figure.update_layout(
        title={"text": "Held-out images whose class changed", "subtitle_text": "before → after, and what it is"}
    )


def told(seen: Seen) -> str:
    """Say in words what the repairs changed elsewhere."""
    moved = seen.moved
    text = f"held out: {len(moved.places)} of {moved.held_out} images changed class"
    if len(moved.places):
        text += f", {moved.fixed} to the right one, {moved.broken} away from it"
    return f"{text}; of the right val predictions {moved.kept:.1%} are kept"


def png(image: np.ndarray) -> bytes:
    """Write pixels (h, w) or (h, w, 3) uint8 as a PNG file."""
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + image[0].size), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = image.reshape(height, -1)
    size = struct.pack(">2I5B", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    coded = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def _views(seen: Seen) -> list[tuple[str, Any]]:
    return [("before", seen.before), ("after", seen.after)]


def _likeliest(view: Any, names: tuple[str, ...]) -> list[tuple[str, float]]:
    best = view.probabilities.argsort()[::-1][:CLASSES]
    return [(names[place], float(view.probabilities[place])) for place in best]
