"""Copies made inside a block are models without stand-ins, whichever way they are made, of whichever kind of module."""

import copy
import copyreg
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from torch_featviz import Monitor
from torch_featviz.capture import FeatureTap, Moments, Ring, capture

WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "old pickle": lambda model: pickle.loads(pickle.dumps(model, 1)),
    "save": lambda model: saved(model),
    "average": lambda model: AveragedModel(model).module,
    "copy": copy.copy,
}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))


class Tripled(Small):
    """Has a `__deepcopy__` of its own, which copies what the instance holds."""

    def __deepcopy__(self, memo):
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other


def mine(self, x):
    return Small.forward(self, x) * 3


def by_the_user():
    model = Small()
    model.forward = mine.__get__(model)
    return model


def with_hooks():
    model = Small()
    model.act.register_forward_hook(tenfold)
    return model


def tenfold(_module, _inputs, output):
    return output * 10


def traced():
    return torch.fx.symbolic_trace(Small())


def parametrised():
    model = Small()
    parametrizations.weight_norm(model.head)
    return model


KINDS = {
    "plain": Small,
    "user's forward": by_the_user,
    "hooks": with_hooks,
    "own deepcopy": Tripled,
    "fx graph": traced,
    "parametrised": parametrised,
    "tap": lambda: nn.Sequential(FeatureTap(Small())),
    "compiled": lambda: torch.compile(Small(), backend="eager"),
    "compiled part": lambda: nn.Sequential(torch.compile(Small(), backend="eager"), nn.Identity()),
    "compiled in place": lambda: compiled_in_place(Small()),
}
X = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def entries(model):
    """What instances hold, by the name of the module: the names and, of what can be called, which function it is."""
    return {
        name: {key: getattr(value, "__func__", None) for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_as_one_made_before_the_block(kind, way):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    try:
        expected = WAYS[way](model)
    except Exception as error:  # parametrised modules cannot be pickled
        with capture(model), pytest.raises(type(error)):
            WAYS[way](model)
        return
    output = model(X)
    with capture(model) as acts, capture(model, into=Ring(2)):
        model(X)
        twin = WAYS[way](model)
        assert len(acts) >= 3
        if way != "copy":
            assert entries(twin) == entries(expected)
            with torch.no_grad():
                next(twin.parameters()).zero_()
            assert torch.equal(model(X), output)
    assert entries(twin) == entries(expected)
    assert entries(model) == entries(KINDS[kind]())
    if way != "copy":
        assert not torch.equal(twin(X), output)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.parametrize("options", [{"ops": True}, {"every": 2}, {"into": Moments()}, {"of": "grad"}, {"stop": True}])
def test_under_each_option(options):
    model = Small()
    before = entries(model)
    with capture(model, **options):
        for _ in range(3):
            model(X)
        assert entries(copy.deepcopy(model)) == before
        assert entries(copy.deepcopy(model.conv)) == {"": before["conv"]}
        torch.jit.script(copy.deepcopy(model))


def test_a_copy_made_amid_a_forward():
    model, copies = Small(), []
    model.act.register_forward_pre_hook(lambda *_: copies.append(copy.deepcopy(model.conv)))
    for every in (1, 2):
        with capture(model, every=every):
            model(X)
    assert [entries(conv) == entries(nn.Conv2d(1, 2, 3)) for conv in copies] == [True, True]


def test_a_fused_layer_and_what_a_compiled_part_left_behind():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    with capture(model):
        assert copy.deepcopy(model)[0].activation_relu_or_gelu == model[0].__class__(8, 2, 16).activation_relu_or_gelu
    net = Small()
    with capture(net) as acts:
        torch.compile(lambda x: net.conv(x) + 1, backend="eager")(X)
        assert entries(copy.deepcopy(net)) == entries(Small())
        assert torch.equal(acts["conv"], nn.functional.conv2d(X, net.conv.weight, net.conv.bias))


def test_a_copy_holds_no_activations():
    model = Small()
    with capture(model):
        model(X)
        size = len(pickle.dumps(model))
    assert size == len(pickle.dumps(model))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_in_a_monitors_step():
    model, optimizer = Small(), None
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch = Monitor(model, every=1)
    with watch.step():
        model(X).sum().backward()
        best, average = copy.deepcopy(model), AveragedModel(model)
        optimizer.step()
    assert entries(best) == entries(average.module) == entries(Small())
    torch.jit.script(best)


def test_copyreg_is_as_it_was():
    def reduce(module):
        return Small, (), {**module.__dict__, "mark": 1}

    before = copyreg.dispatch_table.copy()
    copyreg.pickle(Small, reduce)
    try:
        model, other = Small(), nn.Sequential(nn.ReLU())
        first, second = capture(model), capture(nn.Sequential(model, other))
        with first:
            second.__enter__()
            twin = copy.deepcopy(model)
            assert twin.mark == 1
            assert entries(twin)["conv"] == entries(Small())["conv"]
            assert "forward" not in vars(twin)
        assert "forward" not in vars(copy.deepcopy(model))
        assert "forward" not in vars(copy.deepcopy(other[0]))
        second.__exit__(None, None, None)
        assert copyreg.dispatch_table == {**before, Small: reduce}
    finally:
        del copyreg.dispatch_table[Small]
    with pytest.raises(ZeroDivisionError), capture(Small()):
        1 / 0  # noqa: B018 - the block ends by an error
    block = capture(Small())
    block.__enter__()
    del block
    assert copyreg.dispatch_table == before
