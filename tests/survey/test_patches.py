"""top_patches against a pass that keeps every map and sorts with numpy; the second pass against slices cut by hand."""

import copy
import os
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from torch_featviz.errors import DtypeError, FileError, LayerError, OptionError, ShapeError
from torch_featviz.explain.deconvnet import deconvnet
from torch_featviz.survey import read_patches, top_patches

LAYER, K = "3", 9
DEAD = 2


def build():
    """Whole numbers throughout: sums are exact however they are batched, and ties are many."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2)
        net = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(96, 3))
    numbers = torch.Generator().manual_seed(0)
    for layer in (net[0], net[2]):
        layer.weight.data = torch.randint(-2, 3, layer.weight.shape, generator=numbers).float()
        layer.bias.data = torch.randint(-2, 3, layer.bias.shape, generator=numbers).float()
    net[2].weight.data[DEAD], net[2].bias.data[DEAD] = 0, -1
    return net


def pictures(n=2000):
    return torch.randint(0, 4, (n, 2, 9, 9), generator=torch.Generator().manual_seed(1)).float()


def by_hand(images, k=K):
    """All maps kept; each channel's images sorted by their highest value, then by number."""
    with torch.no_grad():
        maps = build()[:4](images).numpy()
    n, c, _, w = maps.shape
    highest = maps.reshape(n, c, -1).max(2)
    values, numbers, places = np.full((c, k), np.nan), np.full((c, k), -1), np.full((c, k, 2), -1)
    for channel in range(c):
        for i, number in enumerate(sorted(range(n), key=lambda x: (-highest[x, channel], x))[:k]):
            values[channel, i], numbers[channel, i] = highest[number, channel], number
            places[channel, i] = divmod(int(maps[number, channel].ravel().argmax()), w)
    return values, numbers, places


def agrees(best, expected):
    for found, wanted in zip((best.values, best.images, best.places), expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)


def loader(images, **options):
    labels = torch.arange(len(images))
    return DataLoader(TensorDataset(images, labels), **{"batch_size": 64, **options})


class Watched(Dataset):
    """Notes which images are read, and fails at one."""

    def __init__(self, images, fail_at=None):
        self.images, self.fail_at, self.read = images, fail_at, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i == self.fail_at:
            raise RuntimeError("the disk is gone")
        self.read.append(i)
        return self.images[i], i


def test_equals_brute_force():
    images = pictures()
    best = top_patches(build(), loader(images), LAYER, k=K)
    expected = by_hand(images)
    assert (expected[0][:, 1:] == expected[0][:, :-1]).any(), "there are ties"
    agrees(best, expected)
    assert (best.dead, best.seen, best.layer, best.size) == ((DEAD,), 2000, LAYER, (2, 9, 9))
    assert best.images[DEAD].tolist() == list(range(K)), "equal ones, lowest first"


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"num_workers": 2}, {"batch_size": 2000}], ids=str)
def test_however_it_is_batched(options):
    images = pictures(300)
    agrees(top_patches(build(), loader(images, **options), LAYER), by_hand(images))


def test_any_iterable_of_batches():
    images = pictures(100)
    expected = by_hand(images, 4)
    agrees(top_patches(build(), images.split(30), LAYER, k=4), expected)
    agrees(top_patches(build(), ([batch, "label"] for batch in images.split(30)), LAYER, k=4, progress=True), expected)


def test_numbers_are_those_of_the_dataset():
    images, some = pictures(100), [3, 4, 40, 41, 90]
    best = top_patches(build(), loader(images, sampler=some, batch_size=2), LAYER, k=3)
    values, numbers, places = by_hand(images[some], 3)
    agrees(best, (values, np.array(some)[numbers], places))


def test_a_layer_as_a_module_a_wrapped_model_and_a_last_batch_dropped():
    images, net = pictures(100), build()
    expected = by_hand(images[:64])
    agrees(top_patches(net, loader(images, drop_last=True), net[3]), expected)
    agrees(top_patches(nn.DataParallel(net), loader(images, drop_last=True), LAYER), expected)


