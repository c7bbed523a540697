"""The noise scale from ordinary steps is that of gradients made one by one, and the training is what it would be."""

import copy
import gc
import json
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torch_featviz.capture import capture
from torch_featviz.errors import DtypeError, OptionError
from torch_featviz.training.noise import GradientNoise


class Net(nn.Module):
    """What training makes hard: in-place activations before and after, dropout, a residual sum in place, a norm."""

    def __init__(self, norm=None):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = norm or nn.GroupNorm(2, 4)
        self.again = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.again(x)
        x += 1
        return self.fc(self.drop(self.act(x)).flatten(1))


def data(count=8, seed=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, 6, generator=g), torch.randint(3, (count,), generator=g)


def brute(net, x, y, layers, lossf=F.cross_entropy):
    """Squared norms of each example's gradient, and of their mean."""
    learnt = {name: each.detach() for name, each in net.named_parameters() if name.rpartition(".")[0] in layers}

    def loss(parameters, x, y):
        return lossf(functional_call(net, parameters, (x[None],)), y[None])

    made = vmap(grad(loss), (None, 0, 0))(learnt, x, y)
    each = torch.cat([part.flatten(1) for part in made.values()], 1).detach().double()
    return each.square().sum(1), each.mean(0).square().sum(), each


def took(noise):
    """The numbers of a step, and what they mean."""
    numbers = [float(each) for each in noise.sums()]
    noise.take(numbers)
    return dict(zip(["kind", "small", "big", "scaled", "of_small", "of_big", "before"], numbers, strict=True))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def still(net):
    """The same without dropout."""
    net.drop.p = 0.0
    return net


LAYERS = ("conv", "again", "fc")


def test_norms_are_those_of_gradients_one_by_one(still):
    noise, (x, y) = GradientNoise(still, examples=None), data()
    with noise.block():
        F.cross_entropy(still(x), y).backward()
    found = took(noise)
    squares, of_mean, _ = brute(still, x, y, LAYERS)
    assert found["of_small"] == pytest.approx(float(squares.mean()), rel=1e-5)
    assert found["of_big"] == pytest.approx(float(of_mean), rel=1e-5)
    assert (found["small"], found["big"], found["before"]) == (1, 8, 0)
    scale = noise.scale
    assert scale.layers == LAYERS
    assert scale.left_out == {"norm": "GroupNorm: only linear layers and convolutions are known"}
    trace = (squares.sum() - 8 * of_mean) / 7
    assert scale.noise == pytest.approx(float(trace), rel=1e-4)
    assert scale.gradient == pytest.approx(float(of_mean - trace / 8), rel=1e-3)


