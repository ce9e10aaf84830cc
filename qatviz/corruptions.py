"""What happens to images outside the laboratory: noise, blur, weather, compression, occlusion.

The kinds are those that robustness benchmarks use; the severities are ours, chosen for images of
about 28×28 pixels, so numbers cannot be compared with published ones. Where CIFAR-10-C has the
same kind, a comment gives its constants (Hendrycks & Dietterich 2019, arXiv 1903.12261, released
code). Images are corrupted raw, in [0, 1], and normalised afterwards.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.transforms.v2 import functional as transform

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "corrupt"]

SEVERITIES = (1, 2, 3, 4, 5)

Images = Float[Tensor, "batch channels height width"]
Apply = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption, in five severities.

    Attributes:
        family: "noise", "blur", "weather", "digital" or "geometry".
        amounts: What severity 1 to 5 means, in ``unit``. All are ours.
        unit: Of the amounts.
        random: Whether it draws: else every draw is the same.
        apply: ``(images, amount, generator) -> images``.
    """

    family: str
    amounts: tuple[float, ...]
    unit: str
    random: bool
    apply: Apply = field(repr=False)

    def __call__(
        self, images: Images, severity: int, generator: torch.Generator | None = None
    ) -> Images:
        """Corrupt images of floats in [0, 1]; ``corrupt`` takes any and checks them.

        Args:
            images: In [0, 1].
            severity: 1 to 5.
            generator: On the CPU. Default: None: a new one of seed 0.

        Returns:
            New images in [0, 1], the same shape.
        """
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        return self.apply(images, self.amounts[severity - 1], generator).clamp(0, 1)


@torch.no_grad()
def corrupt(
    images: Shaped[Tensor, "batch channels height width"],
    kind: str,
    severity: int,
    generator: torch.Generator | None = None,
) -> Shaped[Tensor, "batch channels height width"]:
    """Corrupt a batch of raw images, before they are normalised.

    Args:
        images: uint8, or floats in [0, 1], of one or three channels.
        kind: A name in ``CORRUPTIONS``.
        severity: 1 (mild) to 5.
        generator: On the CPU; decides everything that is random. Default: None: a new one of
            seed 0, so that two calls draw the same.

    Returns:
        New images of the same shape and type: uint8 are rounded, as stored images are.

    Raises:
        ValueError: If there is no such kind or severity, or the images are not raw.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}; allowed: 1, 2, 3, 4 or 5")
    _check_raw(images)
    if not len(images):
        return images.clone()
    if images.dtype == torch.uint8:
        seen = CORRUPTIONS[kind](images.float() / 255, severity, generator)
        return (255 * seen).round().to(torch.uint8)
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    return CORRUPTIONS[kind](wide, severity, generator).to(images.dtype)


def _check_raw(images: Tensor) -> None:
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images have {images.shape[1]} channels; allowed: 1 or 3")
    if images.dtype == torch.uint8 or not images.numel():
        return
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; allowed: torch.uint8 or floating")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images hold values from {low:.4g} to {high:.4g}; allowed: 0 to 1: corruptions come "
            f"before normalisation (give a Split with its mean and std)"
        )


# Noise


def _draw(like: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), drawn on the CPU so that every device sees the same."""
    return torch.rand(shape, generator=generator, dtype=like.dtype).to(like.device)


def _gaussian_noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    # torchvision's takes no generator.
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return images + sigma * noise.to(images.device)


def _shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    counts = torch.poisson(photons * images.cpu(), generator=generator)
    return counts.to(images.device) / photons


