"""Images that cannot be read are left out of a pass, counted and named; the numbers of the others stay right."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torch_featviz.errors import FeatvizWarning, FileError, ShapeError
from torch_featviz.survey import top_patches
from torch_featviz.zoo import ImageFiles, ModelCard


class Torn(Dataset):
    """Image `i` is bright to the degree of its number; some cannot be read, and one breaks the pass."""

    def __init__(self, count, torn, stop=None):
        self.count, self.torn, self.stop, self.read = count, torn, stop, []

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.torn:
            raise OSError(f"file {i} is torn")
        if i == self.stop:
            raise RuntimeError("the disk is gone")
        self.read.append(i)
        return torch.full((1, 4, 4), (i * 7 % 11) + 1.0), i


def passed(data, **options):
    return nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False), DataLoader(data, **{"batch_size": 4, **options})


def by_hand(count, torn, k):
    return sorted((i for i in range(count) if i not in torn), key=lambda i: (-(i * 7 % 11), i))[:k]


def look(data, resume=None, every=None, **options):
    net, loader = passed(data, **options)
    nn.init.ones_(net.weight)
    return top_patches(net, loader, "", k=5, resume=resume, every=every)


@pytest.mark.parametrize("torn", [{2}, {0, 1, 2, 3}, {5, 9, 10}, {9}])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_others_keep_their_numbers(torn, workers):
    few = "; ".join(f"{i}: file {i} is torn" for i in sorted(torn)[:3])
    with pytest.warns(FeatvizWarning, match=f"^{len(torn)} images cannot be read and are left out: {few}") as told:
        best = look(Torn(11, torn), num_workers=workers)
    assert [warning.category for warning in told].count(FeatvizWarning) == 1  # Python 3.12 warns of each fork, too
    assert best.seen == 11 - len(torn)
    assert best.images[0].tolist() == by_hand(11, torn, 5)
    assert best.left_out == {i: f"file {i} is torn" for i in sorted(torn)}
    assert best.patches(0).images[0, 0].unique().item() == best.values[0, 0].item()


def test_a_sampler_of_some_images():
    with pytest.warns(FeatvizWarning, match="1 images cannot be read and are left out: 4: file 4 is torn"):
        best = look(Torn(11, {4, 5}), sampler=[1, 4, 6, 7, 10])
    assert best.images[0].tolist() == [6, 1, 7, 10, -1]


@pytest.mark.parametrize("torn", [{1}, {1, 9}, {0, 1, 2, 3}])
def test_a_resumed_pass_remembers_them(tmp_path, torn):
    with pytest.raises(RuntimeError, match="the disk is gone"):
        look(Torn(19, torn, stop=16), resume=tmp_path / "state.pt", every=1)
    again = Torn(19, torn)
    with pytest.warns(FeatvizWarning, match=f"{len(torn)} images cannot be read"):
        best = look(again, resume=tmp_path / "state.pt", every=1)
    assert not set(again.read) & set(range(8, 12))  # of what was done, the first and the last batch are compared
    assert best.images[0].tolist() == by_hand(19, torn, 5)
    assert best.seen == 19 - len(torn)


def test_no_image_at_all():
    with pytest.raises(ShapeError, match=r"loader yields no images \(5 cannot be read: file 0 is torn\)"):
        look(Torn(5, set(range(5))))


def test_a_download_cut_short_in_a_folder(tmp_path):
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.jpg")
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) // 2])
    files = ImageFiles(tmp_path, ModelCard("a", nn.Identity, (1, 8, 8)).preprocess)
    with pytest.raises(FileError, match=r"cannot read image '.*3\.jpg'"):
        files[3]
    with pytest.warns(FeatvizWarning, match=r"1 images cannot be read and are left out: 3: .* '.*3\.jpg'"):
        best = look(files)
    assert (best.seen, set(best.left_out)) == (5, {3})
    assert 3 not in best.images
