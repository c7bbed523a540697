"""Cells fit a sheet of 4,000 pixels a side, as many and as large as there is room for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_featviz.picture import Sheet
from torch_featviz.picture.bounds import SIDE, arranged, fitted, room, shrunk


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([None, 2.0, -1.0, float("nan"), float("inf")]),
    st.sampled_from([(0, 1), (-1, 1), None]),
)
def test_a_smaller_image_keeps_its_means_and_its_marks(height, width, side, odd, ends):
    unit = torch.rand(1, 1, height, width)
    low, high = ends or (-float("inf"), float("inf"))
    if odd is not None:
        unit[0, 0, height // 2, width // 2] = odd
    small = shrunk(unit, side, ends)
    longest = max(height, width)
    if longest <= side:
        assert small is unit
        return
    rows, columns = max(1, height * side // longest), max(1, width * side // longest)
    assert small.shape == (1, 1, rows, columns)
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            values = [float(unit[0, 0, y, x]) for y in range(top, bottom) for x in range(left, right)]
            expected = next((v for v in values if not low <= v <= high), sum(values) / len(values))
            torch.testing.assert_close(float(small[0, 0, i, j]), expected, equal_nan=True)


def sheet(count, height, width, **more):
    """As high with its texts as a view may be."""
    cells = torch.zeros(count, 3, 1, 1, dtype=torch.uint8).expand(-1, -1, height, width)
    return Sheet(cells, title="t", **more)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
@settings(deadline=None, max_examples=12)
def test_there_is_room_for_cells_of_that_side(columns, rows, lines):
    side, n = room(columns, rows, lines), columns * rows
    if n > 100:
        return
    words = {"labels": ("a",) * n} if lines else {}
    words |= {"captions": ("\n".join("a" * (lines - 1)),) * n} if lines > 1 else {}
    height, width = sheet(n, side, side, ncols=columns, zoom=1, rows=("r" * 30,) * rows, **words).numpy().shape[:2]
    assert SIDE / 2 < max(height, width) <= SIDE


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 3000), st.sampled_from(["", "out 12 reads in 5"]))
@settings(deadline=None, max_examples=12)
def test_as_many_as_there_is_room_for_are_arranged(height, width, count, words):
    shown, columns = arranged(count, height, width, [words])
    drawn = sheet(shown, height, width, ncols=columns, labels=(words,) * shown, zoom=-(-48 // max(height, width)))
    assert max(drawn.numpy().shape[:2]) <= SIDE
    assert shown == count or shown > 0.6 * SIDE**2 / (max(height, 66) * max(width, 130)), "the sheet is full"


@pytest.mark.parametrize(
    ("shape", "grid", "size", "zoom"),
    [
        ((28, 28), (3, 1), (28, 28), 7),  # 196 of 200
        ((399, 200), (3, 1), (399, 200), 1),
        ((400, 200), (3, 1), (200, 100), 1),
        ((300, 300), (20, 2), (173, 173), 1),  # as there is room for no more
        ((28, 28), (2, 40), (28, 28), 1),
    ],
)
def test_images_are_drawn_at_about_the_goal(shape, grid, size, zoom):
    small, drawn, notes = fitted(torch.rand(1, 3, *shape), *grid, goal=200)
    assert (tuple(small.shape[2:]), drawn) == (size, zoom)
    said = f"images of {shape[0]} × {shape[1]} pixels are drawn at {size[0]} × {size[1]}"
    assert notes == (() if shape == size else (said,))
