from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from torch_featviz.errors import DtypeError, ShapeError
from torch_featviz.model.inputs import Inputs, as_batch, batch_of, check_images, placement

IMAGES = torch.arange(12.0).view(4, 3)
BY_IMAGE = torch.arange(8).view(4, 2)
WHOLE = torch.arange(6).view(2, 3)


def given():
    return Inputs.of(IMAGES, (BY_IMAGE, 7, WHOLE), {"more": {"a": [BY_IMAGE + 1, WHOLE]}, "flag": True})


def test_what_users_write_becomes_positions_and_names():
    assert Inputs.of(IMAGES).positional == (IMAGES,)
    assert Inputs.of(IMAGES, 3).positional == (IMAGES, 3)
    assert Inputs.of(IMAGES, [1, 2]).positional == (IMAGES, [1, 2])
    assert Inputs.of(IMAGES, (1, 2)).positional == (IMAGES, 1, 2)
    assert Inputs.of(IMAGES, None, {"meta": 5}).named == {"meta": 5}


def test_a_batch_may_be_a_tensor_a_tuple_or_keywords():
    assert Inputs.of_batch(IMAGES).positional == (IMAGES,)
    assert Inputs.of_batch([IMAGES, 2]).positional == (IMAGES, 2)
    named = Inputs.of_batch({"pixel_values": IMAGES, "labels": BY_IMAGE})
    assert named.positional == ()
    assert list(named.named) == ["pixel_values", "labels"]
    assert named.at(IMAGES * 2, slice(None)).named["pixel_values"].equal(IMAGES * 2)


@pytest.mark.parametrize("batch", [3, [], {}, [3], {"a": 3}, None])
def test_a_batch_that_begins_with_no_tensor(batch):
    with pytest.raises(DtypeError, match=r"or a tuple or mapping that begins with one; got \w+"):
        Inputs.of_batch(batch)


@pytest.mark.parametrize("which", [slice(1, 3), torch.tensor([3, 0, 0]), torch.tensor([2])])
def test_rows_go_with_their_images_and_the_rest_with_all(which):
    rows = given().rows(which)
    image, first, number, whole = rows.positional
    assert image.equal(IMAGES[which])
    assert first.equal(BY_IMAGE[which])
    assert number == 7
    assert whole.equal(WHOLE)
    assert rows.named["more"]["a"][0].equal(BY_IMAGE[which] + 1)
    assert rows.named["more"]["a"][1].equal(WHOLE)
    assert rows.named["flag"] is True


def test_a_part_as_long_as_another_tensor_does_not_change_what_goes_by_rows():
    two = given().rows(slice(2))  # as long as WHOLE
    assert two.rows(slice(1)).positional[3].equal(WHOLE)
    assert two.by_row
    assert not Inputs.of(IMAGES, WHOLE).by_row


def test_copies_share_no_memory():
    inputs = given()
    copied = inputs.copied()
    copied.images.zero_()
    copied.named["more"]["a"][0].zero_()
    assert IMAGES.sum() == 66
    assert BY_IMAGE.sum() == 28
    assert inputs.named["more"]["a"][0].sum() == 36


def test_images_are_batches_of_floats():
    check_images(torch.rand(1, 3, 4, 4))
    check_images(torch.rand(1, 3, 4), (3, 4, 5))
    with pytest.raises(DtypeError, match=r"tensor of floats as the model takes them, got torch\.int64"):
        check_images(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(DtypeError, match="got list"):
        check_images([1])
    with pytest.raises(ShapeError, match=r"got shape \(3, 4, 4\); add a batch axis with images\[None\]"):
        check_images(torch.rand(3, 4, 4))
    with pytest.raises(ShapeError, match=r"not empty, got shape \(0, 3, 4, 4\)\.$"):
        check_images(torch.rand(0, 3, 4, 4))


FLAT = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))


@pytest.mark.parametrize(
    ("model", "shape", "one"),
    [
        (nn.Conv2d(3, 4, 3), (3, 8, 8), True),
        (nn.Sequential(nn.Identity(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), (3, 8, 8), True),
        (nn.ModuleDict({"a": nn.Conv2d(1, 4, 3)}), (1, 8, 8), True),
        (FLAT, (3, 4, 4), True),
        (FLAT, (1, 6, 8), True),
        (nn.Conv2d(1, 4, 3), (5, 8, 8), False),  # a model that makes the channel axis itself, of a batch
        (nn.Conv1d(3, 4, 3), (3, 3, 8), False),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Conv2d(3, 4, 3)), (3, 3, 8), False),
        (nn.Linear(8, 2), (5, 3, 8), False),
        (nn.Linear(8, 2), (1, 1, 8), False),
        (nn.LSTM(8, 2), (5, 3, 8), False),
        (nn.ReLU(), (3, 8, 8), False),
        (nn.Conv2d(3, 4, 3), (2, 3, 8, 8), False),
    ],
)
def test_one_image_becomes_a_batch_where_the_first_layer_takes_it(model, shape, one):
    images = torch.rand(shape)
    batch = batch_of(model, images)
    assert batch.shape == ((1, *shape) if one else shape)
    assert batch.data_ptr() == images.data_ptr()


@pytest.mark.parametrize(
    ("images", "hint"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"got torch.uint8; bytes are made floats by images.float\(\) / 255"),
        ("cat.jpg", "got str; fv.zoo.read_image opens a file, and card.preprocess makes"),
        (Path("cat.jpg"), "fv.zoo.read_image opens a file"),
        (torch.zeros(1).numpy(), "got ndarray; torch.from_numpy makes a tensor of an array"),
        (Image.new("RGB", (4, 4)), "fv.zoo.from_pil of a Pillow image"),
        ([torch.zeros(3, 4, 4)], r"got list; torch.stack\(images\) makes a batch of images"),
        (nn.ReLU(), r"got ReLU\.$"),
    ],
)
def test_what_is_no_tensor_of_images_is_answered_with_what_makes_one(images, hint):
    for check in (check_images, as_batch):
        with pytest.raises(DtypeError, match=hint):
            check(images)


def test_where_a_models_inputs_belong():
    assert placement(torch.nn.Linear(2, 2).half()) == {"device": torch.device("cpu"), "dtype": torch.float16}
    assert placement(torch.nn.Linear(2, 2, device="meta"))["device"] == torch.device("meta")
    assert placement(torch.nn.ReLU()) == {"device": torch.device("cpu"), "dtype": torch.float32}
