import random
import time

import numpy as np
import pytest
import torch
from PIL import Image

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.picture import rgb
from torch_featviz.views import augmentations
from torch_featviz.zoo import ModelCard

IMAGE = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))


def noise(image):
    return (image + 0.2 * torch.rand(image.shape)).clamp(0, 1)


def flip(image):
    return image.flip(2)


def test_a_row_for_each_transform_with_the_original_and_its_draws():
    sheet = augmentations(IMAGE, {"mirrored": flip, "noise": noise}, n=3, seed=5, times=False)
    assert sheet.rows == ("mirrored", "noise")
    assert sheet.columns == ("original", "draw 1", "draw 2", "draw 3")
    cells = sheet.cells.unflatten(0, (2, 4))
    assert torch.equal(cells[:, 0], rgb(IMAGE[None]).expand(2, -1, -1, -1))
    assert torch.equal(cells[0, 1:], rgb(IMAGE.flip(2)[None]).expand(3, -1, -1, -1))
    for i in range(3):
        torch.manual_seed(5 + i)
        assert torch.equal(cells[1, 1 + i], rgb(noise(IMAGE)[None])[0])
    assert not torch.equal(cells[1, 1], cells[1, 2])
    assert sheet.png() == augmentations(IMAGE, {"mirrored": flip, "noise": noise}, n=3, seed=5, times=False).png()


def test_the_time_of_a_call_is_its_median(monkeypatch):
    spent = iter([3, 1, 40, 2, 2])

    def slow(image):
        if slow.warm:
            clock[0] += next(spent) / 1000
        slow.warm = True
        return image

    slow.warm, clock = False, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    sheet = augmentations(IMAGE, {"slow": slow}, n=2)
    assert sheet.rows == ("slow, 2 ms",)
    assert "ms: median time of 5 calls on this machine (cpu)" in sheet.legend.notes


def test_generators_and_the_image_are_as_they_were():
    def wild(image):
        np.random.rand()
        random.random()
        return image.mul_(torch.rand(()))

    before, states = IMAGE.clone(), (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    augmentations(IMAGE, [wild])
    assert torch.equal(IMAGE, before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_batches_bytes_and_pillow_images():
    shape = []

    def batched(images):
        _b, _, _, _ = images.shape
        shape.append(images.shape)
        return images.flip(3)

    sheet = augmentations(IMAGE[None], [batched], n=1)
    assert torch.equal(sheet.cells[1], rgb(IMAGE.flip(2)[None])[0])
    assert set(shape) == {(1, 3, 6, 8)}
    data = (IMAGE * 255).byte()
    assert torch.equal(augmentations(data, [flip], n=1).cells, torch.stack([data, data.flip(2)]))
    pillow = Image.fromarray(data.permute(1, 2, 0).numpy())
    turned = augmentations(pillow, {"turned": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}, n=1)
    assert torch.equal(turned.cells, torch.stack([data, data.flip(2)]))
    to_tensor = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(augmentations(pillow, [to_tensor], n=1).cells[1], data)


def test_images_of_other_sizes_stand_in_the_middle_on_light_grey():
    sheet = augmentations(IMAGE, [lambda image: image[:, :4, :2]], n=1)
    part = sheet.cells[1]
    assert torch.equal(part[:, 1:5, 3:5], rgb(IMAGE[None, :, :4, :2])[0])
    part = part.clone()
    part[:, 1:5, 3:5] = 225
    assert (part == 225).all()
    assert "light grey: beyond the border of a smaller image" in sheet.legend.notes


def test_ranges_and_what_leaves_them():
    card = ModelCard("any", torch.nn.Identity, (3, 6, 8), mean=(0.5,), std=(0.2,))
    known = augmentations(card.normalize(IMAGE), [flip], n=1, card=card)
    assert torch.equal(known.cells, augmentations(IMAGE, [flip], n=1).cells)
    beyond = augmentations(IMAGE, [lambda image: image * 2], n=2)
    assert beyond.legend.counts.over == 2 * int((IMAGE * 2 > 1).any(0).sum())
    assert "pass card=" in " ".join(beyond.legend.notes)


def test_names_of_a_list():
    class Blur:
        def __call__(self, image):
            return image

    assert augmentations(IMAGE, [flip, Blur(), Blur(), flip], times=False).rows == (
        "flip",
        "Blur",
        "Blur #2",
        "flip #2",
    )
    assert augmentations(IMAGE, flip, times=False).rows == ("flip",)


def test_no_sheet_is_wider_or_higher_than_4000():
    ways = {f"a long name of a transform {'x' * 100} {i}": lambda image: image for i in range(24)}
    sheet = augmentations(torch.rand(1, 200, 300), ways, n=16)
    assert max(sheet.numpy().shape[:2]) <= 4000


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"n": 0}, OptionError, "n must be from 1 to 16, got 0"),
        ({"transforms": {}}, OptionError, "transforms must be from 1 to 24, got 0"),
        ({"transforms": [flip] * 25}, OptionError, "got 25"),
        ({"transforms": {"a": 1}}, DtypeError, "transform 'a' must be a function of an image, got int"),
        (
            {"transforms": {"crooked": lambda image: image.rotate(3)}},
            OptionError,
            r"transform 'crooked' failed on a tensor \(3, 6, 8\): AttributeError: .*; pass the image as it takes it",
        ),
        (
            {"transforms": {"flip": lambda image: image.flip(2)}, "image": Image.new("RGB", (4, 4))},
            OptionError,
            "transform 'flip' failed on a Pillow image: AttributeError",
        ),
        (
            {"transforms": {"all": lambda image: image.mean()}},
            ShapeError,
            "transform 'all' must return an image: an image",
        ),
        (
            {"transforms": {"none": lambda image: None}},
            DtypeError,
            "transform 'none' must return an image: .* NoneType",
        ),
        (
            {"transforms": {"at times": lambda image, left=[1, 1, 1]: image.flip(left.pop())}},
            OptionError,
            "transform 'at times' failed at draw 3: IndexError: pop from empty list; it must take this image whatever",
        ),
        ({"image": torch.rand(2, 3, 4, 4)}, ShapeError, "an image must be 'h w'"),
        ({"image": "cat.jpg"}, DtypeError, "an image must be a tensor or a Pillow image, got str"),
        ({"value_range": "float"}, OptionError, "value_range must be one of"),
    ],
)
def test_bad_input_says_what_to_do(change, error, match):
    with pytest.raises(error, match=match):
        augmentations(**{"image": IMAGE, "transforms": [flip], **change})
