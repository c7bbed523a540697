"""A page is its pictures, each where it should be, byte for byte."""

import numpy as np
import pytest
import torch

from torch_featviz.errors import ShapeError
from torch_featviz.picture import Poster, Sheet


def sheet(n, value):
    return Sheet(torch.full((n, 3, 20, 20), value, dtype=torch.uint8), ncols=n, title=f"{n} of {value}")


def test_pictures_stand_in_rows():
    a, b, c = sheet(2, 10), sheet(5, 90), sheet(9, 200)
    page = Poster(((a, b), (c,))).numpy()
    first, second, third = (each.numpy() for each in (a, b, c))
    high = max(len(first), len(second))
    wide = max(first.shape[1] + second.shape[1], third.shape[1])
    assert page.shape == (high + len(third), wide, 3)
    np.testing.assert_array_equal(page[: len(first), : first.shape[1]], first)
    np.testing.assert_array_equal(page[: len(second), first.shape[1] :][:, : second.shape[1]], second)
    np.testing.assert_array_equal(page[high:, : third.shape[1]], third)


def test_words_stand_around_them():
    rows = ((sheet(5, 10),),)
    bare, full = Poster(rows), Poster(rows, title="Title", subtitle="below it", head="On", words=("one", "two " * 200))
    inner = bare.numpy()
    page = full.numpy()
    assert page.shape[1] == inner.shape[1], "long words wrap"
    places = [y for y in range(len(page) - len(inner)) if np.array_equal(page[y : y + len(inner)], inner)]
    assert len(places) == 1
    above, below = page[: places[0]], page[places[0] + len(inner) :]
    assert above.min() < 60
    assert below.min() < 120
    assert (page[-8:] == 255).all(), "the last line does not touch the edge"


def test_every_way_out():
    page = Poster(((sheet(3, 50),),), title="So")
    assert page.png() == Poster(((sheet(3, 50),),), title="So").png()
    assert tuple(page.pixels.shape) == (3, *page.numpy().shape[:2])
    assert len(page.figure().axes) == 1


def test_an_empty_page():
    with pytest.raises(ShapeError, match="a poster needs a picture at least, got none"):
        Poster(((), ()))


def test_each_line_of_a_caption_is_shortened_by_itself():
    drawn = [
        Sheet(torch.zeros(1, 3, 40, 40, dtype=torch.uint8), captions=(words,)).numpy()
        for words in ("first line\n" + "figures " * 6, "first line\n" + "figures " * 200)
    ]
    assert all(each.shape[1] < 400 for each in drawn)
    assert np.array_equal(drawn[0][60:126, 16:80], drawn[1][60:126, 16:80]), "the first line is whole"
