"""Gradients of layers' outputs in compiled models: inside the graph, which is compiled once more and never again."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from torch_featviz.capture import Histogram, Moments, Ring, ToCPU, TopK, capture
from torch_featviz.capture.listening import Part
from torch_featviz.errors import LayerError, OptionError
from torch_featviz.torch_private import hooks_in_graphs

pytestmark = [
    pytest.mark.skipif(not hooks_in_graphs(), reason="in this torch a compiled model runs uncompiled for gradients"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # Dynamo's own
]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.relu(y)


class Split(nn.Module):
    def forward(self, x):
        return x * 2, {"mean": x.mean((2, 3)), "size": x.shape[0]}


class Net(nn.Module):
    """In-place work, an activation that runs four times, blocks that are alike, and a layer that returns structures."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu, self.split, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), Split(), nn.Linear(4, 5)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = self.relu(block(x))
        x, more = self.split(x)
        return self.head(x.mean((2, 3)) + more["mean"])


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def oracle(net, x, names, loss=lambda output: output.square().sum()):
    """By torch.autograd.grad, of a twin that works out of place: the gradient of each call, in order."""
    twin, seen = copy.deepcopy(net), []
    for name, module in twin.named_modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if name in names:
            module.register_forward_hook(lambda _m, _i, output, name=name: seen.append((name, output)))
    value = loss(twin(x))
    parts = [output for _, output in seen]
    return list(zip([name for name, _ in seen], torch.autograd.grad(value, parts), strict=True))


def by_name(grads):
    """All that was captured, as pairs of a layer and a gradient, in order."""
    return [(key.partition("#")[0], value) for key, value in grads.items()]


def same(one, other, **options):
    assert [name for name, _ in one] == [name for name, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **options)
    return True


def backward(net, x=X, call=None):
    """The gradients of all parameters."""
    net.zero_grad(set_to_none=True)
    (net if call is None else call)(x).square().sum().backward()
    return [parameter.grad for parameter in net.parameters()]


def compiled(net, backend="aot_eager", **options):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(net, fullgraph=True, backend=counter, **options), counter


NAMES = ["stem", "relu", "blocks.0.conv", "blocks.1.norm", "blocks.2.relu", "head"]


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(200, 3))


@pytest.mark.parametrize(
    ("make", "names", "backend"),
    [
        pytest.param(Net, NAMES, "eager", marks=pytest.mark.slow),
        (Net, NAMES, "aot_eager"),
        (small, ["0", "1", "3"], "inductor"),
    ],
)
def test_one_more_graph_with_the_gradients_of_eager_mode(make, names, backend):
    """And those of the parameters are the very same as without the capture."""
    net = make()
    expected = oracle(net, X, names)
    fast, counter = compiled(net, backend)
    alone = backward(fast)
    for _ in range(3):
        with capture(fast, names, of="grad") as grads:
            captured = backward(fast)
        assert same(by_name(grads), expected)
        assert all(map(torch.equal, captured, alone))
        assert all(map(torch.equal, backward(fast), alone))
    assert counter.frame_count == 2, "one graph without capture, one with it"
    assert not counters["graph_break"]


def whole(net, backend):
    return torch.compile(net, fullgraph=True, backend=backend)


def in_place(net, backend):
    net.compile(fullgraph=True, backend=backend)
    return net


def around(net, backend):
    return torch.compile(lambda x: net(x), fullgraph=True, backend=backend)


def blocks_in_place(net, backend):
    for block in net.blocks:
        block.compile(fullgraph=True, backend=backend)
    return net


def blocks_by_method(net, backend):
    for block in net.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, backend=backend)
    return net


@pytest.mark.parametrize(
    ("way", "inside"),
    [
        *[(way, False) for way in (whole, around, blocks_in_place, blocks_by_method)],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in [(in_place, False), (around, True)]],
        (whole, True),
    ],
)
def test_every_way_to_compile_and_every_layer(way, inside):
    net = Net()
    names = [name for name, module in net.named_modules() if not list(module.children())]
    with capture(net, names, of="grad") as eager:
        alone = backward(net)
    names.remove("split")
    assert same([pair for pair in by_name(eager) if pair[0] != "split"], oracle(net, X, names))
    counter = CompileCounterWithBackend("eager")
    if not inside:
        fast = way(net, counter)
        backward(net, call=fast)
    for _ in range(3):
        with capture(net, of="grad") as grads:
            if inside:
                fast = way(net, counter)
            captured = backward(net, call=fast)
        assert list(grads) == list(eager)
        assert grads.not_run == []
        assert all(map(torch.equal, captured, alone))
        for key, value in eager.items():
            torch.testing.assert_close(grads[key], value)
    assert counter.frame_count == (1 if inside else 2)


