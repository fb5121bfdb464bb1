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
