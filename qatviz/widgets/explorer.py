"""A picture with controls: live beside a kernel, still movable without one."""

import base64
import html
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

LIVE = "application/vnd.jupyter.widget-view+json"
COLOURS_PER_FRAME = 64


class Explorer:
    """Controls, what is computed from their values, and the picture of it.

    Moving a control calls ``compute(**values)``, keeps what it returns in ``result`` and has
    ``draw(figure, result)`` draw it on a new figure, whose PNG is ``image``. A ``ValueError``
    from ``compute`` becomes the picture: its message is part of what there is to see.

    Shown in a notebook it has three faces in one output: live controls where there is a
    kernel; pre-computed frames under plain HTML sliders where there is none (exported pages,
    offline too); and a PNG where no script runs.

    Args:
        compute: ``(**values) -> result``, one argument per control.
        draw: ``(figure, result) -> None``; adds axes to the empty figure.
        size: Width and height of the figure in inches. Default: (9, 3.6) (ours).
        frames: For each control that moves in the static face, the values it stops at; the
            others stay where they start. Every combination is computed and stored, about
            15 kB each. Default: none: the static face is the first picture.
        **controls: ``ipywidgets`` controls, or their ``interact`` abbreviations: ``(1, 8)``,
            ``["a", "b"]``, ``True``.

    Attributes:
        values: The values of the controls now, by name.
        result: What ``compute`` returned last; None after a ``ValueError``.
        image: The picture, as PNG bytes.
        box: The live controls and the picture, as a widget.

    Raises:
        ValueError: If there is no control, an abbreviation means nothing, or ``frames`` names
            an unknown control.
    """

    def __init__(
        self,
        compute: Callable[..., Any],
        draw: Callable[[Figure, Any], None],
        *,
        size: tuple[float, float] = (9, 3.6),
        frames: Mapping[str, Sequence[Any]] | None = None,
        **controls: Any,
    ) -> None:
        self.compute, self.draw, self.size = compute, draw, size
        self.frames = {name: list(values) for name, values in (frames or {}).items()}
        self.controls = {name: _control(name, value) for name, value in controls.items()}
        if not self.controls:
            raise ValueError("Explorer: at least one control is needed, got none")
        if unknown := self.frames.keys() - self.controls.keys():
            raise ValueError(
                f"Explorer: frames for {sorted(unknown)}, the controls are {list(self.controls)}"
            )
        self._picture = ipywidgets.Image(format="png")
        self.box = ipywidgets.VBox([*self.controls.values(), self._picture])
        for control in self.controls.values():
            control.observe(self._update, names="value")
        self._update()

    @property
    def values(self) -> dict[str, Any]:
        """The values of the controls now, by name."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def image(self) -> bytes:
        """The picture now, as PNG bytes."""
        return bytes(self._picture.value)

    def _update(self, _change: object = None) -> None:
        self.result, figure = self._picture_of(self.values)
        self._picture.value = _png(figure)

    def _picture_of(self, values: Mapping[str, Any]) -> tuple[Any, Figure]:
        figure = Figure(figsize=self.size, dpi=96, layout="constrained")
        FigureCanvasAgg(figure)
        try:
            result = self.compute(**values)
        except ValueError as error:
            figure.text(0.5, 0.5, str(error), ha="center", va="center", wrap=True)
            return None, figure
        self.draw(figure, result)
        return result, figure

    def static(self) -> str:
        """The face without a kernel: pre-computed frames under plain sliders, as HTML.

        Returns:
            A self-contained element; it loads nothing. Where scripts and frames are not
            allowed the first picture remains.
        """
        stops = {
            name: self.frames.get(name, [control.value]) for name, control in self.controls.items()
        }
        pictures = [
            _encode(_small_png(self._picture_of(dict(zip(stops, values, strict=True)))[1]))
            for values in itertools.product(*stops.values())
        ]
        sliders = [
            {
                "name": self.controls[name].description,
                "values": [_short(value) for value in values],
                "at": _nearest(values, self.controls[name].value),
            }
            for name, values in stops.items()
        ]
        page = _PAGE.replace("SLIDERS", json.dumps(sliders))
        page = page.replace("PICTURES", json.dumps(pictures))
        width, height = (round(96 * inches) for inches in self.size)
        return _FRAME.format(
            width=width,
            height=height + 32 * sum(len(values) > 1 for values in stops.values()) + 8,
            picture=_encode(self.image),
            page=html.escape(page, quote=True),
        )

    def save_html(self, path: str) -> None:
        """Write the static face as a page of its own.

        Args:
            path: Where; replaced if it exists.
        """
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'<!doctype html><meta charset="utf-8"><title>qatviz</title>{self.static()}')

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        live = self.box._repr_mimebundle_() or {}
        return {
            "text/plain": repr(self),
            "image/png": _encode(self.image),
            "text/html": self.static(),
            LIVE: live[LIVE],
        }

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={_short(value)}" for name, value in self.values.items())
        return f"Explorer({values})"


def _control(name: str, value: Any) -> ipywidgets.Widget:
    control = value if isinstance(value, ipywidgets.Widget) else None
    if control is None:
        control = ipywidgets.interactive.widget_from_abbrev(value)
    if control is None:
        raise ValueError(f"Explorer: no control can be made for {name}={value!r}")
    if not control.description:
        control.description = name
    return control


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _nearest(values: Sequence[Any], start: Any) -> int:
    """Where a slider of frames starts: at the control's value, or the number closest to it."""
    if start in values:
        return list(values).index(start)
    return min(range(len(values)), key=lambda i: abs(values[i] - start))


def _encode(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _small_png(figure: Figure) -> bytes:
    """A PNG of few colours: a third of the size, and a line drawing looks the same."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(_png(figure))).convert("RGB")
    picture.quantize(COLOURS_PER_FRAME).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


# The picture lies under the frame: where a viewer drops the frame, the picture remains.
_FRAME = (
    '<div style="position:relative;width:{width}px;max-width:100%;min-height:{height}px">'
    '<img alt="first picture of the explorer" src="data:image/png;base64,{picture}" '
    'style="width:100%">'
    '<iframe title="explorer" sandbox="allow-scripts" srcdoc="{page}" '
    'style="position:absolute;top:0;left:0;width:100%;height:{height}px;border:0;'
    'background:white"></iframe></div>'
)

_PAGE = """<!doctype html><meta charset="utf-8">
<style>body{margin:0;font:14px sans-serif;background:white;color:black}
label{display:flex;gap:8px;align-items:center;height:32px}span{min-width:9em}
input{width:14em}img{width:100%}</style>
<div id="controls"></div><img id="picture" alt="what the explorer shows">
<script>
const sliders = SLIDERS, pictures = PICTURES;
function show() {
  let index = 0;
  for (const s of sliders) index = index * s.values.length + s.at;
  document.getElementById("picture").src = "data:image/png;base64," + pictures[index];
}
sliders.forEach(s => {
  if (s.values.length < 2) return;
  const label = document.createElement("label"), name = document.createElement("span");
  const input = document.createElement("input"), value = document.createElement("output");
  name.textContent = s.name;
  Object.assign(input, {type: "range", min: 0, max: s.values.length - 1, value: s.at});
  const tell = () => { value.textContent = s.values[s.at]; };
  input.oninput = () => { s.at = Number(input.value); tell(); show(); };
  label.append(name, input, value);
  document.getElementById("controls").append(label);
  tell();
});
show();
</script>"""
