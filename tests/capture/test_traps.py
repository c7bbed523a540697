"""Where other ways to capture fail without a word: each trap in eager mode, and compiled before or inside the block."""

import copy
import dataclasses
import itertools
from collections import Counter
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from torch_featviz.capture import FeatureExtractor, FeatureTap, Moments, Ring, capture
from torch_featviz.errors import OptionError

# Dynamo looks at the gradients of what crosses a graph break.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
HOWS = ["eager", "compiled before", "compiled after"]


# What torch before 2.14 and torch 2.6 do not compile, by the beginning of a test's name.
NOT_BEFORE_2_14 = {"test_every_call_is_what_the_layer_returned[Structures-compiled": "dataclasses"}
NOT_IN_2_6 = {
    "test_gradients_of_a_model_compiled_inside_the_block": "it says so in its own words",
    "test_a_checkpoint_is_counted_once[compiled": "what is kept in a checkpoint",
    "test_stopping_in_a_checkpoint_of_a_compiled_model": "what raises, so all of it runs",
    "test_every_option_of_a_compiled_model": "what raises, which stop=True does",
    "test_what_the_caller_gets_is_captured[compiled": "what stands in for a module with hooks",
    "test_what_the_caller_gets_is_captured[module.compile": "what stands in for a module with hooks",
    "test_the_fused_path_of_transformers[True-compiled": "nested tensors",
    "test_left_out_guards": "guards cannot be left out",
    "test_guards_on_inbuilt_modules": "guards cannot be left out",
}


@pytest.fixture(autouse=True)
def _fresh_dynamo(request):
    missing = NOT_BEFORE_2_14 if torch.__version__ < (2, 14) else {}
    missing = missing | NOT_IN_2_6 if torch.__version__ < (2, 9) else missing
    if reasons := [reason for name, reason in missing.items() if request.node.name.startswith(name)]:
        pytest.skip(f"this torch does not compile it: {reasons[0]}")
    torch._dynamo.reset()


def compiled(model, backend="aot_eager", fullgraph=True, **options):
    return torch.compile(model, backend=backend, fullgraph=fullgraph, **options)


def captured(how, model, x, layers=None, **options):
    """What capture yields, and what the model returned."""
    if how == "eager":
        with capture(model, layers, **options) as acts:
            return acts, model(x)
    compile_options = {"fullgraph": not getattr(model, "breaks", False)}
    if how == "compiled before":
        fast = compiled(model, **compile_options)
        fast(x)
        with capture(fast, layers, **options) as acts:
            return acts, fast(x)
    with capture(model, layers, **options) as acts:
        return acts, compiled(model, **compile_options)(x)


def keyed(calls):
    """As Activations names the calls: `again#1`, `again#2` for a layer called several times."""
    total, seen = Counter(name for name, _ in calls), Counter()
    keys = []
    for name, value in calls:
        seen[name] += 1
        keys.append((name if total[name] == 1 else f"{name}#{seen[name]}", value))
    return keys


def flat(value):
    """The tensors in any structure."""
    if dataclasses.is_dataclass(value):
        value = [value.score]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in flat(item)] if isinstance(value, (list, tuple)) else [value]


def close(a, b):
    for one, other in zip(flat(a), flat(b), strict=True):
        torch.testing.assert_close(one, other)


def state(*models):
    """The identity of everything that the modules hold, less marks that torch.compile makes, and Lightning's of it."""
    marks = ("output", "_is_torch_compile", "_compile_kwargs")
    return [
        {name: id(value) for name, value in module.__dict__.items() if name not in marks}
        for model in models
        for module in model.modules()
    ]


# The trap table


class InPlaceReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x))


