"""Modules that something was done to: each is captured rightly, or refused with a word on what to do instead."""

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from torch_featviz.capture import Moments, capture
from torch_featviz.errors import DtypeError, LayerError

X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LEAVES = ["0", "1", "2", "3", "4"]


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5)
    return nn.Sequential(*layers)


def by_hooks(model, names, call):
    """What hooks that clone see of each layer."""
    seen = {}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: copied(out)}))
        for name in names
    ]
    call(model)
    for handle in handles:
        handle.remove()
    return seen


def copied(output):
    return output.detach().clone()


def compare(model, names, call=lambda model: model(X), twin=None):
    """Twice, since the first forward is watched."""
    twin = copy.deepcopy(model) if twin is None else twin
    for _ in range(2):
        expected = by_hooks(twin, names, call)
        with capture(model) as acts:
            call(model)
        assert list(acts) == names == list(expected)
        assert acts.not_run == []
        for name in names:
            assert torch.equal(acts[name], expected[name])


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


class Scale(nn.Module):
    """A parametrization that has a layer of its own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Linear(1, 1)

    def forward(self, weight):
        return weight * self.gain(weight.new_ones(1))


def parametrized():
    model = network()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[4])
    parametrize.register_parametrization(model[4], "bias", Doubled())
    parametrize.register_parametrization(model[4], "bias", Scale())
    return model


def of_old():
    model = network()
    nn.utils.spectral_norm(model[0])
    return model


def pruned():
    model = network()
    torch.manual_seed(2)
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_structured(model[4], "weight", 0.4, dim=0)
    return model


@pytest.mark.parametrize("make", [parametrized, of_old, pruned])
@pytest.mark.parametrize("training", [True, False])
def test_layers_whose_weight_is_made_anew(make, training):
    compare(make().train(training), LEAVES, twin=make().train(training))


@pytest.mark.parametrize("make", [parametrized, pruned])
def test_the_same_compiled(make):
    model = make().eval()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        compiled(X)
        expected = by_hooks(make().eval(), LEAVES, lambda model: model(X))
        with capture(compiled) as acts:
            compiled(X)
    assert list(acts) == LEAVES
    for name in LEAVES:
        torch.testing.assert_close(acts[name], expected[name])


def test_a_parametrization_can_be_asked_for_by_name():
    model = parametrized().eval()
    name = "4.parametrizations.bias.0"
    with capture(model, name) as acts:
        model(X)
    assert torch.equal(acts[name], model[4].parametrizations.bias.original * 2)


class HasChildOfThatName(nn.Module):
    """A layer that is no parametrization, although it sounds like one."""

    def __init__(self):
        super().__init__()
        self.parametrizations = nn.Sequential(nn.Linear(6, 6))

    def forward(self, x):
        return self.parametrizations(x)


def test_a_child_that_only_sounds_like_a_parametrization():
    model = HasChildOfThatName()
    with capture(model) as acts:
        model(X)
    assert list(acts) == ["parametrizations.0"]


class LowRank(nn.Module):
    """LoRA's form: the layer as it was, and two small ones beside it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        out = self.base_layer(x)
        out += self.up(self.down(x))
        return out


def test_low_rank_layers():
    model = network()
    model[4] = LowRank(model[4])
    compare(model.eval(), ["0", "1", "2", "3", "4.base_layer", "4.down", "4.up", "4"])
    with capture(model, "4") as acts:
        output = model(X)
    assert torch.equal(acts["4"], output)


# torch.func


def test_functional_call():
    model = network().eval()
    parameters = {name: p.detach() * 0.5 for name, p in model.named_parameters()}
    compare(model, LEAVES, lambda model: torch.func.functional_call(model, parameters, (X,)))
    with capture(model, "0") as acts:
        torch.func.functional_call(model, parameters, (X,))
    assert torch.equal(acts["0"], F.conv2d(X, parameters["0.weight"], parameters["0.bias"], padding=1))


def transformed_grad(model):
    torch.func.grad(lambda p: torch.func.functional_call(model, p, (X,)).sum())(dict(model.named_parameters()))


def forward_derivative(model):
    torch.func.jvp(model, (X,), (X,))


def reverse_jacobian(model):
    torch.func.jacrev(lambda x: model(x).sum(0))(X)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # jvp's own
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("call", [transformed_grad, forward_derivative, reverse_jacobian])
def test_under_transforms_the_values_are_plain_tensors(call):
    model = network().eval()
    with torch.no_grad():
        expected = by_hooks(model, LEAVES, lambda model: model(X))
    for _ in range(2):
        with capture(model) as acts:
            call(model)
        for name in LEAVES:
            torch.testing.assert_close(acts[name], expected[name])
            acts[name].numpy()  # no wrapper of a transform that is over


def test_under_vmap_its_axis_comes_first():
    model = network().eval()
    stacked = {name: torch.stack([p.detach(), p.detach() * 2]) for name, p in model.named_parameters()}
    for _ in range(2):
        with torch.no_grad(), capture(model) as acts:
            torch.vmap(lambda p: torch.func.functional_call(model, p, (X,)))(stacked)
        for i in range(2):
            one = {name: p[i] for name, p in stacked.items()}
            expected = by_hooks(model, LEAVES, lambda model, one=one: torch.func.functional_call(model, one, (X,)))
            for name in set(LEAVES) - {"3"}:
                torch.testing.assert_close(acts[name][i], expected[name])


# Graphs


def test_fx_graph_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = network(), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(F.relu(self.body(x)))

    compare(torch.fx.symbolic_trace(Net().eval()), [f"body.{i}" for i in range(5)] + ["head"])


