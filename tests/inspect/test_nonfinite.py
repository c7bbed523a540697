"""The first layer that returns NaN or infinity, against hooks that look at every output after the forward."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz import NonFinite, first_nonfinite
from torch_featviz.errors import DtypeError

NAN, INF = float("nan"), float("inf")


class Spoil(nn.Module):
    """Puts `value` into its output from the `after`-th call on."""

    def __init__(self, value=0.0, *, after=1, inplace=False):
        super().__init__()
        self.value, self.after, self.inplace, self.calls = value, after, inplace, 0

    def forward(self, x):
        self.calls += 1
        out = x if self.inplace else x.clone()
        if self.calls >= self.after:
            out.view(-1)[0] = self.value
        return out


class Block(nn.Module):
    def __init__(self, layer, body=lambda x: x):
        super().__init__()
        self.layer, self.body = layer, body

    def forward(self, x):
        return self.body(self.layer(x))


def oracle(model, x):
    """Names and calls of all modules with such an output, in order of completion."""
    seen, found = {}, []

    def hook(name):
        def look(_module, _args, output):
            seen[name] = seen.get(name, 0) + 1
            if not all(torch.isfinite(t).all() for t in (output if isinstance(output, tuple) else (output,))):
                found.append((name, seen[name]))

        return look

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name))
    model(x)
    return found


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, NAN, INF, -INF]), st.booleans(), st.integers(0, 2)), max_size=5),
    st.sampled_from([torch.enable_grad, torch.no_grad, torch.inference_mode]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64]),
)
def test_random_nets(layers, mode, dtype):
    bodies = [lambda x: x, lambda x: x * INF, lambda x: (x, x[:1])[0]]
    net = nn.Sequential(*(Block(Spoil(value, inplace=inplace), bodies[body]) for value, inplace, body in layers))
    x = torch.ones(2, 3, dtype=dtype)
    with mode():
        expected = oracle(copy.deepcopy(net), x.clone())
        found = first_nonfinite(net, x.clone())
    assert (found and (found.layer, found.call)) == (expected[0] if expected else None)
    if found:
        assert found.nan + found.inf > 0
        assert found.numel == 6
        assert found.dtype == dtype
        assert found.layer in str(found)


def test_the_report():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), Spoil(NAN, inplace=True))
    x = torch.tensor([[1.0, -2.0]])
    found = first_nonfinite(net, x)
    inside = net[1](net[0](x))
    assert (found.layer, found.call, found.nan, found.inf, found.numel) == ("2", 1, 1, 0, 3)
    assert (found.inputs[0].min, found.inputs[0].max) == (inside.min().item(), inside.max().item())
    assert (found.inputs[0].shape, found.inputs[0].finite) == ((1, 3), True)
    assert str(found).splitlines()[0] == "layer '2' returned 1 NaN and 0 inf among 3 values (float32) at call 1:"
    assert "it arises in this layer" in str(found)
    assert isinstance(found, NonFinite)
    with pytest.raises(AttributeError, match="cannot assign to field"):
        found.layer = "0"


def test_the_call_counts():
    again = Spoil(INF, after=3)
    found = first_nonfinite(nn.Sequential(again, nn.ReLU(), again, again, again), torch.ones(1))
    assert (found.layer, found.call, found.inf) == ("0", 3, 1)


def test_a_container_and_the_model_itself():
    finite = nn.Identity()
    inner = Block(finite, lambda x: x / 0)
    assert first_nonfinite(nn.Sequential(inner, nn.ReLU()), torch.ones(1)).layer == "0"
    found = first_nonfinite(Block(finite, lambda x: x.log()), torch.zeros(1))
    assert (found.layer, found.inf) == ("", 1)
    assert str(found).startswith("the model's own code, after its last layer, returned 0 NaN and 1 inf among 1")


def test_code_before_a_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 1)

        def forward(self, x):
            return self.fc(x / 0)

    found = first_nonfinite(Net(), torch.ones(1, 1))
    assert found.layer == "fc"
    assert not found.inputs[0].finite
    assert "no layer returned such an input: look at the code before this call" in str(found)


def test_the_models_own_input():
    net = nn.Sequential(nn.Linear(2, 2))
    found = first_nonfinite(net, torch.tensor([[NAN, INF]]))
    assert (found.layer, found.call, found.nan, found.inf, found.numel) == ("input", 0, 1, 1, 2)
    assert str(found).startswith("the model's input holds 1 NaN and 1 inf among 2 values (float32):\n  input 0: 1 2, ")
    assert first_nonfinite(Block(nn.Identity(), torch.nan_to_num), torch.ones(1)) is None


class Attention(nn.Module):
    def __init__(self, broken=False):
        super().__init__()
        self.proj, self.broken = nn.Linear(2, 2), broken
        self.register_buffer("mask", torch.full((3, 3), -INF).triu(1))

    def forward(self, x, mask=None):
        weights = (x @ x.mT + (self.mask if mask is None else mask)).softmax(-1)
        return self.proj(weights @ x) + (INF if self.broken else 0)


def test_masks_are_no_fault():
    x = torch.randn(1, 3, 2)
    net = Attention()
    assert first_nonfinite(net, x) is None
    assert first_nonfinite(net, x, mask=net.mask) is None
    assert first_nonfinite(net, x, net.mask) is None
    found = first_nonfinite(Attention(broken=True), x, mask=net.mask)
    assert (found.layer, found.parameters) == ("", ())
    net.mask[0, 0] = NAN
    found = first_nonfinite(net, x)
    assert (found.layer, found.parameters) == ("proj", ())


def test_parameters_and_buffers_are_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    net[1].running_mean[0] = NAN
    assert first_nonfinite(net, torch.ones(1, 2)).parameters == ("running_mean",)
    with torch.no_grad():
        net[0].bias[1] = -INF
    found = first_nonfinite(net, torch.ones(1, 2))
    assert (found.layer, found.parameters) == ("0", ("bias",))
    assert "parameters NOT FINITE: bias" in str(found)


def test_statistics_that_this_forward_spoilt_are_not_to_blame():
    found = first_nonfinite(nn.Sequential(Before(nn.BatchNorm1d(2))), torch.ones(2, 2))
    assert (found.layer, found.parameters) == ("0.layer", ())


class Before(Block):
    def forward(self, x):
        return self.layer(x / 0)


def test_a_model_that_catches_everything():
    class Stubborn(nn.Sequential):
        def forward(self, x):
            for layer in self:
                try:
                    x = layer(x)
                except BaseException:
                    x = x * INF
            return x

    assert first_nonfinite(Stubborn(nn.Identity(), Spoil(NAN), nn.Identity()), torch.ones(1)).layer == "1"


def test_half_overflows_and_structures_are_looked_into():
    found = first_nonfinite(
        nn.Sequential(Block(nn.Identity(), lambda x: {"a": (x * 2, 3)})), torch.tensor([6e4]).half()
    )
    assert (found.layer, found.inf, found.dtype) == ("0", 1, torch.float16)
    wide = first_nonfinite(nn.Sequential(Block(nn.Identity(), lambda x: x * 2)), torch.tensor([6e4]).bfloat16())
    assert wide is None
    assert first_nonfinite(Block(nn.Identity(), lambda x: x.long()), torch.ones(1)) is None
    assert first_nonfinite(nn.Sequential(nn.Identity()), torch.ones(0, 3)) is None


def test_nothing_changes(instance_state):
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), Spoil(NAN), nn.Linear(3, 3))
    net[3].value = 0.0
    for net[3].value in (0.0, NAN):
        before, state = instance_state(net), copy.deepcopy(net.state_dict())
        found = first_nonfinite(net, torch.randn(4, 3))
        assert (found and found.layer) == (None if net[3].value == 0 else "3")
        assert instance_state(net) == before
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    x = torch.randn(4, 3)
    random = torch.get_rng_state()
    first_nonfinite(net, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_error_of_the_models_is_raised(instance_state):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(2, 2))
    before = instance_state(net)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        first_nonfinite(net, torch.ones(1, 3))
    assert instance_state(net) == before
    with pytest.raises(DtypeError, match=r"model must be a torch\.nn\.Module, got int"):
        first_nonfinite(3)


def test_grad_mode_is_the_callers():
    modes = []
    net = nn.Sequential(Block(nn.Linear(1, 1), lambda x: modes.append((torch.is_grad_enabled(), x.requires_grad)) or x))
    first_nonfinite(net, torch.ones(1, 1))
    with torch.no_grad():
        first_nonfinite(net, torch.ones(1, 1))
    assert modes == [(True, True), (False, False)]


def test_hooks_and_compiled_models():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net[0].register_forward_hook(lambda _m, _i, out: out / 0)
    for model in (net, torch.compile(net, backend="eager"), nn.DataParallel(net, device_ids=[])):
        found = first_nonfinite(model, torch.ones(1, 2))
        assert found.layer == "0"
        assert found.inputs[0].finite


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_quantised_tensors_are_finite():
    from torch.ao.nn import quantized

    layers = [quantized.Quantize(0.1, 0, torch.quint8), quantized.Conv2d(3, 4, 3), nn.ReLU(), quantized.DeQuantize()]
    model, x = nn.Sequential(*layers), torch.rand(1, 3, 4, 4)
    assert first_nonfinite(model, x) is None
    broken = nn.Sequential(*layers, nn.BatchNorm2d(4, affine=False)).eval()
    broken[-1].running_mean.fill_(float("nan"))
    assert (first_nonfinite(broken, x).layer, first_nonfinite(broken, x).inputs[0].finite) == ("4", True)
    given = first_nonfinite(
        nn.Sequential(nn.Identity(), Reciprocal()), torch.quantize_per_tensor(x * 0, 0.5, 0, torch.quint8)
    )
    assert (given.layer, given.inputs[0].min, given.inputs[0].max) == ("1", 0.0, 0.0)


class Reciprocal(nn.Module):
    def forward(self, x):
        return 1 / x.dequantize()
