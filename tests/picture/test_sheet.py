"""Sheets: every line of "Truth of a picture" that can be seen in pixels."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import Chart, Legend, Scale, Sheet, paint, reserved, tile
from torch_featviz.picture.bounds import fitting
from torch_featviz.picture.sheet import FRAME, _Grid
from torch_featviz.picture.text import line_height, width

WHITE = [255, 255, 255]


def sheet_of(maps, scale=None, **options):
    cells, legend = paint(maps, scale or Scale(symmetric=True))
    return Sheet(cells, legend, **options)


def has(pixels, color):
    return (pixels.reshape(-1, 3) == np.array(color)).all(1).any()


def test_the_scale_is_carried_and_shown_and_decides_the_colours():
    maps = torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1)
    for symmetric, cmap in ((True, "RdBu_r"), (False, "viridis")):
        _, legend = paint(maps, Scale(symmetric=symmetric))
        assert legend.cmap == cmap
        assert legend.scale.vmax == 2
        assert legend.ticks()[-1] == (1.0, "2")
        assert legend.scale.describe() in legend.lines()


def test_grey_may_show_signed_data_with_0_in_the_middle():
    maps = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    cells, legend = paint(maps, Scale(symmetric=True), cmap="gray")
    assert cells[:, 0].flatten().tolist() == [0, 128, 255]
    assert legend.ticks()[1] == (0.5, "0")


def test_a_diverging_map_needs_a_symmetric_scale():
    with pytest.raises(OptionError, match="needs a sequential map, got 'RdBu_r'"):
        paint(torch.ones(1, 1, 2, 2), Scale(), cmap="RdBu_r")
    with pytest.raises(ShapeError, match=r"maps must be 'n 1 h w' or 'n 3 h w', got shape \(2, 2\)"):
        paint(torch.ones(2, 2), Scale())


def test_zero_is_neutral_in_signed_pictures_whatever_the_data():
    maps = torch.tensor([0.0, 5.0, -0.1]).reshape(3, 1, 1, 1)
    cells, _ = paint(maps, Scale(symmetric=True))
    assert cells[0].flatten().tolist() == [247, 247, 247]
    colors, _ = paint(maps.expand(3, 3, 1, 1), Scale(symmetric=True))
    assert colors[0].flatten().tolist() == [128, 128, 128]


@given(hnp.arrays(np.float32, (2, 1, 3, 3), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_nothing_raises_and_all_that_is_odd_is_counted(a):
    maps = torch.from_numpy(a)
    for scale in (Scale(), Scale(symmetric=True), Scale(vmin=-1, vmax=1), Scale(per="kernel", quantile=0.5)):
        cells, legend = paint(maps, scale)
        assert cells.dtype == torch.uint8
        assert legend.counts.nan == np.isnan(a).sum()
        assert legend.counts.posinf == np.isposinf(a).sum()
        assert legend.counts.neginf == np.isneginf(a).sum()
        for reason, color in reserved(legend.cmap).items():
            drawn = (cells.permute(0, 2, 3, 1) == torch.tensor(color)).all(-1).sum()
            assert drawn == getattr(legend.counts, reason)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-40, 3e38])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_constant_map_is_one_colour_of_the_map(value, symmetric):
    cells, legend = paint(torch.full((2, 1, 4, 4), value), Scale(symmetric=symmetric))
    assert len(cells.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)) == 1
    assert legend.marks() == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool])
def test_every_real_dtype_is_drawn(dtype):
    assert sheet_of(torch.ones(3, 1, 4, 4).to(dtype)).png().startswith(b"\x89PNG")


def test_one_scale_gives_one_value_one_colour_in_every_picture():
    scale = Scale(symmetric=True).fit(torch.tensor([-4.0, 4.0]))
    first, _ = paint(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1), scale)
    second, _ = paint(torch.tensor([1.0, -3.0]).reshape(2, 1, 1, 1), scale)
    assert first[0].equal(second[0])


def test_upscaling_is_nearest_by_a_whole_factor():
    maps = torch.randn(1, 1, 5, 5)
    sheet = sheet_of(maps, zoom=3)
    grid, page = _Grid(sheet), sheet.numpy()
    big = sheet.cells[0].permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)
    assert grid.cell == (17, 17)
    assert (page[17 : 17 + 15, 17 : 17 + 15] == big).all()


def test_a_map_of_zeros_is_framed_and_an_empty_place_is_bare_paper():
    sheet = sheet_of(torch.zeros(3, 1, 4, 4), ncols=2)
    grid, page = _Grid(sheet), sheet.numpy()
    h, w = grid.cell
    y, x = 16 + grid.step_y, 16
    third, fourth = page[y : y + h, x : x + w], page[y : y + h, x + grid.step_x : x + grid.step_x + w]
    assert (third[0] == FRAME).all()
    assert (third[1:-1, 1:-1] == 247).all()
    assert (fourth == 255).all()
    assert (sheet.pixels[:, 5:, 5:] == 128).all(), "beside signed colours an empty place is grey"


def test_places_named_empty_are_bare_paper():
    cells = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    sheet = Sheet(cells, ncols=3, empty=frozenset({1}), rows=("r",))
    grid, page = _Grid(sheet), sheet.numpy()
    left = 16 + grid.x(1)
    assert (page[16 : 16 + grid.cell[0], left : left + grid.cell[1]] == 255).all()
    assert (sheet.pixels[:, :, 5:9] == 255).all()
    assert (cells == 0).all()


def test_tensors_from_inference_mode_and_parameters_are_drawn():
    with torch.inference_mode():
        maps = torch.randn(4, 1, 3, 3)
    assert sheet_of(maps).png()
    assert sheet_of(torch.nn.Parameter(torch.randn(4, 3, 3, 3))).png()
    with torch.inference_mode():
        assert sheet_of(torch.full((4, 1, 3, 3), float("nan"))).png()


def test_the_same_input_gives_the_same_bytes_and_is_not_changed():
    maps = torch.randn(7, 1, 6, 6)
    before = maps.clone()
    first, second = (sheet_of(maps, title="x", labels=tuple("abcdefg")) for _ in range(2))
    assert first.png() == second.png() == first.png()
    assert maps.equal(before)


def test_bytes_are_the_same_in_another_process():
    code = (
        "import torch, hashlib; from torch_featviz.picture import *;"
        "c, l = paint(torch.arange(50.).reshape(2, 1, 5, 5), Scale());"
        "print(hashlib.sha256(Sheet(c, l, title='t').png()).hexdigest())"
    )
    here = Sheet(*paint(torch.arange(50.0).reshape(2, 1, 5, 5), Scale()), title="t").png()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_pixels_are_the_tiled_cells_alone():
    sheet = sheet_of(torch.randn(6, 1, 5, 5), ncols=3)
    assert sheet.pixels.equal(tile(sheet.cells, ncols=3, fill=128))
    assert sheet_of(torch.rand(1, 1, 5, 5), Scale()).pixels.shape == (3, 5, 5)


@pytest.mark.parametrize("n", [1, 5, 9, 64, 512])
@pytest.mark.parametrize("side", [1, 5, 27, 224])
def test_maps_of_every_size_can_be_made_out(n, side):
    if n * side * side > 2e6:
        pytest.skip("no more of the same")
    sheet = sheet_of(torch.randn(n, 1, side, side), labels=tuple(str(i) for i in range(n)))
    page = sheet.numpy()
    assert min(_Grid(sheet).cell) - 2 >= min(224, 24)
    assert page.dtype == np.uint8
    assert page.shape[0] < 6000
    assert (page[:, :16] == 255).all()
    assert (page[:, -16:] == 255).all(), "nothing reaches into the margin"


def test_labels_rows_and_columns_never_overlap():
    names = ("a long name of a row", "b")
    sheet = sheet_of(
        torch.zeros(6, 1, 1, 1),
        ncols=3,
        labels=tuple(f"channel {i}" for i in range(6)),
        rows=names,
        columns=("in 0",),
    )
    grid = _Grid(sheet)
    assert grid.step_x >= width("channel 0", 11) + 2
    assert grid.gutter >= width(names[0], 11) + 6
    wide = sheet_of(torch.zeros(2, 1, 1, 1), zoom=24, columns=("a very long heading", "b"))
    assert _Grid(wide).upright
    assert (wide.numpy()[:16] == 255).all()


words = st.text(
    st.characters(codec="latin-1", categories=("L", "N")) | st.sampled_from("אבש\u05b0بت\nЖ"), min_size=1, max_size=14
)


@given(st.data(), st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_nothing_is_clipped_and_nothing_overlaps(data, n, ncols, group, h, w):
    ncols = min(n, ncols)
    nrows = -(-n // ncols)
    draw_some = lambda k: tuple(data.draw(st.just([]) | st.lists(words, min_size=k, max_size=k)))
    sheet = Sheet(
        torch.zeros(n, 3, h, w, dtype=torch.uint8),
        ncols=ncols,
        labels=draw_some(n),
        rows=draw_some(nrows),
        columns=draw_some(ncols),
        corner=data.draw(st.just("") | words),
        group=group,
        heads=draw_some(-(-ncols // group)),
        zoom=data.draw(st.none() | st.integers(1, 8)),
    )
    grid = _Grid(sheet)
    boxes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_featviz.picture.sheet.put", lambda page, piece, x, y: boxes.append((x, y, piece.shape)))
        grid.draw(np.zeros((grid.height, grid.width, 3), np.uint8))
    for i in range(n):
        boxes.append((grid.x(i % ncols), grid.header + i // ncols * grid.step_y + grid.above, grid.cell))
    taken = np.zeros((grid.height, grid.width), int)
    for x, y, shape in boxes:
        assert x >= 0
        assert y >= 0
        assert y + shape[0] <= grid.height
        assert x + shape[1] <= grid.width
        taken[y : y + shape[0], x : x + shape[1]] += 1
    assert taken.max() == 1


@pytest.mark.parametrize("part", ["labels", "captions", "rows", "columns", "heads"])
def test_a_name_of_a_million_letters_is_shortened_in_the_middle(part):
    long = "dog " * 250_000 + "z"
    cells = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    page, short = Sheet(cells, **{part: (long,)}).numpy(), Sheet(cells, **{part: ("dog",)}).numpy()
    assert 100 < max(page.shape[0] - short.shape[0], page.shape[1] - short.shape[1] + 320) < 700
    other = Sheet(cells, **{part: (long[:-1] + "y",)}).numpy()
    assert page.tobytes() != other.tobytes(), "its end is seen, too"


@pytest.mark.parametrize("part", ["labels", "captions", "rows", "columns", "heads"])
def test_what_stands_after_a_line_break_is_seen(part):
    cells = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    one, two = (Sheet(cells, **{part: (f"dog\n{letter}",)}).png() for letter in "ab")
    assert one != two


def test_a_line_break_in_a_title_or_a_note_begins_a_line():
    cells = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    bare = Sheet(cells, Legend(notes=("a",)), title="a").numpy().shape[0]
    assert Sheet(cells, Legend(notes=("a",)), title="a\nb").numpy().shape[0] == bare + line_height(16)
    assert Sheet(cells, Legend(notes=("a\nb",)), title="a").numpy().shape[0] == bare + line_height(12) + 4


def test_groups_of_columns_are_set_apart():
    sheet = sheet_of(torch.zeros(4, 1, 4, 4), ncols=4, columns=("circle", "cross"), group=2)
    grid = _Grid(sheet)
    assert grid.x(1) - grid.x(0) == grid.step_x
    assert grid.x(2) - grid.x(1) == grid.step_x + 10
    assert grid.x(3) + grid.cell[1] <= grid.width


def test_a_group_has_a_head():
    sheet = sheet_of(torch.zeros(4, 1, 4, 4), ncols=4, columns=("0", "1"), group=2, heads=("step 0", "step 10"))
    bare = replace(sheet, heads=())
    assert _Grid(sheet).header > _Grid(bare).header
    axes = sheet.figure().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\nstep 0", "1", "0\nstep 10", "1"]


def test_text_inside_cells_changes_no_more_than_their_ink():
    maps = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    sheet = sheet_of(maps, zoom=40, inside=("−1", "1"))
    assert has(sheet.numpy(), WHITE)
    plain = sheet_of(maps, zoom=40)
    changed = (sheet.numpy()[16:58, 16:58] != plain.numpy()[16:58, 16:58]).any(2)
    assert 0 < changed.mean() < 0.2


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"labels": ("a",)}, ShapeError, "labels must have 4 entries, got 1"),
        ({"inside": ("a",)}, ShapeError, "inside must have 4 entries, got 1"),
        ({"rows": ("a",)}, ShapeError, "rows must have 2 entries, got 1"),
        ({"heads": ("a",)}, ShapeError, "heads must have 2 entries, got 1"),
        ({"ncols": 0}, OptionError, "ncols must be at least 1, got 0"),
    ],
)
def test_parts_that_do_not_fit_say_so(options, error, match):
    with pytest.raises(error, match=match):
        Sheet(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), **options)


@pytest.mark.parametrize("cells", [torch.zeros(4, 3, 2, 2), torch.zeros(3, 2, 2, dtype=torch.uint8)])
def test_cells_are_bytes_of_three_channels(cells):
    with pytest.raises(ShapeError, match="cells must be 'n 3 h w' uint8, got"):
        Sheet(cells)


def test_a_picture_leaves_in_every_way(tmp_path):
    sheet = sheet_of(torch.randn(4, 1, 3, 3), title="four maps")
    path = sheet.save(tmp_path / "maps.png")
    assert path.read_bytes() == sheet.png() == sheet._repr_png_()
    page = sheet.numpy()
    page[:] = 0
    assert sheet.numpy().any(), "numpy() is a copy"
    Figure().savefig  # noqa: B018  figure() needs no pyplot
    figure = sheet.figure()
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_title() == "four maps"
    assert len(figure.axes) == 2, "the map and its colour bar"
    chart = Chart(figure)
    assert chart.figure() is figure
    assert chart.png() == Chart(sheet.figure()).png()
    assert chart.pixels.shape[0] == 3


def test_the_figure_has_labels_ticks_and_notes():
    sheet = sheet_of(
        torch.tensor([float("nan"), 1.0]).reshape(2, 1, 1, 1),
        rows=("r",),
        columns=("a", "b"),
        ncols=2,
        labels=("7", "8"),
    )
    axes = sheet.figure().axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["r"]
    assert [t.get_text() for t in axes.texts] == ["7", "8"]
    numbered = Sheet(sheet.cells, sheet.legend, inside=("x", "y")).figure().axes[0]
    assert [t.get_text() for t in numbered.texts] == ["x", "y"]
    assert "1 px NaN" in axes.get_xlabel()
    assert len(Sheet(sheet.cells, Legend()).figure().axes) == 1


def test_pictures_need_no_pyplot(forks):
    code = (
        "import sys, torch; from torch_featviz.picture import *;"
        "assert 'matplotlib' not in sys.modules;"
        "c, l = paint(torch.ones(2, 1, 5, 5), Scale());"
        "s = Sheet(c, l, title='t'); s.png(); Chart(s.figure()).png();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = forks.run(code, warn="error")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.png.gz"])
def test_pictures_are_saved_as_png(tmp_path, name):
    with pytest.raises(OptionError, match=r"must end in '.png', got"):
        Sheet(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@given(
    n=st.integers(1, 30),
    ncols=st.integers(1, 9),
    side=st.sampled_from([(1, 1), (1, 9), (2, 3), (25, 30)]),
    seed=st.integers(0, 99),
)
def test_gaps_of_a_figure_are_thin_and_numbers_stand_in_their_cells(n, ncols, side, seed):
    cells = torch.randint(0, 255, (n, 3, 1, 1), generator=torch.Generator().manual_seed(seed)).byte()
    cells = cells.expand(n, 3, *side)
    sheet = Sheet(cells, inside=tuple(map(str, range(n))), ncols=ncols)
    axes = sheet.figure().axes[0]
    image = np.asarray(axes.images[0].get_array())
    height, width = image.shape[:2]
    columns, rows = min(ncols, n), -(-n // min(ncols, n))
    drawn = (image != 255).any(-1).sum() / (height * width) * (rows * columns) / n
    assert drawn > 0.9
    for i, words in enumerate(axes.texts):
        x, y = words.get_position()
        assert words.get_text() == str(i)
        assert image[round(y), round(x)].tolist() == cells[i, :, 0, 0].tolist()
        assert abs(x - (i % columns + 0.5) * width / columns) < 1
        assert abs(y - (i // columns + 0.5) * height / rows) < 1


def test_groups_of_a_figure_stand_apart():
    cells = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1).expand(12, 3, 2, 2)
    axes = Sheet(cells, ncols=6, group=2, heads=("a", "b", "c"), inside=tuple(map(str, range(12)))).figure().axes[0]
    image = np.asarray(axes.images[0].get_array())
    places = {words.get_text(): words.get_position() for words in axes.texts}
    for i in range(12):
        x, y = places[str(i)]
        assert image[round(y), round(x)].tolist() == [i] * 3
    between = [places[str(i + 1)][0] - places[str(i)][0] for i in range(5)]
    assert between[0] == between[2] == between[4]
    assert between[1] == between[3] > between[0] + 3
    bare = (image[0] == 255).all(1)
    assert bare.sum() == 3 + 2 * (between[1] - between[0] + 1)


def test_numbers_of_a_figure_do_not_touch():
    cells = torch.zeros(28 * 28, 3, 1, 1, dtype=torch.uint8)
    axes = Sheet(cells, inside=("−0.25",) * len(cells), ncols=28).figure().axes[0]
    axes.figure.canvas.draw()
    first, second, below = (axes.texts[i].get_window_extent() for i in (0, 1, 28))
    assert first.x1 < second.x0
    assert first.y0 > below.y1


@given(
    st.integers(2, 300), st.integers(2, 300), st.sampled_from(["", "1234 ×", "0.00123…0.0123"]), st.integers(900, 4000)
)
@settings(deadline=None, max_examples=20)
def test_as_many_cells_as_fit_do_fit_and_hardly_more_would(height, width, words, side):
    rows, columns = fitting(height, width, [words], lines=2, side=side)
    n = rows * columns
    if n > 3000 or n < 17 or max(rows * height, columns * width) > side:
        return
    cells = torch.zeros(n, 3, height, width, dtype=torch.uint8)
    drawn = Sheet(cells, ncols=columns, labels=(words,) * n, captions=(words,) * n, title="t").numpy()
    assert max(drawn.shape[:2]) <= side
    assert drawn.shape[1] > side - 2 * (drawn.shape[1] - 32) / columns - 32


def test_both_kinds_of_cells_have_a_bar_in_a_figure():
    first = Legend(Scale(vmin=0, vmax=1), "viridis")
    both = Legend(Scale(symmetric=True, vmin=-1, vmax=1), "RdBu_r", also=first)
    sheet = Sheet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), both)
    assert len(sheet.figure().axes) == 3, "the grid and two bars"
