"""What if: an analysis and a plot joined by sliders."""

from qatviz.widgets.bits import bit_explorer
from qatviz.widgets.compare import compare_explorer
from qatviz.widgets.explorer import Explorer
from qatviz.widgets.ranges import range_explorer

__all__ = ["Explorer", "bit_explorer", "compare_explorer", "range_explorer"]