class Residual(nn.Module):
    """The tail of a ResNet block."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ThreeTimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.again, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.again(self.relu(self.again(self.relu(self.again(x)))))


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class Found:
    score: torch.Tensor
    label: str


class Returns(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.kind == "tuple":
            return x * 2, (x.sum(), None)
        if self.kind == "dict":
            return {"a": x * 2, "b": [x.sum()]}
        return Pair(x * 2, x.sum()) if self.kind == "named tuple" else Found(x * 2, "cat")


class Structures(nn.Module):
    def __init__(self):
        super().__init__()
        for kind in ("tuple", "dict", "named tuple", "dataclass"):
            self.add_module(kind, Returns(kind))

    def forward(self, x):
        a = self.get_submodule("tuple")(x)[0]
        b = self.get_submodule("dict")(x)["a"]
        c = self.get_submodule("named tuple")(x).first
        b.relu_()
        return a + b + c + self.get_submodule("dataclass")(x).score


class Recurrent(nn.Module):
    breaks = True  # Dynamo leaves nn.LSTM to eager mode

    def __init__(self):
        super().__init__()
        self.before, self.lstm, self.after = nn.Linear(6, 6), nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        out, _state = self.lstm(self.before(x[:, 0]))
        return self.after(out)


class Breaks(nn.Module):
    """A graph break in the middle, within a part of the model."""

    breaks = True

    def __init__(self):
        super().__init__()
        self.inner = InPlaceReLU()
        self.tail = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        x = self.inner(x)
        torch._dynamo.graph_break()
        x = self.tail(x)
        torch._dynamo.graph_break()
        return self.inner(x)


KINDS = (InPlaceReLU, Residual, ThreeTimes, Structures, Recurrent, Breaks)
# Each pair of two of these is in every run, all three with each other in the slow ones.
EACH = [
    pytest.param(kind, how, training, marks=[pytest.mark.slow] * ((i + j + k) % 2))
    for (i, kind), (j, how), (k, training) in itertools.product(*map(enumerate, (KINDS, HOWS, (True, False))))
]


@pytest.mark.parametrize(("kind", "how", "training"), EACH)
def test_every_call_is_what_the_layer_returned(kind, how, training, oracles):
    hooked, _ = oracles
    torch.manual_seed(0)
    model = kind().train(training)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 6, 6)
    if how == "compiled before":
        twin(x)  # a forward more has moved the running means
    before = state(model)
    expected_output, calls = hooked(twin, lambda: twin(x))
    acts, output = captured(how, model, x)
    assert list(acts) == [key for key, _ in keyed(calls)]
    assert acts.not_run == []
    for key, value in keyed(calls):
        close(acts[key], value)
    torch.testing.assert_close(output, expected_output)
    if how != "compiled after":
        assert state(model) == before
    if kind is Structures:
        assert isinstance(acts["named tuple"], Pair)
        assert acts["dataclass"].label == "cat"
        assert acts["tuple"][1][1] is None


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", [InPlaceReLU, Residual, ThreeTimes, Recurrent])
def test_gradients_under_training_are_the_bare_ones(kind, how):
    torch.manual_seed(0)
    model = kind()
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 6, 6)
    for module in (model, twin):
        for child in module.modules():
            child.track_running_stats = False
    twin(x).pow(2).sum().backward()
    _, output = captured(how, model, x)
    output.pow(2).sum().backward()
    for mine, bare in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, bare.grad)


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fail = nn.Conv2d(3, 3, 3), nn.ReLU(inplace=True), True

    def forward(self, x):
        x = self.conv(x)
        if self.fail:
            raise ValueError("boom")
        return self.relu(x)


@pytest.mark.parametrize("wrap", [lambda m, b: m, lambda m, b: compiled(m, b, False), "module.compile"])
@pytest.mark.parametrize("options", [{}, {"of": "grad"}, {"every": 2}, {"stop": True}, {"into": Moments()}])
def test_an_error_in_the_forward_leaves_nothing(wrap, options):
    model, x = Raises(), torch.randn(1, 3, 6, 6)
    counter = CompileCounterWithBackend("eager")
    if wrap == "module.compile":
        model.compile(backend=counter)
        fast = model
    else:
        fast = wrap(model, counter)
    model.fail = False
    expected = fast(x)
    model.fail = True
    before, frames = state(fast), counter.frame_count
    with pytest.raises(ValueError, match="boom"), capture(fast, **options):
        fast(x)
    assert state(fast) == before
    assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 0
    frames = counter.frame_count
    model.fail = False
    before = state(fast)
    assert torch.equal(fast(x), expected)
    assert counter.frame_count == frames, "the graph of before no longer served"
    with capture(fast) as acts:
        fast(x)
    assert list(acts) == ["conv", "relu"]
    assert state(fast) == before


@pytest.mark.parametrize("name", ["conv", "module.conv", "_orig_mod.module.conv", "module._orig_mod.conv"])
def test_prefixes_of_wrappers(name):
    model, x = InPlaceReLU(), torch.randn(1, 3, 6, 6)
    expected = model.conv(x)
    for wrapped in (nn.DataParallel(model), compiled(nn.DataParallel(model), "eager", False)):
        with capture(wrapped, name) as acts:
            wrapped(x)
        assert list(acts) == ["conv"]
        torch.testing.assert_close(acts[name], expected)
        torch.testing.assert_close(acts["conv"], expected)


# What users ask for


def oracle_gradients(model, x):
    """By torch.autograd.grad, of a model whose layers work out of place."""
    outputs = {}

    def keep(module, _inputs, out, name):
        outputs[name] = out

    for name, module in model.named_children():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        module.register_forward_hook(lambda m, i, out, name=name: keep(m, i, out, name))
    loss = model(x).pow(2).sum()
    return dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True))


@pytest.mark.parametrize("how", HOWS[:2])
def test_gradients_of_what_is_then_overwritten(how):
    torch.manual_seed(0)
    model, x = InPlaceReLU(), torch.randn(2, 3, 6, 6)
    expected = oracle_gradients(copy.deepcopy(model), x)
    fast = model if how == "eager" else compiled(model)
    if how != "eager":
        fast(x)
    with capture(fast, of="grad") as grads:
        fast(x).pow(2).sum().backward()
    assert list(grads) == ["conv", "relu"]
    for name, value in expected.items():
        torch.testing.assert_close(grads[name], value)


def test_gradients_of_a_model_compiled_inside_the_block():
    torch.manual_seed(0)
    model, x = InPlaceReLU(), torch.randn(2, 3, 6, 6)
    expected = oracle_gradients(copy.deepcopy(model), x)
    with capture(model, of="grad") as grads:
        compiled(model)(x).pow(2).sum().backward()
    for name, value in expected.items():
        torch.testing.assert_close(grads[name], value)


def test_gradients_of_a_compiled_part_called_alone():
    torch.manual_seed(0)
    model, x = nn.Sequential(InPlaceReLU(), nn.Conv2d(3, 3, 1)), torch.randn(2, 3, 6, 6)
    expected = oracle_gradients(copy.deepcopy(model[0]), x)
    model[0].compile(backend="eager", fullgraph=True)
    with capture(model, of="grad") as grads:
        model[0](x).pow(2).sum().backward()
    for name, value in expected.items():
        torch.testing.assert_close(grads[f"0.{name}"], value)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.body, self.last = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 2)
        self.reentrant = reentrant
        self.breaks = reentrant

    def forward(self, x):
        return self.last(checkpoint(self.body, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", HOWS[:2])
def test_a_checkpoint_is_counted_once(how, reentrant):
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant), torch.randn(4, 6)
    twin = copy.deepcopy(model)
    fast = model if how == "eager" else compiled(model, fullgraph=not reentrant)
    names = ["first", "body.0", "body.1", "last"]
    for _ in range(2):
        with capture(fast) as acts, capture(fast, into=Moments()) as moments:
            fast(x).pow(2).sum().backward()
        assert sorted(acts) == sorted(names)
        torch.testing.assert_close(acts["body.0"], model.body[0](model.first(x)).detach())
        assert moments["body.0"].count.tolist() == [4] * 6
    twin(x).pow(2).sum().backward()
    for mine, bare in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, 2 * bare.grad)
    with capture(fast, of="grad") as grads:
        fast(x).pow(2).sum().backward()
    assert sorted(grads) == sorted(names)
    hidden = model.body(model.first(x))
    (expected,) = torch.autograd.grad(model.last(hidden).pow(2).sum(), hidden)
    torch.testing.assert_close(grads["body.1"], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_that_is_itself_in_a_checkpoint(reentrant):
    """The backward runs its whole forward again, which is no second forward."""
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant), torch.randn(4, 6)
    for _ in range(2):
        ring, sums = capture(model.body, into=Ring(3)), capture(model.body, into=Moments())
        with capture(model.body) as acts, ring as last, sums as moments:
            model(x).pow(2).sum().backward()
        assert moments["0"].count.tolist() == [4] * 6
        assert len(last["0"]) == 1
        torch.testing.assert_close(acts["0"], model.body[0](model.first(x)).detach())
    with capture(model.body, of="grad") as grads:
        model(x).pow(2).sum().backward()
    hidden = model.body(model.first(x))
    (expected,) = torch.autograd.grad(model.last(hidden).pow(2).sum(), hidden)
    torch.testing.assert_close(grads["1"], expected)


def test_stopping_in_a_checkpoint_of_a_compiled_model_is_refused():
    fast = compiled(Checkpointed(False))
    refused = pytest.raises(OptionError, match="stop=True cannot end this compiled forward")
    with capture(fast, "body.0", stop=True), refused:
        fast(torch.randn(4, 6))


@pytest.mark.parametrize("how", HOWS)
def test_autocast(how):
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        acts, output = captured(how, model, x)
        conv = model.conv1(x)
    assert acts["conv1"].dtype == acts["conv2"].dtype == torch.bfloat16
    torch.testing.assert_close(acts["conv1"], conv.detach())
    assert output.dtype == acts["relu#2"].dtype


@pytest.mark.parametrize("how", HOWS[:2])
def test_gradients_under_autocast_and_scaling(how):
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 2)),
        torch.randn(2, 3, 6, 6),
    )
    fast = model if how == "eager" else compiled(model)
    grads = []
    for scale in (1.0, 2.0**10):
        with torch.autocast("cpu", torch.bfloat16), capture(fast, of="grad") as captured_grads:
            loss = fast(x).float().pow(2).sum()
            (loss * scale).backward()
        grads.append(captured_grads["0"])
    assert grads[0].dtype == torch.bfloat16
    torch.testing.assert_close(grads[1] / 2**10, grads[0])


# Hooks


def plus_one(_module, _inputs, output):
    return output + 1


def doubled(_module, inputs):
    return (inputs[0] * 2,)


@pytest.mark.parametrize("how", [*HOWS, "module.compile", "part.compile"])
def test_what_the_caller_gets_is_captured(how):
    torch.manual_seed(0)
    model, x = nn.Sequential(InPlaceReLU(), nn.Conv2d(3, 3, 1)), torch.randn(2, 3, 6, 6)
    model[0].conv.register_forward_hook(plus_one)
    model[0].relu.register_forward_pre_hook(doubled)
    model[0].register_forward_hook(plus_one)
    expected = model(x)
    conv = F.conv2d(x, model[0].conv.weight, model[0].conv.bias, padding=1) + 1
    if how.endswith(".compile"):
        (model if how == "module.compile" else model[0]).compile(backend="aot_eager", fullgraph=True)
        how = "eager"
    for _ in range(2):
        acts, output = captured(how, model, x, ["0", "0.conv", "1"])
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(acts["0.conv"], conv.detach())
        torch.testing.assert_close(acts["0"], ((conv * 2).relu() + 1).detach())
        assert list(acts) == ["0.conv", "0", "1"]


def test_hooks_on_all_modules():
    model, x = InPlaceReLU(), torch.randn(2, 3, 6, 6)
    conv = model.conv(x).detach()
    handle = nn.modules.module.register_module_forward_hook(plus_one)
    try:
        acts, output = captured("eager", model, x, ["", "conv"])
    finally:
        handle.remove()
    torch.testing.assert_close(acts["conv"], conv + 1)
    assert torch.equal(acts[""], output)


@pytest.mark.parametrize("compile_it", [False, True])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_backward_hooks_still_fire(compile_it):
    model, x, fired = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)), torch.randn(2, 3, 6, 6), []
    model[0].register_full_backward_hook(lambda *_: fired.append("full"))
    model[0].register_full_backward_pre_hook(lambda _m, grads: tuple(g * 3 for g in grads))
    fast = compiled(model, "eager", fullgraph=False) if compile_it else model
    with capture(fast, "0") as acts:
        fast(x)
    torch.testing.assert_close(acts["0"], model[0](x).detach())
    with capture(fast, "0", of="grad") as grads:
        fast(x).sum().backward()
    assert fired == ["full"]
    out = model[0](x)
    torch.testing.assert_close(grads["0"], torch.autograd.grad(model[1](out).sum(), out)[0])  # before the pre-hook


def test_a_hook_on_the_whole_model_compiled_by_its_own_method():
    model, x = InPlaceReLU(), torch.randn(1, 3, 6, 6)
    model.register_forward_hook(plus_one)
    model.compile(backend="eager")
    with capture(model, ["", "relu"]) as acts:
        output = model(x)
    assert torch.equal(acts[""], output)
    torch.testing.assert_close(acts[""], acts["relu"] + 1)


# Transformers


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fused_path_of_transformers(how, masked):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if masked else None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.encoder(x, src_key_padding_mask=mask)[:, :3])

    model = Net()
    slow, inner = model(x), {}  # with gradients enabled the slow path is taken
    for i in range(2):
        encoder.layers[i].linear1.register_forward_hook(
            lambda _m, _i, out, i=i: inner.update({f"encoder.layers.{i}.linear1": out.detach().clone()})
        )
    model(x)
    for i in range(2):
        encoder.layers[i].linear1._forward_hooks.clear()
    before = state(model)
    with torch.no_grad():
        acts, output = captured(how, model, x, [*inner, "head"])
    torch.testing.assert_close(output, slow.detach())
    assert list(acts) == [*inner, "head"]
    for name, value in inner.items():
        torch.testing.assert_close(acts[name][:, :3], value[:, :3])
    assert state(model) == before


# Compiled parts


def compile_part(how, model):
    if how == "compile()":
        model.part.compile(backend="eager")
    elif how == "wrapped":
        model.part = torch.compile(model.part, backend="eager")
    else:
        model.part.forward = torch.compile(model.part.forward, backend="eager")


class Reuses(nn.Module):
    def __init__(self):
        super().__init__()
        self.part, self.last = InPlaceReLU(), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.last(self.part(self.part(x)))


REUSED = ["part.conv#1", "part.relu#1", "part.conv#2", "part.relu#2", "last"]


@pytest.mark.parametrize("part", ["compile()", "wrapped", "forward"])
@pytest.mark.filterwarnings("error", "ignore:Guards may run slower on Python 3.13.0")
def test_compiled_parts(part, oracles):
    hooked, _ = oracles
    torch.manual_seed(0)
    model, x = Reuses(), torch.randn(2, 3, 6, 6)
    twin = copy.deepcopy(model)
    _, calls = hooked(twin, lambda: twin(x))
    compile_part(part, model)
    before = state(model)
    for options in ({}, {"every": 2}):
        with capture(model, **options) as acts:
            model(x)
        assert list(acts) == REUSED
        for key, value in keyed(calls):
            torch.testing.assert_close(acts[key], value)
    with capture(model, ["part", "last"]) as acts:
        output = model(x)
    assert list(acts) == ["part#1", "part#2", "last"]
    torch.testing.assert_close(acts["part#2"], calls[3][1])
    torch.testing.assert_close(acts["last"], output.detach())
    with capture(model, "part.conv", stop=True) as acts:
        assert model(x) is None
    assert list(acts) == ["part.conv"]
    with capture(model, into=Moments()) as moments:
        model(x)
    assert moments["part.conv"].count.tolist() == [144] * 3
    with capture(model, into=Ring(2)) as last:
        model(x)
        model(2 * x)
    assert [len(last[key]) for key in REUSED] == [2] * 5
    with capture(model, of="grad") as grads:
        model(x).sum().backward()
    assert list(grads) == REUSED
    with capture(model) as acts:
        model.part(x)
    assert list(acts) == ["part.conv", "part.relu"]
    assert state(model) == before


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_function_compiled_around_a_part(mode, oracles):
    hooked, _ = oracles

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.part, self.last = nn.Conv2d(3, 3, 1), InPlaceReLU(), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.last(function(self.first(x)))

    model, x = Net(), torch.randn(2, 3, 6, 6)
    function = model.part
    _, calls = hooked(model, lambda: model(x))
    function = torch.compile(lambda x: model.part(x) * 1, backend="eager")
    for options in ({}, {"into": Ring(1)}, {"every": 2}):
        with mode(), capture(model, **options) as acts:
            for _ in range(3):
                model(x)
            assert list(acts) == ["first", "part.conv", "part.relu", "last"]
            for name, value in calls:
                torch.testing.assert_close(acts[name][-1] if "into" in options else acts[name], value)


# Guards left out: there is a word about it

NO_GUARDS = [
    getattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe", None),
    pytest.param(lambda guards: [False for _ in guards], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("guards", NO_GUARDS)
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "wrapped"),
        ({"into": Moments()}, "forward"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [({}, "forward"), ({"into": Moments()}, "wrapped"), ({"stop": True}, "wrapped")]
        ),
    ],
)
def test_left_out_guards_are_warned_of(guards, options, part):
    model, x = Reuses(), torch.randn(1, 3, 6, 6)
    no_guards = {"guard_filter_fn": guards}
    if part == "forward":
        model.forward = torch.compile(model.forward, backend="eager", options=no_guards)
    else:
        model.part = torch.compile(model.part, backend="eager", options=no_guards)
    with torch.no_grad():
        model(x)
        told = pytest.warns(UserWarning, match="compiled part of the model ran and nothing of it could be captured")
        with capture(model, "part.conv", **options) as acts, told:
            model(x)
    assert list(acts) == []
    assert acts.not_run == ["part.conv"]


@pytest.mark.parametrize("guards", NO_GUARDS)
@pytest.mark.parametrize("kind", [Reuses, lambda: nn.Sequential(InPlaceReLU())])
@pytest.mark.filterwarnings("error", "ignore:Guards may run slower on Python 3.13.0")
def test_left_out_guards_do_no_harm_to_a_model_compiled_as_a_whole(guards, kind):
    """Each set of layers has a frame, and graphs, of its own."""
    model = kind()
    fast = torch.compile(model, backend="eager", options={"guard_filter_fn": guards})
    conv = model.part.conv if kind is Reuses else model[0].conv
    name = "part.conv" if kind is Reuses else "0.conv"
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        expected = fast(x).clone()
        for factor in (1, 2):
            with capture(fast, name) as acts:
                fast(x * factor)
            torch.testing.assert_close(acts.calls(name)[0], conv(x * factor))
            with capture(fast, name, stop=True, into=Moments()) as moments:
                fast(x * factor)
            assert moments[name].count.tolist() == [36] * 3
            torch.testing.assert_close(moments[name].max.float(), conv(x * factor).amax((0, 2, 3)))
            torch.testing.assert_close(fast(x), expected)


@pytest.mark.filterwarnings("error", "ignore:Guards may run slower on Python 3.13.0")
def test_guards_on_inbuilt_modules_may_be_left_out():
    model, x = InPlaceReLU(), torch.randn(1, 3, 6, 6)
    options = {"guard_filter_fn": torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe}
    fast = torch.compile(model, backend="eager", options=options)
    with torch.no_grad():
        expected = fast(x).clone()
        with capture(fast) as acts:
            fast(x)
    torch.testing.assert_close(acts["relu"], expected)
    torch.testing.assert_close(acts["conv"], model.conv(x).detach())


# Compiled as a whole


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_option_of_a_compiled_model(backend):
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 3, 6, 6)
    conv = model.conv1(x).detach()
    fast = compiled(model, backend)
    with torch.no_grad():
        fast(x)
        with capture(fast, "conv1", every=2) as acts:
            fast(x)
            fast(x * 0)
        torch.testing.assert_close(acts["conv1"], conv)
        with capture(fast, "conv1", stop=True) as acts:
            assert fast(x) is None
        torch.testing.assert_close(acts["conv1"], conv)
        with capture(fast, "conv1", into=Ring(2)) as last:
            for factor in (3, 2, 1):
                fast(x * factor)
        torch.testing.assert_close(last["conv1"], [conv * 2, conv])
        with capture(fast, "conv1", into=Moments()) as moments:
            fast(x)
        torch.testing.assert_close(moments["conv1"].mean.float(), conv.mean((0, 2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_dynamic_shapes(training):
    model = InPlaceReLU().train(training)
    counter = CompileCounterWithBackend("eager")
    fast = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for size in (6, 7):
        fast(torch.randn(2, 3, size, size))
    frames = counter.frame_count
    with capture(fast) as acts:
        for size in (6, 7, 8, 9):
            x = torch.randn(2, 3, size, size)
            fast(x)
            torch.testing.assert_close(acts["conv"], model.conv(x).detach())
    assert counter.frame_count == frames + 1
    fast(torch.randn(2, 3, 10, 10))
    assert counter.frame_count == frames + 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_strides_are_those_of_eager_mode(backend, channels_last):
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model, x = Residual().eval().to(memory_format=memory), torch.randn(2, 3, 6, 6).to(memory_format=memory)
    with torch.no_grad():
        with capture(model) as expected:
            model(x)
        fast = compiled(model, backend)
        with capture(fast) as acts:
            fast(x)
    assert [v.stride() for v in acts.values()] == [v.stride() for v in expected.values()]


def test_many_sets_of_layers_do_not_reach_the_recompile_limit():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(12)))
    counter = CompileCounterWithBackend("eager")
    fast, x = torch.compile(model, backend=counter, fullgraph=True), torch.randn(2, 3)
    fast(x)
    for _ in range(2):
        for i in range(12):
            with capture(fast, str(i)) as acts:
                fast(x)
            assert list(acts) == [str(i)]
            fast(x)
    assert counter.frame_count == 13


def test_many_models_of_one_class_do_not_reach_the_recompile_limit():
    x = torch.randn(2, 3, 6, 6)
    counter = CompileCounterWithBackend("eager")
    for _ in range(12):
        model = InPlaceReLU()
        fast = torch.compile(model, backend=counter, fullgraph=True)
        with capture(fast) as acts:
            fast(x)
        assert list(acts) == ["conv", "relu"]


@pytest.mark.parametrize("model", [Breaks, Recurrent])
def test_many_captures_of_a_model_with_graph_breaks(model):
    """Beyond Dynamo's limit for the frames after a break these run uncompiled: still all there, and in order."""
    model, x = model(), torch.randn(2, 3, 6, 6)
    fast = compiled(model, "eager", fullgraph=False)
    names = [name for name, module in model.named_modules() if not list(module.children())]
    fast(x)
    for options in [{}, {"into": Ring(1)}, {"every": 2}, {"into": Moments()}, {"into": torch.mean}] * 2:
        for layers in (None, names[-2:]):
            if "into" in options and callable(options["into"]) and model.__class__ is Recurrent:
                continue
            if isinstance(options.get("into"), Moments) and model.__class__ is Recurrent:
                layers = ["before", "after"]
            with capture(fast, layers, **options) as acts:
                fast(x)
            ran = list(dict.fromkeys(key.partition("#")[0] for key in acts))
            assert ran == (layers or names)
            assert acts.not_run == []