def like_eager(make, call, layers=None, **options):
    """What `call` yields of a compiled model, once it yielded the same of an eager one."""
    torch.manual_seed(0)
    eager = call(make(), **options)
    fast, counter = compiled(make())
    with torch.no_grad():
        fast(X)
    result = call(fast, **options)
    assert counter.frame_count >= 2, "it ran uncompiled"
    assert not counters["graph_break"]
    return eager, result


def of_three_steps(net, **options):
    with capture(net, ["0", "1"], of="grad", **options) as kept:
        for scale in (1, 2, 3):
            backward(net, X * scale)
    return kept


SLOW = [pytest.param(into, marks=pytest.mark.slow) for into in (Moments(), TopK(2))]


@pytest.mark.parametrize("into", [Histogram(), [Moments(), TopK(1)], *SLOW])
def test_reducers(into):
    eager, fast = like_eager(small, of_three_steps, into=into)
    assert list(eager) == list(fast) == ["0", "1"]
    for name in eager:
        pairs = zip(eager[name], fast[name], strict=True) if isinstance(into, list) else [(eager[name], fast[name])]
        for one, other in pairs:
            figures = [key for key, kind in vars(type(one)).items() if isinstance(kind, property) and key != "settings"]
            for figure in figures:
                torch.testing.assert_close(
                    torch.as_tensor(getattr(other, figure)), torch.as_tensor(getattr(one, figure)), msg=figure
                )


@pytest.mark.parametrize("into", [Ring(2), ToCPU(), lambda gradient: gradient.abs().amax((2, 3))])
def test_other_things_to_keep(into):
    eager, fast = like_eager(small, of_three_steps, into=into)
    for name in ("0", "1"):
        torch.testing.assert_close(fast[name], eager[name])
    if isinstance(into, Ring):
        assert len(fast["0"]) == 2
        torch.testing.assert_close(fast["0"][1], oracle(small(), X * 3, ["0"])[0][1])


def test_every_second_forward():
    eager, fast = like_eager(small, of_three_steps, every=2)
    torch.testing.assert_close(fast["0"], eager["0"])
    torch.testing.assert_close(fast["0"], oracle(small(), X * 3, ["0"])[0][1])


def again(net):
    """Two backwards of one forward; then two forwards, of which the first one's backward comes last."""
    with capture(net, ["0", "1"], of="grad") as grads:
        loss = net(X).square().sum()
        loss.backward(retain_graph=True)
        first = dict(grads)
        (2 * loss).backward()
        second = dict(grads)
        earlier = net(X).square().sum()
        net(3 * X).square().sum().backward()
        earlier.backward()
        last = dict(grads)
    return [first, second, last]


def test_several_backwards_and_forwards():
    eager, fast = like_eager(small, again)
    for one, other in zip(eager, fast, strict=True):
        assert list(one) == list(other) == ["0", "1"]
        for name, value in one.items():
            torch.testing.assert_close(other[name], value)
    torch.testing.assert_close(fast[1]["0"], 2 * fast[0]["0"])
    torch.testing.assert_close(fast[2]["0"], oracle(small(), 3 * X, ["0"])[0][1])


def test_a_forward_that_fails_leaves_what_there_is_in_order():
    fast, _ = compiled(small())
    with capture(fast, ["0", "3"], of="grad") as grads:
        loss = fast(X).square().sum()
        loss.backward(retain_graph=True)
        with pytest.raises(Exception, match="channels"):
            fast(X[:, :2])
        loss.backward()
        assert list(grads) == ["0", "3"]


def test_what_a_graph_does_with_the_memory_of_a_gradient_afterwards_does_no_harm():
    net, gradient = small(), torch.ones(2, 3)
    with capture(net, "3", of="grad") as grads:
        grads._recorder.arrived(0, 1, Part(position=0, of=0, alone=0), gradient)
        gradient.zero_()
        assert torch.equal(grads["3"], torch.ones(2, 3))


