"""Charts write all scripts: each text gets the typefaces it needs, or letters are written out."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import torch_featviz as fv
from torch_featviz.errors import FeatvizWarning
from torch_featviz.picture import Chart, faces
from torch_featviz.picture.figures import fit, make_legible

CIRCLES = dict.fromkeys("圆形", (800, 700))


def test_a_text_gets_the_typefaces_that_it_needs(only):
    only(Boxes={"圆": (800, 700), "形": (300, 700)})
    figure = Figure(figsize=(2, 1))
    latin, mixed = figure.text(0, 0.5, "circle"), figure.text(0, 0, "a 圆")
    families = latin.get_fontfamily()
    one = Chart(figure).png()
    assert latin.get_fontfamily() == families
    assert mixed.get_fontfamily() == [*families, "Boxes"]
    assert mixed.get_text() == "a 圆"
    mixed.set_text("a 形")
    assert Chart(figure).png() != one, "drawn, and anew"


def test_labels_of_ticks_too(only):
    only(Boxes=CIRCLES)
    axes = (figure := Figure()).add_subplot()
    axes.set_xticks([0, 1, 2], ["cat", "圆", "\ue000"])
    axes.set_xlim(0, 2)
    Chart(figure).png()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "圆", "[E000]"]
    assert axes.get_xticklabels()[1].get_fontfamily()[-1] == "Boxes"
    assert axes.get_yticklabels()[0].get_text() == "0.0"


def test_letters_without_a_typeface_are_written_out_with_our_warning_alone(only):
    figure = Figure()
    words = figure.suptitle("圆\n形 a")
    with pytest.warns(FeatvizWarning, match="no installed typeface has Chinese letters.*fonts-noto-cjk") as told:
        Chart(figure).png()
    assert words.get_text() == "[5706]\n[5F62] a"
    assert len(told) == 1
    Chart(figure).png()


def test_emoji_in_colour_are_named(only, monkeypatch):
    only(Some_Color_Emoji={"🐶": (800, 700)})
    assert faces.legible("🐶") == "🐶"
    with pytest.warns(FeatvizWarning, match="no typeface that matplotlib can draw has emoji.*fonts-symbola"):
        assert fit("🐶", 200, 12) == "[dog face]"


@pytest.mark.parametrize("shapes", [True, False])
def test_right_to_left_text_is_turned_once_and_only_where_matplotlib_does_not(monkeypatch, shapes):
    monkeypatch.setattr(faces, "charts_shape", lambda: shapes)
    figure = Figure()
    words, latin = figure.text(0, 0, "אבג\nسلام"), figure.text(0, 0, "two\nlines")
    for _ in range(2):
        assert make_legible(figure) is figure
    assert words.get_text() == ("אבג\nسلام" if shapes else "גבא\n\ufee1\ufefc\ufeb3")
    assert latin.get_text() == "two\nlines"


def test_letters_that_matplotlib_does_not_join_are_said(only, monkeypatch):
    only(Some_Devanagari={"क": (500, 700), "ु": (200, 100)})
    monkeypatch.setattr(faces, "charts_shape", lambda: False)
    with pytest.warns(FeatvizWarning, match="matplotlib before 3.11 cannot join Devanagari letters"):
        faces.legible("कु", outlines=True)


def test_names_fit_on_their_line():
    assert fit("cat", 100, 12) == "cat"
    assert fit("a\nb", 100, 12) == "a↵b"
    short = fit("W" * 10**6, 100, 12, bold=True)
    assert short.startswith("WW")
    assert short.endswith("W")
    assert len(short) < 20


def test_a_million_letters_do_not_stop_a_chart():
    figure = Figure()
    words = figure.text(0, 0, "a" * 10**6 + "\nb")
    make_legible(figure)
    assert len(words.get_text()) < 1500
    assert words.get_text().endswith("\nb")


def test_control_characters_are_written_out():
    figure = Figure()
    words = figure.text(0, 0, "a\x00b\x1b\nc")
    make_legible(figure)
    assert words.get_text() == "a[0000]b[001B]\nc"
    figure.draw_without_rendering()


def views(one, two):
    logits = np.eye(2, dtype=np.float32) * 3
    import torch

    yield fv.confusion([[3, 1], [0, 4]], [one, two])
    yield fv.predictions(torch.zeros(2, 1, 8, 8), torch.from_numpy(logits), [one, two], targets=[0, 0])
    yield fv.curves({one: {two: [2.0, 1.0]}, two: [1.0, 2.0]}, title=one)


@pytest.mark.parametrize(
    ("one", "two"), [("圆", "形"), ("dog\na", "dog\nb"), ("אב", "בא"), ("כלב a", "כלב b"), ("قطة", "كلب"), ("😀", "😃")]
)
def test_names_of_every_script_are_told_apart_in_every_view(only, one, two):
    only(Boxes={"圆": (800, 700), "形": (300, 700)})
    for left, right in zip(views(one, two), views(two, one), strict=True):
        assert left.png() != right.png()
        assert left.figure() is not None


@pytest.mark.filterwarnings("ignore:no installed typeface")
def test_names_are_told_apart_where_nothing_is_installed(only):
    for left, right in zip(views("圆", "🐶"), views("形", "🐱"), strict=True):
        assert left.png() != right.png()


def test_dollar_signs_are_no_formulas():
    for left, right in zip(views("$\\frac", "a$b$"), views("$\\y$", "a$c$"), strict=True):
        assert left.png() != right.png()
        left.figure().draw_without_rendering()
    fv.confusion([[3, 1], [0, 4]], ["$\\frac", "$\\y$"], title="$\\x$").figure().draw_without_rendering()


def test_chinese_charts_on_this_machine():
    if faces.face_of("圆") is None:
        pytest.skip("no Chinese typeface is installed here")
    for left, right in zip(views("圆形", "叉形"), views("猫狗", "鸟船"), strict=True):
        assert left.png() != right.png()
