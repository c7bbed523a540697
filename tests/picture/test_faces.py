"""A letter that the bundled typeface lacks comes from an installed one, or is written out with one warning."""

import warnings

import numpy as np
import pytest

from torch_featviz.errors import FeatvizWarning
from torch_featviz.picture import faces, text

MISSING = [
    ("圆形", "Chinese letters, such as U\\+5706", "fonts-noto-cjk", "[5706 5F62]"),
    ("かたち", "Japanese letters", "fonts-noto-cjk", "[304B 305F 3061]"),
    ("도형", "Korean letters", "fonts-noto-cjk", "[B3C4 D615]"),
    ("कु", "Devanagari letters", "fonts-noto-core", "[0915 0941]"),
    ("🐶", "emoji", "fonts-noto-color-emoji", "[dog face]"),
    ("👩‍🚀 🦊", "emoji", "fonts-noto-color-emoji", "[woman rocket] [fox face]"),
]


@pytest.mark.parametrize(("words", "who", "package", "written"), MISSING)
def test_letters_without_a_typeface_are_written_out_with_one_warning(only, words, who, package, written):
    with pytest.warns(FeatvizWarning, match=f"no installed typeface has {who}.*'apt install {package}'") as told:
        assert faces.legible(f"a {words}") == f"a {written}"
    assert len(told) == 1
    assert (text.strip(words, 12) == text.strip(written, 12)).all(), "and never a second one"
    assert faces.legible(words, outlines=True) == written, "nor one for charts"


@pytest.mark.filterwarnings("ignore:no installed typeface")
@pytest.mark.parametrize(("one", "two"), [("圆形", "叉形"), ("कु", "की"), ("🐶", "🐱"), ("👍🏽", "👍🏿"), ("🇩🇪", "🇫🇷")])
def test_names_without_a_typeface_are_told_apart(only, one, two):
    assert text.strip(one, 11).tobytes() != text.strip(two, 11).tobytes()


@pytest.mark.parametrize(("words", "written"), [("\ue000", "[E000]"), ("a\x00b", "a[0000]b"), ("\ud800", "[D800]")])
def test_letters_of_no_script_are_written_out_without_a_warning(only, words, written):
    assert faces.legible(words) == written
    assert text.strip(words, 12).tobytes() == text.strip(written, 12).tobytes()


@pytest.mark.parametrize(("words", "written"), [("a\nb", "a↵b"), ("a\r\nb", "a↵b"), ("a\tb", "a⇥b"), ("a b", "a b")])
def test_line_breaks_and_tabs_are_seen(words, written):
    assert faces.legible(words) == written


@pytest.mark.parametrize("words", ["dog", "Ärger", "собака", "σκύλος", "10 × −3 …", "שלום", "مرحبا"])
def test_nobody_looks_for_typefaces_that_are_not_needed(monkeypatch, words):
    for cache in (text._label, text.width, text._runs, faces.face_of):
        cache.cache_clear()
    monkeypatch.setattr(faces, "installed", lambda: pytest.fail("looked for typefaces"))
    text.strip(words, 13)
    faces.legible(words, bold=True, outlines=True)


def test_a_letter_comes_from_an_installed_typeface(only):
    only(Boxes={"圆": (800, 700), "形": (400, 700)})
    assert [run.face.family for run in text._runs("a圆b", False)] == ["DejaVu Sans", "Boxes", "DejaVu Sans"]
    wide, narrow = text.strip("圆", 20), text.strip("形", 20)
    assert wide.shape[1] > narrow.shape[1]
    assert (wide.min(2) < 255).sum() == pytest.approx(2 * (narrow.min(2) < 255).sum(), rel=0.1)
    mixed = text.strip("a圆b", 20)
    n = text.width("a", 20)
    assert (mixed[:, :n] == text.strip("a", 20)).all()
    assert (mixed[:, n : n + wide.shape[1]] == wide).all(), "on the same baseline"


@pytest.mark.parametrize("high", [700, 1400, 2000])
def test_tall_letters_are_made_smaller_and_never_clipped(only, high):
    only(Tall={"圆": (500, high)})
    rows = np.flatnonzero((text.strip("圆", 30) < 128).any((1, 2)))
    columns = np.flatnonzero((text.strip("圆", 30) < 128).any((0, 2)))
    assert len(rows) <= text.line_height(30)
    assert len(rows) / len(columns) == pytest.approx(high / 500, rel=0.15), "all of it is there"


def test_chinese_characters_have_the_form_of_their_language(only):
    only(**{f"Some_Sans_{tag}": dict.fromkeys("直すㅎ직", (500, 700)) for tag in ("JP", "KR", "SC", "TC")})
    assert faces.face_of("直", "Chinese").family == "Some Sans SC"
    assert [text._runs(words, False)[0].face.family[-2:] for words in ("直", "直す", "직直")] == ["SC", "JP", "KR"]


def test_a_typeface_made_for_the_script_comes_first(only):
    only(Aaa={"क": (500, 700)}, Some_Serif_Devanagari={"क": (500, 700)}, Some_Devanagari={"क": (500, 700)})
    assert faces.face_of("क").family == "Some Devanagari"


def test_blank_letters_and_broken_files_are_passed_over(only, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"\0\1\0\0 no typeface")
    only(Blank={"圆": (0, 0)}, Full={"圆": (500, 700)})
    assert faces.face_of("圆").family == "Full"
    assert faces.face_of("形") is None


def test_a_bold_letter_that_only_the_regular_typeface_has(only):
    regular, bold = faces.bundled(), faces.bundled(bold=True)
    letter = next(c for c in map(chr, range(0x370, 0x1D800)) if faces.has(regular, c) and not faces.has(bold, c))
    assert faces.face_of(letter, bold=True) == regular
    assert text.strip(letter, 16, bold=True).min() < 100


def test_letters_side_by_side_are_said(only, monkeypatch):
    monkeypatch.setattr(faces, "SHAPES", False)
    only(Some_Devanagari={"क": (500, 700), "ु": (200, 100)})
    with pytest.warns(
        FeatvizWarning, match="Pillow without FriBiDi cannot join Devanagari letters.*libfribidi0"
    ) as told:
        text.strip("कु", 12)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.strip("कुकु", 12)


def test_the_warning_points_at_the_line_that_asked(only):
    import torch

    from torch_featviz.picture import Sheet

    sheet = Sheet(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), title="圆")
    with pytest.warns(FeatvizWarning, match="Chinese") as told:
        sheet.png()
    assert told[0].filename == __file__


def installed_or_skip(letter: str, what: str) -> faces.Face:
    found = faces.face_of(letter)
    if found is None:
        pytest.skip(f"no {what} typeface is installed here")
    return found


def test_chinese_on_this_machine():
    assert installed_or_skip("圆", "Chinese").path
    assert text.strip("圆", 20).tobytes() != text.strip("形", 20).tobytes()
    assert 15 <= text.width("圆", 20) <= 24


@pytest.mark.skipif(not faces.SHAPES, reason="Pillow finds no FriBiDi here")
def test_hindi_is_shaped_on_this_machine():
    installed_or_skip("क", "Devanagari")
    assert text.width("क्ष", 20) < text.width("क", 20) + text.width("ष", 20), "one letter of two"


def test_emoji_have_their_colours_on_this_machine():
    face = installed_or_skip("🐶", "emoji")
    if "Color" not in face.family:
        pytest.skip("the emoji of this machine are black")
    dog = text.strip("🐶", 12).astype(int)
    assert dog.shape[0] == text.line_height(12)
    assert np.ptp(dog, axis=2).max() > 60
