"""What rooms have in common."""

import ipywidgets as w
import plotly.graph_objects as go
import pytest

from editkit.lab.room import Room, draw


def test_what_cannot_be_done_is_told_in_place():
    room = Room()

    def refuses():
        raise ValueError("n = 0: must be 1 <b>")

    room._button("go", refuses).click()
    assert "n = 0: must be 1 &lt;b&gt;" in room.notice.value
    with pytest.raises(KeyError):
        room._act(lambda: {}["a bug is none of a user's mistakes"])


def test_what_is_set_quietly_is_nobodys_choice():
    room, seen, slider = Room(), [], w.IntSlider()
    slider.observe(room._guarded(lambda change: seen.append(change.new)), "value")
    with room._quiet():
        slider.value = 3
    slider.value = 4
    assert seen == [4]


def test_a_figure_is_shown_and_taken_away():
    place = w.Output()
    draw(place, go.Figure(go.Bar(y=[1, 2])))
    [shown] = place.outputs
    assert shown["output_type"] == "display_data"
    assert shown["data"]["application/vnd.plotly.v1+json"]["data"][0]["type"] == "bar"
    draw(place, None)
    assert place.outputs == ()
