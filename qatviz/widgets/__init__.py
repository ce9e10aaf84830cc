"""What if: an analysis and a plot joined by sliders."""

from qatviz.widgets.bits import bit_explorer
from qatviz.widgets.compare import compare_explorer
from qatviz.widgets.curvature import spectrum_explorer
from qatviz.widgets.entropy import entropy_explorer
from qatviz.widgets.explorer import Explorer
from qatviz.widgets.landscape import landscape_explorer
from qatviz.widgets.oscillation import oscillation_replay
from qatviz.widgets.perturbation import corruption_explorer
from qatviz.widgets.ranges import range_explorer
from qatviz.widgets.soft_target import target_explorer

__all__ = [
    "Explorer",
    "bit_explorer",
    "compare_explorer",
    "corruption_explorer",
    "entropy_explorer",
    "landscape_explorer",
    "oscillation_replay",
    "range_explorer",
    "spectrum_explorer",
    "target_explorer",
]
