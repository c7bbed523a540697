"""`torch.inference_mode()`: the model's own operators run, and what is captured is right whoever made the tensors."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from torch_featviz.capture import Moments, Ring, capture, inference
from torch_featviz.errors import LayerError
from torch_featviz.torch_private import tensors_on


class Tokens(nn.Module):
    """A linear layer on a permuted map, as in a ViT: which kernel it takes depends on its surroundings."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.act = nn.Conv2d(3, 16, 2, 2), nn.Linear(16, 16), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.linear(self.conv(x).flatten(2).transpose(1, 2)))


class LastStep(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


NETS = {
    "tokens": (Tokens, (2, 3, 8, 8)),
    "lstm": (lambda: nn.Sequential(LastStep(6, 5, 2, batch_first=True), nn.Linear(5, 3)), (2, 7, 6)),
    "attention": (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), (2, 5, 8)),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True)), (2, 3, 8, 8)),
}


def made(shape, inside):
    with torch.inference_mode(inside):
        return torch.randn(shape)


def operators(call):
    """The operators that PyTorch itself says to run, with the shapes that they are given."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as seen:
        call()
    return sorted((event.name, str(event.input_shapes)) for event in seen.events())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_the_models_own_operators_run(name, training):
    build, shape = NETS[name]
    net, x = build().train(training), made(shape, inside=False)
    with torch.inference_mode():
        net(x)
        bare = operators(lambda: net(x))
        with capture(net, type(net)) as acts:
            net(x)
            assert operators(lambda: net(x)) == bare
    assert not next(iter(acts.values())).is_inference()


@pytest.mark.parametrize("inside", [False, True])
def test_an_output_is_held_by_reference(inside):
    net, memory = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.ReLU(True)), []
    for layer in net[:2]:
        layer.register_forward_hook(lambda _m, _i, out: memory.append(out.data_ptr()))
    x = made((1, 3, 8, 8), inside)
    for _ in range(2):
        memory.clear()
        with torch.inference_mode(), capture(net, ["0", "1"]) as acts:
            net(x)
        assert [value.data_ptr() for value in acts.values()] == memory


class Writes(nn.Module):
    """Writes to what it is given, wherever in the arguments that is."""

    def __init__(self):
        super().__init__()
        self.same, self.view = nn.Identity(), nn.Flatten()

    def forward(self, x, parts, extra=None):
        self.same(x)
        self.view(x)
        x.add_(1)
        parts[0].mul_(2)
        parts.append(x)
        extra["y"].zero_()
        extra["new"] = parts[0]
        return x, {"list": parts, "sum": x + 1}


@pytest.mark.parametrize("inside", [False, True])
def test_a_write_to_an_argument_reaches_the_caller(inside):
    net, start = Writes(), torch.arange(6.0).reshape(2, 3)
    for _ in range(3):
        with torch.inference_mode():
            with torch.inference_mode(inside):
                x, part, y = start.clone(), start.clone(), start.clone()
            parts, extra = [part], {"y": y}
            with capture(net) as acts:
                output, found = net(x, parts, extra=extra)
            assert output is x
            assert found["list"] is parts
            assert parts[0] is part
            assert parts[1] is x
            assert list(extra) == ["y", "new"]
            assert extra["y"] is y
            assert extra["new"] is part
            assert torch.equal(x, start + 1)
            assert torch.equal(part, start * 2)
            assert torch.equal(y, start * 0)
            assert torch.equal(found["sum"], start + 2)
            x.zero_()
        if inside:
            assert torch.equal(acts["same"], start)
            assert torch.equal(acts["view"], start)


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Flatten(0), nn.Unflatten(1, (3, 1)), nn.Dropout(0.5)])
@pytest.mark.parametrize("ends", ["output", "nothing"])
def test_a_caller_may_write_to_its_argument_again(layer, ends):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = layer, nn.ReLU(), None

        def forward(self, x):
            self.last = None  # lets go of one tensor over this memory, and another one comes
            y = self.first(x)
            self.act(y)
            if ends == "nothing":
                return None
            self.last = x[:1]
            return y

    net, start = Net().eval(), torch.arange(6.0).reshape(2, 3)
    with torch.inference_mode():
        x = torch.zeros(2, 3)
        for add in range(3):
            with capture(net) as acts:
                x.copy_(start + add)
                expected = layer(start + add)
                net(x)
                x.zero_()
            assert torch.equal(acts["first"], expected)
            assert torch.equal(acts["act"], expected)


def test_arguments_that_share_memory_are_one_to_the_versions():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.write = nn.Identity(), False

        def forward(self, whole, half):
            y = self.same(half)
            if self.write:
                whole.zero_()
            return y + 1

    net = Halves()
    with torch.inference_mode():
        for net.write in (False, True):
            whole = torch.ones(4)
            with capture(net, into=lambda value: value) as acts:
                output = net(whole, whole[:2])
            assert torch.equal(output, torch.full((2,), 1.0 if net.write else 2.0))
            if not net.write:
                assert torch.equal(acts["same"], torch.ones(2))


@pytest.mark.skipif(not hasattr(torch._C, "_storage_Use_Count"), reason="this release of torch does not tell")
def test_how_many_tensors_hold_a_memory():
    x = torch.zeros(4)
    assert tensors_on(x.untyped_storage()) == 1
    part = x[1:]
    assert tensors_on(x.untyped_storage()) == tensors_on(part.untyped_storage()) == 2
    del part
    assert tensors_on(x.untyped_storage()) == 1


def test_the_shape_that_a_model_gives_to_its_argument():
    class Unsqueezed(nn.Module):
        def forward(self, x):
            return x.unsqueeze_(0).sum()

    net = nn.Sequential(Unsqueezed())
    with torch.inference_mode(), capture(net):
        x = torch.ones(3)
        net(x)
        assert x.shape == (1, 3)


class Holds(nn.Module):
    """Counts its calls, and keeps what the last one saw, in tensors that it writes to."""

    def __init__(self, buffer):
        super().__init__()
        self.layer, self.act = nn.Linear(3, 3), nn.ReLU()
        state = torch.zeros(2, 3)
        if buffer:
            self.register_buffer("state", state)
        else:
            self.state = state

    def forward(self, x):
        y = self.act(self.layer(x))
        self.state += y
        y.mul_(2)
        return y


def with_state(buffer):
    torch.manual_seed(1)
    with torch.inference_mode():
        return Holds(buffer)


@pytest.mark.parametrize("buffer", [True, False])
@pytest.mark.parametrize("options", [{}, {"ops": True}, {"every": 1, "into": Ring(1)}])
def test_a_model_that_writes_to_inference_tensors_of_its_own(buffer, options):
    net, bare, x = with_state(buffer), with_state(buffer), torch.randn(2, 3)
    with torch.inference_mode():
        for _ in range(2):
            with capture(net, ["layer", "act"], **options) as acts:
                assert torch.equal(net(x), bare(x))
                linear = nn.functional.linear(x, net.layer.weight, net.layer.bias)
                values = [value[-1] if "into" in options else value for value in acts.values()]
            assert torch.equal(values[0], linear)
            assert torch.equal(values[1], linear.relu())
            assert torch.equal(net.state, bare.state)


def test_a_state_that_came_later_is_refused_once():
    net, x = Holds(buffer=False), torch.randn(2, 3)
    with torch.inference_mode(), capture(net, "act") as acts:
        net(x)
        net.state = torch.zeros(2, 3)
        with pytest.raises(
            LayerError,
            match=r"Holds wrote to a tensor made in torch\.inference_mode\(\), which capture\(\) cannot follow",
        ):
            net(x)
        assert torch.equal(net(x), acts["act"] * 2)


def test_an_argument_that_cannot_be_seen_through():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, cache):
            cache.state[:] = self.layer(x)
            return cache.state.mul_(2)

    net, x = Cached(), torch.randn(2, 3)
    with torch.inference_mode(), capture(net) as acts:
        cache = SimpleNamespace(state=torch.zeros(2, 3))
        for _ in range(2):
            assert torch.equal(net(x, cache), 2 * net.layer(x))
    assert torch.equal(acts["layer"], nn.functional.linear(x, net.layer.weight, net.layer.bias))


def odd(x):
    """Inference tensors that no ordinary strided tensor can stand in for, each equal to `x`."""
    tagged = x.clone()
    tagged.tag = "kept"
    return {"subclass": nn.Parameter(x.clone(), False), "tagged": tagged, "negative": torch.complex(x, -x).conj().imag}


@pytest.mark.parametrize("kind", ["subclass", "tagged", "negative"])
def test_an_argument_of_another_kind_stays_what_it_is(kind):
    class Checked(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x):
            assert x is argument
            return self.same(x) + 0

    net = Checked()
    with torch.inference_mode():
        argument = odd(torch.arange(3.0))[kind]
        with capture(net) as acts:
            net(argument)
        argument.zero_()
    assert torch.equal(acts["same"], torch.arange(3.0))


def test_a_forward_with_gradients_on_makes_no_graph():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            with torch.set_grad_enabled(True):
                return [self.layer(x)]

    net = Graph()
    with torch.inference_mode(), capture(net) as acts:
        (output,) = net(torch.ones(1, 3))
        assert not output.requires_grad
        assert torch.equal(acts["layer"], output)
        assert torch.is_inference_mode_enabled()


def test_a_forward_that_enters_inference_mode_itself():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        @torch.inference_mode()
        def forward(self, x):
            return self.layer(x)

    net = Own()
    for _ in range(2):
        with capture(net) as acts:
            output = net(torch.ones(1, 3))
            expected = output.clone()
        with torch.inference_mode():
            output.zero_()
        assert torch.equal(acts["layer"], expected)


def test_figures_are_those_of_ordinary_forwards():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(True)), torch.randn(4, 3, 8, 8)
    with torch.no_grad(), capture(net, into=Moments()) as expected:
        net(x)
    with torch.inference_mode(), capture(net, into=Moments()) as actual:
        net(x)
    for name in expected:
        assert torch.equal(actual[name].mean, expected[name].mean)


def test_what_is_known_of_a_model_is_not_shared_with_its_copy():
    net = with_state(buffer=False)
    with torch.inference_mode(), capture(net, "act"):
        net(torch.randn(2, 3))
    assert net in inference._writing
    assert copy.deepcopy(net) not in inference._writing
