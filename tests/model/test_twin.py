"""`twin`: a copy that computes the same, shares the weights' memory, and can do nothing to the model."""

import copy
import functools
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel
from torch.nn.utils import parametrizations, parametrize, prune

from torch_featviz.capture import capture
from torch_featviz.errors import DtypeError, LayerError
from torch_featviz.model.twin import twin, twin_on_meta

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "first second")


@dataclass
class Record:
    part: object
    more: list = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    part: object


class Slotted:
    __slots__ = ("__weakref__", "part")

    def __init__(self, part):
        self.part = part


class Bag:
    def __init__(self, part):
        self.deep = {"a": [part]}


def seeded(make):
    torch.manual_seed(0)
    return make()


class Convs(nn.Module):
    """A model to hang things on; `forward` runs `self.run(x)`."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.norm(self.run(x)))

    def run(self, x):
        return self.conv(x)


def parts_of(model):
    return {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}


# Holders: how a model may keep its own part, and how the part is got out again.
HOLDERS = {
    "list": (lambda part: [part], lambda held: held[0]),
    "tuple": (lambda part: (1, (part,)), lambda held: held[1][0]),
    "named tuple": (lambda part: Pair(1, part), lambda held: held.second),
    "dict": (lambda part: {"a": {"b": part}}, lambda held: held["a"]["b"]),
    "key": (lambda part: {part: 1}, lambda held: next(iter(held))),
    "set": (lambda part: {part}, lambda held: next(iter(held))),
    "frozenset": (lambda part: frozenset([part]), lambda held: next(iter(held))),
    "deque": (lambda part: deque([part], maxlen=3), lambda held: held[0]),
    "OrderedDict": (lambda part: OrderedDict(a=part), lambda held: held["a"]),
    "defaultdict": (lambda part: defaultdict(list, a=[part]), lambda held: held["a"][0]),
    "dataclass": (lambda part: Record(1, [part]), lambda held: held.more[0]),
    "frozen dataclass": (Frozen, lambda held: held.part),
    "slots": (Slotted, lambda held: held.part),
    "object": (Bag, lambda held: held.deep["a"][0]),
    "partial": (lambda part: functools.partial(F.relu, part), lambda held: held.args[0]),
    "weakref": (weakref.ref, lambda held: held()),
    "closure": (lambda part: lambda: part, lambda held: held()),
    "closure in a list": (lambda part: [lambda: [part]], lambda held: held[0]()[0]),
    "default": (lambda part: lambda x=part: x, lambda held: held()),
    "keyword default": (lambda part: lambda *, x=part: x, lambda held: held()),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_holds_a_part_of_the_model_holds_the_twins(name):
    hold, part_of = HOLDERS[name]
    net = Convs()
    net.kept = hold(net.other)
    other = twin(net)
    assert part_of(other.kept) is other.other
    assert part_of(net.kept) is net.other
    net.kept = hold(net.conv.weight)
    other = twin(net)
    assert part_of(other.kept) is other.conv.weight


NOT_FOR_TENSORS = {"weakref", "set", "frozenset", "key", "closure", "closure in a list", "default", "keyword default"}


@pytest.mark.parametrize("name", sorted(set(HOLDERS) - NOT_FOR_TENSORS))
def test_a_cached_tensor_with_a_graph_is_detached_and_copied(name):
    hold, part_of = HOLDERS[name]
    net = Convs()
    net.kept = hold(net.conv.weight[:, :1] * 2)
    cached, original = part_of(twin(net).kept), part_of(net.kept)
    assert torch.equal(cached, original)
    assert not cached.requires_grad
    cached.zero_()
    assert original.any()


def test_functions_that_reach_the_model_reach_the_twin():
    net = seeded(Convs).eval()
    calls = []

    def count(module, _inputs, output):
        calls.append(module)
        return output * 2

    def loops(n):
        return net.other(X) if n == 0 else loops(n - 1)

    net.conv.register_forward_hook(count)
    net.run = lambda x: functools.partial(helper, net)(x)
    net.again, net.bound = loops, net.other.forward
    net.method = types.MethodType(lambda self, x: self.other(x), net)
    other = twin(net)
    assert torch.equal(other(X), net(X))
    assert calls == [other.conv, net.conv]  # the list is nobody's part, and stays the same
    with torch.no_grad():
        other.other.weight, other.conv.weight = (nn.Parameter(torch.zeros(4, 3, 3, 3)) for _ in range(2))
        other.other.bias.data = torch.zeros(4)
    assert not other.again(3).any()
    assert not other.bound(X).any()
    assert not other.method(X).any()
    assert net.again(3).any()


def helper(model, x):
    return model.conv(x)


def test_a_function_that_names_the_model_as_a_global():
    space = {"net": Convs(), "torch": torch}
    exec("def run(x): return [net.other(y) for y in (x,)][0]", space)
    net = space["net"]
    net.run = space["run"]
    other = twin(net)
    before = net.other.register_forward_hook(lambda *_: pytest.fail("the model itself ran"))
    other(X)
    before.remove()
    assert space["net"] is net


def test_a_closure_shared_by_two_functions_is_shared_by_their_copies():
    net, count = Convs(), 0

    def more(x):
        nonlocal count
        count += 1
        return net.conv(x)

    net.run, net.counted = more, lambda: (net, count)[1]
    other = twin(net)
    other(X)
    other(X)
    assert other.counted() == 2
    assert net.counted() == 0


def test_everything_that_is_promised():
    net = Convs().train()
    net.tied = net.conv
    net.other.weight = net.conv.weight
    net.register_buffer("tied_buffer", net.norm.running_mean)
    DataParallel(net)  # an attribute that is no child
    other = twin(DataParallel(net))
    assert type(other) is Convs
    assert [module.training for module in other.modules()] == [False] * 5
    assert all(module.training for module in net.modules())
    assert (other.relu.inplace, net.relu.inplace) == (False, True)
    assert other.tied is other.conv
    assert other.other.weight is other.conv.weight
    assert other.tied_buffer is other.norm.running_mean
    assert parts_of(other).isdisjoint(parts_of(net))
    for mine, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
        assert not mine.requires_grad
        assert theirs.requires_grad
    for mine, theirs in zip(other.buffers(), net.buffers(), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("wrapped", [False, True])
def test_wrappers_inside_are_taken_off(wrapped):
    net = nn.Sequential(DataParallel(nn.Conv2d(3, 2, 3)), torch.compile(nn.Flatten(), backend="eager"))
    net = torch.compile(net, backend="eager") if wrapped else net
    assert [type(module) for module in twin(net).modules()] == [nn.Sequential, nn.Conv2d, nn.Flatten]


def test_what_module_compile_made_is_left_out():
    net = Convs().eval()
    net.compile(backend="eager")
    other = twin(net)
    assert other._compiled_call_impl is None
    assert torch.equal(other(X), net(X))


class Hidden(nn.Module):
    """Its layers stand in a plain list, so that neither `eval()` nor `parameters()` sees them."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Conv2d(3, 4, 3), nn.Dropout(0.5)]

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


