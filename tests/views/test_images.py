import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.views import images
from torch_featviz.zoo import ModelCard

X = torch.arange(12).view(12, 1, 1, 1).expand(12, 1, 4, 4) / 12
CARD = ModelCard("any", nn.Identity, (1, 4, 4), classes=("cat", "dog"), mean=(0.5,), std=(0.25,))


def order(sheet):
    return [round(v * 12 / 255) for v in sheet.cells[:, 0, 0, 0].tolist()]


def test_a_batch_in_its_order_each_image_under_its_label():
    sheet = images(X, [5, 0, 4, 1, *range(8)])
    assert order(sheet) == list(range(12))
    assert sheet.labels[:5] == ("5", "0", "4", "1", "0")
    assert sheet.ncols == 10
    assert images(X).labels == ()
    assert images(X, ncols=3).ncols == 3


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 1],
        torch.tensor([1, 0, 1]),
        torch.eye(2)[[1, 0, 1]],
        ["dog", "cat", "dog"],
        torch.tensor([1, 0, 1]).numpy(),
    ],
    ids=["list", "tensor", "one-hot", "words", "array"],
)
def test_labels_of_any_form_by_number_or_name(labels):
    assert images(X[:3], labels, classes=["cat", "dog"]).labels == ("dog", "cat", "dog")
    assert images(X[:3], labels, card=CARD).labels == ("dog", "cat", "dog")


def test_a_batch_or_an_item_as_it_is_read():
    for batch in ((X[:3], torch.tensor([2, 0, 1])), {"image": X[:3], "label": [2, 0, 1]}):
        assert images(batch).labels == ("2", "0", "1")
        assert order(images(batch)) == [0, 1, 2]
    assert images((X[3], 7)).labels == ("7",)
    assert images([X[3], X[4]]).labels == ()
    assert order(images([X[3], X[4]])) == [3, 4]


@pytest.mark.parametrize("one", [X[2], X[2, 0], X[2].expand(3, 4, 4), Image.new("L", (4, 4), 42)])
def test_one_image_needs_neither_a_batch_nor_a_class(one):
    sheet = images(one)
    assert sheet.cells.shape == (1, 3, 4, 4)
    assert images(one, "a cat").labels == ("a cat",)
    assert images(one, 3, classes=("a", "b", "c", "d")).labels == ("d",)


def test_images_of_several_sizes_stand_in_the_middle_of_white():
    sheet = images([torch.zeros(1, 8, 4), Image.new("RGB", (4, 4), (255, 0, 0)), torch.zeros(2, 2)])
    assert sheet.cells.shape == (3, 3, 8, 4)
    assert (sheet.cells[0] == 0).all()
    red = sheet.cells[1].permute(1, 2, 0)
    assert (red[2:6] == torch.tensor([255, 0, 0])).all()
    assert (red[:2] == 255).all()
    assert (red[6:] == 255).all()
    assert (sheet.cells[2, :, 2:6] == 0).all(), "enlarged twice"
    assert "images of 3 sizes, each scaled to about the same" in sheet.legend.notes


def test_what_is_left_out_is_said_and_not_looked_at():
    x = torch.zeros(100, 1, 2, 2)
    x[64:] = float("nan")
    sheet = images(x, range(100))
    assert len(sheet.cells) == 64
    assert sheet.labels[-1] == "63"
    assert "the first 64 of 100 images; images(batch[64:]) draws the next" in sheet.legend.notes
    assert not sheet.legend.marks()


def test_a_range_is_declared_and_what_is_beyond_is_counted():
    assert images(X * 255, value_range="byte").cells.equal(images(X).cells)
    by_card = images(CARD.normalize(X), card=CARD).cells.int()
    assert (by_card - images(X).cells.int()).abs().max() <= 1, "rounded"
    wide = images(torch.full((1, 1, 2, 3), 2.0))
    assert wide.legend.counts.over == 6
    assert any("pass card=" in note for note in wide.legend.notes)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: images(X, [1, 2]), ShapeError, "labels must have 12 entries, one per image, got 2"),
        (lambda: images(X, 5), ShapeError, "labels must have 12 entries, one per image, got 5"),
        (lambda: images(X[:1], [7], card=CARD), OptionError, "class 7 has no name, there are 2 names"),
        (lambda: images(X[:2], [0.5, 1.0]), DtypeError, "label 0 is 0.5, not a class; pass a number or a text"),
        (lambda: images(X, ncols=0), OptionError, "ncols must be at least 1, got 0"),
        (lambda: images([]), ShapeError, "at least one image, got none"),
        (lambda: images(torch.zeros(0, 3, 4, 4)), ShapeError, "at least one image, got none"),
        (
            lambda: images(torch.zeros(5, 4, 4)),
            ShapeError,
            r"got shape \(5, 4, 4\); for grey images .* images\[:, None\]",
        ),
        (lambda: images(torch.zeros(2, 4, 8, 8)), ShapeError, r"'h w', '1 h w' or '3 h w', got shape \(4, 8, 8\)"),
        (lambda: images("cat.jpg"), DtypeError, "got str; .* PIL.Image.open an image of a file"),
        (lambda: images(X.numpy()), DtypeError, "got ndarray; torch.as_tensor makes a tensor of an array"),
        (lambda: images(["cat.jpg"]), DtypeError, "must be a tensor or a Pillow image, got str"),
        (lambda: images(TensorDataset(X)), DtypeError, r"fv.samples\(dataset\) draws the first images of each class"),
        (lambda: images(X, value_range="float"), OptionError, "value_range must be one of"),
        (lambda: images(X, card="alexnet"), OptionError, "card must be a ModelCard"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
