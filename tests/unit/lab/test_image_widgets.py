"""The widgets of images, pressed as a front end would."""

import io

import numpy as np
import pytest
from PIL import Image

from editkit.lab.image_widgets import ImageRoom, png, told
from tests.unit.lab.test_laboratory import LONG


def press(room, name):
    room.buttons[name].click()
    room.lab.wait(LONG)
    assert "✘" not in room.notice.value, room.notice.value


def figures_in(place):
    return [output["data"]["application/vnd.plotly.v1+json"] for output in place.outputs]


def test_open_pick_edit_see_undo(images):
    room = ImageRoom(images)
    assert room.work.layout.display == "none" and not room.thumbnails.children
    press(room, "open")
    assert room.work.layout.display == "" and "clean classifier" in room.head.value
    prepared, picks = images.prepared, room._picks()
    assert len(picks) == len(prepared.candidates)
    names = prepared.data.labels
    said, true = prepared.before["edited"][1].argmax(), prepared.candidates.labels[1]
    assert picks[1].description == f"{names[said]}, is {names[true]}"
    picks[1].click()
    images.wait(LONG)
    assert images.place == 1 and picks[1].button_style == "primary"
    press(room, "edit")
    assert "1 repair in the classifier" in room.head.value and "this repair is in" in room.reasons.value
    assert f"{len(images.seen.moved.places)} of {len(prepared.data.test)} images changed class" in room.moved.value
    [looks] = figures_in(room.looks)
    maps = [trace["z"] for trace in looks["data"] if trace["type"] == "heatmap"]
    assert len(maps) == 2 and not np.allclose(images.seen.before.attention, images.seen.after.attention)
    [changes] = figures_in(room.changes)
    assert len([trace for trace in changes["data"] if trace["type"] == "image"]) == min(
        12, len(images.seen.moved.places)
    )
    press(room, "undo")
    assert "clean classifier" in room.head.value and figures_in(room.changes) == []


def test_settings_reach_the_spec(opened):
    room = ImageRoom(opened)
    s = room.settings
    s["method"].value, s["stop_margin"].value, s["layers"].value, s["kept_budget"].value = "memit", 1.5, (1, 2), 0.95
    spec = opened.spec()
    assert (spec.method, spec.stop_margin, spec.layers, spec.kept_budget) == ("memit", 1.5, [1, 2], 0.95)
    press(room, "edit")
    assert room.buttons["again"].disabled
    s["kept_budget"].value = None
    assert opened.spec().kept_budget is None and not room.buttons["again"].disabled
    assert "made under other settings" in room.head.value


def test_words_count_what_changed(opened):
    opened.edit()
    opened.wait(LONG)
    moved = opened.seen.moved
    assert told(opened.seen).endswith("kept") and f"{moved.kept:.1%}" in told(opened.seen)
    assert f"{moved.fixed} to the right one, {moved.broken} away from it" in told(opened.seen)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3)])
def test_thumbnails_are_png_files(shape):
    """Read back by Pillow."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(image)))), image)
