"""Norms of single examples' gradients equal those of gradients that torch.func makes one by one."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from torch_featviz.training.noise import per_example
from torch_featviz.training.noise.per_example import squared_norms, sum_of_squared_norms

LAYERS = {
    "linear": (nn.Linear(5, 7), (6, 5)),
    "linear without bias": (nn.Linear(5, 7, bias=False), (6, 5)),
    "few tokens": (nn.Linear(40, 50), (6, 3, 40)),
    "many tokens": (nn.Linear(4, 3), (6, 9, 4)),
    "two axes of tokens": (nn.Linear(5, 7), (6, 3, 2, 5)),
    "conv2d": (nn.Conv2d(4, 6, 3), (5, 4, 8, 9)),
    "few places": (nn.Conv2d(20, 30, 3), (5, 20, 4, 4)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2)), (5, 4, 8, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (5, 4, 8, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (5, 4, 8, 9)),
    "dilated": (nn.Conv2d(4, 8, 3, groups=2, dilation=(2, 1), stride=3), (5, 4, 9, 12)),
    "same": (nn.Conv2d(4, 6, 4, padding="same", dilation=(1, 3)), (5, 4, 8, 9)),
    "valid": (nn.Conv2d(4, 6, 4, padding="valid"), (5, 4, 8, 9)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), (5, 4, 8, 9)),
    "circular, same": (nn.Conv2d(4, 6, 4, padding="same", padding_mode="circular"), (5, 4, 8, 9)),
    "conv1d": (nn.Conv1d(4, 6, 5, stride=2), (5, 4, 20)),
    "conv3d": (nn.Conv3d(2, 4, 3, padding=(0, 1, 2), groups=2, stride=(1, 2, 1)), (5, 2, 6, 7, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (5, 4, 5, 6)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, dilation=3, output_padding=2), (5, 4, 5)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2, stride=2), (5, 4, 3, 2, 4)),
}


def one_by_one(layer, inputs, grads, learnt=("weight", "bias")):
    """The squared norm of each example's gradient of its share of the sum of `outputs * grads`."""

    def share(parameters, x, d):
        return (functional_call(layer, parameters, (x[None],)) * d[None]).sum()

    made = vmap(grad(share), (None, 0, 0))(dict(layer.named_parameters()), inputs, grads)
    return sum(each.flatten(1).double().square().sum(1) for name, each in made.items() if name in learnt)


@pytest.fixture(params=LAYERS)
def case(request):
    layer, shape = LAYERS[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "same" with an even kernel makes a copy
        inputs = torch.randn(shape)
        grads = torch.randn_like(layer(inputs))
        yield layer, inputs, grads


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_equals_one_by_one(case, chunk, monkeypatch):
    monkeypatch.setattr(per_example, "CHUNK", chunk)
    layer, inputs, grads = case
    found = squared_norms(layer, inputs, grads)
    torch.testing.assert_close(found.double(), one_by_one(layer, inputs, grads), rtol=1e-5, atol=0)


def test_only_what_learns_counts(case):
    layer, inputs, grads = case
    found = squared_norms(layer, inputs, grads, bias=False)
    torch.testing.assert_close(found.double(), one_by_one(layer, inputs, grads, ["weight"]), rtol=1e-5, atol=0)
    found = squared_norms(layer, inputs, grads, weight=False)
    expected = one_by_one(layer, inputs, grads, ["bias"]) + torch.zeros(len(inputs)).double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_32_bits_or_more(dtype):
    layer, inputs = nn.Conv2d(3, 4, 3), torch.randn(5, 3, 6, 6).to(dtype)
    grads = torch.randn(5, 4, 4, 4).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = squared_norms(layer, inputs, grads)
    assert found.dtype == (dtype if dtype == torch.float64 else torch.float32)
    layer.double()
    torch.testing.assert_close(found.double(), one_by_one(layer, inputs.double(), grads.double()), rtol=1e-5, atol=0)


def test_gradients_of_a_mean_have_no_strides():
    layer, inputs = nn.Linear(5, 7), torch.randn(6, 3, 5)
    grads = torch.tensor(0.1).expand(6, 3, 7)
    found = squared_norms(layer, inputs, grads)
    torch.testing.assert_close(found.double(), one_by_one(layer, inputs, grads), rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", ["few tokens", "many tokens", "grouped", "conv1d", "transposed"], indirect=True)
def test_a_sample_is_right_on_average_over_its_start(case):
    layer, inputs, grads = case
    grads[1] = 0
    grads[2] *= 30  # nearly all there is
    exact = float(squared_norms(layer, inputs, grads).double().sum())
    starts = (torch.arange(2000) + 0.5) / 2000
    found = [float(sum_of_squared_norms(layer, inputs, grads, examples=3, start=float(each))) for each in starts]
    assert sum(found) / 2000 == pytest.approx(exact, rel=1e-3)
    assert max(found) < 2 * exact
    assert min(found) > exact / 2


def test_all_where_that_costs_no_more():
    for layer, shape in ((nn.Linear(5, 7), (60, 5)), (nn.Conv1d(2, 3, 3), (4, 2, 8))):
        inputs = torch.randn(shape)
        grads = torch.randn_like(layer(inputs))
        found = sum_of_squared_norms(layer, inputs, grads, examples=4, start=0.3)
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(float(squared_norms(layer, inputs, grads).sum()), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_sample_of_nothing_or_of_broken_gradients(value):
    layer, inputs = nn.Conv1d(2, 3, 3), torch.randn(9, 2, 8)
    found = sum_of_squared_norms(layer, inputs, torch.full((9, 3, 6), value), examples=4, start=0.9999)
    assert float(found) == 0 if value == 0 else not found.isfinite()
    grads = torch.zeros(9, 3, 6)
    grads[7] = value
    found = sum_of_squared_norms(layer, inputs, grads, examples=4, start=0.5)
    assert float(found) == 0 if value == 0 else not found.isfinite()