@pytest.mark.parametrize("examples", [None, 4])
def test_the_noise_scale_of_a_finite_set_of_data(examples):
    """Within 5 % of tr(Σ) / |G|² over all of them, from random batches while no weight moves."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 3)).double()
    x = torch.randn(200, 1, 6, 6).double() + 0.7
    y = (torch.rand(200) < 0.2).long()
    _, of_mean, each = brute(net, x, y, ("0", "3"))
    truth = float((each - each.mean(0)).square().sum(1).mean() / of_mean)
    noise = GradientNoise(net, examples=examples, window=5000)
    for _ in range(1500):
        batch = torch.randint(200, (16,))
        with noise.block():
            F.cross_entropy(net(x[batch]), y[batch]).backward()
        took(noise)
        net.zero_grad()
    scale = noise.scale
    assert (scale.looks, scale.batch) == (1500, 16)
    assert 3 < truth < 100
    assert scale.value == pytest.approx(truth, rel=0.05)
    assert scale.low < truth < scale.high
    assert scale.noise / scale.gradient == scale.value


def test_a_sample_of_examples_is_right_on_average(still):
    x, y = data(12)
    noise, found = GradientNoise(still, examples=4), []
    squares, of_mean, _ = brute(still, x, y, LAYERS)
    for _ in range(200):
        with noise.block():
            F.cross_entropy(still(x), y).backward()
        numbers = took(noise)
        still.zero_grad()
        found.append(numbers["of_small"])
        assert numbers["of_big"] == pytest.approx(float(of_mean), rel=1e-5)
    assert len(set(found)) > 20
    assert sum(found) / 200 == pytest.approx(float(squares.mean()), rel=0.01)


def train(net, noise=None, *, cast=False, keep=lambda: None):
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    torch.manual_seed(5)
    for step in range(3):
        x, y = data(seed=step)
        with noise.block() if noise else torch.enable_grad():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            grads = [each.grad.clone() for each in net.parameters()]
            optimizer.step()
            optimizer.zero_grad()
        if noise:
            took(noise)
    return [*grads, *net.state_dict().values(), loss.detach(), torch.get_rng_state()]


@pytest.mark.parametrize("cast", [False, True])
def test_the_training_is_the_same(net, cast):
    other = copy.deepcopy(net)
    noise = GradientNoise(other)
    slots = {name: set(module.__dict__) for name, module in other.named_modules()}
    for a, b in zip(train(net, cast=cast), train(other, noise, cast=cast), strict=True):
        assert torch.equal(a, b)
    assert noise.scale.looks == 3
    assert noise.scale.layers == LAYERS
    for name, module in other.named_modules():
        assert set(module.__dict__) == slots[name]
        assert all(not each._backward_hooks and not each._post_accumulate_grad_hooks for each in module.parameters())


def test_clipping_does_not_count(still):
    x, y = data()
    norms = []
    for clip in (1e-3, 1e9):
        noise = GradientNoise(still)
        with noise.block():
            F.cross_entropy(still(x), y).backward()
            torch.nn.utils.clip_grad_norm_(still.parameters(), clip)
            still.zero_grad()
        norms.append(took(noise))
    assert norms[0] == norms[1]


def test_autocast(still):
    x, y = data()
    noise = GradientNoise(still)
    with noise.block():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(still(x), y)
        loss.backward()
    found = took(noise)
    squares, of_mean, _ = brute(still, x, y, LAYERS)
    assert found["of_small"] == pytest.approx(float(squares.mean()), rel=0.03)
    assert found["of_big"] == pytest.approx(float(of_mean), rel=0.03)
    assert not found["scaled"]


def test_16_bit_gradients_are_taken_for_scaled():
    net = nn.Sequential(nn.Linear(4, 3)).half()
    noise = GradientNoise(net)
    with noise.block():
        (net(torch.randn(8, 4).half()).float().square().mean() * 1024).backward()
    assert took(noise)["scaled"] == 1


@pytest.mark.parametrize("blocks", ["one", "several"])
def test_accumulated_batches_are_one(still, blocks):
    x, y = data(16)
    whole, parts = GradientNoise(still, examples=None), GradientNoise(still, examples=None)
    with whole.block():
        F.cross_entropy(still(x), y).backward()
    expected = took(whole)
    still.zero_grad()

    def backward(i):
        (F.cross_entropy(still(x[i : i + 4]), y[i : i + 4]) / 4).backward()

    if blocks == "one":
        with parts.block():
            for i in range(0, 16, 4):
                backward(i)
    else:
        for i in range(0, 16, 4):
            with parts.block():
                backward(i)
    found = took(parts)
    assert found["big"] == 16
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-5)


def test_micro_batches_of_two_sizes(still):
    x, y = data(6)
    noise = GradientNoise(still, examples=None)
    for part in (slice(0, 4), slice(4, 6)):
        with noise.block():
            (F.cross_entropy(still(x[part]), y[part], reduction="sum") / 6).backward()
    squares, of_mean, _ = brute(still, x, y, LAYERS)
    found = took(noise)
    assert [found["big"], found["of_small"]] == pytest.approx([6, float(squares.mean())], rel=1e-5)
    assert found["of_big"] == pytest.approx(float(of_mean), rel=1e-5)


def test_gradients_from_before_do_not_count(still):
    x, y = data()
    F.cross_entropy(still(x), y).backward()
    noise = GradientNoise(still)
    with noise.block():
        F.cross_entropy(still(x), y).backward()
    took(noise)
    assert noise.scale.looks == 0
    assert "there were gradients before its first block" in str(noise.scale)
    for to_none in (True, False):  # within the block, as many loops have it
        with noise.block():
            still.zero_grad(set_to_none=to_none)
            F.cross_entropy(still(x), y).backward()
        took(noise)
    assert noise.scale.looks == 2
    assert "the last step" not in noise.scale.left_out


@pytest.mark.parametrize("to_none", [True, False])
def test_two_steps_in_one_do_not_count(still, to_none):
    x, y = data()
    noise = GradientNoise(still)
    with noise.block():
        for _ in range(2):
            F.cross_entropy(still(x), y).backward()
            still.zero_grad(set_to_none=to_none)
    assert noise.sums() == []
    assert "changed or dropped between two backwards" in noise.scale.left_out["the last step"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_is_counted_once(still, reentrant):
    x, y = data()
    plain, noise = GradientNoise(still, examples=None), GradientNoise(still, examples=None)
    with plain.block():
        F.cross_entropy(still(x), y).backward()
    expected = took(plain)
    still.zero_grad()
    x.requires_grad_()
    with noise.block():
        F.cross_entropy(checkpoint(still, x, use_reentrant=reentrant), y).backward()
    found = took(noise)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-6)


def test_forwards_that_teach_nothing_are_ignored(still):
    x, y = data()
    noise = GradientNoise(still, examples=None)
    with noise.block():
        with torch.no_grad():
            still(data(3)[0])
        still.eval()
        F.cross_entropy(still(data(3)[0]), data(3)[1])
        still.train()
        F.cross_entropy(still(x), y).backward()
        with torch.inference_mode():
            still(data(3)[0])
    squares, _, _ = brute(still, x, y, LAYERS)
    found = took(noise)
    assert found["big"] == 8
    assert found["of_small"] == pytest.approx(float(squares.mean()), rel=1e-5)


class Overwrites(nn.Module):
    """Its first layer pads a copy of its input, so that autograd has nothing against the input being overwritten."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
        self.fc = nn.Linear(3 * 36, 3)

    def forward(self, x):
        x = x * 1
        y = self.conv(x)
        x.zero_()
        return self.fc(y.flatten(1))


