import base64
import html
import io
import json
import re

import ipywidgets
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from qatviz.widgets import Explorer

BLACK, WHITE = 0.0, 1.0


def square_of(side, filled):
    """What a real analysis would be: values in, a result out; one value is refused."""
    if side == 3:
        raise ValueError("side must not be 3, got 3")
    return {"side": side, "shade": BLACK if filled else WHITE}


def fill(figure: Figure, result) -> None:
    figure.set_facecolor(str(result["shade"]))


@pytest.fixture
def explorer():
    return Explorer(square_of, fill, size=(2, 1), side=(0, 4), filled=True)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def static_page(explorer) -> str:
    (page,) = re.findall(r'srcdoc="([^"]*)"', explorer.static())
    return html.unescape(page)


def static_pictures(explorer) -> list[bytes]:
    (listed,) = re.findall(r"pictures = (\[.*?\])", static_page(explorer))
    return [base64.b64decode(picture) for picture in json.loads(listed)]


def test_starts_with_the_result_of_the_first_values(explorer):
    assert explorer.values == {"side": 2, "filled": True}
    assert explorer.result == {"side": 2, "shade": BLACK}


def test_the_picture_is_a_png_of_the_size_asked_for_and_shows_the_result(explorer):
    shown = pixels(explorer.image)
    assert shown.shape == (96, 192)
    assert (shown == 0).all()


def test_moving_a_control_computes_and_draws_again(explorer):
    explorer.controls["filled"].value = False
    assert explorer.result == {"side": 2, "shade": WHITE}
    assert (pixels(explorer.image) == 255).all()
    explorer.controls["side"].value = 4
    assert explorer.result["side"] == 4


def test_a_refused_value_becomes_the_picture_and_the_next_one_works(explorer):
    explorer.controls["side"].value = 3
    assert explorer.result is None
    shown = pixels(explorer.image)
    assert (shown == 255).any()
    assert (shown < 128).any(), "the message is drawn"
    explorer.controls["side"].value = 1
    assert explorer.result["side"] == 1


def test_draws_nothing_through_pyplot(explorer):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    explorer.controls["side"].value = 0
    assert plt.get_fignums() == before


def test_the_box_holds_the_controls_and_the_picture(explorer):
    *controls, picture = explorer.box.children
    assert controls == list(explorer.controls.values())
    assert bytes(picture.value) == explorer.image


def test_a_ready_widget_is_taken_as_it_is():
    slider = ipywidgets.FloatSlider(0.5, min=0, max=1, description="shade of grey")
    explorer = Explorer(lambda shade: {"shade": shade}, fill, shade=slider)
    assert explorer.controls["shade"] is slider
    assert explorer.result == {"shade": 0.5}


def test_three_faces_in_one_bundle(explorer):
    bundle = explorer._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.box.model_id
    assert base64.b64decode(bundle["image/png"]) == explorer.image
    assert bundle["text/plain"] == "Explorer(side=2, filled=True)"
    assert "<iframe" in bundle["text/html"]


def test_without_frames_the_static_face_is_the_first_picture(explorer):
    (picture,) = static_pictures(explorer)
    assert (pixels(picture) == 0).all()


def test_static_frames_are_every_combination_last_control_fastest():
    explorer = Explorer(
        square_of,
        fill,
        size=(2, 1),
        frames={"side": [1, 2], "filled": [False, True]},
        side=(0, 4),
        filled=True,
    )
    shades = [pixels(picture).mean() for picture in static_pictures(explorer)]
    assert shades == [255, 0, 255, 0]
    starts = re.findall(r'"at": (\d)', static_page(explorer))
    assert starts == ["1", "1"], "starts where the controls are: side 2, filled"


def test_static_face_loads_nothing_and_keeps_a_picture_where_frames_are_dropped(explorer):
    face = explorer.static()
    assert not re.search(r"https?://", html.unescape(face))
    assert face.index("<img") < face.index("<iframe")


def test_save_html_writes_a_page(explorer, tmp_path):
    explorer.save_html(str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<iframe" in page


def test_refuses_no_controls_unknown_frames_and_meaningless_abbreviations():
    with pytest.raises(ValueError, match="at least one control"):
        Explorer(square_of, fill)
    with pytest.raises(ValueError, match=r"frames for \['depth'\], the controls are \['side'"):
        Explorer(square_of, fill, frames={"depth": [1]}, side=(0, 4), filled=True)
    with pytest.raises(ValueError, match="no control can be made for side=None"):
        Explorer(square_of, fill, side=None)
