import pytest
import torch
import torchvision
from torch import nn

from torch_featviz.capture import capture
from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.inspect import shapes
from torch_featviz.model.values import map_tensors


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mobilenet_v3_small"])
def test_equals_a_real_forward_and_changes_nothing(name, instance_state):
    model = getattr(torchvision.models, name)()
    before, state = instance_state(model), {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    found = shapes(model, (2, 3, 96, 96))
    assert torch.equal(torch.get_rng_state(), rng)
    assert instance_state(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training
    with torch.no_grad(), capture(model.eval()) as acts:
        model(torch.zeros(2, 3, 96, 96))
    assert found == {key: value.shape for key, value in acts.items()}


def test_structures_token_ids_and_several_inputs():
    lstm = nn.LSTM(4, 5)
    found = shapes(nn.Sequential(lstm), (7, 2, 4))
    assert found == {"0": map_tensors(lambda t: t.shape, lstm(torch.zeros(7, 2, 4)))}
    assert shapes(nn.Sequential(nn.Embedding(9, 3)), torch.zeros(2, 5, dtype=torch.long))["0"] == (2, 5, 3)
    assert shapes(nn.Bilinear(2, 3, 4), (1, 2), (1, 3))[""] == (1, 4)


def test_wrong_sizes_and_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(ShapeError, match=r"Sequential does not accept inputs of shape \(1, 4, 8, 8\)"):
        shapes(model, (1, 4, 8, 8))
    assert model.training
    with pytest.raises(LayerError, match="no layer '7'"):
        shapes(model, (1, 3, 8, 8), layers="7")


def test_batch_of_one_with_batch_norm_in_a_training_model():
    assert shapes(nn.Sequential(nn.BatchNorm1d(3)), (1, 3)) == {"0": (1, 3)}


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.float64])
def test_models_of_other_dtypes_are_given_inputs_of_theirs(dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype)
    assert shapes(net, (1, 3, 8, 8)) == {"0": (1, 4, 6, 6), "1": (1, 4, 6, 6)}
    assert shapes(nn.Sequential(nn.Embedding(5, 2, dtype=dtype)), torch.ones(1, 3, dtype=torch.long))["0"] == (1, 3, 2)


def test_a_tensor_that_was_computed_and_kept_in_a_dict():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias, self.cache = nn.Parameter(torch.zeros(3, 4)), {}

        def forward(self, x):
            self.cache.setdefault("rows", [self.bias * 2])
            return x + self.cache["rows"][0]

    net = Cached()
    net(torch.zeros(3, 4))
    kept = net.cache["rows"][0]
    assert shapes(net, (5, 3, 4)) == {"": (5, 3, 4)}
    assert net.cache["rows"][0] is kept


def test_layers_that_have_no_weights_yet():
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    assert shapes(net, (1, 3, 8, 8)) == {"0": (1, 4, 6, 6), "1": (1, 144), "2": (1, 2)}
    assert isinstance(net[0], nn.LazyConv2d)


def test_inputs_by_name_and_none_at_all():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image, *, meta):
            return torch.cat([self.conv(image).mean((2, 3)), meta], 1)

    assert shapes(Named(), (2, 3, 8, 8), keywords={"meta": (2, 5)}, layers=["conv", ""])[""] == (2, 9)
    assert shapes(Named(), keywords={"image": (2, 3, 8, 8), "meta": (2, 5)})["conv"] == (2, 4, 6, 6)
    with pytest.raises(OptionError, match=r"Named\.forward\(self, image, \*, meta\) takes other arguments"):
        shapes(Named(), (2, 3, 8, 8))
    with pytest.raises(OptionError, match="shapes needs the size of each input"):
        shapes(Named())


def test_numbers_are_handed_on():
    class Repeated(nn.Module):
        def forward(self, x, times, mode="ones"):
            return torch.cat([x] * times, 1) if mode == "ones" else x

    assert shapes(Repeated(), (2, 3), layers="", keywords={"times": 4})[""] == (2, 12)
    assert shapes(Repeated(), (2, 3), layers="", keywords={"times": 4, "mode": "none"})[""] == (2, 3)
