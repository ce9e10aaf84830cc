import pytest
import torch

from qatviz.augment import crop, crop_flip, flip, unchanged

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
