import numpy as np
import pytest
import torch

from torch_featviz.errors import ShapeError
from torch_featviz.picture import Scale, Sheet, Stack, paint


def part(columns):
    cells, _ = paint(torch.linspace(-1, 1, 2 * columns).reshape(-1, 1, 1, 1), Scale(symmetric=True))
    return Sheet(cells, ncols=columns, zoom=20, rows=("0", "1"))


def test_parts_stand_below_each_other_with_one_title_and_legend():
    _, legend = paint(torch.tensor([[[[-1.0, 1.0]]]]), Scale(symmetric=True), notes=("a note",))
    first, second = part(4), part(2)
    page = Stack((first, second), legend, "A title").numpy()
    lone = Sheet(first.cells, legend, "A title", ncols=4, zoom=20, rows=("0", "1")).numpy()
    assert page.shape[1] == lone.shape[1]
    assert page.shape[0] > lone.shape[0]
    colors = {tuple(color) for sheet in (first, second) for color in sheet.cells[:, :, 0, 0].tolist()}
    drawn = {tuple(color) for color in np.unique(page.reshape(-1, 3), axis=0).tolist()}
    assert colors <= drawn
    assert (page[:16] == 255).all()
    assert (page[:, -16:] == 255).all()


def test_pixels_hold_the_cells_of_all_parts():
    stack = Stack((part(4), part(2)))
    assert stack.pixels.shape == (3, 7, 7)
    assert stack.pixels[:, :3].equal(part(4).pixels)
    assert stack.pixels[:, 4:, :3].equal(part(2).pixels)
    assert (stack.pixels[:, 4:, 3:] == 255).all()


def test_a_stack_of_nothing():
    with pytest.raises(ShapeError, match="a stack must have at least one part, got none"):
        Stack(())
