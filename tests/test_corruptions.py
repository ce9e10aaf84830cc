import numpy as np
import pytest
import torch

from qatviz.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from qatviz.datasets import load

KINDS = list(CORRUPTIONS)
IMAGES = torch.rand(12, 3, 14, 10, generator=torch.Generator().manual_seed(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def amount(kind, severity):
    return CORRUPTIONS[kind].amounts[severity - 1]


def moved(image, down, right):
    """One image moved by whole pixels, pixel by pixel, zeros where nothing arrives."""
    seen = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                seen[:, row + down, column + right] = image[:, row, column]
    return seen


# All kinds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_range_stay_and_so_do_the_images(kind, channels):
    for dtype in (torch.uint8, torch.float16, torch.float32, torch.float64):
        raw = IMAGES[:4, :channels]
        images = (255 * raw).round().to(dtype) if dtype == torch.uint8 else raw.to(dtype)
        before, state = images.clone(), torch.get_rng_state()
        for severity in SEVERITIES:
            seen = corrupt(images, kind, severity, seeded())
            assert (seen.shape, seen.dtype) == (images.shape, dtype)
            assert seen.min() >= 0
            assert seen.max() <= (255 if dtype == torch.uint8 else 1)
            assert not torch.equal(seen, images)
        assert torch.equal(images, before)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides_all_that_is_random(kind):
    first, same, other = (corrupt(IMAGES, kind, 3, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first, same)
    assert torch.equal(first, other) != CORRUPTIONS[kind].random
    assert torch.equal(corrupt(IMAGES, kind, 3), corrupt(IMAGES, kind, 3, seeded(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_uint8_images_are_the_rounded_floats(kind):
    bytes_ = (255 * IMAGES).round().to(torch.uint8)
    floats = corrupt(bytes_.float() / 255, kind, 2, seeded())
    seen = corrupt(bytes_, kind, 2, seeded())
    assert torch.equal(seen, (255 * floats).round().to(torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_severities_go_from_mild_to_strong(kind):
    images = load("fashion-mini").test.images[:100].float() / 255
    sizes = [
        (corrupt(images, kind, severity, seeded()) - images).square().mean().item()
        for severity in SEVERITIES
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    assert len(set(CORRUPTIONS[kind].amounts)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_stay_none_and_small_ones_pass(kind):
    assert corrupt(IMAGES[:0], kind, 1).shape == (0, 3, 14, 10)
    for severity in SEVERITIES:
        assert corrupt(IMAGES[:2, :, :4, :5], kind, severity).shape == (2, 3, 4, 5)


def test_the_families_are_those_named():
    assert {c.family for c in CORRUPTIONS.values()} == {
        *("noise", "blur", "weather", "digital", "geometry")
    }
    assert "0x" not in repr(CORRUPTIONS["jpeg"])


@pytest.mark.parametrize(
    ("images", "kind", "severity", "words"),
    [
        (IMAGES, "fog", 1, "kind is 'fog'; allowed: gaussian_noise, "),
        (IMAGES, "jpeg", 0, "severity is 0; allowed: 1, 2, 3, 4 or 5"),
        (IMAGES, "jpeg", 6, "severity is 6"),
        (2 * IMAGES, "jpeg", 1, "come before normalisation"),
        (-IMAGES, "jpeg", 1, "values from -"),
        (IMAGES[:, :2], "jpeg", 1, "2 channels; allowed: 1 or 3"),
        (IMAGES.long(), "jpeg", 1, "torch.int64; allowed"),
        (IMAGES * float("nan"), "jpeg", 1, "values from nan"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, kind, severity, words):
    with pytest.raises(ValueError, match=words):
        corrupt(images, kind, severity)


# Each kind, from what its name says


@pytest.mark.parametrize("severity", [1, 3])
def test_gaussian_noise_has_its_standard_deviation(severity):
    grey = torch.full((50, 1, 40, 40), 0.5)
    noise = corrupt(grey, "gaussian_noise", severity) - 0.5
    # 80,000 numbers; 0.12 is four standard deviations from being clipped.
    assert noise.std().item() == pytest.approx(amount("gaussian_noise", severity), rel=0.015)
    assert abs(noise.mean().item()) < 4 * noise.std().item() / 80_000**0.5


def test_shot_noise_is_poisson():
    grey = torch.full((50, 1, 40, 40), 0.4)
    photons = amount("shot_noise", 1)
    seen = corrupt(grey, "shot_noise", 1)
    assert seen.mean().item() == pytest.approx(0.4, rel=0.01)
    assert seen.var().item() == pytest.approx(0.4 / photons, rel=0.03)
    torch.testing.assert_close(photons * seen, (photons * seen).round(), rtol=0, atol=1e-4)


def test_impulses_are_salt_and_pepper_in_equal_parts():
    grey = torch.full((50, 1, 40, 40), 0.4)
    seen, share = corrupt(grey, "impulse_noise", 4), amount("impulse_noise", 4)
    assert seen.unique().tolist() == pytest.approx([0, 0.4, 1])
    for value in (0, 1):
        assert (seen == value).double().mean().item() == pytest.approx(share / 2, rel=0.1)


@pytest.mark.parametrize("severity", [2, 4])
def test_gaussian_blur_spreads_a_point_as_a_gaussian(severity):
    sigma = amount("gaussian_blur", severity)
    images = torch.zeros(1, 1, 21, 21)
    images[0, 0, 10, 10] = 1
    seen = corrupt(images, "gaussian_blur", severity)[0, 0].double()
    reach = int(np.ceil(3 * sigma))
    line = np.array([np.exp(-((i - 10) ** 2) / (2 * sigma**2)) for i in range(21)])
    line[np.abs(np.arange(21) - 10) > reach] = 0
    line /= line.sum()
    np.testing.assert_allclose(seen.numpy(), np.outer(line, line), atol=1e-6)


def test_motion_blur_spreads_a_point_along_one_of_four_lines():
    length = int(amount("motion_blur", 3))
    images = torch.zeros(60, 1, 15, 15)
    images[:, 0, 7, 7] = 1
    lines = set()
    for seen in corrupt(images, "motion_blur", 3):
        rows, columns = seen[0].nonzero(as_tuple=True)
        assert seen[0][rows, columns].tolist() == pytest.approx([1 / length] * length)
        down, right = (torch.unique(x[1:] - x[:-1]).tolist() for x in (rows, columns))
        assert len(down) == len(right) == 1
        lines.add((down[0], right[0]))
    assert lines == {(0, 1), (1, 0), (1, 1), (1, -1)}


def test_motion_blur_leaves_a_plain_image_plain():
    grey = torch.full((4, 1, 9, 9), 0.6)
    torch.testing.assert_close(corrupt(grey, "motion_blur", 5), grey)


def test_brightness_multiplies_and_clips():
    factor = amount("brightness", 2)
    expected = np.minimum(IMAGES.numpy() * factor, 1)
    np.testing.assert_allclose(corrupt(IMAGES, "brightness", 2).numpy(), expected, rtol=1e-6)


def test_contrast_pulls_towards_the_mean_of_each_image():
    grey, factor = IMAGES[:, :1], amount("contrast", 4)
    seen = corrupt(grey, "contrast", 4)
    for image, got in zip(grey, seen, strict=True):
        mean = image.mean()
        torch.testing.assert_close(got, mean + factor * (image - mean), rtol=0, atol=1e-6)


def test_pixelate_makes_blocks():
    assert amount("pixelate", 3) == 0.5
    seen = corrupt(IMAGES, "pixelate", 3)
    blocks = seen.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert torch.equal(blocks, blocks[..., :1].expand_as(blocks))
    assert len(seen[0, 0].unique()) == 7 * 5


def test_posterize_keeps_the_leading_bits():
    for severity in SEVERITIES:
        count = 2 ** amount("posterize", severity)
        expected = np.floor(IMAGES.numpy() * count) / count
        np.testing.assert_allclose(corrupt(IMAGES, "posterize", severity), expected, atol=1e-7)


# The table of luminance in the standard (ITU-T T.81, annex K).
LUMINANCE = """
16 11 10 16 24 40 51 61
12 12 14 19 26 58 60 55
14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77
24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99
"""


def jpeg_block(block, quality):
    """A block of 8×8 grey levels, its cosine transform rounded to multiples of the table."""
    table = np.array(LUMINANCE.split(), int).reshape(8, 8)
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = np.clip((table * scale + 50) // 100, 1, 255)
    basis = np.zeros((8, 8))
    for k in range(8):
        for n in range(8):
            size = np.sqrt(1 / 8) if k == 0 else np.sqrt(2 / 8)
            basis[k, n] = size * np.cos(np.pi * (2 * n + 1) * k / 16)
    numbers = np.round(basis @ (block - 128.0) @ basis.T / table)
    return np.clip(np.round(basis.T @ (numbers * table) @ basis + 128), 0, 255)


@pytest.mark.parametrize("severity", [1, 4])
def test_jpeg_rounds_the_cosine_transform_of_blocks(severity):
    ramp = 2 * np.add.outer(np.arange(16), 2 * np.arange(16))
    picture = (ramp + 40 * (np.arange(16) // 3 % 2)).astype(np.uint8)
    expected = np.zeros((16, 16))
    for row in (0, 8):
        for column in (0, 8):
            block = picture[row : row + 8, column : column + 8]
            expected[row : row + 8, column : column + 8] = jpeg_block(
                block, amount("jpeg", severity)
            )
    seen = corrupt(torch.from_numpy(picture)[None, None], "jpeg", severity)[0, 0].numpy()
    # A decoder in integers may differ in the last bit; compression did more than that.
    assert np.abs(seen - expected).max() <= 1
    assert np.abs(expected - picture).max() > 2 * np.abs(seen - expected).max()


def test_elastic_moves_pixels_by_the_share_on_average():
    side = 40
    ramp = torch.linspace(0.2, 0.8, side)
    across, down = ramp.expand(side, side), ramp.view(-1, 1).expand(side, side)
    images = torch.stack([across, down, across]).expand(30, 3, side, side)
    seen = corrupt(images, "elastic", 1)
    # In pixels; near the border the ramp ends.
    change = ((seen - images)[:, :2, 6:-6, 6:-6] / (ramp[1] - ramp[0])).double()
    distance = change.square().sum(1).mean().sqrt().item()
    assert distance == pytest.approx(amount("elastic", 1) * side, rel=0.15)
    assert not torch.allclose(change[0], change[1], atol=0.1)  # a field of its own


def test_occlusion_is_one_grey_square_somewhere():
    images = IMAGES[:1].expand(80, 3, 14, 10) * 0.4
    seen = corrupt(images, "occlusion", 2)
    places = set()
    for got in seen:
        rows, columns = (got[0] == 0.5).nonzero(as_tuple=True)
        top, left, low, right = rows.min(), columns.min(), rows.max(), columns.max()
        assert (low - top + 1, right - left + 1) == (round(0.3 * 14), round(0.3 * 10))
        expected = images[0].clone()
        expected[:, top : low + 1, left : right + 1] = 0.5
        assert torch.equal(got, expected)
        places.add((int(top), int(left)))
    assert {top for top, _ in places} == set(range(11))
    assert {left for _, left in places} == set(range(8))


def test_translate_moves_by_whole_pixels_one_of_four_ways():
    down, right = round(0.2 * 14), round(0.2 * 10)
    ways = ((0, right), (0, -right), (down, 0), (-down, 0))
    images = IMAGES[:1].expand(40, 3, 14, 10)
    found = set()
    for got in corrupt(images, "translate", 4):
        matches = [way for way in ways if torch.equal(got, moved(images[0], *way))]
        assert len(matches) == 1
        found |= set(matches)
    assert found == set(ways)


def test_rotate_turns_either_way():
    square = IMAGES[:1, :, :10, :10].expand(30, 3, 10, 10)
    quarter = CORRUPTIONS["rotate"].apply(square, 90.0, seeded())
    left, right = torch.rot90(square[0], 1, (1, 2)), torch.rot90(square[0], -1, (1, 2))
    ways = [
        (torch.allclose(got, left, atol=1e-4), torch.allclose(got, right, atol=1e-4))
        for got in quarter
    ]
    assert set(ways) == {(True, False), (False, True)}
