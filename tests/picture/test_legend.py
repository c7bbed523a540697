"""The legend says what the colours mean, within the room it has."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.picture import Counts, Legend, Scale, reserved, text
from torch_featviz.picture.color import lut
from torch_featviz.picture.legend import draw

PER_MAP = torch.ones(2, 1, 1, 1)


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(vmin=0, vmax=2.5), [(0, "0"), (1, "2.5")]),
        (Scale(symmetric=True, vmax=0.25).fit(torch.ones(1)), [(0, "−0.25"), (0.5, "0"), (1, "0.25")]),
        (Scale(vmin=-1, vmax=3), [(0, "−1"), (0.25, "0"), (1, "3")]),
        (Scale(vmin=0, vmax=0), [(0, "0")]),
        (Scale(symmetric=True, vmin=0, vmax=0), [(0.5, "0")]),
        (Scale(vmin=-PER_MAP, vmax=PER_MAP, symmetric=True), [(0, "−max"), (0.5, "0"), (1, "max")]),
        (Scale(vmin=0, vmax=PER_MAP), [(0, "0"), (1, "max")]),
        (Scale(vmin=-PER_MAP, vmax=PER_MAP), [(0, "min"), (1, "max")]),
        (Scale(), []),
    ],
)
def test_ticks_stand_where_their_values_are(scale, ticks):
    assert Legend(scale, "viridis").ticks() == ticks


def test_only_what_occurs_has_a_swatch_with_its_count():
    legend = Legend(Scale(vmin=0, vmax=1), "viridis", Counts(nan=1, over=1200))
    colors = reserved("viridis")
    assert legend.marks() == [(colors["nan"], "1 px NaN"), (colors["over"], "1,200 px above the scale")]
    page = draw(legend, 400).reshape(-1, 3).tolist()
    assert list(colors["nan"]) in page
    assert list(colors["posinf"]) not in page
    assert Legend(Scale(vmin=0, vmax=1), "viridis").marks() == []


def test_the_bar_shows_the_whole_map_in_order():
    row = draw(Legend(Scale(vmin=0, vmax=1), "viridis"), 400)[5]
    colors = [c for c in row.tolist() if c in lut("viridis").tolist()]
    assert colors[0] == lut("viridis")[0].tolist()
    assert colors[-1] == lut("viridis")[-1].tolist()
    places = [lut("viridis").tolist().index(c) for c in colors]
    assert places == sorted(places)


def test_nothing_to_say_takes_no_room():
    assert draw(Legend(), 300).size == 0


@given(
    st.integers(200, 900),
    st.floats(-1e9, 1e9, allow_nan=False),
    st.floats(0, 1e9),
    st.lists(st.sampled_from(["64 of 192 filters shown", "no example of: bird, horse"]), max_size=3),
)
def test_it_keeps_to_its_width_and_clips_no_text(limit, low, span, notes):
    legend = Legend(Scale(vmin=low, vmax=low + span), "magma", Counts(1, 22, 333, 4444, 55555), tuple(notes))
    page = draw(legend, limit)
    assert page.shape[1] <= limit + 16, "the gap after the last swatch may stand out"
    assert (page[:, limit:] == 255).all()


def test_the_same_legend_gives_the_same_pixels():
    legend = Legend(Scale(vmin=0, vmax=1), "gray", Counts(nan=1), ("a note",))
    np.testing.assert_array_equal(draw(legend, 300), draw(legend, 300))


@pytest.mark.parametrize(
    ("over", "total", "words"),
    [(4, 1000, "clipped 0.4 %"), (1, 10**7, "clipped < 0.01 %"), (0, 50, "clipped 0 %"), (50, 100, "clipped 50 %")],
)
def test_the_share_that_is_clipped_is_told(over, total, words):
    scale = Scale(vmin=0, vmax=1, quantile=0.995)
    legend = Legend(scale, "viridis", Counts(nan=7, over=over), total=total)
    assert words in legend.lines()
    assert not any("clipped" in line for line in Legend(scale, "viridis", Counts(over=over)).lines()), "no total"


def test_a_scale_that_clips_nothing_and_may_not_says_nothing():
    assert Legend(Scale(vmin=0, vmax=1), "viridis", total=9).lines() == ["one scale for all"]
    assert "clipped 11 %" in Legend(Scale(vmin=0, vmax=1), "viridis", Counts(under=1), total=9).lines()


def test_two_kinds_of_cells_have_two_bars():
    first = Legend(Scale(vmin=0, vmax=1), "viridis", notes=("one sign",))
    both = Legend(Scale(symmetric=True, vmin=-1, vmax=1), "RdBu_r", also=first)
    page = draw(both, 400).reshape(-1, 3).tolist()
    assert lut("viridis")[-1].tolist() in page
    assert lut("RdBu_r")[-1].tolist() in page
    assert draw(both, 400).shape[0] > draw(first, 400).shape[0] + 30


def test_ends_that_three_digits_do_not_part_have_more():
    assert [word for _, word in Legend(Scale(vmin=100.0, vmax=100.01), "viridis").ticks()] == ["100", "100.01"]
    assert text.ends(-100.01, -100.0) == ("−100.01", "−100")
    assert text.ends(1e9, 1e9 * (1 + 1e-4)) == ("1e9", "1.0001e9")
    assert text.ends(5.0, 5.0 * (1 + 2.0**-17)) == ("5", "5"), "as a constant map has"