def exported():
    return torch.export.export(network().eval(), (X,), strict=False)


def test_unflattened_exported_programs():
    model = torch.export.unflatten(exported())
    original = by_hooks(network().eval(), LEAVES, lambda model: model(X))
    for _ in range(2):
        with capture(model) as acts:
            model(X)
        assert list(acts) == LEAVES
        for name in LEAVES:
            assert torch.equal(acts[name], original[name])


@pytest.mark.parametrize("layers", [None, "0", nn.Module, ["", "4"]])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential])
def test_flat_exported_programs_are_refused(layers, wrap, instance_state):
    model = wrap(exported().module())
    if wrap is nn.Sequential and isinstance(layers, (str, list)):
        layers = "0.0"
    before = instance_state(model)
    with pytest.raises(
        LayerError, match=r"flattened the model into one graph. Capture the " r".*unflatten\(exported_program\)"
    ):
        capture(model, layers)
    assert instance_state(model) == before


def test_a_flat_exported_program_as_a_whole():
    model = exported().module()
    with capture(model, "") as acts:
        output = model(X)
    assert torch.equal(acts[""], output)


def test_an_exported_program_is_refused():
    with pytest.raises(DtypeError, match=r"got ExportedProgram: capture torch\.export\.unflatten\(\) of it"):
        capture(exported())


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "script", [torch.jit.script, lambda m: torch.jit.trace(m, X), lambda m: torch.jit.freeze(torch.jit.script(m))]
)
def test_scripted_modules_are_refused(script):
    for model, layers in ((script(network().eval()), None), (nn.Sequential(script(network().eval())), "0")):
        before = [dict(module.__dict__) for module in model.modules()]
        with pytest.raises(
            LayerError,
            match=r"is a ScriptModule and cannot be captured; capture " r"the original model, before torch\.jit",
        ):
            capture(model, layers)
        assert [dict(module.__dict__) for module in model.modules()] == before


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("script", [torch.jit.script, lambda m: torch.jit.freeze(torch.jit.script(m))])
def test_layers_beside_a_scripted_one(script):
    model = network().eval()
    model[0] = script(model[0])
    with capture(model, ["1", "2"]) as acts:
        output = model(X)
    assert torch.equal(model[4](model[3](acts["2"])), output)


# Quantisation


@pytest.fixture
def quantization():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("torch.ao.quantization")
        if torch.backends.quantized.engine == "none":
            pytest.skip("no quantised arithmetic on this machine")
        yield found


def test_quantised_after_training(quantization):
    model = quantization.QuantWrapper(network()).eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    names = ["quant", *(f"module.{i}" for i in range(5)), "dequant"]
    quantization.fuse_modules(model.module, ["0", "1", "2"], inplace=True)
    quantization.prepare(model, inplace=True)
    model(X)
    with capture(model) as acts:
        model(X)
    inside = ["module.0.0", "module.0.1"]  # the fused block runs its parts, until it is converted
    assert list(acts) == ["quant", *inside, *names[2:]]
    quantization.convert(model, inplace=True)
    expected = by_hooks(model, names, lambda model: model(X))
    with capture(model) as acts:
        model(X)
    assert list(acts) == names
    for name in names:
        assert acts[name].is_quantized == (name != "dequant")
        assert torch.equal(acts[name], expected[name])
    with capture(model, "quant", into=Moments()) as stats:
        model(X)
    assert stats.left_out == {"quant": "statistics need dense tensors of real numbers, got torch.quint8."}


def test_quantised_dynamically(quantization):
    model = quantization.quantize_dynamic(network().eval(), {nn.Linear})
    compare(model, LEAVES)


def test_prepared_for_training_with_quantisation(quantization):
    model = nn.Sequential(quantization.QuantStub(), *network(), quantization.DeQuantStub())
    model.qconfig = quantization.get_default_qat_qconfig(torch.backends.quantized.engine)
    quantization.prepare_qat(model.train(), inplace=True)
    twin = copy.deepcopy(model)
    with capture(model) as acts:
        output = model(X)
        output.sum().backward()
    expected = twin(X)
    expected.sum().backward()
    assert list(acts) == [str(i) for i in range(7)]
    assert torch.equal(output, expected)
    assert torch.equal(model[1].weight.grad, twin[1].weight.grad)


# Wrappers that distribute


def test_data_parallel_on_no_device_or_one():
    model = nn.DataParallel(network().eval())
    with capture(model) as acts:
        output = model(X)
    assert list(acts) == LEAVES
    assert torch.equal(acts["4"], output)


def test_data_parallel_on_several_devices_is_refused():
    model = nn.DataParallel(network())
    model.device_ids = [0, 1]
    with pytest.raises(
        LayerError,
        match=r"DataParallel on several devices " r"copies the model .*; " r"capture model\.module on one device",
    ):
        capture(model)


@pytest.fixture(scope="module")
def two_ranks(forks):
    said = forks.ranks(2, Path(__file__).with_name("two_ranks.py"))
    return dict(json.loads(line) for line in said.splitlines() if line.startswith("["))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
@pytest.mark.parametrize(
    "case",
    [
        "ddp",
        "compile(ddp)",
        "ddp(compile)",
        *(
            pytest.param(
                case, marks=pytest.mark.skipif(torch.__version__ < (2, 9), reason="a GPU is needed in torch 2.6")
            )
            for case in ("fsdp", "fsdp, sharded parts", "fsdp of compiled parts", "compile(fsdp)")
        ),
    ],
)
def test_on_two_ranks(two_ranks, case):
    assert two_ranks[case] == "right"
