"""What the page is given of each layer, read back and held against the network's own tensors."""

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.atlas.layers import put_layers, strongest
from torch_featviz.atlas.pack import Blobs
from torch_featviz.inspect.walk import walk as walk_through
from torch_featviz.model.inputs import Inputs


def walk(model, images):
    return walk_through(model, Inputs(images))


def net():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, groups=2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(24 * 16, 7)).eval()


def numbers(blobs, number, exponent):
    data = zlib.decompress(base64.b64decode(blobs.texts[number]))
    high, low = np.frombuffer(data, np.uint8).astype(np.uint16).reshape(2, -1)
    return (high << 8 | low).view(np.float16).astype(np.float32) * np.float32(2.0) ** exponent


def put(model, images, letters=1e9):
    blobs = Blobs()
    layers, cut = put_layers(blobs, walk(model, images), letters)
    json.dumps(layers)
    return blobs, {layer["name"]: layer for layer in layers}, cut


def close(found, expected):
    expected = expected.detach().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= np.abs(expected).max() * 2.0**-11


def test_maps_and_kernels_are_those_of_the_network():
    model, images = net(), torch.rand(2, 3, 14, 14)
    blobs, layers, cut = put(model, images)
    assert not cut
    for i, module in enumerate(model):
        if isinstance(module, nn.Flatten):
            continue
        expected = model[: i + 1](images)
        maps = layers[str(i)]["maps"]
        assert maps["channels"] == list(range(expected.shape[1]))
        for row, blob in zip(expected, maps["blobs"], strict=True):
            close(numbers(blobs, blob, maps["exponent"]), row.flatten())
        if isinstance(module, nn.Conv2d):
            kernels = layers[str(i)]["kernels"]
            assert (kernels["shape"], kernels["groups"]) == (list(module.weight.shape), module.groups)
            close(numbers(blobs, kernels["blob"], kernels["exponent"]), module.weight.flatten())
    assert layers["0"]["maps"]["form"] == "maps"
    assert layers["6"]["maps"]["form"] == "units"
    given = layers["input"]["maps"]
    close(numbers(blobs, given["blobs"][1], given["exponent"]), images[1].flatten())


def test_one_scale_for_all_images_of_a_layer():
    model, images = net(), torch.stack([torch.rand(3, 14, 14), 5 * torch.rand(3, 14, 14)])
    _, layers, _ = put(model, images)
    reach, top = (float(each.detach().max()) for each in (model[0](images).abs(), model[:2](images)))
    one, other = layers["0"]["scale"], layers["1"]["scale"]
    assert (one["symmetric"], one["vmin"], one["vmax"]) == (True, pytest.approx(-reach), pytest.approx(reach))
    assert (other["symmetric"], other["vmin"], other["vmax"]) == (False, 0, pytest.approx(top))


def test_an_outlier_does_not_widen_the_scale_of_a_layer():
    images = torch.rand(1, 2, 40, 40)
    images[0, 1, 3, 4] = 500
    scale = put(nn.Sequential(nn.ReLU(), nn.MaxPool2d(1)).eval(), images)[1]["0"]["scale"]
    assert (scale["symmetric"], scale["vmin"]) == (False, 0)
    assert 0.9 < scale["vmax"] <= 1


def test_the_scale_of_a_layer_clips_little_of_the_channels_that_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[:3] *= 40  # the strongest, which stay
    blobs, layers, _ = put(model, torch.rand(1, 3, 60, 60), 2e5)
    for layer in (layers["0"], layers["1"]):
        assert len(layer["maps"]["channels"]) < 64
        values = numbers(blobs, layer["maps"]["blobs"][0], layer["maps"]["exponent"])
        far = np.maximum(values - layer["scale"]["vmax"], layer["scale"]["vmin"] - values)
        assert (far > 2**-10 * layer["scale"]["vmax"]).mean() <= 0.005


def test_dead_is_of_all_images():
    model = net()
    with torch.no_grad():
        model[0].bias[:4] = -100
    _, layers, _ = put(model, torch.rand(2, 3, 14, 14))
    assert layers["1"]["dead"] == layers["2"]["dead"] == 4 / 16
    assert layers["6"]["dead"] is None


@pytest.mark.parametrize("letters", [3e5, 6e5, 1.2e6, 2.4e6])
def test_the_room_is_kept_and_used(letters):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU()).eval()
    images = torch.rand(2, 3, 60, 60)
    blobs, layers, cut = put(model, images, letters)
    assert blobs.letters() <= letters
    assert cut
    counts = {len(layers[name]["maps"]["channels"]) for name in "0123"}
    assert len(counts) == 1  # as many of each
    assert blobs.letters() >= 0.6 * letters
    peaks = model[:2](images).amax((0, 2, 3))
    kept = layers["1"]["maps"]["channels"]
    assert kept == sorted(kept)
    others = [c for c in range(64) if c not in kept]
    assert peaks[kept].min() >= peaks[others].max()


