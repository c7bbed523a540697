"""Text is measured, never clipped, and readable on any colour."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from torch_featviz.picture import faces, text
from torch_featviz.picture.letters import clusters

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


@pytest.mark.parametrize("sign", list("−×∞…✓✗↵⇥"))
def test_the_typeface_has_the_signs_we_use(sign):
    assert faces.has(faces.bundled(), sign)
    assert faces.has(faces.bundled(bold=True), sign)


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


european = st.text(
    st.sampled_from([*map(chr, range(32, 127)), *"ÄéßñŁ…−×σκύλΩЖдщёЇ\u0301\u00a0✓"]), min_size=1, max_size=20
)


@given(european, st.sampled_from([11, 12, 16]), st.booleans())
def test_latin_greek_and_cyrillic_keep_their_bytes(words, size, bold):
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    font = ImageFont.truetype(name_of(name), size, layout_engine=ImageFont.Layout.BASIC)
    wide = -int(-font.getlength(words) // 1)
    image = Image.new("RGB", (max(1, wide), sum(font.getmetrics())), text.PAPER)
    ImageDraw.Draw(image).text((0, 0), words, fill=text.INK, font=font)
    assert text.width(words, size, bold) == wide
    assert text.strip(words, size, bold).tobytes() == image.tobytes()


def name_of(name):
    import matplotlib

    return f"{matplotlib.get_data_path()}/fonts/ttf/{name}"


@pytest.mark.parametrize("shapes", [True, False])
@pytest.mark.parametrize("words", ["אב", "دار", "דב"])
def test_the_first_letter_of_hebrew_and_arabic_is_rightmost(monkeypatch, shapes, words):
    if shapes and not faces.SHAPES:
        pytest.skip("Pillow finds no FriBiDi here")
    monkeypatch.setattr(faces, "SHAPES", shapes)
    for cache in (text.width, text._label, text._runs, text._fitted, faces._open):
        cache.cache_clear()
    whole, first = text.strip(words, 30), text.strip(words[0], 30)
    n = first.shape[1] - 4
    assert np.abs(whole[:, -n:].astype(int) - first[:, -n:]).mean() < 12
    assert np.abs(whole[:, :n].astype(int) - first[:, :n]).mean() > 12
    for cache in (text.width, text._label, text._runs, text._fitted, faces._open):
        cache.cache_clear()


def test_a_line_break_in_a_title_is_one():
    assert text.wrap("two words\nand more\r\n\nlast", 500, 12) == ["two words", "and more", "last"]


def test_chinese_lines_break_without_spaces(only):
    only(Boxes=dict.fromkeys("他说圆形好：，。“”", (900, 800)))
    words = "他说：圆形，圆形，好。" * 7
    lines = text.wrap(words, 100, 12)
    assert "".join(lines) == words
    assert all(60 < text.width(line, 12) <= 100 for line in lines[:-1])
    assert not any(line[0] in "：，。" for line in lines)


letters = st.lists(st.sampled_from(["a", "W", "i", " ", "é", "e\u0301", "Ж", "א", "ب", "❤\ufe0f"]), max_size=60)


@given(letters, st.integers(12, 200), st.booleans())
def test_names_are_shortened_in_the_middle_and_letters_kept_whole(parts, limit, bold):
    name = "".join(parts)
    short = text.shorten(name, limit, 12, bold)
    assert text.width(short, 12, bold) <= limit
    if short == name:
        return
    assert text.width(name, 12, bold) > limit
    head, tail = (list(clusters(part)) for part in short.split("…"))
    assert list(clusters(name))[: len(head)] == head
    assert not tail or list(clusters(name))[-len(tail) :] == tail
    assert 0 <= len(head) - len(tail) <= 1


@pytest.mark.parametrize(
    "name", ["a" * 10**6, "cat " * 250_000, "e\u0301" * 500_000, "אב" * 500_000, "x" + "\u0301" * 10**6]
)
def test_a_million_letters_are_shortened_at_once(name):
    begin = time.perf_counter()
    short = text.shorten(name, 150, 11)
    assert time.perf_counter() - begin < 2
    assert text.width(short, 11) <= 150
    assert "…" in short