def test_an_overwritten_input_is_copied_from_the_next_step_on():
    net, (x, y) = Overwrites(), data()
    noise = GradientNoise(net, examples=None)
    for expected in (("fc",), ("conv", "fc")):
        with noise.block():
            F.cross_entropy(net(x), y).backward()
        found = took(noise)
        assert noise.scale.layers == expected
        squares, of_mean, _ = brute(net, x, y, expected)
        assert found["of_small"] == pytest.approx(float(squares.mean()), rel=1e-5)
        assert found["of_big"] == pytest.approx(float(of_mean), rel=1e-5)
        net.zero_grad()
        if len(expected) == 1:
            assert "overwritten" in noise.scale.left_out["conv"]
    assert noise.scale.looks == 1  # what was said of other layers is not averaged with it
    assert noise.scale.left_out == {}


class Odd(nn.Module):
    """Layers whose examples' gradients are not known, each for another reason, beside one whose are."""

    def __init__(self):
        super().__init__()
        self.good = nn.Linear(4, 6)
        self.twice = nn.Linear(6, 6)
        self.tied, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.tied.weight
        self.made = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.patches = nn.Linear(3, 3)
        self.unused = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.partly = nn.Linear(6, 6)
        self.partly.weight.requires_grad_(False)
        self.last = nn.Linear(6, 1)

    def forward(self, x):
        x = self.good(x).tanh() * self.scale
        x = self.other(self.tied(self.twice(self.twice(x)).tanh())).tanh()
        x = self.patches(x.view(-1, 3)).view(-1, 6)
        return self.last(self.partly(self.frozen(self.made(x))))


