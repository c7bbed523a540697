"""Models and images, as a person has them: the person's own file, weights, odd pictures and odd names."""

import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from torch_featviz import cli, views
from torch_featviz.cli import commands
from torch_featviz.errors import FeatvizWarning

NET = """
    from torch import nn
    from torch_featviz import ModelCard

    print("this file talks")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.fc = nn.Linear(2 * 6 * 8, 3)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            print("so does its forward")
            return self.drop(self.fc(self.conv(x).flatten(1)))

    def card():
        return ModelCard("carded", Net, (1, 8, 10), classes=("a", "b", "b"), mean=(0.5,))

    def plain():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 10, 2))
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(textwrap.dedent(NET))
    return "net.py"


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """What each command was given; nothing is drawn."""
    all_given = []

    def make(on):
        all_given.append((on, on.images()))
        return Saved()

    class Saved:
        def save(self, path):
            return path

    make.__name__ = "maps"
    monkeypatch.setattr(commands, "maps", make)
    return all_given


def picture(path, height=8, width=10, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels)[None, None] / 255


def error(capsys, *arguments):
    """The one line that is said, besides what the file itself prints."""
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if line.startswith("featviz: "))
    assert "Traceback" not in err
    return line


def test_a_net_of_a_file_takes_images_as_they_are(net, seen, capsys):
    expected = picture("a.png")
    assert cli.main(["maps", "net.py:Net", "--image", "a.png"]) == 0
    ((on, images),) = seen
    torch.testing.assert_close(
        images, expected, rtol=0, atol=1e-6
    )  # by way of three channels, whose shares add up to 1
    assert not on.model.training
    assert (on.card.name, on.card.low, on.card.classes) == ("net.py:Net", "conv", ())
    assert capsys.readouterr().out == "maps.png\n"


def test_size_sizes_them(net, seen):
    for i in range(2):
        picture(f"{i}.png", 20 + i, 30)
    assert cli.main(["maps", "net.py:Net", "--image", "0.png", "--image", "1.png", "--size", "8", "10"]) == 0
    assert seen[0][1].shape == (2, 1, 8, 10)


def test_images_are_told_apart_by_their_names(net, seen, tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("a.png", "b.png", "below/a.png", "new\nline.png"):
        picture(name)
    for files, names in (
        (["a.png", "below/a.png"], ["a.png", "below/a.png"]),
        (["below/a.png", "b.png"], ["a.png", "b.png"]),
        (["new\nline.png"], ["new line.png"]),
    ):
        assert cli.main(["maps", "net.py:Net", *(word for file in files for word in ("--image", file))]) == 0
        assert seen.pop()[0].names() == names


def test_images_of_several_sizes_need_it(net, capsys):
    for i in range(2):
        picture(f"{i}.png", 8 + i, 10)
    said = error(capsys, "maps", "net.py:Net", "--image", "0.png", "--image", "1.png")
    assert said.endswith("images must be of one size here, got 8×10, 9×10; --size H W sizes them.")
    said = error(capsys, "units", "net.py:Net", "--data", ".")
    assert said.endswith("images must be of one size here, got 8×10, 9×10; --size H W sizes them.")


def test_a_shape_that_the_model_does_not_take(net, capsys):
    picture("a.png", 9, 10)
    said = error(capsys, "overview", "net.py:Net", "--image", "a.png")
    assert said.startswith(
        "featviz: 'net.py', line 16: the model fails on images of shape (1, 1, 9, 10) (RuntimeError: "
    )
    assert said.endswith("; --size H W sizes images for it.")
    assert error(capsys, "bench", "net.py:Net", "--size", "9", "9").endswith("; another --size may help.")
    said = error(capsys, "bench", "net.py:Net")
    assert said.endswith("net.py:Net does not say how large its images are; do so with --size H W.")
    assert error(capsys, "bench", "net.py:Net", "--size", "8", "0").endswith("two numbers of 1 or more, got 8 0.")


def test_a_card_of_a_file(net, seen, capsys):
    expected = (picture("a.png") - 0.5) / 1
    assert "no published weights" in error(capsys, "maps", "net.py:card", "--image", "a.png")
    assert "which has its own input_size" in error(
        capsys, "maps", "net.py:card", "--size", "8", "8", "--image", "a.png"
    )
    assert cli.main(["maps", "net.py:card", "--random", "--image", "a.png"]) == 0
    torch.testing.assert_close(seen[0][1], expected, rtol=0, atol=1e-6)
    capsys.readouterr()


def test_weights_for_a_net_of_a_file(net, seen):
    picture("a.png")
    state = {"conv.weight": torch.full((2, 1, 3, 3), 7.0), "conv.bias": torch.zeros(2)}
    torch.save({**state, "fc.weight": torch.zeros(3, 96), "fc.bias": torch.zeros(3)}, "w.pt")
    for name in ("Net", "card"):
        assert cli.main(["maps", f"net.py:{name}", "--weights", "w.pt", "--image", "a.png"]) == 0
        assert seen.pop()[0].model.conv.weight.eq(7).all()
    for _ in range(2):
        assert cli.main(["maps", "net.py:Net", "--image", "a.png"]) == 0
    assert torch.equal(seen[0][0].model.fc.weight, seen[1][0].model.fc.weight)  # the same command, the same weights


def test_no_convolution_to_look_at(net, capsys):
    said = error(capsys, "kernels", "net.py:plain")
    assert said == "featviz: net.py:plain does not say where its convolutions are; name a layer with --layer."


def test_classes_by_number_and_by_name(net, capsys):
    picture("a.png")
    why = ["why", "net.py:card", "--random", "--image", "a.png", "--out", "w.png"]
    assert cli.main([*why, "--class", "a", "--class", "2"]) == 0
    assert capsys.readouterr().out == "w.png\n"
    assert "several classes 'b': give a number, 1 or 2." in error(capsys, *why, "--class", "b")
    assert "no class '3'; close: none. It has 3." in error(capsys, *why, "--class", "3")
    assert "has no class '999" in error(capsys, *why, "--class", "9" * 5000)
    why[1:3] = ["net.py:Net"]
    assert cli.main([*why, "--class", "2"]) == 0
    capsys.readouterr()
    assert "tells no names of classes; give a number instead of 'b'." in error(capsys, *why, "--class", "b")
    assert "from 0 to 2, got [3]" in error(capsys, *why, "--class", "3")


def test_what_a_persons_code_prints_is_no_result(net, capsys):
    picture("a.png")
    assert cli.main(["maps", "net.py:Net", "--image", "a.png"]) == 0
    out, err = capsys.readouterr()
    assert out == "maps.png\n"
    assert "this file talks" in err
    assert "so does its forward" in err


HOSTILE = [
    'it\'s "so".png',
    "<b>&amp;<script>alert(1)<.png",
    "Кот 猫 🐈.png",
    "new\nline.png",
    "\udcff.png",
    f"{'x' * 251}.png",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_files(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture(name)
    for command in ("maps", "overview", "why"):
        assert cli.main([command, "xo", "--random", "--image", name]) == 0
        with Image.open(f"{command}.png") as sheet:
            assert max(sheet.size) < 3000
    assert cli.main(["units", "xo", "--random", "--data", ".", "--channels", "0"]) == 0


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.png", None, "no image file 'none.png'."),
        ("a.png", b"", "'a.png' is not an image that is read here (PNG, JPEG, TIFF, ...)."),
        ("a.png", b"hello", "'a.png' is not an image that is read here (PNG, JPEG, TIFF, ...)."),
        ("new\nline.png", b"hello", r"'new\nline.png' is not an image that is read here (PNG, JPEG, TIFF, ...)."),
        ("y" * 300 + ".png", None, f"cannot read image '{'y' * 300}.png': File name too long."),
        (".", None, "cannot read image '.': Is a directory."),
    ],
)
def test_files_that_are_no_images(name, data, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert error(capsys, "maps", "xo", "--random", "--image", name) == f"featviz: {message}"


def test_one_bad_file_among_many_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        picture(f"{i:02}.png", seed=i)
    whole = (tmp_path / "37.png").read_bytes()
    for name in ("37.png", "00.png"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.warns(
        FeatvizWarning, match="2 images .* are left out: 0: cannot read image '00.png': .*; 37: cannot rea"
    ):
        assert cli.main(["units", "xo", "--random", "--data", ".", "--channels", "0"]) == 0
    (tmp_path / "units.png").unlink()
    assert capsys.readouterr().out == "units.png\n"
    for path in tmp_path.glob("[0-3]*.png"):
        path.write_bytes(b"nothing can be read")
    assert error(capsys, "units", "xo", "--random", "--data", ".").startswith("featviz: '00.png' is not an image that")
    (tmp_path / "37.png").write_bytes(whole)
    for path in tmp_path.glob("[0-2]*.png"):
        path.unlink()
    for path in tmp_path.glob("3[0-68-9].png"):
        path.unlink()
    (tmp_path / "notes.txt").write_text("not named like an image, so not read")
    assert cli.main(["units", "xo", "--random", "--data", ".", "--channels", "0"]) == 0


def test_channels_that_the_model_does_not_take(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "four.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Conv2d(4, 2, 3))\n")
    picture("a.png")
    said = error(capsys, "maps", "four.py:net", "--image", "a.png")
    assert said == "featviz: 'a.png': the model takes 4 channels, got an image with 3."


ONE = """
    from torch import nn
    from torch_featviz import ModelCard

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 1))

    def one():
        return ModelCard("one", Net, (1, 8, 10), classes=("yes",))

    def two():
        return ModelCard("two", Net, (1, 8, 10), classes=("no", "yes"))

    def years():
        return ModelCard("years", Net, (1, 8, 10), classes=("years",), answer="figures")
"""


def test_one_logit_with_one_name_or_two(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(textwrap.dedent(ONE))
    picture("a.png")
    drawn = []
    whole = views.attributions
    monkeypatch.setattr(
        views, "attributions", lambda *given, **options: drawn.append(whole(*given, **options)) or drawn[-1]
    )

    def why(card, *more):
        assert cli.main(["why", f"net.py:{card}", "--random", "--image", "a.png", "--out", "w.png", *more]) == 0
        return drawn[-1]

    named = [why("one").labels[0], why("two").labels[0]]
    assert [name.replace("not yes", "no") for name in named] == [named[1]] * 2
    assert named[1].endswith(" %")
    assert why("one", "--class", "not yes", "--class", "yes").columns == ("", "= gradcam: not yes", "= gradcam: yes")
    assert why("two", "--class", "0").columns == ("", "= gradcam: no")
    assert why("years", "--class", "years").columns == ("", "= gradcam: years")
    assert not why("years").labels[0].endswith("%")
    page = ["atlas", "net.py:one", "--random", "--image", "a.png", "--out", "page.html"]
    assert cli.main(page) == 0
    assert (tmp_path / "page.html").stat().st_size