def test_no_gradient_no_record():
    def no_backward(net):
        with capture(net, of="grad") as grads, torch.no_grad():
            net(X)
        return grads

    def backward_outside(net):
        with capture(net, of="grad") as grads:
            output = net(X)
        output.sum().backward()
        return grads

    for call in (no_backward, backward_outside):
        for grads in like_eager(small, call):
            assert list(grads) == []
            assert grads.not_run == ["0", "1", "2", "3"]
            with pytest.raises(LayerError, match=r"layer '0' got no gradient: backward\(\) did not reach it inside"):
                grads["0"]


def test_autocast():
    def step(net):
        with torch.autocast("cpu", torch.bfloat16), capture(net, ["0", "3"], of="grad") as grads:
            net(X).float().square().sum().backward()
        return grads

    eager, fast = like_eager(small, step)
    for name, value in eager.items():
        assert fast[name].dtype == value.dtype == torch.bfloat16
        torch.testing.assert_close(fast[name], value)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return self.last(checkpoint(self.body, self.first(x), use_reentrant=False).mean((2, 3)))


def steps(net, layers=None):
    with capture(net, layers, of="grad") as grads:
        alone = backward(net)
        captured = backward(net)
    assert all(map(torch.equal, captured, alone))
    return grads


def test_layers_in_a_checkpoint_keep_their_order():
    eager, fast = like_eager(Checkpointed, steps)
    assert list(fast) == ["first", "body.0", "body.1", "body.2", "last"]
    for name, value in eager.items():
        torch.testing.assert_close(fast[name], value)


class Odd(nn.Module):
    """A layer that returns what it was given; one whose result is not used; an output that the loss leaves out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.same, self.conv, self.relu = nn.Identity(), nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True)
        self.aside, self.dead = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = self.conv(self.same(x))
        self.relu(x)
        self.dead(x.detach())
        return x, self.aside(x)


def test_odd_layers():
    def step(net):
        x = X.clone().requires_grad_()
        with capture(net, of="grad") as grads:
            net(x)[0].square().sum().backward()
        torch.testing.assert_close(grads["same"], x.grad)
        return grads

    eager, fast = like_eager(Odd, step)
    assert list(eager) == ["same", "conv", "relu"]
    for name, value in eager.items():
        torch.testing.assert_close(fast[name], value)
    assert list(fast) == [*eager, "aside"]
    assert not fast["aside"].any(), "a compiled model computes gradients of zero there"


class Writes(nn.Module):
    """Sets attributes before and after its layers run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last, self.forwards, self.mean = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1), torch.zeros(1), None

    def forward(self, x):
        self.forwards = self.forwards + 1
        x = self.conv(x)
        self.forwards = self.forwards + 10
        self.mean = x.detach().mean()
        x = self.last(x)
        self.forwards = self.forwards + 100
        return x


def test_what_the_model_writes_down_is_written_down():
    net = Writes()
    fast, _ = compiled(net)
    backward(fast)
    for forwards in (2, 3):
        with capture(fast, of="grad") as grads:
            backward(fast, X * forwards)
        assert list(grads) == ["conv", "last"]
        assert net.forwards == forwards * 111
        torch.testing.assert_close(net.mean, net.conv(X * forwards).mean().detach())
    assert not [key for key in vars(net.conv) if "featviz" in key or key == "forward"]


def test_two_captures_at_once():
    net = small()
    expected = dict(oracle(net, X, ["0", "1", "3"]))
    fast, counter = compiled(net)
    for _ in range(2):
        with capture(fast) as acts, capture(fast, ["0", "1"], of="grad") as some, capture(fast, "3", of="grad") as last:
            backward(fast)
        assert list(acts) == ["0", "1", "2", "3"]
        torch.testing.assert_close(acts["0"], net[0](X).detach())
        for name, value in {**some, **last}.items():
            torch.testing.assert_close(value, expected[name])
        assert list(some) == ["0", "1"]
    assert counter.frame_count == 1