def test_fewer_images_than_hits():
    images = pictures(4)
    best = top_patches(build(), loader(images), LAYER, k=6)
    agrees(best, by_hand(images, 6))
    assert best.values[:, 4:].isnan().all()
    found = best.patches([0, DEAD])
    assert not found.inside[:, 4:].any()
    assert not found.inside[1].any(), "nothing moved a dead unit"


@pytest.mark.parametrize("every", [1, 3])
def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, every):
    images, file = pictures(500), tmp_path / "new" / "state.pt"
    torn, whole = Watched(images, fail_at=300), Watched(images)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        top_patches(build(), DataLoader(torn, 32), LAYER, resume=file, every=every)
    best = top_patches(build(), DataLoader(whole, 32), LAYER, resume=file, every=every)
    agrees(best, by_hand(images))
    assert best.seen == 500
    assert whole.read == [*range(32), *range(8 * 32, 500)], "of what was done, two batches are compared"
    assert os.listdir(file.parent) == ["state.pt"]
    again = Watched(images)
    agrees(top_patches(build(), DataLoader(again, 32), LAYER, resume=file), by_hand(images))
    assert again.read == [*range(32), *range(15 * 32, 500)]


def test_an_interrupted_pass_with_workers(tmp_path):
    images, file = pictures(200), tmp_path / "state.pt"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        top_patches(build(), DataLoader(Watched(images, 150), 16, num_workers=2), LAYER, resume=file, every=2)
    agrees(top_patches(build(), DataLoader(Watched(images), 16, num_workers=2), LAYER, resume=file), by_hand(images))


def test_an_interrupted_pass_over_an_iterable(tmp_path):
    images, file = pictures(200), tmp_path / "state.pt"

    def torn():
        yield from images.split(32)[:4]
        raise RuntimeError("the net is gone")

    with pytest.raises(RuntimeError, match="the net is gone"):
        top_patches(build(), torn(), LAYER, resume=file, every=2)
    changed = list(images.split(32))
    changed[1] = changed[1].flip(3)
    for other, why in ((changed, "batch 1 has other values now"), (changed[:1], "4 batches, where there are 1 now")):
        with pytest.raises(OptionError, match=f"belongs to a pass over other images: {why}"):
            top_patches(build(), other, LAYER, resume=file)
    agrees(top_patches(build(), images.split(32), LAYER, resume=file), by_hand(images))


def test_a_file_that_is_not_of_this_pass(tmp_path):
    images, file, net = pictures(40), tmp_path / "state.pt", build()
    top_patches(net, loader(images), LAYER, resume=file)
    for options, match in (
        (
            {"layer": "2"},
            r"belongs to another pass \(layers=\['3'\], not \['2'\]\); delete it, or give resume= another name\.",
        ),
        ({"layer": LAYER, "k": 3}, "k=9, not 3"),
    ):
        with pytest.raises(OptionError, match=match):
            top_patches(net, loader(images), **options, resume=file)
    with pytest.raises(OptionError, match="batch_size=64, not 8"):
        top_patches(net, loader(images, batch_size=8), LAYER, resume=file)
    with pytest.raises(OptionError, match="images=40, not 39"):
        top_patches(net, loader(images[1:]), LAYER, resume=file)
    net[0].bias.data[0] += 1
    with pytest.raises(OptionError, match="weights="):
        top_patches(net, loader(images), LAYER, resume=file)
    file.write_bytes(b"something")
    with pytest.raises(FileError, match=r"cannot be read .*; delete it, or give resume= another name"):
        top_patches(net, loader(images), LAYER, resume=file)
    torch.save({"a": 1}, file)
    with pytest.raises(FileError, match="is not a resume file of top_patches"):
        top_patches(net, loader(images), LAYER, resume=file)
    torch.save({"format": "torch_featviz top patches 1", "what": {"layer": LAYER}, "state": {}}, file)
    with pytest.raises(FileError, match=r"another version of torch_featviz \(format 1, this one reads 4\); delete it"):
        top_patches(net, loader(images), LAYER, resume=file)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot write .*; choose a folder you may write to"):
        top_patches(build(), loader(pictures(10)), LAYER, resume=tmp_path / "file" / "state.pt")


