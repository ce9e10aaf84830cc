"""Views: functions from a batch of images to a batch of images, of any type."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import pad
from torchvision.transforms import v2

Images = Shaped[Tensor, "batch channels height width"]
# Mixtures of pairs, each one's partner, and the share of itself in the mixture.
Mixed = tuple[Images, Tensor, Tensor]
Mix = Callable[[Images], Mixed]


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


def cutout(images: Images, *, size: int | None = None) -> Images:
    """Grey out one square of each image, around a pixel drawn anywhere in it.

    Args:
        images: Any batch; uint8, or floats in [0, 1].
        size: Side of the square in pixels; parts beyond the image are cut off. Default: None:
            half of the image (FixMatch).

    Returns:
        A new batch of the same shape and type.

    Source: DeVries & Taylor 2017, arXiv 1708.04552; the grey is FixMatch's, arXiv 2001.07685.
    """
    inside = _boxes(images, [s // 2 if size is None else size for s in images.shape[-2:]])
    return torch.where(inside, _grey(images), images)


def gaussian_noise(images: Images, *, deviation: float = 0.15) -> Images:
    """Add normal noise to every number of each image, and clip.

    Args:
        images: Any batch; uint8, or floats in [0, 1].
        deviation: σ, in shares of the range from black to white. Default: 0.15 (ours).

    Returns:
        A new batch of the same shape and type.
    """
    white = _white(images)
    noisy = images + deviation * white * torch.randn(images.shape, device=images.device)
    noisy = noisy.clamp(0, white)
    return (noisy.round() if images.dtype == torch.uint8 else noisy).to(images.dtype)


def jitter(images: Images, *, amount: float = 0.4, hue: float = 0.1) -> Images:
    """Change brightness, contrast, saturation and hue of each image by factors of its own.

    Args:
        images: Any batch; uint8, or floats in [0, 1]. Grey images have neither saturation nor hue.
        amount: Factors are drawn from 1 − amount to 1 + amount. Default: 0.4 (Mean Teacher's
            released code, for ImageNet).
        hue: In turns of the colour circle, from −hue to hue. Default: 0.1 (the same).

    Returns:
        A new batch of the same shape and type.
    """
    colour = images.shape[1] == 3
    change = v2.ColorJitter(amount, amount, *((amount, hue) if colour else (None, None)))
    return _each(change, images)


def rand_augment(images: Images, *, operations: int = 2, magnitude: int = 10) -> Images:
    """RandAugment: operations drawn for each image, all of one strength.

    Args:
        images: Any uint8 batch of one or three channels.
        operations: How many, one after the other. Default: 2 (FixMatch).
        magnitude: 0 to 30. Default: 10 (FixMatch; torchvision has 9).

    Returns:
        A new batch of the same shape and type.

    Source: Cubuk et al. 2019, arXiv 1909.13719; torchvision's fourteen operations.
    """
    return _each(v2.RandAugment(operations, magnitude), images)


def auto_augment(images: Images) -> Images:
    """AutoAugment: one of the 25 pairs of operations that were searched for CIFAR-10.

    Args:
        images: Any uint8 batch of one or three channels.

    Returns:
        A new batch of the same shape and type.

    Source: Cubuk et al. 2018, arXiv 1805.09501; torchvision's policy.
    """
    return _each(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), images)


def crop_flip_cutout(images: Images) -> Images:
    """``crop_flip``, then ``cutout``.

    Args:
        images: Any batch.

    Returns:
        A new batch of the same shape and type.
    """
    return cutout(crop_flip(images))


def strong(images: Images) -> Images:
    """``crop_flip``, ``rand_augment``, ``cutout``: the strong view of FixMatch.

    Args:
        images: Any uint8 batch of one or three channels.

    Returns:
        A new batch of the same shape and type.

    Source: Sohn et al. 2020 (FixMatch), arXiv 2001.07685, section 2.3; its operations have
    strengths of their own, torchvision's RandAugment has one.
    """
    return cutout(rand_augment(crop_flip(images)))


def cutmix(images: Images) -> Mixed:
    """Replace a box of each image by that of another.

    The share of an image that stays is drawn uniformly from 0 to 1, the place of the box too;
    at the border it is cut off, and the share becomes larger.

    Args:
        images: Any batch.

    Returns:
        The mixtures, each one's partner, and the share of itself in it.

    Source: Yun et al. 2019, arXiv 1905.04899, α = 1.
    """
    partner = torch.randperm(len(images), device=images.device)
    height, width = images.shape[-2:]
    side = (1 - torch.rand(len(images), device=images.device)).sqrt()
    inside = _boxes(images, [(side * s).round().long() for s in (height, width)])
    mixed = torch.where(inside, images[partner], images)
    return mixed, partner, 1 - inside.flatten(1).float().mean(1)


def mixup(images: Images, *, spread: float = 1.0) -> Mixed:
    """Average each image with another.

    Args:
        images: Any batch; uint8 are rounded.
        spread: α of the Beta(α, α) that the share is drawn from. Default: 1 (uniform; the paper
            has 1 for CIFAR-10).

    Returns:
        The mixtures, each one's partner, and the share of itself in it.

    Source: Zhang et al. 2018, arXiv 1710.09412.
    """
    partner = torch.randperm(len(images), device=images.device)
    spread = torch.tensor(spread, device=images.device)
    share = Beta(spread, spread).sample((len(images),))
    weight = share.view(-1, 1, 1, 1)
    mixed = weight * images + (1 - weight) * images[partner]
    mixed = (mixed.round() if images.dtype == torch.uint8 else mixed).to(images.dtype)
    return mixed, partner, share


def _boxes(images: Images, size: Sequence[int | Tensor]) -> Tensor:
    """A box of each image around a pixel drawn anywhere in it: ``[batch, 1, height, width]``."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, side in zip((-2, -1), size, strict=True):
        length = images.shape[axis]
        middle = torch.randint(length, (len(images), 1), device=images.device)
        side = torch.as_tensor(side, device=images.device).view(-1, 1)
        at = torch.arange(length, device=images.device)
        low = middle - side // 2
        within = (at >= low) & (at < low + side)
        inside = inside & (within[:, None, :, None] if axis == -2 else within[:, None, None])
    return inside


def _each(transform: Callable[[Tensor], Tensor], images: Images) -> Images:
    """Apply a transform to every image by itself: it draws once for all it is given."""
    return torch.stack([transform(image) for image in images])


def _white(images: Images) -> int:
    return 255 if images.dtype == torch.uint8 else 1


def _grey(images: Images) -> Tensor:
    grey = torch.tensor(127 if images.dtype == torch.uint8 else 0.5, device=images.device)
    return grey.to(images.dtype)
