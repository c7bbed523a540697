"""`lent`: a twin for a block, kept for the next one, and never told from a new one."""

import copy
import gc
import inspect
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz.model.inputs import Inputs
from torch_featviz.model.lent import known, lent
from torch_featviz.model.twin import twin

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.more = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.ReLU(), nn.Sequential())
        self.tied, self.absent, self.power = self.conv, None, 1
        self.sizes, self.shape, self.function, self.nested = [1, 2], (3, 4), torch.relu, [[1], 2]
        self.deep, self.make, self.act = {"a": [1, {"b": 2.5}]}, partial(nn.LayerNorm, eps=1e-5), F.relu
        self.kind = inspect.Parameter.KEYWORD_ONLY

    def forward(self, x):
        x = self.norm(self.function(self.conv(x)) ** self.power)
        return self.more(self.relu(x)) * self.sizes[0]


def description(net):
    """All that there is in a model."""
    usual = vars(nn.Module()).keys() - {"training"}
    ids = {id(tensor): i for i, tensor in enumerate((*net.parameters(), *net.buffers()))}
    return [
        (
            *(name, type(module), {key: plain(value) for key, value in vars(module).items() if key not in usual}),
            {key: len(value) for key, value in vars(module).items() if "hooks" in key and value is not None},
            [
                (key, value is None or (type(value), ids[id(value)], value.requires_grad, value.tolist()))
                for held in (module._parameters, module._buffers)
                for key, value in held.items()
            ],
            [(key, type(child)) for key, child in module._modules.items()],
        )
        for name, module in net.named_modules(remove_duplicate=False)
    ]


def plain(value):
    """Partial functions are never equal."""
    return (value.func, value.args, value.keywords) if type(value) is partial else value


def borrowed(net):
    with lent(net) as copy:
        return copy


def train(net):
    net.train()(X).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    net.eval()


def hook(net):
    net.more[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)


def data(net):
    net.conv.weight.data = net.conv.weight.data.flip(0).contiguous(memory_format=torch.channels_last)


def reorder(net):
    net.more._modules = {name: net.more._modules[name] for name in ("1", "0", "2")}


def swap_names(net):
    del net.power
    net.force = 1


def rename(net):
    net.more._modules = {{"1": "one"}.get(name, name): child for name, child in net.more._modules.items()}


def without_mode(net):
    del net.relu.training
    net.relu.mode = True


CHANGES_TENSORS = {
    "nothing": lambda net: None,
    "a training step": train,
    "its mode": nn.Module.train,
    "a parameter's data": data,
    "a parameter": lambda net: setattr(net.conv, "weight", nn.Parameter(torch.ones(4, 3, 3, 3))),
    "a parameter that is none": lambda net: setattr(net.conv, "bias", None),
    "parameters made one": lambda net: setattr(net.more[0], "bias", net.conv.bias),
    "a buffer": lambda net: net.norm.running_mean.data.add_(1),
    "another dtype": nn.Module.double,
    "a buffer more": lambda net: net.register_buffer("more_of_it", torch.ones(1)),
    "a parameter less": lambda net: delattr(net.conv, "bias"),
}
CHANGES = {
    "a number": lambda net: setattr(net, "power", 2),
    "a number of another type": lambda net: setattr(net, "power", 1.0),
    "an item of a list": lambda net: net.sizes.__setitem__(0, 3),
    "an item deep within": lambda net: net.deep["a"][1].update(b=2.5 * 2),
    "a key deep within": lambda net: net.deep.update(c=net.deep.pop("a")),
    "what is within what": lambda net: setattr(net, "deep", {"a": [1], "b": 2.5}),
    "a list that is a tuple": lambda net: net.deep.update(a=(1, {"b": 2.5})),
    "where a list ends": lambda net: setattr(net, "nested", [[1, 2]]),
    "a partial function": lambda net: setattr(net, "make", partial(nn.LayerNorm, eps=1e-6)),
    "an item of an enumeration": lambda net: setattr(net, "kind", inspect.Parameter.VAR_KEYWORD),
    "a longer list": lambda net: net.sizes.append(3),
    "a tuple": lambda net: setattr(net, "shape", (3, 5)),
    "an attribute more": lambda net: setattr(net, "other", 1),
    "an attribute less": lambda net: delattr(net, "power"),
    "an attribute's name": swap_names,
    "a function": lambda net: setattr(net, "function", torch.tanh),
    "a function of Python": lambda net: setattr(net, "act", F.silu),
    "an object": lambda net: setattr(net, "shape", {1: 2}),
    "an option of a layer": lambda net: setattr(net.norm, "eps", 1.0),
    "a hook": hook,
    "a layer": lambda net: setattr(net, "relu", nn.Tanh()),
    "a layer of the same kind": lambda net: setattr(net, "conv", nn.Conv2d(3, 4, 3, padding=1)),
    "a layer more": lambda net: net.more[2].append(nn.ReLU()),
    "a layer less": lambda net: net.more.__delitem__(1),
    "a layer that is None": lambda net: setattr(net, "relu", None),
    "the order of layers": reorder,
    "the name of a layer": rename,
    "a class": lambda net: setattr(net.relu, "__class__", nn.ReLU6),
    "a buffer that is not saved": lambda net: net.register_buffer("unsaved", torch.ones(1), persistent=False),
}


