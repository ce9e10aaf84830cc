"""Views: functions from a batch of images to a batch of images, of any type."""

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.functional import pad

Images = Shaped[Tensor, "batch channels height width"]


def unchanged(images: Images) -> Images:
    """The images themselves: no augmentation.

    Args:
        images: Any batch.

    Returns:
        The same tensor.
    """
    return images


def flip(images: Images) -> Images:
    """Mirror each image left to right with probability ½.

    Args:
        images: Any batch.

    Returns:
        A new batch of the same shape and type.
    """
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def crop(images: Images, *, padding: int = 4) -> Images:
    """Shift each image by up to ``padding`` pixels, filling with zeros.

    The same as a random crop of the image padded by ``padding`` on each side, an offset of
    its own for each image.

    Args:
        images: Any batch.
        padding: Largest shift in pixels. Default: 4 (He et al. 2016, arXiv 1512.03385,
            section 4.2, for 32×32 images).

    Returns:
        A new batch of the same shape and type.
    """
    batch, _, height, width = images.shape
    padded = pad(images, (padding,) * 4)
    device = images.device
    top, left = torch.randint(0, 2 * padding + 1, (2, batch, 1), device=device)
    rows = (top + torch.arange(height, device=device))[:, None, :, None]
    columns = (left + torch.arange(width, device=device))[:, None, None, :]
    which = torch.arange(batch, device=device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=device)[None, :, None, None]
    return padded[which, channels, rows, columns]


def crop_flip(images: Images) -> Images:
    """Random crop with 4 pixels of padding, then random mirror: the weak view of CIFAR recipes.

    Args:
        images: Any batch.

    Returns:
        A new batch of the same shape and type.

    Source: He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    return flip(crop(images))
