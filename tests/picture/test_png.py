"""PNG bytes read back by Pillow."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image

from torch_featviz.errors import ShapeError
from torch_featviz.picture import png

images = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda s: (*s, 3)))


@given(images)
def test_pillow_reads_back_every_byte(pixels):
    with Image.open(io.BytesIO(png.encode(pixels))) as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


@given(images)
def test_repeated_rows_are_read_back_too(pixels):
    big = pixels.repeat(3, 0)
    with Image.open(io.BytesIO(png.encode(big))) as image:
        np.testing.assert_array_equal(np.asarray(image), big)


def test_views_of_memory_are_encoded_as_they_look():
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)[::2, ::-1]
    with Image.open(io.BytesIO(png.encode(pixels))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros((2, 2, 3)), np.zeros((0, 2, 3), np.uint8)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(ShapeError, match="pixels must be 'H W 3' uint8, got"):
        png.encode(bad)
