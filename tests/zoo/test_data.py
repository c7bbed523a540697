from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from torch_featviz.errors import DtypeError, FileError, OptionError, ShapeError, WeightsError
from torch_featviz.zoo import XO, augment_marks, channel_stats, cifar10, data, mnist, write_image_folder


@pytest.mark.parametrize(("split", "size"), [("train", 1700), ("valid", 150), ("test", 150)])
def test_splits_are_balanced(split, size, monkeypatch):
    monkeypatch.setattr(data, "draw_mark", lambda label, rng: np.full((116, 116), label, dtype=np.uint8))
    marks = XO(split)
    labels = [marks[i][1] for i in range(len(marks))]
    assert len(marks) == size
    assert sum(labels) == size // 2
    with pytest.raises(IndexError):
        marks[size]


def test_splits_are_disjoint():
    numbers = [i for split in data.SPLITS.values() for i in split]
    assert sorted(numbers) == list(range(2000))
    tests, valids = (
        {image.numpy().tobytes() for image, _ in map(XO(s).__getitem__, range(40))} for s in ("test", "valid")
    )
    assert len(tests | valids) == 80


def test_pictures_do_not_depend_on_the_order():
    forward, backward = XO("test", 3), XO("test", 3)
    ahead = [forward[i][0] for i in range(12)]
    back = [backward[i][0] for i in reversed(range(12))]
    assert all(torch.equal(a, b) for a, b in zip(ahead, reversed(back), strict=True))
    assert not torch.equal(XO("test", 4)[0][0], ahead[0])


def test_pictures_are_grey_and_never_blank():
    marks = XO("valid", 1)
    for i in range(100):
        image, label = marks[i]
        assert (image.shape, image.dtype) == ((1, 116, 116), torch.float32)
        assert image.min() >= 0
        assert image.max() <= 1
        assert image.max() - image.min() > 0.25
        assert label == i % 2


def test_changing_a_picture_does_not_change_the_next():
    marks = XO("test")
    marks[0][0].zero_()
    assert marks[0][0].any()


@pytest.mark.parametrize(
    ("options", "match"), [(("dev",), "split must be one of"), (("test", -1), "seed must be 0 or above")]
)
def test_xo_refuses(options, match):
    with pytest.raises(OptionError, match=match):
        XO(*options)


def test_image_folder_round_trip(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SPLITS", {"train": range(6), "valid": range(6, 8), "test": range(8, 12)})
    root = write_image_folder(tmp_path / "deep" / "xo", seed=5)
    assert [p.name for p in root.parent.iterdir()] == ["xo"]
    for split in ("train", "valid", "test"):
        folder, marks = ImageFolder(root / split), XO(split, 5)
        assert folder.classes == ["circle", "cross"]
        assert len(folder) == len(marks)
        assert sorted(p.name for p in root.glob(f"{split}/*/*"))[0] == "0000.png"
        pictures = {to_tensor(image.convert("L")).numpy().tobytes(): label for image, label in folder}
        assert pictures == {marks[i][0].numpy().tobytes(): marks[i][1] for i in range(len(marks))}


def test_image_folder_refuses(tmp_path):
    with pytest.raises(FileError, match="exists already; choose a new folder"):
        write_image_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot write"):
        write_image_folder(tmp_path / "file" / "xo")


def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch):
    def full(folder, marks):
        raise OSError("disk full")

    monkeypatch.setattr(data, "_write_split", full)
    with pytest.raises(FileError, match="disk full"):
        write_image_folder(tmp_path / "xo")
    assert not list(tmp_path.iterdir())


def test_augmented_marks_stay_in_range_and_leave_the_input():
    images = torch.rand(5, 1, 20, 20)
    before = images.clone()
    torch.manual_seed(1)
    out = augment_marks(images)
    torch.manual_seed(1)
    assert torch.equal(out, augment_marks(images))
    assert out.shape == images.shape
    assert out.min() >= -1e-6
    assert out.max() <= 1 + 1e-6
    assert torch.equal(images, before)
    assert not torch.equal(out, before)


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_channel_stats_against_numpy(batch):
    images = torch.rand(50, 3, 6, 5) * torch.tensor([1.0, 5, 0.1])[:, None, None] + 100
    mean, std = channel_stats(DataLoader(TensorDataset(images, torch.zeros(50)), batch))
    stacked = images.double().numpy()
    np.testing.assert_allclose(mean, stacked.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, stacked.std((0, 2, 3)), rtol=1e-9)


def test_channel_stats_of_a_data_set_and_of_images_of_many_sizes():
    sized = [torch.rand(2, n, 7) for n in range(1, 9)]
    flat = torch.cat([s.flatten(1) for s in sized], 1).double().numpy()
    mean, std = channel_stats(sized)
    np.testing.assert_allclose(mean, flat.mean(1))
    np.testing.assert_allclose(std, flat.std(1))
    images = torch.rand(9, 3, 4, 4)
    torch.testing.assert_close(channel_stats(TensorDataset(images)), channel_stats(DataLoader(images, 4)))


def test_channel_stats_of_broken_pixels_are_no_numbers():
    images = torch.rand(4, 3, 2, 2)
    images[1, 0, 0, 0], images[2, 2, 1, 1] = torch.nan, torch.inf
    for figure, whole in zip(channel_stats(images), channel_stats(images[[0, 3]]), strict=True):
        assert figure.isnan().tolist() == [True, False, True]
        assert whole.isfinite().all()


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(1, 2, 2), 0), (torch.full((1, 2, 2), 2.0), 1)])


def test_channel_stats_of_a_stream():
    assert [t.tolist() for t in channel_stats(Stream())] == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("items", "error", "match"),
    [
        ([], ShapeError, "at least one image, got none"),
        ([torch.rand(3, 2, 2), torch.rand(1, 2, 2)], ShapeError, "must have 3 channels, got one with 1"),
        ([torch.rand(4, 4)], ShapeError, r"not empty, got shape \(4, 4\)"),
        ([("picture", 1)], DtypeError, "must be tensors, got str; pass transform=to_tensor"),
    ],
)
def test_channel_stats_refuses(items, error, match):
    with pytest.raises(error, match=match):
        channel_stats(items)


@pytest.mark.parametrize(("get", "name"), [(cifar10, "CIFAR10"), (mnist, "MNIST")])
def test_data_that_is_nowhere(tmp_path, monkeypatch, get, name):
    with pytest.raises(WeightsError, match=f"no {name} in .*; pass download=True"):
        get(tmp_path)

    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(WeightsError, match=f"(?s)no {name} in .*; pass download=True if there is a network, or copy"):
        get(tmp_path, download=True)