@pytest.mark.parametrize("kind", [Breaks, Recurrent])
def test_stopping_after_a_graph_break(kind):
    model, x = kind(), torch.randn(2, 3, 6, 6)
    last = "tail" if kind is Breaks else "lstm"
    fast = compiled(model, "eager", fullgraph=False)
    fast(x)
    for _ in range(2):
        with capture(fast, last, stop=True) as acts:
            assert fast(x) is None
        assert list(acts) == [last]
    assert fast(x) is not None


# The modules


def test_feature_extractor_compiled():
    torch.manual_seed(0)
    model, x = InPlaceReLU(), torch.randn(1, 3, 6, 6)
    extractor = FeatureExtractor(model, ["conv", "relu"])
    expected = {name: value.detach() for name, value in extractor(x).items()}
    for fast in (torch.compile(extractor, backend="aot_eager"), FeatureExtractor(compiled(model), ["conv", "relu"])):
        features = fast(x)
        assert list(features) == ["conv", "relu"]
        for name, value in features.items():
            torch.testing.assert_close(value.detach(), expected[name])
        model.zero_grad()
        features["conv"].sum().backward()
        assert model.conv.weight.grad is not None
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):  # torch 2.14 also says what to do
        torch.compile(extractor, backend="eager", fullgraph=True)(x)


