"""Right-to-left letters stand as FriBiDi and HarfBuzz set them, without either."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from torch_featviz.picture import direction, faces
from torch_featviz.picture.direction import in_order, joined

shapes = pytest.mark.skipif(not faces.SHAPES, reason="Pillow finds no FriBiDi here")


def drawn(words: str, path: str, layout: ImageFont.Layout) -> np.ndarray:
    image = Image.new("L", (800, 60))
    ImageDraw.Draw(image).text((0, 0), words, fill=255, font=ImageFont.truetype(path, 30, layout_engine=layout))
    return np.asarray(image)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A typeface whose every letter has a height of its own, and no kerning."""
    from tests.picture.conftest import typeface

    path = tmp_path_factory.mktemp("faces") / "steps.ttf"
    typeface("Steps", {c: (300, 100 + 40 * i) for i, c in enumerate("abאבاب12١٢ .,-+%:")}).save(path)
    return str(path)


@shapes
@given(words=st.text("abאבاب12١٢ .,-+%:", min_size=1, max_size=14).filter(lambda words: words == words.strip()))
def test_letters_stand_in_the_order_that_fribidi_gives_them(steps, words):
    ours = drawn(in_order(words, lambda _: False), steps, ImageFont.Layout.BASIC)
    assert (ours == drawn(words, steps, ImageFont.Layout.RAQM)).all()


@shapes
@pytest.mark.parametrize("words", ["كتاب", "گربه", "لا إله", "شيء", "بـ", "الأسد", "שלום"])
def test_arabic_letters_join_as_harfbuzz_joins_them(words):
    path = faces.bundled().path
    ours = drawn(in_order(words), path, ImageFont.Layout.BASIC)
    assert (ours == drawn(words, path, ImageFont.Layout.RAQM)).all()
    assert (ours != drawn(words, path, ImageFont.Layout.BASIC)).any()


@pytest.mark.parametrize(
    ("words", "forms"),
    [
        ("سلام", "\ufeb3\ufefc\ufee1"),
        ("لا", "\ufefb"),
        ("ببب", "\ufe91\ufe92\ufe90"),
        ("بَب", "\ufe91\u064e\ufe90"),
        ("دد", "\ufea9\ufea9"),
        ("ء", "\ufe80"),
        ("cat אב", "cat אב"),
    ],
)
def test_forms_of_arabic_letters(words, forms):
    assert joined(words) == forms


@pytest.mark.parametrize(
    ("words", "order"),
    [
        ("dog", "dog"),
        ("אבג", "גבא"),
        ("cat אבג 12", "cat 12 גבא"),
        ("אבג cat 12", "cat 12 גבא"),
        ("אב (cat)", "(cat) בא"),
        ("(אב)", "(בא)"),
        ("12-34 אב", "בא 12-34"),
        ("", ""),
    ],
)
def test_order_of_mixed_lines(words, order):
    assert in_order(words) == order


def test_forms_that_a_typeface_lacks_are_not_used():
    assert direction.mirrored("بب", lambda _: False) == "بب"
    assert direction.mirrored("אب", lambda _: False) == "بא"


def test_marks_stay_with_their_letter():
    assert direction.mirrored("א\u05b0ב") == "בא\u05b0"