def test_layers_in_a_plain_list_keep_their_mode():
    net = Hidden().eval()
    other = twin(net)
    assert [layer.training for layer in other.layers] == [True, True]  # as eval() would have it
    assert other.layers[0] is not net.layers[0]
    assert other.layers[0].weight.data_ptr() == net.layers[0].weight.data_ptr()


class Odd(nn.Module):
    """Slots, a `__new__` that wants arguments, and a `__setattr__` of its own."""

    __slots__ = ("_scale", "empty")

    def __new__(cls, scale):
        return super().__new__(cls)

    def __init__(self, scale):
        super().__init__()
        self.conv, self._scale = nn.Conv2d(3, 4, 3), [scale]

    def forward(self, x):
        return self.conv(x) * self._scale[0]


class Trained(nn.Module):
    """Leaves its trainer out of what is saved, as Lightning's modules do."""

    def __init__(self):
        super().__init__()
        self.conv, self.trainer = nn.Conv2d(3, 4, 3), threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "trainer": None}

    def forward(self, x):
        return self.conv(x)


class Own(nn.Module):
    """Has a `__deepcopy__`, which takes a lock along as it is, and children that the memo knows."""

    def __init__(self):
        super().__init__()
        self.conv, self.lock = nn.Conv2d(3, 4, 3), threading.Lock()

    def __deepcopy__(self, memo):
        other = object.__new__(type(self))
        memo[id(self)] = other
        vars(other).update({k: v if k == "lock" else copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return other

    def forward(self, x):
        return self.conv(x)


def parametrised():
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    parametrizations.spectral_norm(net[1])
    return net


def pruned():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


def old_norms():
    with pytest.warns(FutureWarning, match="weight_norm"):
        first = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    net = nn.Sequential(first, nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)))
    net(X)  # the weights have graphs now
    return net