def test_what_is_cut_is_what_the_unit_sees():
    """The receptive field of layer 3 by the formula: r = 5, j = 2, s0 = -1."""
    images, net = pictures(60), build()
    data = Watched(images)
    best = top_patches(net, DataLoader(data, 16), LAYER, k=4)
    data.read.clear()
    found = best.patches([5, 0])
    assert found.images.shape == found.projections.shape == (2, 4, 2, 5, 5)
    assert sorted(set(data.read)) == data.read == sorted(set(best.images[[5, 0]].flatten().tolist()))
    cut_short = 0
    for n, channel in enumerate((5, 0)):
        for i in range(4):
            image = images[best.images[channel, i]]
            row, column = best.places[channel, i].tolist()
            down = deconvnet(net, image[None], LAYER, [(channel, row, column)])[0]
            assert down.any()
            for y in range(5):
                for x in range(5):
                    at_y, at_x = row * 2 - 1 + y, column * 2 - 1 + x
                    here = 0 <= at_y < 9 and 0 <= at_x < 9
                    cut_short += not here
                    assert found.inside[n, i, y, x] == here
                    for part, full in ((found.images, image), (found.projections, down)):
                        expected = full[:, at_y, at_x] if here else torch.zeros(2)
                        torch.testing.assert_close(part[n, i, :, y, x], expected)
    assert cut_short


def test_several_layers_in_one_reading_equal_each_alone():
    images, net = pictures(200), build()
    data = Watched(images)
    together = top_patches(net, DataLoader(data, 32), ["2", net[0], "[13]"], k=4)
    assert data.read == list(range(200)), "one reading for all layers"
    assert list(together) == ["0", "1", "2", "3"]
    agrees(together[LAYER], by_hand(images, 4))
    for layer, best in together.items():
        alone = top_patches(net, loader(images), layer, k=4)
        assert (best.layer, best.dead, best.seen, best.size) == (layer, alone.dead, 200, (2, 9, 9))
        for a, b in zip(
            (best.values, best.images, best.places), (alone.values, alone.images, alone.places), strict=True
        ):
            assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def test_several_layers_share_the_second_reading():
    images, net = pictures(200), build()
    data = Watched(images)
    best = top_patches(net, DataLoader(data, 32), ["0", LAYER], k=4)
    data.read.clear()
    channels = {LAYER: [5, 0], "0": 3}
    patches = read_patches(best, channels)
    hits = [
        best[layer].images[c][best[layer].values[c] > 0] for layer, asked in channels.items() for c in np.ravel(asked)
    ]
    assert data.read == sorted(set(torch.cat(hits).tolist())), "each image chosen is read once for all layers"
    for layer, asked in channels.items():
        alone = top_patches(net, loader(images), layer, k=4).patches(asked)
        assert (patches[layer].channels, patches[layer].layer) == (alone.channels, layer)
        assert patches[layer].inside.equal(alone.inside)
        assert patches[layer].images.equal(alone.images)
        torch.testing.assert_close(patches[layer].projections, alone.projections)
    other = top_patches(net, loader(images), "0", k=4)
    for results, asked in (({"0": other, LAYER: best[LAYER]}, channels), (best, {"0": 1}), ({}, {})):
        with pytest.raises(OptionError, match=r"results must come from one top_patches\(model, loader, \[...\]\)"):
            read_patches(results, asked)