def _impulse_noise(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    number = _draw(images, images.shape, generator)
    return torch.where(number < share, (number < share / 2).to(images.dtype), images)


# Blur


def _gaussian_blur(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return _blurred(images, sigma)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    # The padding mirrors, so it is narrower than the image.
    reach = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
    return transform.gaussian_blur(images, [2 * reach + 1] * 2, [sigma, sigma])


def _motion_blur(images: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """The mean of an image moved by 0 to ``length`` − 1 pixels along one of four lines."""
    steps = [step - int(length) // 2 for step in range(int(length))]
    directions = ((0, 1), (1, 0), (1, 1), (1, -1))
    moves = [[(step * down, step * right) for step in steps] for down, right in directions]
    return _one_of([_mean_of_moved(images, along) for along in moves], generator)


def _mean_of_moved(images: Tensor, moves: list[tuple[int, int]]) -> Tensor:
    """Edges are repeated where nothing arrives."""
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height), torch.arange(width)
    total = torch.zeros_like(images)
    for down, right in moves:
        row = (rows - down).clamp(0, height - 1).to(images.device)
        column = (columns - right).clamp(0, width - 1).to(images.device)
        total += images[:, :, row][..., column]
    return total / len(moves)


# Weather


def _brightness(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return transform.adjust_brightness(images, factor)


def _contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return transform.adjust_contrast(images, factor)


# Digital


def _pixelate(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    size = list(images.shape[-2:])
    small = transform.resize(images, [max(1, round(share * side)) for side in size])
    return transform.resize(small, size, InterpolationMode.NEAREST_EXACT)


def _jpeg(images: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    # By Pillow: torchvision's own encoder is to be removed.
    coded = (255 * images).round().to(torch.uint8).cpu()
    seen = torch.stack([_by_jpeg(image, int(quality)) for image in coded])
    return (seen.to(images.dtype) / 255).to(images.device)


def _by_jpeg(image: Tensor, quality: int) -> Tensor:
    with io.BytesIO() as file:
        to_pil_image(image).save(file, "JPEG", quality=quality)
        return pil_to_tensor(Image.open(file))


def _posterize(images: Tensor, bits: float, generator: torch.Generator) -> Tensor:
    return transform.posterize(images, int(bits))


def _elastic(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image has its own field of displacements: torchvision's gives all of them one."""
    batch, _, height, width = images.shape
    raw = 2 * _draw(images, (batch, 2, height, width), generator) - 1
    smooth = _blurred(raw, 0.12 * min(height, width))
    # A field of unit size on average: √E|d|² = 1 over the field.
    size = smooth.square().sum(1).mean((1, 2)).sqrt().clamp(min=1e-12).view(-1, 1, 1, 1)
    # Coordinates go from −1 to 1 over the image, so a share of it is twice that number.
    field_of = (2 * share * smooth / size).movedim(1, -1)
    return grid_sample(images, _identity(images) + field_of, align_corners=False)


def _identity(images: Tensor) -> Tensor:
    eye = torch.eye(2, 3, dtype=images.dtype, device=images.device)
    return affine_grid(eye.expand(len(images), 2, 3), list(images.shape), align_corners=False)


# Geometry


def _occlusion(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    batch, _, height, width = images.shape
    inside = []
    for axis, side in ((-1, height), (-2, width)):
        length = max(1, round(share * side))
        first = (_draw(images, (batch,), generator) * (side - length + 1)).long().view(-1, 1)
        place = torch.arange(side, device=images.device)
        inside.append(((place >= first) & (place < first + length)).unsqueeze(axis))
    return torch.where((inside[0] & inside[1]).unsqueeze(1), 0.5, images)


def _translate(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    height, width = (max(1, round(share * side)) for side in images.shape[-2:])
    moves = ([width, 0], [-width, 0], [0, height], [0, -height])
    return _one_of([transform.affine(images, 0, m, 1, [0, 0]) for m in moves], generator)


def _rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    turned = [
        transform.rotate(images, angle, InterpolationMode.BILINEAR) for angle in (degrees, -degrees)
    ]
    return _one_of(turned, generator)


def _one_of(choices: list[Tensor], generator: torch.Generator) -> Tensor:
    """For each image one of several versions of it, all equally likely."""
    like = choices[0]
    chosen = (_draw(like, (len(like),), generator) * len(choices)).long()
    return torch.stack(choices)[chosen, torch.arange(len(like), device=like.device)]


CORRUPTIONS: dict[str, Corruption] = {
    # CIFAR-10-C: 0.04, 0.06, 0.08, 0.09, 0.10
    "gaussian_noise": Corruption(
        "noise", (0.04, 0.08, 0.12, 0.18, 0.26), "standard deviation", True, _gaussian_noise
    ),
    # CIFAR-10-C: 500, 250, 100, 75, 50
    "shot_noise": Corruption(
        "noise", (200.0, 80.0, 40.0, 20.0, 10.0), "photons at 1", True, _shot_noise
    ),
    # CIFAR-10-C: 0.01, 0.02, 0.03, 0.05, 0.07
    "impulse_noise": Corruption(
        "noise", (0.01, 0.03, 0.06, 0.10, 0.17), "share of values", True, _impulse_noise
    ),
    # CIFAR-10-C (beside its fifteen kinds): 0.4, 0.6, 0.7, 0.8, 1
    "gaussian_blur": Corruption(
        "blur", (0.5, 0.75, 1.0, 1.5, 2.0), "standard deviation, pixels", False, _gaussian_blur
    ),
    "motion_blur": Corruption("blur", (3.0, 5.0, 7.0, 9.0, 11.0), "pixels", True, _motion_blur),
    # CIFAR-10-C adds 0.05, 0.1, 0.15, 0.2, 0.3 to the value of HSV; this multiplies.
    "brightness": Corruption("weather", (1.2, 1.5, 2.0, 2.5, 3.5), "factor", False, _brightness),
    # CIFAR-10-C: 0.75, 0.5, 0.4, 0.3, 0.15
    "contrast": Corruption("weather", (0.9, 0.75, 0.55, 0.35, 0.2), "factor", False, _contrast),
    # CIFAR-10-C: 0.95, 0.9, 0.85, 0.75, 0.65
    "pixelate": Corruption(
        "digital", (0.8, 0.65, 0.5, 0.4, 0.3), "share of the side kept", False, _pixelate
    ),
    # CIFAR-10-C: 80, 65, 58, 50, 40
    "jpeg": Corruption("digital", (60.0, 40.0, 25.0, 15.0, 8.0), "quality", False, _jpeg),
    "posterize": Corruption("digital", (5.0, 4.0, 3.0, 2.0, 1.0), "bits", False, _posterize),
    "elastic": Corruption(
        "geometry", (0.02, 0.035, 0.05, 0.07, 0.1), "share of the side", True, _elastic
    ),
    "occlusion": Corruption(
        "geometry", (0.2, 0.3, 0.4, 0.5, 0.6), "share of the side", True, _occlusion
    ),
    "translate": Corruption(
        "geometry", (0.05, 0.1, 0.15, 0.2, 0.3), "share of the side", True, _translate
    ),
    "rotate": Corruption("geometry", (5.0, 10.0, 15.0, 25.0, 40.0), "degrees", True, _rotate),
}
"""All kinds by name, in the order of their families."""