class Recurrent(nn.Module):
    def __init__(self, parametrise=False):
        super().__init__()
        self.gru, self.attention = nn.LSTM(8, 6, 2, bidirectional=True), nn.MultiheadAttention(12, 3)
        if parametrise:
            parametrize.register_parametrization(self.gru, "weight_hh_l0", nn.Identity())

    def forward(self, x):
        rows, _ = self.gru(x.flatten(1, 2))
        return self.attention(rows, rows, rows)[0]


def quantised():
    from torch.ao import nn as ao

    conv = ao.quantized.Conv2d(3, 4, 3)
    hooked = nn.Sequential(ao.quantized.Quantize(0.1, 0, torch.quint8), conv, ao.quantized.DeQuantize(), nn.Flatten())
    conv.register_forward_hook(lambda _module, _inputs, output: torch.quantized_max_pool2d(output, [2, 2]))
    linear = ao.quantized.dynamic.Linear(36, 5)
    return nn.Sequential(hooked, linear)


def scripted():
    inner = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)))
    return nn.Sequential(inner, nn.ReLU())


def traced():
    graph = torch.fx.symbolic_trace(Convs())
    graph.conv.register_forward_hook(lambda _module, _inputs, output: output * 2)
    graph.register_forward_hook(lambda _module, _inputs, output: output + 1)
    return nn.Sequential(graph)


def exported():
    return torch.export.unflatten(torch.export.export(Convs().eval(), (X,)))


def inference():
    with torch.inference_mode():
        return Convs()


def flagged():
    net = Convs()
    net.conv.weight.scales = [1, 2]
    net.generator = torch.Generator().manual_seed(3)
    net.tools = F
    return net


KINDS = {
    "odd": lambda: Odd(2.0),
    "trained": lambda: nn.Sequential(Trained()),
    "own deepcopy": lambda: nn.Sequential(Own()),
    "parametrised": parametrised,
    "pruned": pruned,
    "old norms": old_norms,
    "recurrent": Recurrent,
    "parametrised recurrent": lambda: Recurrent(True),
    "quantised": quantised,
    "scripted": scripted,
    "fx": traced,
    "exported": exported,
    "inference": inference,
    "flagged": flagged,
}


def everything(net):
    """By module: the identities of its attributes and of what its containers hold, and its tensors' values."""
    return [
        (
            module,
            {k: id(v) for k, v in vars(module).items()},
            {k: [*map(id, v)] for k, v in vars(module).items() if isinstance(v, (dict, list))},
            [t.clone() for t in (*module._parameters.values(), *module._buffers.values()) if t is not None],
        )
        for module in net.modules()
    ]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_kinds_of_models(name):
    net = seeded(KINDS[name]).train(name in ("parametrised", "pruned", "trained"))
    for module in net.modules():
        module.training = False
    with torch.no_grad():
        expected = net(X)
    for module in net.modules():
        module.training = True
    before = everything(net)
    other = twin(net)
    with torch.no_grad():
        assert torch.equal(other(X), expected)
    assert not any(module.training for module in other.modules())
    assert not any(parameter.requires_grad for parameter in other.parameters())
    scripts = [module for module in net.modules() if isinstance(module, torch.jit.ScriptModule)]
    if not scripts:
        assert parts_of(other).isdisjoint(parts_of(net))
    if name not in ("scripted", "inference"):
        shared = {parameter.data_ptr() for parameter in net.parameters()}
        assert {parameter.data_ptr() for parameter in other.parameters()} <= shared
    assert str(everything(net)) == str(before)
    if name != "quantised":
        leaf = X.clone().requires_grad_()
        other(leaf).sum().backward()
        assert leaf.grad.any()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_attributes_of_parameters_come_along():
    class Scaled(nn.Parameter):
        pass

    net = Convs()
    net.conv.weight.scale = 3
    net.other.weight = Scaled(torch.ones(4, 3, 3, 3))
    other = twin(net)
    assert other.conv.weight.scale == 3
    assert type(other.other.weight) is Scaled
    assert other.other.weight.data_ptr() == net.other.weight.data_ptr()


