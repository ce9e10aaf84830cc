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
        A new contiguous batch of the same shape and type.
    """
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    own = torch.arange(len(images), device=images.device)
    # Whole images are copied: three times as fast as choosing pixel by pixel with torch.where.
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, own + len(images) * mirrored)


def crop(images: Images, *, padding: int = 4) -> Images:
    """Shift each image by up to ``padding`` pixels, filling with zeros.

    The same as a random crop of the image padded by ``padding`` on each side, an offset of
    its own for each image.

    Args:
        images: Any batch.
        padding: Largest shift in pixels. Default: 4 (He et al. 2016, arXiv 1512.03385,
            section 4.2, for 32×32 images).

    Returns:
        A new contiguous batch of the same shape and type.
    """
    batch, _, height, width = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, batch), device=images.device)
    # Every window of every padded image: [batch, channels, top, left, height, width], a view.
    windows = pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch, device=images.device), :, top, left].contiguous()


def crop_flip(images: Images) -> Images:
    """Random crop with 4 pixels of padding, then random mirror: the weak view of CIFAR recipes.

    Args:
        images: Any batch.

    Returns:
        A new contiguous batch of the same shape and type.

    Source: He et al. 2016, arXiv 1512.03385, section 4.2.
    """
    return flip(crop(images))
