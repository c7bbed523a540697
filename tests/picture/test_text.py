"""Text is measured, never clipped, and readable on any colour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.picture import text

channels = st.integers(0, 255)


@pytest.mark.parametrize("words", ["0", "511", "−0.125", "channel 12", "fj|Q_", "Äg", "W" * 40])
@pytest.mark.parametrize("bold", [False, True])
def test_no_letter_is_clipped(words, bold):
    wide = text.strip("     " + words + "     ", 12, bold)
    ink = (wide < 255).any(2)
    narrow = (text.strip(words, 12, bold) < 255).any(2)
    room = text.font(12, bold).getbbox(words)
    assert room[1] >= 0, "no letter starts above its strip"
    assert room[3] <= len(ink), "or ends below it"
    assert abs(int(ink.sum()) - int(narrow.sum())) <= 3 + len(words) // 4, "as much ink with and without room"


@pytest.mark.parametrize("sign", list("−×∞…✓✗"))
def test_the_typeface_has_the_signs_we_use(sign):
    assert text.strip(sign, 24).tobytes() != text.strip("\uffff", 24).tobytes()


@given(st.text(st.characters(codec="latin-1", categories=("L", "N", "Zs")), max_size=80), st.integers(40, 300))
def test_wrapped_lines_fit_and_keep_the_words(words, limit):
    lines = text.wrap(words, limit, 12)
    assert all(text.width(line, 12) <= limit for line in lines)
    if not any("…" in line for line in lines):
        assert " ".join(lines).split() == words.split()


@given(channels, channels, channels)
def test_text_in_a_cell_has_a_contrast_of_4_5(red, green, blue):
    paper, ink = text.luminance((red, green, blue)), text.luminance(text.contrast((red, green, blue)))
    assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5


@pytest.mark.parametrize("ink", [text.INK, text.FAINT])
def test_text_on_paper_has_a_contrast_of_4_5(ink):
    assert 1.05 / (text.luminance(ink) + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"), (-0.0, "0"), (-0.5, "−0.5"), (0.12345, "0.123"), (1e-7, "1e−7"), (123456.0, "1.23e5"),
    ],
)  # fmt: skip
def test_numbers_are_short_with_a_true_minus(value, words):
    assert text.number(value) == words
