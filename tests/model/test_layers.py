import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.capture import capture
from torch_featviz.errors import DtypeError, LayerError, OptionError
from torch_featviz.model import layer_names
from torch_featviz.model.layers import modules_of, resolve, split_call


def block():
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU())


def model():
    return nn.Sequential(*(block() for _ in range(3)), nn.Flatten(), nn.Linear(8, 4))


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_modules_are_gone_over_in_torchs_order(pairs):
    """Of nets in which modules are shared, hold themselves, and hold None."""
    modules = [nn.Module() for _ in range(8)]
    for number, (parent, child) in enumerate(pairs):
        modules[parent].add_module(str(number), modules[child])
        modules[child].register_module("none", None)
    for module in modules:
        assert modules_of(module) == list(module.modules())


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("0.0", ["0.0"]),
        (["4", "0.1"], ["0.1", "4"]),
        ("*.0", ["0.0", "1.0", "2.0"]),
        (["1", "1.*"], ["1", "1.0", "1.1", "1.2"]),
        ([nn.Conv2d, nn.Linear], ["0.0", "1.0", "2.0", "4"]),
        ([nn.modules.batchnorm._BatchNorm], ["0.1", "1.1", "2.1"]),
        (None, ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2", "2.0", "2.1", "2.2", "3", "4"]),
        ("module.1.2", ["1.2"]),
        ("_orig_mod.module.*.2", ["0.2", "1.2", "2.2"]),
    ],
)
def test_names_globs_types(layers, names):
    assert list(resolve(model(), layers)) == names


def test_module_objects():
    net = model()
    assert list(resolve(net, [net[1][0], net[4]])) == ["1.0", "4"]


def test_wrappers_add_nothing_to_names():
    net = model()
    inner = torch.compile(net[0], backend="eager")
    wrapped = nn.DataParallel(nn.Sequential(inner, *net[1:]))
    assert layer_names(wrapped) == layer_names(net)
    for name in ("0.1", "module.0.1", "module.0._orig_mod.1", "0._orig_mod.1"):
        assert list(resolve(wrapped, name)) == ["0.1"]
        assert list(resolve(torch.compile(wrapped, backend="eager"), "_orig_mod." + name)) == ["0.1"]


def test_the_number_of_a_call():
    assert split_call("a#12") == ("a", 12)
    for name in ("a#0", "a#", "#1", "a#²", "a#1#", "a#" + "9" * 5000):
        assert split_call(name) == (name, None)


def test_a_child_called_module_is_no_wrapper():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Sequential(nn.Linear(1, 1))

    assert layer_names(Holder()) == ["module", "module.0"]
    assert list(resolve(nn.DataParallel(Holder()), "module.module.0")) == ["module.0"]
    assert list(resolve(Holder(), "module.*")) == ["module.0"]


def test_a_convolution_with_a_padding_in_it_is_captured_unasked():
    """As of EfficientNet."""

    class Same(nn.Conv2d):
        def __init__(self):
            super().__init__(2, 3, 3)
            self.pad = nn.ZeroPad2d(1)

        def forward(self, x):
            return super().forward(self.pad(x))

    net = nn.Sequential(Same(), nn.ReLU())
    images = torch.rand(1, 2, 5, 5)
    with capture(net) as acts, torch.no_grad():
        expected = net[0](images)
        net(images)
    assert list(acts) == ["0.pad", "0", "1"]
    assert torch.equal(acts["0"], expected)


class Observed(nn.Linear):
    """A layer that watches its output and rounds its weight, as one prepared for quantisation does."""

    def __init__(self):
        super().__init__(3, 3)
        self.activation_post_process, self.weight_fake_quant = nn.Identity(), nn.Tanh()

    def forward(self, x):
        weight = self.weight_fake_quant(self.weight)
        return self.activation_post_process(nn.functional.linear(x, weight, self.bias))


def test_what_watches_a_layer_is_captured_only_if_it_is_named():
    net = nn.Sequential(Observed(), nn.ReLU())
    assert list(resolve(net, None)) == ["0", "1"]
    assert list(resolve(net, ["0.activation_post_process", "0.weight_fake_quant"])) == [
        "0.activation_post_process",
        "0.weight_fake_quant",
    ]


def test_what_nobody_can_call_is_no_leaf():
    net = nn.Sequential(nn.ReLU())
    net.none, net.empty = nn.ModuleDict(), nn.ParameterDict({"scale": torch.ones(1)})
    assert list(resolve(net, None)) == ["0"]
    assert list(resolve(net, "empty")) == ["empty"]


def test_a_shared_module_is_known_by_its_first_name_and_found_by_all():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    assert list(resolve(net, "2")) == ["0"]


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (
            "0.7",
            LayerError,
            r"no layer '0.7' in Sequential; close: .*layer_names\(model\), or `featviz layers`, lists all 14",
        ),
        ("nothing.*", LayerError, r"no layer 'nothing.\*' in Sequential; it has 0, 0.0, .*, 3, 4\.$"),
        ([nn.Conv3d], LayerError, r"no layer of type Conv3d in Sequential; it has .*Conv2d \(3\)"),
        (
            nn.Linear(1, 1),
            LayerError,
            r"this Linear object is not a layer of Sequential; pass one of model\.modules\(\)\.",
        ),
        ([], OptionError, "layers is empty; give at least one layer"),
        ([3], DtypeError, r"a layer must be a name, a glob, a module type or a module, got 3\."),
    ],
)
def test_wrong_layers_leave_the_model_alone(layers, error, message, instance_state):
    net = model()
    before = instance_state(net)
    with pytest.raises(error, match=message):
        capture(net, layers)
    assert instance_state(net) == before


def test_not_a_module():
    with pytest.raises(DtypeError, match=r"model must be a torch\.nn.Module, got dict"):
        capture({"a": 1})
