from typing import ClassVar

import pytest
import torch
from PIL import Image

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.picture.images import unit_image
from torch_featviz.views import samples


def images(*labels, size=4):
    return [(torch.full((1, size, size), i / 10), label) for i, label in enumerate(labels)]


def test_a_class_a_row_the_first_images_of_each():
    sheet = samples(images(1, 0, 1, 0, 1), n=2, classes=["o", "x"])
    assert sheet.rows == ("o", "x")
    assert sheet.cells[:, 0, 0, 0].tolist() == [round(255 * v) for v in (0.1, 0.3, 0.0, 0.2)]


def test_missing_images_leave_bare_places_and_missing_classes_are_named():
    sheet = samples(images(0, 0, 2), classes=["a", "b", "c"])
    assert sheet.empty == {2, 3, 5}
    assert "no example of: b" in sheet.legend.notes
    assert (sheet.pixels[:, 5:9] == 255).all()


def test_names_come_from_the_dataset_or_are_numbers():
    class Listed(list):
        classes = ("o", "x")

    assert samples(Listed(images(0, 1))).rows == ("o", "x")
    assert samples(images(7, 3)).rows == ("3", "7")


def test_only_what_is_needed_is_loaded():
    class Loaded:
        classes = ("o", "x")
        targets = (0,) * 50 + (1,) * 50
        loaded: ClassVar[list[int]] = []

        def __getitem__(self, i):
            self.loaded.append(i)
            return torch.zeros(2, 2), self.targets[i]

    samples(Loaded(), n=2)
    assert Loaded.loaded == [0, 1, 50, 51]


def test_an_endless_stream_is_read_until_each_class_is_full():
    def stream():
        while True:
            yield from images(0, 1)

    assert len(samples(stream(), n=3, classes=["o", "x"]).cells) == 6


@pytest.mark.parametrize(
    ("value_range", "low", "high"),
    [("unit", 0, 1), ("signed", -1, 1), ("byte", 0, 255), ("imagenet", None, None)],
)
def test_ranges_are_declared(value_range, low, high):
    x = torch.rand(3, 4, 4)
    if value_range == "imagenet":
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x[:, 0, 0], x[:, 0, 1] = 0, 1
        coded = (x - mean[:, None, None]) / std[:, None, None]
    else:
        coded = x * (high - low) + low
    unit = unit_image(coded, value_range)
    torch.testing.assert_close(unit, x, atol=1e-5, rtol=0)
    assert ((unit >= 0) & (unit <= 1)).all()


def test_what_is_outside_the_declared_range_is_marked_and_counted():
    sheet = samples([(torch.tensor([[0.5, 200.0]]), 0)])
    assert sheet.legend.counts.over == 1


def test_pillow_images_are_bytes():
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    assert unit_image(image).equal(torch.tensor([1, 0, 0.2])[:, None, None].expand(3, 2, 3))
    assert samples([(image, 0)]).png()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: samples([]), ShapeError, "holds no image of these classes"),
        (lambda: samples(images(0), n=0), OptionError, "n must be at least 1, got 0"),
        (
            lambda: samples(images(0, 2), classes=["a", "b"]),
            OptionError,
            "class 2 has no name: 2 classes are named",
        ),
        (
            lambda: samples([*images(0), *images(0, size=5)]),
            ShapeError,
            r"one size, got \(4, 4\) and \(5, 5\); add a Resize",
        ),
        (
            lambda: samples(images(0), value_range="float"),
            OptionError,
            "unit, signed, byte, imagenet, or a function .*, got 'float'",
        ),
        (
            lambda: samples([(torch.ones(2, 3, 3), 0)]),
            ShapeError,
            r"'h w', '1 h w' or '3 h w', got shape \(2, 3, 3\)",
        ),
        (lambda: samples([("x.png", 0)]), DtypeError, "must be a tensor or a Pillow image, got str"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
