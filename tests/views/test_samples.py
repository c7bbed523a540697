from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, random_split

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


class Folder(Dataset):
    """As torchvision's: raw targets are listed, and items go through target_transform."""

    classes = ("a", "b")

    def __init__(self, target_transform=None):
        self.targets = [0] * 3 + [1] * 3
        self.target_transform = target_transform
        self.loaded = []

    def __len__(self):
        return 6

    def __getitem__(self, i):
        self.loaded.append(i)
        target = self.targets[i]
        return torch.full((1, 2, 2), i / 10), target if self.target_transform is None else self.target_transform(target)


def rows_of(sheet):
    pixels = (sheet.cells[:, 0, 0, 0].float() * 10 / 255).round().int().tolist()
    k = len(pixels) // len(sheet.rows)
    return {
        name: [pixels[i * k + j] for j in range(k) if i * k + j not in sheet.empty] for i, name in enumerate(sheet.rows)
    }


CHANGES = {
    "swapped": (lambda t: 1 - t, {"white": [3, 4], "black": [0, 1]}),
    "one-hot": (lambda t: torch.eye(2)[1 - t], {"white": [3, 4], "black": [0, 1]}),
    "named": (lambda t: ["black", "white"][t], {"white": [3, 4], "black": [0, 1]}),
    "none": (None, {"white": [0, 1], "black": [3, 4]}),
    "all the same": (lambda t: 1, {"white": [], "black": [0, 1]}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_stand_under_the_labels_that_come_with_them(change):
    transform, expected = CHANGES[change]
    data = Folder(transform)
    assert rows_of(samples(data, n=2, classes=("white", "black"))) == expected
    assert len(data.loaded) <= 4, "targets still say where to look"


class Many(Dataset):
    """A hundred classes, item i of class i modulo 100."""

    classes = tuple(f"class {i}" for i in range(100))

    def __init__(self):
        self.targets = [i % 100 for i in range(400)]
        self.loaded = []

    def __len__(self):
        return 400

    def __getitem__(self, i):
        self.loaded.append(i)
        return torch.full((1, 2, 2), (i % 7) / 10), self.targets[i]


def test_of_many_classes_some_are_drawn_and_no_others_are_read():
    data = Many()
    sheet = samples(data, n=3)
    assert sheet.rows == tuple(f"class {i}" for i in range(40))
    assert data.loaded == [i + 100 * k for i in range(40) for k in range(3)]
    assert "40 of 100 classes; a Subset shows others" in sheet.legend.notes
    unnamed = samples([(torch.zeros(1, 2, 2), i) for i in range(100)])
    assert unnamed.rows == tuple(map(str, range(40)))
    assert "40 of 100 classes; a Subset shows others" in unnamed.legend.notes


def test_a_stream_of_many_classes_is_read_until_enough_are_full():
    class Stream(IterableDataset):
        classes = Many.classes
        read = 0

        def __iter__(self):
            for i in range(10_000):
                self.read += 1
                yield torch.zeros(1, 2, 2), 60 + i % 40 if i < 80 else i % 100

    stream = Stream()
    assert samples(stream, n=2).rows == Many.classes[60:]
    assert stream.read == 80


@pytest.mark.parametrize("kind", ["subset", "nested", "split", "array"])
def test_a_part_of_a_data_set_keeps_its_classes_and_reads_what_it_draws(kind):
    data = Folder()
    part = {
        "subset": lambda: Subset(data, [5, 1, 2, 4]),
        "nested": lambda: Subset(Subset(data, [0, 5, 1, 2, 4]), [1, 2, 3, 4]),
        "array": lambda: Subset(data, torch.tensor([5, 1, 2, 4]).numpy()),
        "split": lambda: random_split(data, [6, 0])[0],
    }[kind]()
    sheet = samples(part, n=1)
    assert sheet.rows == ("a", "b")
    assert len(data.loaded) == 2
    if kind != "split":
        assert rows_of(sheet) == {"a": [1], "b": [5]}
    changed = Subset(Folder(lambda t: 1 - t), [0, 5])
    assert rows_of(samples(changed)) == {"0": [5], "1": [0]}
    assert len(changed.dataset.loaded) == 2


def test_data_sets_one_after_another_keep_the_names_they_share():
    first, second = Folder(), Folder()
    assert rows_of(samples(ConcatDataset([Subset(first, [3]), second]), n=2)) == {"a": [0, 1], "b": [3, 3]}
    assert (first.loaded, second.loaded) == ([3], [0, 1, 3])
    second.classes = ("a", "c")
    assert samples(ConcatDataset([first, second])).rows == ("0", "1")
    first.target_transform = lambda t: 1 - t
    assert rows_of(samples(ConcatDataset([first, Folder()]), n=4)) == {"0": [3, 4, 5, 0], "1": [0, 1, 2, 3]}


def test_targets_that_are_fewer_than_items_are_left_alone():
    data = Folder()
    labels, data.targets = data.targets, [0]
    data.__class__ = type("Short", (Folder,), {"__getitem__": lambda self, i: (torch.zeros(1, 2, 2), labels[i])})
    assert samples(Subset(data, [5, 0]), n=1).rows == ("a", "b")


def test_large_images_are_drawn_smaller():
    sheet = samples([(torch.rand(3, 500, 400), i) for i in range(20)])
    assert sheet.cells.shape == (20, 3, 158, 126)
    assert "images of 500 × 400 pixels are drawn at 158 × 126" in sheet.legend.notes


def test_names_of_the_data_set_are_those_of_its_raw_targets():
    assert samples(Folder()).rows == ("a", "b")
    assert samples(Folder(torch.tensor)).rows == ("a", "b")
    assert rows_of(samples(Folder(lambda t: 1 - t))) == {"0": [3, 4, 5], "1": [0, 1, 2]}
    assert samples(Folder(lambda t: "xy"[t])).rows == ("x", "y")

    def odd(target):
        if target:
            return 0
        raise ValueError("no such target")

    with pytest.raises(ValueError, match="no such target"):
        samples(Folder(odd))


def test_targets_that_are_not_what_items_say_are_left_alone():
    class Relabelled(Folder):
        def __getitem__(self, i):
            image, _ = super().__getitem__(i)
            return image, i % 2

    assert rows_of(samples(Relabelled(), n=2)) == {"a": [0, 2], "b": [1, 3]}

    class Named(Folder):
        targets = property(lambda _: ["x", {}], lambda *_: None)

        def __getitem__(self, i):
            return torch.full((1, 2, 2), i / 10), i % 2

    assert rows_of(samples(Named(), n=1)) == {"a": [0], "b": [1]}


def test_forms_of_labels():
    pixels = [image for image, _ in images(0, 0, 0, 0)]
    words = samples(list(zip(pixels, ["dog", "cat", "dog", "emu"], strict=True)), n=2)
    assert rows_of(words) == {"cat": [1], "dog": [0, 2], "emu": [3]}
    faces = [{"image": image, "label": k} for image, k in zip(pixels, [1, 0, 1, 1], strict=True)]
    assert rows_of(samples(faces, n=2, classes=["o", "x"])) == {"o": [1], "x": [0, 2]}
    hot = [(image, torch.eye(2)[k], "path") for image, k in zip(pixels, [1, 0, 1, 1], strict=True)]
    assert rows_of(samples(hot, n=2)) == {"0": [1], "1": [0, 2]}


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
        (
            lambda: samples(torch.rand(4, 1, 8, 8)),
            DtypeError,
            r"pairs of an image and its class, got a tensor of shape \(4, 1, 8, 8\); fv.images\(batch, labels\) draws",
        ),
        (lambda: samples([]), ShapeError, "has no image of these classes"),
        (lambda: samples(images(0), n=0), OptionError, "n must be at least 1, got 0"),
        (
            lambda: samples(images(0, 2), classes=["a", "b"]),
            OptionError,
            "class 2 has no name, there are 2 names",
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
        (
            lambda: samples([*images(0), (torch.zeros(1, 4, 4), torch.zeros(4, 4))]),
            DtypeError,
            r"the label of item 1 is of shape \(4, 4\), a mask .* set a target_transform",
        ),
        (
            lambda: samples([*images(0), (torch.zeros(1, 4, 4), {"boxes": 0})]),
            DtypeError,
            "the label of item 1 is a dict of 'boxes'",
        ),
        (lambda: samples(iter([torch.zeros(1, 4, 4)])), DtypeError, "item 0 is a Tensor, not a pair"),
        (lambda: samples(images(0, "a")), OptionError, r"item 1 is 'a', earlier ones are \[0\]; pass classes="),
        (lambda: samples(images("a"), classes=["b"]), OptionError, "item 0 is 'a', which is not one of the 1 classes"),
        (lambda: samples([("x.png", 0)]), DtypeError, "must be a tensor or a Pillow image, got str"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