def test_patches_asked_for_again_cost_nothing():
    images, net = pictures(100), build()
    data = Watched(images)
    best = top_patches(net, DataLoader(data, 32), LAYER, k=4)
    first = best.patches([5, 0, DEAD])
    data.read.clear()
    net[0].register_forward_pre_hook(lambda *_: pytest.fail("the network runs"))
    again, some = best.patches([5, 0, DEAD]), best.patches(5)
    assert data.read == []
    for name in ("images", "projections", "inside", "values", "numbers"):
        then, now = getattr(first, name), getattr(again, name)
        assert then.nan_to_num(-1).equal(now.nan_to_num(-1)), name
        assert then[:1].nan_to_num(-1).equal(getattr(some, name).nan_to_num(-1)), name
    with pytest.raises(pytest.fail.Exception, match="the network runs"):
        best.patches([5, 0])  # those of the last call alone are kept


def test_patches_say_what_they_are_of():
    images = pictures(6)
    best = top_patches(build(), loader(images), LAYER, k=8)
    patches = best.patches([4, DEAD])
    assert (patches.layer, patches.total, patches.seen, patches.channels) == (LAYER, 6, 6, (4, DEAD))
    assert patches.values.nan_to_num(-1).equal(best.values[[4, DEAD]].nan_to_num(-1))
    assert patches.numbers.equal(best.images[[4, DEAD]])
    assert (patches.numbers[:, 6:] == -1).all()


def test_several_layers_resume_together(tmp_path):
    images, file = pictures(300), tmp_path / "state.pt"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        top_patches(build(), DataLoader(Watched(images, 200), 32), ["0", LAYER], resume=file, every=2)
    whole = Watched(images)
    best = top_patches(build(), DataLoader(whole, 32), ["0", LAYER], resume=file)
    assert whole.read == [*range(32), *range(5 * 32, 300)]
    agrees(best[LAYER], by_hand(images))
    assert torch.equal(best["0"].images, top_patches(build(), loader(images), "0").images)
    with pytest.raises(OptionError, match=r"layers=\['0', '3'\], not \['3'\]"):
        top_patches(build(), loader(images, batch_size=32), LAYER, resume=file)


def test_the_second_pass_through_batches_and_one_that_is_impossible():
    images = pictures(60)
    expected = top_patches(build(), loader(images), LAYER, k=4).patches(range(6))
    found = top_patches(build(), images.split(16), LAYER, k=4).patches(range(6))
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.projections, expected.projections)
    with pytest.raises(OptionError, match="generator can be read only once"):
        top_patches(build(), (batch for batch in images.split(16)), LAYER).patches(0)


def test_a_dataset_that_does_not_give_the_same_image_again():
    data = Watched(pictures(30))
    best = top_patches(build(), DataLoader(data, 16), LAYER)
    data.images = data.images.flip(3)
    with pytest.raises(OptionError, match=r"other activations than in the first pass; .* \(no random transforms"):
        best.patches(0)
    batches = list(pictures(30).split(16))
    best = top_patches(build(), batches, LAYER)
    del batches[1:]
    with pytest.raises(OptionError, match="is missing: the loader now has 16"):
        best.patches(range(6))


@pytest.mark.parametrize("channels", [6, -1, [0, 9], []], ids=str)
def test_channels_that_are_not_there(channels):
    best = top_patches(build(), loader(pictures(10)), LAYER)
    with pytest.raises(OptionError, match=r"channels must be one or more numbers from 0 to 5, got"):
        best.patches(channels)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x))


class Apart(nn.Module):
    """The same as Twice, each call a layer of its own."""

    def __init__(self, conv):
        super().__init__()
        self.first, self.second = conv, copy.deepcopy(conv)

    def forward(self, x):
        return self.second(self.first(x))