def test_shapes_that_change_cost_no_graph():
    net = Checkpointed()
    fast, counter = compiled(net, dynamic=True)
    for i, size in enumerate([(2, 12), (3, 13), (5, 17)]):
        x = torch.randn(size[0], 3, size[1], size[1])
        with capture(fast, ["first", "last"], of="grad") as grads:
            backward(fast, x)
        assert same(by_name(grads), oracle(net, x, ["first", "last"]))
        if i == 1:
            graphs = counter.frame_count
    assert counter.frame_count == graphs


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        x = torch._dynamo.disable(self.second)(x)
        return self.third(x)


def test_graph_breaks_keep_the_order():
    net = Broken()
    expected = oracle(net, X, ["first", "second", "third"])
    fast = torch.compile(net, backend="aot_eager")
    for _ in range(2):
        with capture(fast, of="grad") as grads:
            backward(fast)
        assert same(by_name(grads), expected)


class BrokenPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


class Skips(nn.Module):
    """What a part returns is used in two graphs: the gradient is the sum of what comes out of both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.same, self.last = BrokenPart(), BrokenPart(), nn.Identity(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.same(self.one(x))
        return self.last(self.two(x) + x)


def test_what_several_graphs_use():
    net, x = Skips(), torch.randn(3, 4)
    layers = ["", "one", "same", "two", "one.second", "two.first", "last"]
    with capture(net, layers, of="grad") as eager:
        backward(net, x)
    names = [name for name in layers if name not in ("", "same")]  # these are the very tensors of others
    assert same([pair for pair in by_name(eager) if pair[0] in names], oracle(net, x, names))
    fast = torch.compile(net, backend="aot_eager")
    for _ in range(2):
        with capture(fast, layers, of="grad") as grads:
            backward(fast, x)
        assert same(by_name(grads), by_name(eager))


def test_a_view_of_what_a_graph_was_given_has_the_part_inside_that_graph():
    """A limit: AOTAutograd makes such a view anew outside of the graph, where nothing sees it."""
    net = small()
    fast = nn.Sequential(net[0], net[1], nn.Sequential(net[2], net[3]))
    fast[2].compile(backend="aot_eager", fullgraph=True)
    with capture(fast, of="grad") as grads:
        backward(fast)
    found = [("0", grads["0"]), *([] if grads.not_run else [("2", grads["2.0"])])]
    assert same(found, oracle(net, X, [name for name, _ in found]))
    assert grads.not_run == [] or torch.__version__.startswith("2.11")  # which makes it anew inside, too
    net[2].compile(backend="aot_eager", fullgraph=True)
    with capture(net, of="grad") as grads:
        backward(net)
    assert list(grads) == ["0", "1", "3"]
    assert grads.not_run == ["2"]


@pytest.mark.parametrize("part", ["first", "second"])
def test_compiled_and_eager_forwards_by_turns(part):
    """Each begins anew, and the gradient of an earlier forward does not count."""
    net = small()
    fast, _ = compiled(net)
    runs = {"eager": net, "compiled": fast}
    with capture(net, ["0", "3"], of="grad") as grads:
        for first, second in [("eager", "compiled"), ("compiled", "eager"), ("compiled", "compiled")]:
            earlier = runs[first](X).square().sum()
            assert list(grads) == []
            latest = runs[second](2 * X).square().sum()
            (earlier if part == "first" else latest).backward()
            if part == "first":
                assert list(grads) == []
            else:
                assert same(by_name(grads), oracle(net, 2 * X, ["0", "3"]))


def test_where_torch_cannot_it_runs_uncompiled(monkeypatch):
    monkeypatch.setattr("torch_featviz.capture.gradients.hooks_in_graphs", lambda: False)
    net = small()
    fast, counter = compiled(net)
    backward(fast)
    for _ in range(2):
        with capture(fast, ["0", "1"], of="grad") as grads:
            backward(fast)
        assert same(by_name(grads), oracle(net, X, ["0", "1"]))
    assert counter.frame_count == 1


def test_ring_of_a_model_that_other_compiled_code_calls_is_refused():
    net = small()
    step = torch.compile(lambda x: net(x), backend="eager", fullgraph=True)
    refused = pytest.raises(Exception, match="give capture\\(\\) the compiled model")
    with capture(net, of="grad", into=Ring(2)), refused as caught:
        step(X)
    assert isinstance(caught.value, (OptionError, torch._dynamo.exc.Unsupported))
