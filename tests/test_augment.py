import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qatviz.augment import (
    auto_augment,
    crop,
    crop_flip,
    crop_flip_cutout,
    cutmix,
    cutout,
    flip,
    gaussian_noise,
    jitter,
    mixup,
    rand_augment,
    strong,
    unchanged,
)

IMAGES = torch.randint(1, 256, (64, 3, 6, 5), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("view", [unchanged, flip, crop, crop_flip])
def test_keeps_shape_and_type_and_leaves_its_input_alone(view, dtype):
    images = IMAGES.to(dtype)
    before = images.clone()
    seen = view(images)
    assert (seen.shape, seen.dtype) == (images.shape, dtype)
    assert torch.equal(images, before)


def test_unchanged_is_the_same_tensor():
    assert unchanged(IMAGES) is IMAGES


def test_flip_mirrors_about_half_of_the_images_whole():
    images = torch.arange(2000 * 4).reshape(2000, 1, 2, 2).float()
    seen = flip(images)
    mirrored = images[..., [1, 0]]
    kept = (seen == images).flatten(1).all(1)
    turned = (seen == mirrored).flatten(1).all(1)
    assert bool((kept ^ turned).all())
    assert 900 < int(turned.sum()) < 1100  # 4.5 standard deviations of a fair coin


def shifted(image, down, right):
    """One image moved by whole pixels, pixel by pixel, zeros where nothing arrives."""
    moved = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                moved[:, row, column] = image[:, row + down, column + right]
    return moved


def test_every_crop_is_a_shift_of_the_whole_image():
    found = set()
    for image, seen in zip(IMAGES, crop(IMAGES, padding=1), strict=True):
        matches = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if torch.equal(seen, shifted(image, down, right))
        ]
        assert len(matches) == 1
        found |= set(matches)
    # 64 images, 9 shifts: each missing with probability (8/9)^64 ≈ 0.0005.
    assert len(found) == 9


def test_crop_shifts_by_up_to_four_pixels_by_default():
    image = torch.zeros(4000, 1, 9, 9)
    image[:, :, 4, 4] = 1  # one bright pixel in the middle never leaves the image
    where = crop(image).flatten(1).argmax(1)
    rows, columns = where // 9, where % 9
    assert sorted(set(rows.tolist())) == list(range(9))
    assert sorted(set(columns.tolist())) == list(range(9))
    assert not torch.equal(rows, columns)  # an offset of its own for each axis


def test_crop_without_padding_does_nothing():
    assert torch.equal(crop(IMAGES, padding=0), IMAGES)


def test_crop_flip_is_a_crop_and_then_a_flip():
    torch.manual_seed(3)
    seen = crop_flip(IMAGES)
    torch.manual_seed(3)
    assert torch.equal(seen, flip(crop(IMAGES, padding=4)))


def test_the_torch_seed_decides():
    torch.manual_seed(5)
    first = crop_flip(IMAGES)
    second = crop_flip(IMAGES)
    torch.manual_seed(5)
    assert torch.equal(first, crop_flip(IMAGES))
    assert not torch.equal(first, second)


# Every result, one pixel at a time. The draws are part of it: all tops, then all lefts, then all
# mirrors, so that a seed gives the same images from release to release.

DTYPES = (torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64)


def draw_offsets(images, padding):
    return torch.randint(0, 2 * padding + 1, (2, len(images))).sub(padding).T.tolist()


def draw_mirrors(images):
    return [number < 0.5 for number in torch.rand(len(images)).tolist()]


def turned(image, mirrored):
    """One image, column by column."""
    width = image.shape[-1]
    columns = [image[..., width - 1 - i if mirrored else i] for i in range(width)]
    return torch.stack(columns, -1)


def one_by_one(images, offsets, mirrors):
    rows = zip(images, offsets, mirrors, strict=True)
    return torch.stack([turned(shifted(i, *offset), mirrored) for i, offset, mirrored in rows])


@st.composite
def batches(draw):
    shape = [draw(st.integers(1, most)) for most in (4, 4, 7, 7)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    images = torch.randint(1, 256, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["contiguous", "channels last", "slice"]))
    if layout == "channels last":
        return images.contiguous(memory_format=torch.channels_last)
    return images.repeat(1, 1, 1, 2)[..., : shape[3]] if layout == "slice" else images


