"""One look for every figure: the same colour for the same thing, everywhere."""

import matplotlib as mpl
import seaborn as sns

_SAFE = sns.color_palette("colorblind").as_hex()

COLOURS = {
    "float": "#4d4d4d",
    "quantized": _SAFE[0],
    "teacher": _SAFE[2],
    "rounded": _SAFE[3],
    "gradient": _SAFE[1],
    "levels": _SAFE[4],
}
"""Colour-blind-safe (seaborn's "colorblind", after Wong 2011, Nature Methods 8, 441).

float: a float network or tensor; quantized: a trained low-bit one; teacher: what a student is
drawn towards; rounded: low-bit without training; gradient: what a backward pass claims;
levels: the grid.
"""


def use_style() -> None:
    """Set the house's look for the figures that follow: once, at the top of a notebook."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    mpl.rcParams.update(
        {
            "figure.dpi": 96,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