@pytest.mark.parametrize("name", [*CHANGES_TENSORS, *CHANGES])
def test_whatever_changed_in_the_model_it_is_as_a_new_twin(name):
    net = Net().eval()
    first = borrowed(net)
    {**CHANGES_TENSORS, **CHANGES}[name](net)
    for _ in range(2):
        with lent(net) as second:
            assert description(second) == description(twin(net))
            assert (second is first) == (name in CHANGES_TENSORS)
            for mine, theirs in zip(second.parameters(), net.parameters(), strict=True):
                assert mine.data_ptr() == theirs.data_ptr()
                assert mine.stride() == theirs.stride()
            theirs = {buffer.data_ptr() for buffer in net.buffers()}
            assert theirs.isdisjoint(buffer.data_ptr() for buffer in second.buffers())


def stash(copy):
    copy.power = torch.ones(1)
    copy.conv.padding = (0, 0)
    copy.more.add_module("3", nn.ReLU())
    copy.norm.running_mean = torch.ones(4)
    copy.conv.bias = None
    copy.train()


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (stash, True),
        (hook, False),
        (swap_names, False),
        (lambda copy: copy.sizes.append(5), False),
        (lambda copy: copy.deep["a"][1].update(b=2), False),
        (lambda copy: setattr(copy, "seen", torch.ones(1)), False),
        (lambda copy: setattr(copy.relu, "__class__", nn.ReLU6), False),
        (lambda copy: delattr(copy, "_forward_hooks"), False),
    ],
)
def test_what_was_done_to_it_in_a_block_is_gone(change, kept):
    net = Net().eval()
    with lent(net) as first:
        change(first)
    with lent(net) as second:
        assert (second is first) == kept
        assert description(second) == description(twin(net))


def test_between_blocks_it_holds_no_tensor_and_no_model():
    net = Net().eval()
    with lent(net) as copy:
        copy.power = torch.ones(1)
        tensors = [weakref.ref(tensor) for tensor in (*copy.parameters(), *copy.buffers(), copy.power)]
    assert not any(tensor() is not None for tensor in tensors)
    layer, whole, shell = weakref.ref(net.more), weakref.ref(net), weakref.ref(copy)
    del copy
    net.more = nn.ReLU()
    assert layer() is None
    del net
    gc.collect()
    assert whole() is None
    assert shell() is None


def test_after_an_error_there_is_a_new_one():
    net = Net().eval()
    with pytest.raises(ZeroDivisionError), lent(net) as first:
        raise ZeroDivisionError
    assert borrowed(net) is not first


def test_two_at_once_are_two():
    net = Net().eval()
    first = borrowed(net)
    with lent(net) as one, lent(net) as other:
        assert one is first
        assert other is not one
        assert description(one) == description(other)


def endless():
    items = []
    items.append(items)
    return items


@pytest.mark.parametrize(
    "holder",
    [{1}, object(), lambda: None, copy.deepcopy, (1, {2}), [[{3}]], {4: object()}, endless(), [].append, torch.ones(1)],
)
def test_with_what_may_change_unseen_it_is_new_each_time(holder):
    net = Net().eval()
    net.holder = holder
    first = borrowed(net)
    assert borrowed(net) is not first


class OwnWay(nn.Module):
    def __deepcopy__(self, memo):
        return type(self)()


class Slotted(nn.Module):
    __slots__ = ("extra",)


class Saved(nn.Module):
    def __getstate__(self):
        return vars(self)


@pytest.mark.parametrize("kind", [OwnWay, Slotted, Saved])
def test_with_a_module_that_is_copied_in_another_way_it_is_new_each_time(kind):
    net = nn.Sequential(kind(), nn.ReLU())
    first = borrowed(net)
    assert borrowed(net) is not first


def test_a_module_without_a_mode_does_not_pass_for_what_it_was():
    net = Net().eval()
    first = borrowed(net)
    without_mode(net)
    with lent(net) as second:
        assert second is not first
        assert second.relu.mode


def test_wrapped_or_not_it_is_the_same():
    net = Net().eval()
    assert borrowed(nn.DataParallel(net)) is borrowed(net)
    inside = nn.Sequential(nn.DataParallel(nn.ReLU()))
    assert borrowed(inside) is not borrowed(inside)


def test_in_inference_mode():
    net = Net().eval()
    first = borrowed(net)
    with torch.inference_mode():
        net.conv.weight = nn.Parameter(net.conv.weight * 2)
        with lent(net) as copy:
            assert copy is first
            assert not any(tensor.is_inference() for tensor in (*copy.parameters(), *copy.buffers()))


def test_a_question_is_asked_once_for_images_like_these_while_the_model_is_built_as_it_was():
    net, asked = Net().eval(), []

    def ask(images, *more, question="q"):
        with lent(net) as copy:
            return known(copy, Inputs(images, *more), question, lambda: asked.append(1) or len(asked))

    assert [ask(X), ask(X), ask(X[:1] + 1)] == [1, 1, 1]
    assert [ask(X[..., 1:]), ask(X.double()), ask(X, question="another"), ask(X)] == [2, 3, 4, 1]
    with torch.autocast("cpu", torch.bfloat16):
        assert [ask(X), ask(X)] == [5, 5]
    assert [ask(X, (2,)), ask(X, (2,)), ask(X, (), {"y": 1})] == [6, 7, 8]  # which may change what runs
    net.conv.weight.data.add_(1)
    assert ask(X) == 1
    net.power = 2
    assert [ask(X), ask(X)] == [9, 9]
    assert ask(torch.ones(1, 3, device="meta")) == 10
