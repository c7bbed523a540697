"""Corrupt files in a data set end no pass: they are left out, and the result, the sheet and the page name them."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import torch_featviz as fv
from torch_featviz.errors import FeatvizWarning, ShapeError

TORN = {1: "a.jpg", 4: "b.jpg", 7: "c.jpg"}
LINE = "3 files could not be read: a.jpg, b.jpg, c.jpg"
NAMES = [TORN.get(i, f"{i}.png") for i in range(10)]


@contextmanager
def told():
    """One warning with the reasons, at the line of the caller."""
    with pytest.warns(FeatvizWarning, match=r"^3 images cannot be read and are left out: 1: .*a\.jpg") as warned:
        yield
    assert [each.filename for each in warned] == [__file__]


class Folder(Dataset):
    """Images and classes, as torchvision's ImageFolder has them."""

    classes = ("even", "odd")

    def __init__(self, folder, labelled=True):
        self.samples = [(str(folder / name), i % 2) for i, name in enumerate(NAMES)]
        self.targets, self.labelled = [i % 2 for i in range(10)], labelled

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        path, label = self.samples[i]
        image = fv.zoo.read_image(path)
        return (image, label) if self.labelled else image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for i, name in enumerate(NAMES):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path / name)
        if i in TORN:
            (path / name).write_bytes((path / name).read_bytes()[:-200])
    return path


def whole(folder):
    """The others, read by hand."""
    kept = [i for i in range(10) if i not in TORN]
    arrays = [np.asarray(Image.open(folder / NAMES[i]), dtype=np.float32) / 255 for i in kept]
    return torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2), torch.tensor([i % 2 for i in kept])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()


@pytest.mark.parametrize("shuffle", [False, True])
def test_evaluate(folder, shuffle):
    with told():
        found = fv.zoo.evaluate(net(), DataLoader(Folder(folder), 2, shuffle=shuffle))
    expected = fv.zoo.evaluate(net(), DataLoader(TensorDataset(*whole(folder)), 7))
    assert found.confusion.equal(expected.confusion)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert [*found.left_out] == [*TORN]
    assert found.unread == LINE
    assert repr(found).endswith(f"; {LINE})")
    assert LINE in found._repr_html_()
    if not shuffle:
        torch.testing.assert_close(found.logits, expected.logits)
    assert (expected.left_out, expected.unread) == ({}, "")


def test_nothing_but_torn_files(folder):
    torn = torch.utils.data.Subset(Folder(folder), sorted(TORN))
    with pytest.raises(ShapeError, match=rf"at least one batch, got none \({LINE}\)"):
        fv.zoo.evaluate(net(), DataLoader(torn, 2))
    with pytest.raises(ShapeError, match=rf"at least one image, got none \({LINE}\)"):
        fv.channel_stats(torn)
    with pytest.raises(ShapeError, match=rf"no image of these classes \({LINE}\)"):
        fv.samples(torn)


@pytest.mark.parametrize("as_loader", [False, True])
def test_channel_stats(folder, as_loader):
    data = Folder(folder)
    with told():
        mean, std = fv.channel_stats(DataLoader(data, 3) if as_loader else data)
    pixels = whole(folder)[0].double()
    torch.testing.assert_close(mean, pixels.mean((0, 2, 3)))
    torch.testing.assert_close(std, pixels.std((0, 2, 3), correction=0))


@pytest.mark.parametrize("listed", [False, True])
def test_samples(folder, listed):
    data = Folder(folder)
    if not listed:
        data.targets = None
    with told():
        sheet = fv.samples(data)
    assert LINE in sheet.legend.notes
    even = [image for image, label in zip(*whole(folder), strict=True) if label == 0]
    assert len(sheet.cells) == 8
    assert len(sheet.empty) == 8 - 7
    torch.testing.assert_close(sheet.cells[: len(even)].float() / 255, torch.stack(even), atol=1 / 255, rtol=0)


def test_compare(folder):
    with told():
        found = fv.compare({"net": net()}, DataLoader(Folder(folder), 2), rounds=1)
    assert found.examples == 7


def test_top_patches_and_their_sheet(folder):
    with told():
        best = fv.top_patches(net(), DataLoader(Folder(folder), 2), "0", k=2)
    assert best.seen == 7
    assert best.unread == LINE
    assert repr(best).endswith(f", {LINE})")
    assert LINE in fv.exemplars(best, [0, 1]).legend.notes
    assert LINE in best._repr_html_()
    assert best.patches(0).unread == LINE


def test_the_page(folder):
    with told():
        page = fv.atlas(net(), whole(folder)[0][:1], loader=DataLoader(Folder(folder, labelled=False), 2), methods=[])
    assert f"Patches of the data set: {LINE}." in page.left_out