def test_one_call_of_a_layer_that_runs_twice():
    torch.manual_seed(0)
    net, images = Twice(), pictures(40)
    apart = Apart(net.conv)
    expected = top_patches(apart, loader(images), ["first", "second"], k=3)
    best = top_patches(net, loader(images), ["conv#2", "conv#1"], k=3)
    assert list(best) == ["conv#2", "conv#1"]
    wanted = read_patches(expected, {"first": [0, 1], "second": 1})
    patches = read_patches(best, {"conv#1": [0, 1], "conv#2": 1})
    for call, layer in (("conv#1", "first"), ("conv#2", "second")):
        torch.testing.assert_close(best[call].values, expected[layer].values)
        assert best[call].images.equal(expected[layer].images)
        assert patches[call].images.equal(wanted[layer].images)
        torch.testing.assert_close(patches[call].projections, wanted[layer].projections)
    alone = top_patches(net, loader(images), "conv#2", k=3)
    assert (alone.layer, alone.images.tolist()) == ("conv#2", best["conv#2"].images.tolist())
    with pytest.raises(LayerError, match="layer 'conv' ran 2 times in one forward; it has no call 3"):
        top_patches(net, loader(images), "conv#3")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(pictures(20))


def test_a_dataset_without_numbers():
    agrees(top_patches(build(), DataLoader(Stream(), 8), LAYER, k=4), by_hand(pictures(20), 4))


def test_layers_that_cannot_be_looked_at():
    images = loader(pictures(10))
    with pytest.raises(
        ShapeError,
        match=r"layer '5' returns shape \(1, 3\), not a map 'b c h w'; choose a convolution or a layer after one\.",
    ):
        top_patches(build(), images, "5")
    with pytest.raises(LayerError, match="no layer '9'"):
        top_patches(build(), images, "9")
    with pytest.raises(LayerError, match="'conv' ran 2 times in one forward; choose one call: 'conv#1', 'c"):
        top_patches(Twice(), images, "conv")
    with pytest.raises(LayerError, match="layer 'conv' ran 2 times"):
        top_patches(Twice(), images, ["", "conv"])
    with pytest.raises(ShapeError, match="layer '5' returns shape"):
        top_patches(build(), images, [LAYER, "5"])
    with pytest.raises(OptionError, match="layers is empty"):
        top_patches(build(), images, [])


def test_loaders_that_cannot_be_used():
    images, net = pictures(10), build()
    weighted = WeightedRandomSampler(torch.ones(10), 10)
    for empty in ([], iter([]), loader(images, sampler=[])):
        with pytest.raises(ShapeError, match="loader yields no images"):
            top_patches(net, empty, LAYER)
    with pytest.raises(
        OptionError, match="the DataLoader must read images in a known order, but uses RandomSampler; pass one with"
    ):
        top_patches(net, loader(images, shuffle=True), LAYER)
    with pytest.raises(OptionError, match="known order, but uses WeightedRandomSampler"):
        top_patches(net, loader(images, sampler=weighted), LAYER)
    with pytest.raises(OptionError, match=r"known order, but uses list; .* or ascending numbers"):
        top_patches(net, loader(images, sampler=[3, 1, 2]), LAYER)
    shuffled = DistributedSampler(images, num_replicas=2, rank=0)
    with pytest.raises(OptionError, match="known order, but uses DistributedSampler"):
        top_patches(net, loader(images, sampler=shuffled), LAYER)
    with pytest.raises(OptionError, match=r"custom batch_sampler hides which image is which"):
        top_patches(net, DataLoader(TensorDataset(images), batch_sampler=[[1, 2], [0]]), LAYER)
    with pytest.raises(
        DtypeError, match=r"loader must yield float images 'b c h w', or " r".* got a tensor of torch.uint8"
    ):
        top_patches(net, [images.byte()], LAYER)
    with pytest.raises(DtypeError, match=r"loader must be an iterable of batches, got TensorDataset; DataLoader\(data"):
        top_patches(net, TensorDataset(images), LAYER)
    with pytest.raises(DtypeError, match="got dict"):
        top_patches(net, [{"images": images}], LAYER)
    with pytest.raises(ShapeError, match=r"loader must yield images 'b c h w', got shape \(2, 9, 9\)"):
        top_patches(net, images, LAYER)
    with pytest.raises(ShapeError, match=r"images must be of one size, got \(2, 9, 8\) after \(2, 9, 9\)"):
        top_patches(net, [images, images[..., :8]], LAYER)