def test_layers_that_cannot_be_told_are_left_out():
    torch.manual_seed(0)
    net, x = Odd(), torch.randn(8, 4)
    noise = GradientNoise(net, examples=None)
    with noise.block():
        net(x).square().mean().backward()
    found = took(noise)
    scale = noise.scale
    known = ("good", "partly", "last")
    assert scale.layers == known
    assert scale.left_out == {
        "": "Odd: only linear layers and convolutions are known",
        "twice": "it is called more than once before a backward: an example's gradient has several parts",
        "tied": "it shares its weight with 'other'",
        "other": "it shares its weight with 'tied'",
        "made": "its weight is made from other parameters",
        "made.parametrizations.weight": "ParametrizationList: only linear layers and convolutions are known",
        "patches": "the first axis of its input is not the batch: 16, not 8",
        "unused": "no backward reached a call of it",
    }
    assert math.isfinite(found["of_small"])


def test_two_backwards_through_one_call_leave_it_out(still):
    x, y = data()
    noise = GradientNoise(still)
    with noise.block():
        hidden = still.act(still.norm(still.conv(x)))
        out = still.fc(still.drop(still.again(hidden)).flatten(1))
        F.cross_entropy(out, y).backward(retain_graph=True)
        hidden.square().mean().backward()
    took(noise)
    assert noise.scale.layers == ("again", "fc")
    assert noise.scale.left_out["conv"] == "several backwards pass through one call of it"


def test_a_weight_with_a_backward_of_its_own_leaves_its_layer_out(still):
    x, y = data()
    noise = GradientNoise(still)
    with noise.block():
        F.cross_entropy(still(x), y).backward()
        still.fc.weight.square().sum().backward()
    took(noise)
    assert noise.scale.layers == ("conv", "again")
    assert noise.scale.left_out["fc"] == "its weights are used elsewhere than in its calls"