@given(batches(), st.integers(0, 5), st.integers(0, 999))
def test_views_are_those_of_a_loop_over_pixels(images, padding, seed):
    still, unmirrored = [(0, 0)] * len(images), [False] * len(images)
    for view, expected in (
        (flip, lambda: one_by_one(images, still, draw_mirrors(images))),
        (
            lambda x: crop(x, padding=padding),
            lambda: one_by_one(images, draw_offsets(images, padding), unmirrored),
        ),
        (crop_flip, lambda: one_by_one(images, draw_offsets(images, 4), draw_mirrors(images))),
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            seen, state = view(images), torch.get_rng_state()
            torch.manual_seed(seed)
            assert torch.equal(seen, expected())
            assert torch.equal(state, torch.get_rng_state())
        assert (seen.shape, seen.dtype) == (images.shape, images.dtype)
        assert seen.is_contiguous()


def test_a_batch_of_no_images_stays_one():
    assert crop_flip(IMAGES[:0]).shape == (0, 3, 6, 5)


def test_gradients_go_back_to_the_pixels_that_are_seen():
    images = IMAGES.double().requires_grad_()
    seen = crop_flip(images)
    (gradient,) = torch.autograd.grad(seen.sum(), images)
    assert set(gradient.unique().tolist()) == {0.0, 1.0}
    # Every pixel of these images is above zero, every one that a shift brought in is zero.
    assert gradient.sum() == (seen > 0).sum()


UINT8 = [cutout, gaussian_noise, jitter, rand_augment, auto_augment, crop_flip_cutout, strong]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", UINT8)
def test_strong_views_keep_shape_and_type_and_leave_their_input_alone(view, channels):
    images = torch.randint(0, 256, (8, channels, 12, 12), dtype=torch.uint8)
    before = images.clone()
    torch.manual_seed(0)
    seen = view(images)
    assert (seen.shape, seen.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert not torch.equal(seen, images)
    torch.manual_seed(0)
    assert torch.equal(view(images), seen)


@pytest.mark.parametrize("view", [jitter, rand_augment, auto_augment])
def test_each_image_draws_its_own_changes(view):
    images = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8).expand(24, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in view(images)}) > 6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout_greys_one_square_pixel_by_pixel(dtype):
    images = torch.full((700, 2, 9, 7), 250).to(dtype)
    grey = 127 if dtype == torch.uint8 else 0.5
    sizes = set()  # of nine, one comes with probability 1/63
    for image in cutout(images, size=4):
        assert torch.equal(image[0], image[1])
        rows, columns = (image[0] != 250).nonzero().unbind(1)
        top, left = rows.min().item(), columns.min().item()
        height, width = rows.max().item() - top + 1, columns.max().item() - left + 1
        assert len(rows) == height * width
        assert (image[0, top : top + height, left : left + width] == grey).all()
        # Smaller only where it hangs over the border.
        assert height == 4 or top == 0 or top + height == 9
        assert width == 4 or left == 0 or left + width == 7
        sizes.add((height, width))
    assert max(sizes) == (4, 4)
    assert len(sizes) == 9  # 2 to 4 pixels either way


def test_noise_has_its_deviation_and_stays_in_range():
    grey = torch.full((20, 1, 50, 50), 0.5)
    seen = gaussian_noise(grey, deviation=0.1)
    # 50,000 numbers: the standard error of the deviation is 0.3 %.
    assert (seen - 0.5).std().item() == pytest.approx(0.1, rel=0.02)
    assert (seen - 0.5).mean().item() == pytest.approx(0, abs=0.002)
    black = gaussian_noise(torch.zeros(4, 1, 50, 50, dtype=torch.uint8), deviation=0.1)
    assert 0.4 < (black == 0).float().mean().item() < 0.6
    assert black.float()[black > 0].mean().item() == pytest.approx(0.0798 * 255, rel=0.05)


def test_cutmix_takes_a_box_of_the_partner_and_counts_its_pixels():
    images = torch.arange(64).view(-1, 1, 1, 1).expand(-1, 2, 8, 6).contiguous()
    mixed, partner, share = cutmix(images)
    assert sorted(partner.tolist()) == list(range(64))
    for own, (image, other, part) in enumerate(zip(mixed, partner, share, strict=True)):
        assert set(image.unique().tolist()) <= {own, other.item()}
        if other != own:
            assert part.item() == pytest.approx((image[0] == own).float().mean().item())
    # The share that stays is uniform but for the border: it is never smaller than drawn.
    assert 0.5 < share.mean().item() < 0.85


def test_mixup_is_the_weighted_mean():
    images = torch.rand(400, 1, 3, 3)
    mixed, partner, share = mixup(images)
    for image, own, other, part in zip(mixed, images, images[partner], share, strict=True):
        assert torch.allclose(image, part * own + (1 - part) * other, atol=1e-6)
    # Uniform: mean 1/2 and variance 1/12, standard errors 0.014 and 0.004.
    assert share.mean().item() == pytest.approx(0.5, abs=0.06)
    assert share.var().item() == pytest.approx(1 / 12, abs=0.016)
    bytes_, _, _ = mixup(torch.randint(0, 256, (9, 1, 3, 3), dtype=torch.uint8))
    assert bytes_.dtype == torch.uint8
