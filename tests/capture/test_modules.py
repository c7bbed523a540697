import copy
import pickle

import pytest
import torch
from torch import nn

from torch_featviz.capture import FeatureExtractor, FeatureTap, capture
from torch_featviz.errors import DtypeError, LayerError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.norm = nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(2)
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        return self.norm(self.act(self.conv(x)))


X = torch.randn(2, 1, 6, 6)


def test_extractor_returns_what_capture_sees_and_stays_in_the_graph():
    net = Net()
    extractor = FeatureExtractor(net, ["conv", "norm"])
    for _ in range(2):
        features = extractor(X)
        with capture(net, ["conv", "norm"]) as acts:
            net(X)
        assert list(features) == ["conv", "norm"]
        assert torch.equal(features["conv"], acts["conv"])
        net.zero_grad()
        features["conv"].sum().backward()
        got = net.conv.weight.grad.clone()
        net.zero_grad()
        net.conv(X).sum().backward()
        assert torch.equal(got, net.conv.weight.grad)


@pytest.mark.parametrize("wrap", [lambda net: FeatureExtractor(net, "conv"), FeatureTap])
def test_state_dicts_fit_with_and_without_the_wrapper(wrap):
    net = Net()
    wrapped = wrap(net)
    assert list(wrapped.state_dict()) == list(net.state_dict())
    wrapped.load_state_dict(Net().state_dict())
    net.load_state_dict(wrapped.state_dict())
    outer, plain = nn.Sequential(wrap(Net()), nn.Linear(1, 1)), nn.Sequential(Net(), nn.Linear(1, 1))
    assert list(outer.state_dict()) == list(plain.state_dict())
    outer.load_state_dict(plain.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(outer.state_dict()[name], tensor)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles(again):
    extractor = FeatureExtractor(Net().eval(), [nn.Conv2d, "norm"])
    twin = again(extractor)
    assert torch.equal(twin(X)["conv"], extractor(X)["conv"])
    assert list(twin.state_dict()) == list(extractor.state_dict())
    tapped = FeatureTap(Net())
    tapped(X)
    assert again(tapped).output is None
    assert tapped.output is not None


def test_extractor_names_what_is_wrong():
    with pytest.raises(LayerError, match="no layer 'conv9' in Net; close: 'conv'"):
        FeatureExtractor(Net(), "conv9")
    with pytest.raises(LayerError, match="layer 'unused' did not run"):
        FeatureExtractor(Net(), ["conv", "unused"])(X)
    assert list(FeatureExtractor(Net(), [nn.Linear, nn.Conv2d])(X)) == ["conv"]
    assert list(FeatureExtractor(Net())(X)) == ["conv", "act", "norm"]
    with pytest.raises(DtypeError, match=r"model must be a torch\.nn.Module, got int"):
        FeatureExtractor(3)


def test_tap_in_place():
    net = Net()
    expected = net.conv(X)
    net.conv = FeatureTap(net.conv)
    assert net.conv.output is None
    net(X).sum().backward()
    assert torch.equal(net.conv.output, expected)
    assert not net.conv.output.requires_grad
    assert "layers=['conv']" in repr(FeatureExtractor(Net(), ["conv"]))