def test_a_layer_that_only_some_batches_come_to():
    """The others' examples have a gradient of 0 there."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 1)])
    noise, x = GradientNoise(net, examples=None), torch.randn(12, 4)
    squares = []
    for i, part in enumerate(x.split(4)):
        with noise.block():
            hidden = net[0](part).tanh()
            (net[2](net[1](hidden) if i == 1 else hidden).square().sum() / 12).backward()
        for one in part:
            hidden = net[0](one[None]).tanh()
            loss = net[2](net[1](hidden) if i == 1 else hidden).square().sum()
            made = torch.autograd.grad(loss, [*net.parameters()], allow_unused=True)
            squares.append(sum(float(each.square().sum()) for each in made if each is not None))
    found = took(noise)
    assert noise.scale.layers == ("0", "1", "2")
    assert [found["big"], found["of_small"]] == pytest.approx([12, sum(squares) / 12], rel=1e-5)


def test_a_step_of_other_layers_that_is_read_late_does_not_count(still):
    x, y = data()
    noise, waiting = GradientNoise(still), []
    for learns in (True, False):
        still.conv.requires_grad_(learns)
        with noise.block():
            F.cross_entropy(still(x), y).backward()
        still.zero_grad()
        waiting.append([float(each) for each in noise.sums()])
    for numbers in waiting:
        noise.take(numbers)
    assert noise.scale.looks == 1
    assert noise.scale.layers == ("again", "fc")


@pytest.mark.parametrize("mixed", ["from the beginning", "set within the block"])
def test_batch_normalisation_is_refused(mixed):
    net, (x, y) = Net(nn.BatchNorm2d(4)), data()
    noise = GradientNoise(net)
    net.eval()
    if mixed == "from the beginning":
        net.train()
    with noise.block():
        net.train()
        F.cross_entropy(net(x), y).backward()
    assert noise.sums() == []
    noise.take([])
    with pytest.raises(OptionError, match="mixes the examples of a batch: BatchNorm2d at 'norm'"):
        _ = noise.scale
    net.norm.eval()
    net.zero_grad()
    with noise.block():
        F.cross_entropy(net(x), y).backward()
    took(noise)
    assert noise.scale.looks == 1


def test_normalisation_by_the_batch_is_refused_without_running_statistics():
    net = Net(nn.BatchNorm2d(4, track_running_stats=False)).eval()
    noise = GradientNoise(net)
    with noise.block():
        pass
    with pytest.raises(OptionError, match="mixes the examples"):
        _ = noise.scale


@pytest.mark.parametrize("how", ["wrapped", "inside", "in place"])
def test_compiled_models_are_refused(still, how):
    if how == "wrapped":
        model = torch.compile(still, backend="eager")
    elif how == "inside":
        model = nn.Sequential(torch.compile(still, backend="eager"))
    else:
        model = still
        model.compile(backend="eager")
    noise = GradientNoise(model)
    with noise.block():
        pass
    assert noise.sums() == []
    with pytest.raises(OptionError, match="the model is compiled"):
        _ = noise.scale


def test_a_model_within_a_compiled_function_is_refused_once_seen(still):
    x, y = data()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: F.cross_entropy(still(x), y), backend="eager")
    noise = GradientNoise(still)
    with noise.block():
        compiled(x).backward()
    with pytest.raises(OptionError, match="the model is compiled"):
        _ = noise.scale
    before = set(still.conv.__dict__)
    with noise.block():
        assert set(still.conv.__dict__) == before
    torch._dynamo.reset()


def test_a_batch_on_the_second_axis_is_refused():
    noise = GradientNoise(nn.Sequential(nn.LSTM(3, 4)))
    with noise.block():
        pass
    with pytest.raises(OptionError, match="LSTM at '0' takes the batch on its second axis"):
        _ = noise.scale


def test_nothing_is_left_after_an_exception(net):
    x, y = data()
    noise = GradientNoise(net)
    slots = {name: set(module.__dict__) for name, module in net.named_modules()}

    def fails():
        F.cross_entropy(net(x), y).backward()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), noise.block():
        fails()
    for name, module in net.named_modules():
        assert set(module.__dict__) == slots[name]
        assert all(not each._backward_hooks and not each._post_accumulate_grad_hooks for each in module.parameters())
    assert noise.sums() == []
    net.zero_grad()
    with noise.block():
        F.cross_entropy(net(x), y).backward()
    took(noise)
    assert noise.scale.looks == 1


def test_a_backward_after_the_block_is_not_seen(net):
    x, y = data()
    noise = GradientNoise(net)
    with noise.block():
        loss = F.cross_entropy(net(x), y)
    loss.backward()
    assert noise.sums() == []
    assert "no backward reached a call of it" in noise.scale.left_out["the last step"]


def test_a_forward_without_a_backward_is_forgotten_with_its_block(still):
    x, y = data()
    noise = GradientNoise(still)
    with noise.block():
        still(x)
    with noise.block():
        F.cross_entropy(still(x), y).backward()
    assert took(noise)["big"] == 8
    assert noise.scale.layers == LAYERS


def test_beside_a_capture(still):
    x, y = data()
    noise = GradientNoise(still, examples=None)
    squares, _, _ = brute(still, x, y, LAYERS)
    for order in (0, 1):
        contexts = [noise.block(), capture(still)]
        with contexts[order], contexts[1 - order]:
            F.cross_entropy(still(x), y).backward()
        still.zero_grad()
        assert took(noise)["of_small"] == pytest.approx(float(squares.mean()), rel=1e-5)
        assert "forward" not in still.conv.__dict__


def test_inputs_are_let_go_of(still):
    x, y = data()
    noise = GradientNoise(still)
    with noise.block():
        F.cross_entropy(still(x), y).backward()
        gc.collect()
        held = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.shape == (8, 4, 6, 6)]
    assert held == []


def test_tokens_and_a_model_called_in_parts():
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(5, 2)})
    noise = GradientNoise(net, examples=None)
    x = torch.randn(6, 4, 3)
    with noise.block():
        for part in x.split([4, 2]):
            (net["b"](net["a"](part).tanh()).square().mean((1, 2)).sum() / 6).backward()
    found = took(noise)

    def one(parameters, x):
        a, b = ({key: parameters[f"{name}.{key}"] for key in ("weight", "bias")} for name in "ab")
        return F.linear(F.linear(x, **a).tanh(), **b).square().mean()

    made = vmap(grad(one), (None, 0))({name: each.detach() for name, each in net.named_parameters()}, x)
    each = torch.cat([part.flatten(1) for part in made.values()], 1).detach()
    assert found["big"] == 6
    assert found["of_small"] == pytest.approx(float(each.square().sum(1).mean()), rel=1e-5)
    assert found["of_big"] == pytest.approx(float(each.mean(0).square().sum()), rel=1e-5)


@pytest.mark.parametrize("strided", [False, True])
def test_tokens_before_an_activation_in_place(strided):
    """What a linear layer returns is then a view, whose gradient the activation goes past."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2), nn.ReLU(inplace=True))
    x = torch.randn(3, 6, 4).transpose(0, 1) if strided else torch.randn(6, 3, 4)
    noise = GradientNoise(net, examples=None)
    with noise.block():
        net(x).square().mean().backward()
    squares, of_mean, _ = brute(net, x, x, ("0", "2"), lossf=lambda out, _: out.square().mean())
    found = took(noise)
    assert noise.scale.layers == ("0", "2")
    assert found["of_small"] == pytest.approx(float(squares.mean()), rel=1e-5)
    assert found["of_big"] == pytest.approx(float(of_mean), rel=1e-5)