def test_feature_tap_compiled():
    model, x = nn.Sequential(FeatureTap(nn.Conv2d(3, 3, 3)), nn.ReLU(inplace=True)), torch.randn(1, 3, 6, 6)
    fast = compiled(model)
    for factor in (1, 2):
        fast(x * factor)
        torch.testing.assert_close(model[0].output, model[0].module(x * factor).detach())
    with capture(fast) as acts:
        fast(x)
    torch.testing.assert_close(acts["0.module"], model[0].output)


HIGHER = pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "supports_higher_order_operators"), reason="torch 2.6 tells modes nothing of them"
)


@HIGHER
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("which", ["flex_attention", "cond"])
def test_operators_that_are_given_functions(which):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)

        def forward(self, x):
            x = self.act(self.first(x))
            if which == "cond":
                x = torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))
            else:
                x = flex_attention(*[x[None, None]] * 3)[0, 0]
            return self.last(x)

    net, x = Net(), torch.randn(3, 4)
    with torch.no_grad():
        expected = net(x)
        for _ in range(2):
            with capture(net) as acts:
                assert torch.equal(net(x), expected)
            assert torch.equal(acts["first"], net.first(x))
            assert torch.equal(acts["last"], expected)


@pytest.mark.parametrize("child_stops", [False, True])
def test_a_parent_that_stops_within_the_capture_of_a_child(child_stops):
    model, x = (
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4)),
        torch.randn(2, 4),
    )
    with capture(model, "1.0", stop=True) as outer, capture(model[1], "1", stop=child_stops) as inner:
        assert model(x) is None
    assert torch.equal(outer["1.0"], model[1][0](model[0](x)))
    assert inner.not_run == ["1"]
