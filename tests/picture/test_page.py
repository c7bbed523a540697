import numpy as np
import pytest
import torch

from torch_featviz.errors import ShapeError
from torch_featviz.picture import Sheet
from torch_featviz.picture.page import Page


def part(side):
    return Sheet(torch.zeros(1, 3, side, side, dtype=torch.uint8))


def test_parts_stand_side_by_side_below_one_title():
    small, large = part(8).numpy(), part(200).numpy()
    bare = Page((part(8), part(200))).numpy()
    np.testing.assert_array_equal(bare[: len(small), : small.shape[1]], small)
    np.testing.assert_array_equal(bare[:, small.shape[1] :], large)
    assert (bare[len(small) :, : small.shape[1]] == 255).all()
    titled = Page((part(8), part(200)), "two of them").numpy()
    top = len(titled) - len(bare)
    assert 16 < top < 60
    np.testing.assert_array_equal(titled[top:], bare)
    assert (titled[:top] < 128).any()


def test_it_is_a_picture():
    page = Page((part(8),), "one")
    assert page.png() == Page((part(8),), "one").png()
    assert page.pixels.shape == (3, *page.numpy().shape[:2])
    figure = page.figure()
    assert tuple(figure.get_size_inches() * 100) == page.numpy().shape[1::-1]


def test_a_page_has_a_part():
    with pytest.raises(ShapeError, match="at least one part, got none"):
        Page(())