def test_no_room_at_all():
    with pytest.raises(fv.errors.OptionError, match="cannot hold one channel of each of 7 layers; give more megabytes"):
        put(net(), torch.rand(1, 3, 14, 14), 10)


def test_small_layers_are_whole_unless_there_are_too_many():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(40)), nn.Conv2d(3, 64, 3)).eval()
    _, layers, cut = put(model, torch.rand(1, 3, 64, 64), 1.2e6)
    assert cut
    assert len(layers["3"]["maps"]["channels"]) == 3
    assert len(layers["40"]["maps"]["channels"]) < 64
    blobs, layers, _ = put(model, torch.rand(1, 3, 64, 64), 6e5)
    assert blobs.letters() <= 6e5
    assert len(layers["3"]["maps"]["channels"]) < 3


class Tokens(nn.Module):
    """Places as tokens behind one without a place, whose order may be lost."""

    def __init__(self, mixed):
        super().__init__()
        self.mixed = mixed

    def forward(self, x):
        tokens = torch.cat([torch.zeros(len(x), 1, x.shape[1]), x.flatten(2).transpose(1, 2)], 1)
        return (tokens.sort(1).values if self.mixed else tokens) * 2


def test_tokens_lie_where_their_places_do():
    model, images = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Tokens(False)).eval(), torch.rand(1, 3, 16, 24)
    blobs, layers, _ = put(model, images)
    maps = layers["1"]["maps"]
    assert (maps["form"], maps["height"], maps["width"], maps["of"]) == ("maps", 4, 6, 8)
    assert maps["apart"] == "1 token without a place"
    close(numbers(blobs, maps["blobs"][0], maps["exponent"]), 2 * model[0](images)[0].flatten())


def test_tokens_without_places_are_one_plane():
    model, images = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Tokens(True)).eval(), torch.rand(1, 3, 16, 16)
    blobs, layers, _ = put(model, images)
    maps = layers["1"]["maps"]
    assert (maps["form"], maps["height"], maps["width"], maps["columns_of"]) == ("tokens", 17, 8, 8)
    assert "apart" not in maps
    close(numbers(blobs, maps["blobs"][0], maps["exponent"]), model(images)[0].flatten())


def test_values_that_are_not_finite():
    model = nn.Sequential(nn.Identity(), nn.Tanh(), nn.Hardtanh()).eval()
    images = torch.full((1, 2, 3, 3), torch.nan)
    blobs, layers, _ = put(model, images)
    assert np.isnan(numbers(blobs, layers["1"]["maps"]["blobs"][0], 0)).all()
    assert layers["1"]["scale"] == {"symmetric": False, "vmin": 0.0, "vmax": 0.0}
    assert layers["1"]["stats"][0]["nan"] == 18


def test_strongest_takes_the_first_of_equals():
    assert strongest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3) == [0, 1, 3]
    assert strongest(torch.tensor([-torch.inf, -1.0]), 0) == [1]


def test_the_demo_card_names_what_it_is():
    card = fv.zoo.card("xo_deep")
    _, layers, _ = put(card.build().eval(), torch.rand(1, *card.input_size))
    first = layers["features.conv1"]
    assert first["kind"] == "Conv2d"
    assert first["says"].startswith("Conv2d(1, 9, kernel_size=(3, 3)")
    assert first["share"] == pytest.approx(
        first["multiply_adds"] / sum(each["multiply_adds"] or 0 for each in layers.values())
    )
    assert first["field"]["rows"][1] == (1, 4)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_kernels_are_those_that_the_layer_computes_with():
    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 2, 3), nn.Conv2d(2, 8, 1)

        def forward(self, x):
            return self.base_layer(x) + self.up(self.down(x))

    model = nn.Sequential(
        Adapter(), nn.utils.weight_norm(nn.Conv2d(8, 4, 3)), nn.Flatten(), nn.Linear(4 * 100, 2)
    ).eval()
    with torch.no_grad():
        model[1].weight_g.mul_(3)
    blobs, layers, _ = put(model, torch.rand(1, 3, 14, 14))
    kernels = layers["0"]["kernels"]
    delta = torch.einsum("kr,rchw->kchw", model[0].up.weight[:, :, 0, 0], model[0].down.weight)
    close(numbers(blobs, kernels["blob"], kernels["exponent"]), (model[0].base_layer.weight + delta).flatten())
    assert kernels["notes"] == ["adapter added"]
    kernels = layers["1"]["kernels"]
    v = model[1].weight_v
    weight = model[1].weight_g * v / v.flatten(1).norm(dim=1)[:, None, None, None]
    close(numbers(blobs, kernels["blob"], kernels["exponent"]), weight.flatten())
    assert kernels["notes"] == ["weight norm"]