def test_gradients_of_functions_and_empty_batches_do_not_count(still):
    x, y = data()
    noise = GradientNoise(still, examples=None)
    with noise.block():
        squares, _, _ = brute(still, x, y, LAYERS)
        F.cross_entropy(still(x[:0]), y[:0], reduction="sum").backward()
        F.cross_entropy(still(x), y).backward()
    found = took(noise)
    assert noise.scale.layers == LAYERS
    assert [found["big"], found["of_small"]] == pytest.approx([8, float(squares.mean())], rel=1e-5)


def test_one_example_tells_nothing(still):
    x, y = data(1)
    noise = GradientNoise(still)
    with noise.block():
        F.cross_entropy(still(x), y).backward()
    assert noise.sums() == []
    assert "one example" in noise.scale.left_out["the last step"]


def test_a_state_goes_on(still):
    whole, first, second = GradientNoise(still), GradientNoise(still), GradientNoise(still)
    for step in range(6):
        x, y = data(seed=step)
        for noise in (whole, first if step < 3 else second):
            with noise.block():
                F.cross_entropy(still(x), y).backward()
            took(noise)
            still.zero_grad()
        if step == 2:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            assert second.scale.value == first.scale.value
    assert second.scale == whole.scale
    assert second.scale.looks == 6
    with second.block():
        F.cross_entropy(still(x), y).backward()
    late = [float(each) for each in second.sums()]
    second.load_state_dict(first.state_dict())
    second.take(late)  # of what was before
    assert second.scale == first.scale


def test_a_step_that_is_read_late_counts(still):
    """On a GPU the numbers of a step are read when the next one ends."""
    noise, waiting = GradientNoise(still), []
    for step in range(3):
        x, y = data(seed=step)
        with noise.block():
            F.cross_entropy(still(x), y).backward()
        still.zero_grad()
        waiting.append(noise.sums())
    for numbers in waiting:
        noise.take([float(each) for each in numbers])
    assert noise.scale.looks == 3


def test_options():
    with pytest.raises(OptionError, match="examples must be at least 1, or None for all, got 0"):
        GradientNoise(nn.Linear(1, 1), examples=0)
    with pytest.raises(OptionError, match="window must be at least 1, got 0"):
        GradientNoise(nn.Linear(1, 1), window=0)
    with pytest.raises(DtypeError, match="model must be a torch"):
        GradientNoise(3)
    noise = GradientNoise(nn.Linear(1, 1))
    with (
        noise.block(),
        pytest.raises(OptionError, match=r"a block of this noise scale is already open; leave it first\."),
        noise.block(),
    ):
        pass
