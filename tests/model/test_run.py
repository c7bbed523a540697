from contextlib import suppress

import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.bench import overhead
from torch_featviz.errors import DeviceError, DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.run import graph_from, hooked, one_call, run, run_looking_at, run_until
from torch_featviz.training import Monitor

X = torch.rand(2, 3)


class Net(nn.Module):
    """Calls one layer twice, and another that may fail."""

    def __init__(self, fails=None):
        super().__init__()
        self.a, self.b, self.never = nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(1, 1)
        self.fails = fails
        self.ended = False

    def forward(self, x):
        x = self.a(self.a(x))
        if self.fails is not None:
            raise self.fails
        x = self.b(x)
        self.ended = True
        return x


def hooks_in(net):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def test_what_fits_is_run():
    class Two(nn.Module):
        def forward(self, x, y, *, z):
            return x + y * z

    assert run(Two(), Inputs.of(X, 2, {"z": 3})).equal(X + 6)


def test_another_device():
    with pytest.raises(DeviceError, match=r"the inputs are on cpu and the weights of Linear on meta; move the inputs"):
        run(nn.Linear(3, 3, device="meta"), Inputs(X))


ON_META = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
ON_META.to("meta").eval()
IMAGES = torch.rand(2, 3, 16, 16)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fv.attribute(ON_META, IMAGES),
        lambda: fv.attribute(ON_META, IMAGES, method="integrated_gradients"),
        lambda: fv.overview(ON_META, IMAGES[:1]),
        lambda: fv.attributions(ON_META, IMAGES),
        lambda: fv.atlas(ON_META, IMAGES),
        lambda: fv.summary(ON_META, IMAGES),
        lambda: fv.first_nonfinite(ON_META, IMAGES),
        lambda: fv.inspect.activations(ON_META, Inputs(IMAGES), "0"),
        lambda: Monitor(ON_META, probe=IMAGES),
        lambda: overhead(ON_META, IMAGES),
    ],
)
def test_what_a_person_gives_is_not_moved(call):
    with pytest.raises(DeviceError, match="the inputs are on cpu and the weights of Sequential on meta; move the inpu"):
        call()


def test_another_dtype():
    expected = (
        r"images are torch\.float32, but the weights of Linear are "
        r"torch\.float64; pass images\.to\(torch\.float64\)"
    )
    with pytest.raises(DtypeError, match=expected):
        run(nn.Linear(3, 3).double(), Inputs(X))


def test_a_model_that_casts_its_input_is_not_refused():
    class Casts(nn.Linear):
        def forward(self, x):
            return super().forward(x.double())

    assert run(Casts(3, 3).double(), Inputs(X)).dtype == torch.float64


def test_other_arguments():
    class Meta(nn.Module):
        def forward(self, x, *, meta):
            return x

    expected = r"Meta\.forward\(self, x, \*, meta\) .*missing.*'meta'.*additional_forward_args=.*keywords="
    with pytest.raises(OptionError, match=expected):
        run(Meta(), Inputs(X))
    with pytest.raises(OptionError, match=r"Meta\.forward"):
        run(Meta(), Inputs.of(X, 1, {"meta": 2}))


def test_another_shape():
    with pytest.raises(
        ShapeError, match=r"Linear does not accept inputs of shape \(2, 3\): RuntimeError: .*mat1 and mat2"
    ):
        run(nn.Linear(4, 4), Inputs(X))


@pytest.mark.parametrize("error", [KeyError("k"), AttributeError("a"), KeyboardInterrupt()])
def test_the_models_own_faults_pass_as_they_are(error):
    with pytest.raises(type(error)):
        run(Net(error), Inputs(X))


@pytest.mark.parametrize("fails", [None, ValueError("tired")])
def test_no_hook_is_left(fails):
    net, calls = Net(fails), []
    note = lambda when: lambda *_: calls.append(when)
    with suppress(ValueError), hooked([net.a], before=note("before"), after=note("after")):
        net(X)
    assert calls == ["before", "after"] * 2
    assert hooks_in(net) == 0


def test_up_to_a_layer_the_rest_does_not_run():
    net = Net()
    assert run_until(net, "a", Inputs(X)).equal(net.a(X))  # its first call
    assert not net.ended
    assert hooks_in(net) == 0
    with pytest.raises(LayerError, match=r"layer 'never' did not run: the model's forward never called it\."):
        run_until(net, "never", Inputs(X))


def test_a_layer_looked_at_runs_once():
    net = Net()
    assert run_looking_at(net, "b", Inputs(X), lambda output: output.shape) == (2, 4)
    assert net.ended
    with pytest.raises(LayerError, match=r"layer 'a' ran 2 times in one forward; choose one call: 'a#1', 'a#2'\."):
        run_looking_at(net, "a", Inputs(X), lambda output: output)


def test_what_fails_after_a_layer_is_of_no_consequence():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(9, 9)

        def forward(self, x):
            return self.head(self.body(x))

    net = Late()
    assert run_looking_at(net, "body", Inputs(X), torch.Tensor.clone).equal(net.body(X))
    with pytest.raises(ShapeError, match="Late does not accept inputs"):
        run_looking_at(net, "head", Inputs(X), torch.Tensor.clone)


def test_the_graph_begins_at_a_layer():
    net = Net()
    with graph_from(net, "b") as leaves:
        output = run(net, Inputs(X))
    (leaf,) = leaves
    assert torch.autograd.grad(output.sum(), leaf)[0].equal(torch.ones(2, 4))
    assert net.a.weight.grad is None
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(output.sum(), net.a.weight)
    pair = nn.LSTM(3, 3)
    with (
        graph_from(pair, ""),
        pytest.raises(ShapeError, match=r"layer '' returns a tuple, not a map; choose a convolution\."),
    ):
        run(pair, Inputs(X))


@pytest.mark.parametrize("call", [1, 2])
def test_one_of_several_calls_is_a_layer(call):
    net = Net()
    expected = net.a(X) if call == 1 else net.a(net.a(X))
    numbered, name = one_call(net, f"a#{call}")
    for _ in range(2):  # they are counted anew in each forward
        assert run_looking_at(numbered, name, Inputs(X), torch.Tensor.clone).equal(expected)
        assert run_until(numbered, name, Inputs(X)).equal(expected)


def test_a_call_that_does_not_happen():
    numbered, name = one_call(Net(), "a#3")
    with pytest.raises(LayerError, match="layer 'a' ran 2 times in one forward; it has no call 3"):
        run_until(numbered, name, Inputs(X))
    with pytest.raises(LayerError, match="layer 'b' ran once in one forward; it has no call 2"):
        run_looking_at(*one_call(Net(), "b#2"), Inputs(X), torch.Tensor.clone)
    net = Net()
    assert one_call(net, "b") == (net, "b")
    for wrong in ("a#0", "a#x", "nothing#1"):
        with pytest.raises(LayerError, match=f"no layer '{wrong}'"):
            one_call(Net(), wrong)
