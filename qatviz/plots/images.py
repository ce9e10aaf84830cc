"""Draw the images themselves."""

from collections.abc import Iterable, Sequence

import numpy as np


def image_grid(
    axes: np.ndarray, images: Iterable, labels: Iterable, classes: Sequence[str]
) -> np.ndarray:
    """Show the first images of each class, one class per column.

    Args:
        axes: Axes of shape ``[rows, classes]``.
        images: uint8 images ``[images, channels, height, width]`` (anything NumPy can read),
            one or three channels.
        labels: Class numbers.
        classes: Class names, for the titles.

    Returns:
        The axes.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    for column, name in enumerate(classes):
        chosen = images[labels == column]
        for ax, image in zip(axes[:, column], chosen, strict=False):
            ax.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(name, fontsize="x-small")
    for ax in axes.flat:
        ax.set_axis_off()
    return axes