def test_options_that_mean_nothing():
    with pytest.raises(OptionError, match="k must be an integer from 1 to 1,048,576, got 0"):
        top_patches(build(), [pictures(2)], LAYER, k=0)
    for options in ({"every": 3}, {"every": 0, "resume": "x.pt"}):
        with pytest.raises(OptionError, match="every must be at least 1 and needs resume="):
            top_patches(build(), [pictures(2)], LAYER, **options)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(fails):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout()).train()
    net(pictures(8)).sum().backward()
    before, gradients = copy.deepcopy(net), [p.grad.clone() for p in net.parameters()]
    data = Watched(pictures(40), fail_at=33 if fails else None)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    try:
        top_patches(net, DataLoader(data, 16), "2").patches([0, 1])
    except RuntimeError:
        assert fails
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    for (name, now), then in zip(net.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(now, then), name
    for now, then in zip(net.modules(), before.modules(), strict=True):
        assert now.training
        assert vars(now).keys() == vars(then).keys()
        assert not now._forward_hooks
    for now, gradient in zip(net.parameters(), gradients, strict=True):
        assert now.requires_grad
        assert torch.equal(now.grad, gradient)


def test_nan_is_no_hit_and_the_modes_around_do_not_matter():
    images = pictures(20)
    images[7] = torch.nan
    net = build()
    with torch.inference_mode():
        best = top_patches(net, loader(images), LAYER, k=20)
        assert best.values[0, -1] == -torch.inf
        assert best.images[0, -1] == 7
        best.patches(0)
    others = [i for i in range(20) if i != 7]
    values, numbers, _ = by_hand(images[others], 19)
    assert best.values[:, :19].tolist() == values.tolist()
    assert best.images[:, :19].tolist() == np.array(others)[numbers].tolist()


SCRIPT = """
import sys, time, torch
from torch import distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
sys.path.insert(0, sys.argv[2])
from test_patches import LAYER, build, loader, pictures
from torch_featviz.errors import OptionError
from torch_featviz.survey import top_patches

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
results = []
for n in (1999, 1):
    images = pictures(n)
    sampler = DistributedSampler(range(n), shuffle=False)
    best = top_patches(build(), loader(images, sampler=sampler), LAYER, resume=f"{sys.argv[1]}/state{n}.pt")
    again = top_patches(build(), loader(images, sampler=sampler), LAYER, resume=f"{sys.argv[1]}/state{n}.pt")
    halves = [list(range(n // 2)), list(range(n // 2, n))][rank]
    own = top_patches(build(), loader(images, sampler=halves), ["0", LAYER])[LAYER]
    results += [(b.values, b.images, b.places, b.dead, b.seen) for b in (best, again, own)]
    best.patches(0)
torch.save(results, f"{sys.argv[1]}/{rank}.pt")
for given, words in ((loader(images), "every rank would read all"), ([images], "every rank would read all"),
                     (loader(images, sampler=[0]), "two ranks read the same image")):
    try:
        top_patches(build(), given, LAYER)
        raise SystemExit("not refused")
    except OptionError as error:
        assert words in str(error), error
time.sleep(0.3)  # torch 2.6 waits for ever for threads that have not let go of their tensors yet
dist.destroy_process_group()
"""


def test_two_ranks_equal_one_process(tmp_path, forks):
    forks.ranks(2, SCRIPT, tmp_path, os.path.dirname(__file__))
    assert (tmp_path / "state1999.rank1of2.pt").exists()
    wanted = {n: by_hand(pictures(n)) for n in (1999, 1)}
    for rank in range(2):
        for i, (*found, dead, seen) in enumerate(torch.load(tmp_path / f"{rank}.pt")):
            n = (1999, 1)[i // 3]
            for a, b in zip(found, wanted[n], strict=True):
                np.testing.assert_array_equal(a.numpy(), b)
            assert seen == n
            assert DEAD in dead
