"""Pictures: every pixel where it belongs."""

import numpy as np
import pytest
from PIL import Image

from flowguide.pictures import image_grid, save_figure, save_png


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_every_image_unsmoothed(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 8, channels), np.uint8)
    grid = image_grid(images, columns=2)
    scale, gap = 4, 4
    assert grid.shape == (3 * (64 + gap) + gap, 2 * (32 + gap) + gap, 3)
    for i, image in enumerate(images):
        top, left = gap + i // 2 * (64 + gap), gap + i % 2 * (32 + gap)
        tile = grid[top : top + 64 : scale, left : left + 32 : scale]
        np.testing.assert_array_equal(tile, np.broadcast_to(image, (16, 8, 3)))
    assert (grid[-68:-4, -36:-4] == 255).all()  # the sixth place is empty


def test_large_images_are_not_enlarged():
    assert image_grid(np.zeros((1, 256, 256, 3), np.uint8)).shape == (264, 264, 3)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_png_round_trip(shape, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    save_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image.squeeze())


def test_figure_of_images_shows_them_unsmoothed(tmp_path):
    """One colour a cell: below its heading and beside its label each block has that colour alone."""
    colours = np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [90, 90, 0]]], np.uint8)
    cells = np.broadcast_to(colours[:, :, None, None, None], (2, 2, 4, 16, 16, 3))
    pixels = save_figure(tmp_path / "f.png", cells, ["γ = 1", "γ = 2"], ["hat=red", "∅"])
    for r in range(2):
        for c in range(2):
            where = np.argwhere((pixels == colours[r, c]).all(-1))
            assert len(where) == 4 * 64 * 64
            assert (where.mean(0) > pixels.shape[0] * np.array([r, c]) / 2.6).all()


def test_figure_of_points(tmp_path):
    cells = np.random.default_rng(0).standard_normal((1, 2, 50, 2)).astype(np.float32)
    pixels = save_figure(tmp_path / "f.png", cells, [""], ["a", "b"])
    assert Image.open(tmp_path / "f.png").size == pixels.shape[1::-1]
    assert (pixels < 200).any()


def test_rgba_is_laid_over_white():
    """What is opaque keeps its colour, what is clear shows the white, and in between both mix by the opacity."""
    images = np.zeros((1, 64, 64, 4), np.uint8)
    images[..., :3] = 200, 40, 0
    images[0, :, 16:32, 3], images[0, :, 32:48, 3], images[0, :, 48:, 3] = 51, 204, 255
    tile = image_grid(images)[4:68, 4:68]
    for column, colour in ((0, (255, 255, 255)), (16, (244, 212, 204)), (32, (211, 83, 51)), (48, (200, 40, 0))):
        assert (tile[:, column : column + 16] == colour).all()


def test_float_images_are_scaled_from_their_range(tmp_path):
    """The least value of all samples is black, the largest white, and what lies between is linear."""
    x = np.random.default_rng(0).normal(3, 7, (4, 64, 64, 1)).clip(-20, 30)
    x[0, 0, :2, 0], x[1, 0, :3, 0] = (-20, 30), (np.nan, np.inf, -np.inf)  # the last three do not move the range
    pixels = save_figure(tmp_path / "f.png", x[None, None].astype(np.float32), [""], [""])
    expected = (x + 20) / 50 * 255
    assert np.abs(pixels[4:68, 4:68].astype(float) - expected[0]).max() <= 0.51
    assert np.abs(pixels[5:68, 72:136].astype(float) - expected[1, 1:]).max() <= 0.51
    assert np.abs(pixels[72:136, 4:68].astype(float) - expected[2]).max() <= 0.51


def test_a_volume_shows_its_middle_slice(tmp_path):
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 5, 16, 16, 3)).astype(np.float32)
    x[:, :, :, 2] *= 3  # so that the range is that of the slice, and another slice would look paler
    volume = save_figure(tmp_path / "v.png", x, ["a"], ["b", "c"])
    np.testing.assert_array_equal(volume, save_figure(tmp_path / "s.png", x[:, :, :, 2], ["a"], ["b", "c"]))
    plain = save_figure(tmp_path / "v.png", x[..., 0], ["a"], ["b", "c"])  # (5, 16, 16)
    np.testing.assert_array_equal(plain, save_figure(tmp_path / "s.png", x[:, :, :, 2, ..., :1], ["a"], ["b", "c"]))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (100, 1)], ids=str)
def test_scalars_become_a_histogram(shape, tmp_path):
    """Half of the left cell is 2, a quarter 2.79 and a quarter 5; all of the right cell is 5: heights are shares."""
    left, right = np.repeat([2.0, 2.79, 5.0], (200, 100, 100)), np.full(400, 5.0)
    cells = np.stack([left, right])[None].reshape(1, 2, 400, *[1] * len(shape))
    cells = np.broadcast_to(cells, (1, 2, 400, *shape)).astype(np.float32)
    pixels = save_figure(tmp_path / "f.png", cells, [""], ["a", "b"])
    blue = (np.abs(pixels.astype(int) - (42, 111, 176)) < 30).all(-1).sum(0)  # height of the bar in each column
    first, width = np.flatnonzero(blue > 5)[0], 320 / 40
    middles = [first + round((k + 0.5) * width) for k in (0, 10, 39)]  # (2.79 - 2) / 3 · 40 = 10.5
    heights = blue[[*middles, middles[-1] + 320 + 14]] / 320 * 1.15
    np.testing.assert_allclose(heights, [0.5, 0.25, 0.25, 1.0], atol=0.02)
    assert (blue > 5).sum() == pytest.approx(4 * width, abs=6)


SHAPES = [(), (1,), (2,), (7,), (5, 4), (4, 4, 1), (4, 4, 2), (4, 4, 3), (4, 4, 4), (3, 4, 5), (2, 3, 4, 5), (64, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "constant", "not finite", "huge", "int", "uint8"])
def test_every_array_has_a_picture(shape, kind, tmp_path):
    x = np.random.default_rng(0).standard_normal((1, 2, 5, *shape)).astype(np.float32)
    match kind:
        case "constant":
            x = np.zeros_like(x)
        case "not finite":
            x[0, 1], x[0, 0, 0] = np.nan, np.inf
        case "huge":
            x = np.sign(x) * np.finfo(np.float32).max
        case "int" | "uint8":
            x = (20 * np.abs(x)).astype(kind)
    pixels = save_figure(tmp_path / "f.png", x, [""], ["a", "b"])
    assert pixels.dtype == np.uint8
    assert np.asarray(Image.open(tmp_path / "f.png")).shape == pixels.shape
    assert min(pixels.shape[:2]) > 60
    assert pixels.std() > 1


def test_previews_are_pictures(digits):
    with Image.open(digits / "previews" / "00000003.png") as picture:
        assert min(picture.size) > 100