def test_a_generator_goes_on_from_where_it_is():
    net = flagged()
    other = twin(net)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.rand(3, generator=other.generator), expected)
    assert torch.equal(torch.rand(3, generator=net.generator), expected)


def test_handles_remove_the_twins_hooks():
    net = Convs()
    net.handle = net.conv.register_forward_hook(lambda *_: None)
    other = twin(net)
    other.handle.remove()
    assert (len(other.conv._forward_hooks), len(net.conv._forward_hooks)) == (0, 1)


def test_what_cannot_be_copied_is_named():
    net = nn.Sequential(nn.Sequential(Convs()))
    net[0][0].lock = {"deep": [threading.Lock()]}
    with pytest.raises(DtypeError, match=r"'lock' of layer '0.0' \(Convs\) cannot be copied.*cannot pickle"):
        twin(net)
    with pytest.raises(DtypeError, match=r"^'lock' of Convs cannot be copied"):
        twin(net[0][0])
    net[0][0].lock = None

    class Itself(nn.Module):
        def __deepcopy__(self, memo):
            return self

    class Refuses(nn.Module):
        def __deepcopy__(self, memo):
            raise AssertionError("use a state dict")

    for kind, said in ((Itself, "its copy holds the model's own modules"), (Refuses, "use a state dict")):
        with pytest.raises(DtypeError, match=rf"layer '1' \({kind.__name__}\) cannot be copied.*{said}"):
            twin(nn.Sequential(net, kind()))
    with pytest.raises(
        LayerError,
        match=r"layer '1\.0' of Sequential is lazy and has no weights yet; run the model once on an input first\.",
    ):
        twin(nn.Sequential(nn.ReLU(), nn.Sequential(nn.LazyLinear(3))))
    with pytest.raises(DtypeError, match=r"model must be a torch\.nn\.Module, got Tensor"):
        twin(X)


def test_on_meta_there_is_no_memory_and_lazy_layers_work():
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    net.cache = {"a": [torch.ones(2)]}
    other = twin_on_meta(net)
    assert other(X.to("meta")).shape == (2, 2)
    assert {tensor.device.type for tensor in (*other.parameters(), *other.buffers(), *other.cache["a"])} == {"meta"}
    assert isinstance(net[0].weight, nn.parameter.UninitializedParameter)
    assert type(net[0]) is nn.LazyConv2d


@pytest.mark.parametrize("hooked", [False, True])
def test_inside_a_capture_the_twin_is_without_it(hooked):
    net = nn.Sequential(Convs(), parametrizations.weight_norm(nn.Conv2d(4, 3, 3)), Trained())
    net[0].run = net[0].other.forward
    if hooked:
        net[0].other.register_forward_hook(lambda _module, _inputs, output: output * 2)
    before = [sorted(vars(module)) for module in twin(net).modules()]
    with capture(net) as outer, capture(net, "0.other") as inner, capture(net, ops=True):
        net(X)
        records = list(outer), list(inner)
        other = twin(net)
        assert [sorted(vars(module)) for module in other.modules()] == before
        other(X)
        assert (list(outer), list(inner)) == records
        assert other[0].run.__self__ is other[0].other
