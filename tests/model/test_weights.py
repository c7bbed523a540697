"""What a layer computes with now, against its answers to impulses: one delta a tap, through the layer itself."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from torch_featviz.errors import LayerError
from torch_featviz.model.held import base_of
from torch_featviz.model.weights import has_kernel, kernel_of, planes_of
from torch_featviz.training.frames import kernels_now
from torch_featviz.views import kernels

# Layers that make their weight anew


class Standardised(nn.Conv2d):
    """Weight standardisation by arithmetic."""

    def forward(self, x):
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (std + 1e-5), self.bias)


class Halved(nn.Conv2d):
    """It is the inner method that is another."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / 2, bias)


class Equalised(nn.Module):
    """A convolution that is none of PyTorch's, as of StyleGAN."""

    def __init__(self, c, k, size, **options):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(k, c // options.get("groups", 1), size, size))
        self.scale, self.options = 0.25, options
        self.groups = options.get("groups", 1)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, None, **self.options)


class ScaledInput(nn.Conv2d):
    def forward(self, x):
        return super().forward(3 * x) * 0.5


class OwnPadding(nn.Conv2d):
    """It pads by itself, to one side more than to the other."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 0, 2, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Negated(nn.Module):
    def forward(self, weight):
        return -weight


def made_by_a_hook(conv):
    """An equalised learning rate as older code has it: a hook sets `weight` from another parameter."""
    own = conv.weight
    del conv._parameters["weight"]
    conv.register_parameter("weight_raw", own)
    conv.weight = own.detach().clone()

    def hook(module, _inputs):
        module.weight = module.weight_raw * 1.5

    conv.register_forward_pre_hook(hook)
    return conv


# Adapters


class Peft(nn.Module):
    """As peft does it: parts in dictionaries, and `weight` is the base layer's."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base_layer = base
        options = {name: getattr(base, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        self.lora_A = nn.ModuleDict(
            {"default": nn.Conv2d(base.in_channels, rank, base.kernel_size, **options, bias=False)}
        )
        self.lora_B = nn.ModuleDict({"default": nn.Conv2d(rank, base.out_channels, 1, bias=False)})
        self.scaling, self.merged = {"default": 2.0}, False

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        if self.merged:
            return self.base_layer(x)
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x)) * self.scaling["default"]


class Pair(nn.Module):
    """Two convolutions beside a third, under names of its own."""

    def __init__(self, base, rank=2):
        super().__init__()
        options = {name: getattr(base, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        self.conv = base
        self.reduce = nn.Conv2d(base.in_channels, rank, base.kernel_size, **options, bias=False)
        self.expand = nn.Conv2d(rank, base.out_channels, 1, bias=False)

    def forward(self, x):
        return self.conv(x) + 0.7 * self.expand(self.reduce(x))


class Matrices(nn.Module):
    """As loralib does it: the base layer is never called, two parameters are multiplied and added to its weight."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.conv = base
        size = base.kernel_size[0] * base.kernel_size[1] * base.in_channels // base.groups
        self.down = nn.Parameter(torch.randn(rank, size))
        self.up = nn.Parameter(torch.randn(base.out_channels, rank))

    def forward(self, x):
        weight = self.conv.weight + (self.up @ self.down).view_as(self.conv.weight)
        return self.conv._conv_forward(x, weight, self.conv.bias)


class LinearPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.a, self.b = nn.Linear(7, 5), nn.Linear(7, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x):
        return self.linear(x) + self.b(self.a(x))


# The oracle


def old(wrap):
    def quietly(conv, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return wrap(conv, **options)

    return quietly


def after_steps(conv):
    """As in a training: the parameters move after the last forward."""
    conv.train()(torch.rand(1, 4, 15, 15))
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return conv


WRAPS = {
    "plain": lambda conv: conv,
    "old weight norm": lambda conv: after_steps(old(nn.utils.weight_norm)(conv)),
    "new weight norm": lambda conv: after_steps(parametrizations.weight_norm(conv)),
    "old spectral norm": lambda conv: after_steps(old(nn.utils.spectral_norm)(conv)),
    "new spectral norm": lambda conv: after_steps(parametrizations.spectral_norm(conv)),
    "pruned": lambda conv: after_steps(prune.l1_unstructured(conv, "weight", 0.5)),
    "pruned twice": lambda conv: after_steps(
        prune.random_unstructured(prune.ln_structured(conv, "weight", 0.5, 2, 0), "weight", 0.5)
    ),
    "parametrized twice": lambda conv: after_steps(
        parametrize.register_parametrization(parametrizations.weight_norm(conv), "weight", Negated())
    ),
    "hook": lambda conv: after_steps(made_by_a_hook(conv)),
    "compiled": lambda conv: torch.compile(conv, backend="eager"),
    "parallel": nn.DataParallel,
    "peft": Peft,
    "pair": Pair,
    "matrices": Matrices,
    "adapter of a pruned one": lambda conv: Pair(after_steps(prune.l1_unstructured(conv, "weight", 0.5))),
}
SHAPES = {
    "as it is": {"kernel_size": 3},
    "stride": {"kernel_size": (3, 2), "stride": 2, "padding": 1},
    "dilation": {"kernel_size": 3, "dilation": (2, 1), "padding": (2, 1)},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 3, "groups": 4, "stride": (1, 3)},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "wide stride": {"kernel_size": 2, "stride": 3, "padding": 1},
    "one": {"kernel_size": 1},
    **{mode: {"kernel_size": 3, "padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")},
}


def by_impulses(layer, conv, channels=4, padding=None):
    """`k c h w` over all input channels: one delta for each tap, seen at one place that no padding reaches."""
    axes = range(len(conv.kernel_size))
    if padding is None:
        same = [d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        padding = same if conv.padding == "same" else conv.padding
    place = [-(-p // s) + 1 for p, s in zip(padding, conv.stride, strict=True)]
    layer.eval()
    taps = list(itertools.product(range(channels), *(range(k) for k in conv.kernel_size)))
    impulses = torch.zeros(1 + len(taps), channels, *(15 for _ in axes))  # the first has none
    for impulse, tap in zip(impulses[1:], taps, strict=True):
        at = [place[i] * conv.stride[i] - padding[i] + conv.dilation[i] * tap[1 + i] for i in axes]
        impulse[(tap[0], *at)] = 1
    with torch.no_grad():
        answers = layer(impulses)[(slice(None), slice(None), *place)]
    found = torch.empty(answers.shape[1], channels, *conv.kernel_size)
    for answer, tap in zip(answers[1:], taps, strict=True):
        found[(slice(None), *tap)] = answer - answers[0]
    return found


def spread(found, channels):
    """Each filter with its group's channels among all of them, and 0 elsewhere."""
    full = torch.zeros(len(found.weight), channels, *found.weight.shape[2:])
    per_group, own = len(found.weight) // found.groups, found.weight.shape[1]
    for k, filter_ in enumerate(found.weight):
        first = k // per_group * own
        full[k, first : first + own] = filter_
    return full


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_kernel_is_the_answer_to_impulses(wrap, shape):
    options = SHAPES[shape]
    if wrap == "matrices" and options.get("groups"):
        pytest.skip("its two matrices are of one group")
    conv = nn.Conv2d(4, 8, **options)
    geometry = nn.Conv2d(4, 8, **options)
    layer = WRAPS[wrap](conv)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    found = kernel_of(layer.train())
    assert all(value.equal(before[name]) for name, value in layer.state_dict().items()), "nothing of it was changed"
    assert layer.training
    assert not found.weight.requires_grad
    torch.testing.assert_close(spread(found, 4), by_impulses(layer, geometry), rtol=1e-5, atol=2e-6)
    assert found.filters == 8


@pytest.mark.parametrize("kind", [Standardised, Halved, OwnPadding, ScaledInput])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}, {"dilation": 2, "stride": 3}], ids=str)
def test_of_convolutions_with_a_forward_of_their_own(kind, options):
    layer = kind(4, 6, 3, **options)
    padding = (2, 1) if kind is OwnPadding else None
    found = kernel_of(layer)
    torch.testing.assert_close(spread(found, 4), by_impulses(layer, layer, padding=padding), rtol=1e-5, atol=2e-6)
    note = () if kind is OwnPadding else (f"as {kind.__name__} makes it at each call",)
    assert found.notes == note
    if kind is OwnPadding:
        assert found.weight.equal(layer.weight)


@pytest.mark.parametrize("name", ["StdConv2d", "ScaledStdConv2d", "StdConv2dSame", "ScaledStdConv2dSame"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_of_timms_weight_standardisation(name, stride):
    layers = pytest.importorskip("timm.layers")
    layer = getattr(layers, name)(4, 6, 3, stride=stride)
    found = kernel_of(layer)
    with torch.no_grad():
        centred = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
        expected = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-6).sqrt()
        if "Scaled" in name:
            expected = expected * layer.gain * layer.scale
    torch.testing.assert_close(found.weight, expected, rtol=1e-4, atol=1e-5)
    assert found.notes == (f"as {name} makes it at each call",)
    if "Same" not in name:
        torch.testing.assert_close(spread(found, 4), by_impulses(layer, layer), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"dilation": 2}], ids=str)
def test_of_a_convolution_that_is_none_of_pytorchs(options):
    layer = Equalised(4, 6, 3, **options)
    assert has_kernel(layer)
    found = kernel_of(layer)
    torch.testing.assert_close(
        spread(found, 4), by_impulses(layer, nn.Conv2d(4, 6, 3, **options)), rtol=1e-5, atol=1e-6
    )


@given(
    *(st.integers(1, top) for top in (4, 3, 3, 2)),
    st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    st.sampled_from([Standardised, ScaledInput, Peft, Pair]),
)
def test_of_any_geometry(kernel, stride, dilation, groups, mode, kind):
    padding = 0 if mode == "zeros" and kernel == 1 else min(1, kernel - 1)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "padding_mode": mode}
    conv = nn.Conv2d(4, 6, kernel, groups=groups, **options)
    layer = kind(conv) if kind in (Peft, Pair) else kind(4, 6, kernel, groups=groups, **options)
    torch.testing.assert_close(spread(kernel_of(layer), 4), by_impulses(layer, conv), rtol=1e-4, atol=1e-5)


TRANSPOSED = {
    "plain": lambda conv: conv,
    "weight norm": lambda conv: after_steps(parametrizations.weight_norm(conv)),
    "old weight norm": lambda conv: after_steps(old(nn.utils.weight_norm)(conv, dim=1)),
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "doubled": lambda conv: Doubled(conv),
}


class Doubled(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x):
        return 2 * self.base_layer(x)


@pytest.mark.parametrize("wrap", TRANSPOSED)
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1, "output_padding": 1}, {"groups": 2, "stride": 3}, {"dilation": 2}],
    ids=str,
)
def test_of_transposed_convolutions(wrap, options):
    conv = nn.ConvTranspose2d(4, 6, 3, **options)
    layer = TRANSPOSED[wrap](conv)
    layer.eval()
    with torch.no_grad():
        zeros = torch.zeros(1, 4, 7, 7)
        full = torch.empty(6, 4, 3, 3)
        for c, u, v in itertools.product(range(4), range(3), range(3)):
            impulse = zeros.clone()
            impulse[0, c, 3, 3] = 1
            row, column = (3 * conv.stride[0] - conv.padding[0] + conv.dilation[0] * tap for tap in (u, v))
            full[:, c, u, v] = (layer(impulse) - layer(zeros))[0, :, row, column]
    found = kernel_of(layer)
    torch.testing.assert_close(spread(found, 4), full, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("wrap", ["plain", "new weight norm", "pruned", "old spectral norm"])
def test_of_one_dimension(wrap):
    conv = nn.Conv1d(4, 6, 5, stride=2, padding=2, groups=2)
    if wrap == "plain":
        layer = conv
    elif wrap == "pruned":
        layer = prune.l1_unstructured(conv, "weight", 0.25)
    else:
        layer = parametrizations.weight_norm(conv) if "weight" in wrap else old(nn.utils.spectral_norm)(conv)
    found = kernel_of(layer)
    torch.testing.assert_close(spread(found, 4), by_impulses(layer, conv), rtol=1e-5, atol=2e-6)


def test_of_linear_layers_and_their_adapters():
    for layer in (nn.Linear(7, 5), parametrizations.weight_norm(nn.Linear(7, 5)), LinearPair()):
        with torch.no_grad():
            expected = layer(torch.eye(7)) - layer(torch.zeros(1, 7))
        torch.testing.assert_close(kernel_of(layer).weight, expected.T, rtol=1e-5, atol=2e-6)
        assert not has_kernel(layer)


# Quantised layers


def whole_numbers(*shape):
    """A weight of 8 bits, and its integers."""
    numbers = torch.randint(-100, 100, shape)
    return torch.quantize_per_tensor(numbers / 32, 1 / 32, 0, torch.qint8), numbers


@pytest.mark.filterwarnings("ignore:.*(quantiz|Quantiz|TypedStorage).*")
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"dilation": 2}], ids=str)
def test_of_quantised_convolutions(options):
    from torch.ao.nn import quantized

    layer = quantized.Conv2d(4, 6, 3, **options)
    weight, numbers = whole_numbers(6, 4 // options.get("groups", 1), 3, 3)
    layer.set_weight_bias(weight, torch.zeros(6))
    layer.scale, layer.zero_point = 1 / 32, 128
    found = kernel_of(layer)
    assert found.weight.equal(numbers / 32)
    assert found.notes == ("quantised to 8 bits",)

    def run(x):  # impulses and answers are whole numbers of their steps
        return layer(torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)).dequantize()

    run.eval = lambda: None
    torch.testing.assert_close(spread(found, 4), by_impulses(run, nn.Conv2d(4, 6, 3, **options)), rtol=0, atol=0)
    net = nn.Sequential(layer)
    assert "quantised to 8 bits" in kernels(net, "0").legend.notes
    assert kernels(net).png() == kernels(layer).png()


@pytest.mark.filterwarnings("ignore:.*(quantiz|Quantiz|TypedStorage).*")
def test_of_a_quantised_transposed_convolution():
    from torch.ao.nn import quantized

    layer = quantized.ConvTranspose2d(4, 6, 3, groups=2)
    weight, numbers = whole_numbers(4, 3, 3, 3)
    layer.set_weight_bias(weight, torch.zeros(6))
    found = kernel_of(layer)
    for k, c in itertools.product(range(6), range(2)):
        assert found.weight[k, c].equal(numbers[k // 3 * 2 + c, k % 3] / 32)


@pytest.mark.filterwarnings("ignore:.*(quantiz|Quantiz).*")
def test_of_a_layer_that_rounds_its_weight_while_it_learns():
    from torch.ao import quantization
    from torch.ao.nn import qat

    layer = qat.Conv2d(4, 6, 3, qconfig=quantization.get_default_qat_qconfig("x86"))
    layer.train()(torch.rand(1, 4, 9, 9))
    found = kernel_of(layer)
    assert not found.weight.equal(layer.weight)
    torch.testing.assert_close(found.weight, by_impulses(layer, layer), rtol=1e-5, atol=2e-6)
    assert found.notes[0] == "as Conv2d makes it at each call"


# What the legend says


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        ("plain", ()),
        ("old weight norm", ("weight norm",)),
        ("new weight norm", ("weight norm",)),
        ("old spectral norm", ("spectral norm",)),
        ("new spectral norm", ("spectral norm",)),
        ("pruned", ("pruned 50 %",)),
        ("parametrized twice", ("weight norm", "negated")),
        ("hook", ("as a hook makes it at each call",)),
        ("compiled", ()),
        ("peft", ("adapter added",)),
        ("matrices", ("adapter added",)),
        ("adapter of a pruned one", ("pruned 50 %", "adapter added")),
    ],
)
def test_the_legend_says_what_is_in_it(wrap, notes):
    net = nn.Sequential(nn.ReLU(), WRAPS[wrap](nn.Conv2d(4, 8, 3)))
    assert kernels(net, "1").legend.notes == ("8 of 8 filters × 4 of 4 channels shown",)[:0] + notes


def test_an_adapter_that_adds_nothing_is_not_said_to():
    layer = Peft(nn.Conv2d(4, 8, 3))
    layer.merged = True
    found = kernel_of(layer)
    assert found.notes == ()
    torch.testing.assert_close(found.weight, layer.base_layer.weight.detach())


def test_the_base_layer_says_that_an_adapter_is_around_it():
    net = nn.Sequential(Peft(nn.Conv2d(4, 8, 3)))
    assert kernels(net, "0.base_layer").legend.notes == ("without the adapter around it: draw '0'",)
    assert "adapter added" in kernels(net, "0").legend.notes


def test_what_hooks_do_is_not_in_it_and_they_are_not_called():
    calls = []
    net = nn.Sequential(nn.Conv2d(1, 2, 3), Standardised(1, 2, 3))
    for layer in net:
        layer.register_forward_hook(lambda *_: calls.append(1))
    assert kernels(net, "0").legend.notes == ("without what its hooks do",)
    assert kernels(net, "1").legend.notes == ("as Standardised makes it at each call", "without what its hooks do")
    assert not calls


def test_no_network_runs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = old(nn.utils.weight_norm)(nn.Conv2d(1, 2, 3))

        def forward(self, x):
            raise AssertionError("it was called")

    assert kernels(Net(), "conv").png()
    assert kernels(Net()).png()
    two = nn.Sequential(Net(), nn.Conv2d(2, 2, 3))
    with pytest.raises(LayerError, match=r"this module is a Sequential and has no kernels; these have: '0.conv', '1'"):
        kernels(two)


# State


def test_the_weights_that_were_loaded_are_drawn():
    for wrap in ("old weight norm", "old spectral norm", "pruned", "new weight norm"):
        trained, fresh = (nn.Sequential(WRAPS[wrap](nn.Conv2d(4, 8, 3))).eval() for _ in range(2))
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(kernels(fresh, "0").pixels, kernels(trained, "0").pixels), wrap


@pytest.mark.parametrize("wrap", [old(nn.utils.spectral_norm), parametrizations.spectral_norm])
def test_looking_takes_no_step_of_the_power_iteration(wrap):
    conv = wrap(nn.Conv2d(4, 8, 3)).train()
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    numbers = torch.get_rng_state()
    kernel_of(conv)
    kernels_now({"conv": conv})
    assert all(value.equal(before[name]) for name, value in conv.state_dict().items())
    assert torch.get_rng_state().equal(numbers)


def test_weights_that_are_not_finite():
    layer = Standardised(4, 8, 3)
    weight = torch.rand_like(layer.weight)
    weight[1, 2, 0, 0] = torch.nan
    layer.weight.data = weight
    found = kernel_of(layer)
    assert found.weight[1].isnan().all()
    assert found.weight[[0, *range(2, 8)]].isfinite().all()


def test_some_filters_only_and_frames_of_them():
    for layer in (Pair(nn.Conv2d(40, 50, 3, padding=1)), Standardised(40, 50, 3)):
        whole, part = kernel_of(layer), kernel_of(layer, filters=7)
        assert part.filters == whole.filters == 50
        torch.testing.assert_close(part.weight, whole.weight[:7], rtol=1e-5, atol=1e-6)
        seen = kernels_now({"layer": layer})["layer"]
        assert seen.shape == (50, 40, 3, 3)
        torch.testing.assert_close(seen.values, whole.weight[:12, :12], rtol=1e-5, atol=1e-6)


def test_half_precision_and_inference_mode():
    for dtype in (torch.bfloat16, torch.float64):
        layer = Pair(nn.Conv2d(4, 8, 3)).to(dtype)
        delta = torch.einsum("or,rchw->ochw", layer.expand.weight[:, :, 0, 0], layer.reduce.weight) * 0.7
        torch.testing.assert_close(kernel_of(layer).weight, (layer.conv.weight + delta).detach(), rtol=0.02, atol=0.02)
    with torch.inference_mode():
        inside = kernel_of(Standardised(4, 8, 3)).weight
    assert inside.shape == (8, 4, 3, 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("transposed", [False, True])
def test_of_scripted_layers(transposed):
    conv = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2) if transposed else nn.Conv2d(4, 6, 3, stride=2, groups=2)
    net = torch.jit.script(nn.Sequential(conv, nn.ReLU()))
    assert planes_of(net, "0").weight.equal(kernel_of(conv).weight)
    with pytest.raises(LayerError, match="these have: '0'"):
        planes_of(net, "1")


# Refusals


class Gated(nn.Module):
    """Its adapter bends what it adds."""

    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 8, 1)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x).relu())


class Dynamic(nn.Conv2d):
    """Its kernel depends on its input."""

    def forward(self, x):
        return self._conv_forward(x, self.weight * x.mean(), self.bias)


class Wide(nn.Conv2d):
    """It also sees the mean of the whole map."""

    def forward(self, x):
        return super().forward(x) + x.mean((2, 3), keepdim=True).sum(1, keepdim=True)


class Detached(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.detach() * 2) * 2


class Two(nn.Conv2d):
    def forward(self, x, style):
        return super().forward(x) * style


class Text(nn.Conv2d):
    def forward(self, x):
        return {"out": super().forward(x)}


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (Gated(), "layer '0' is a Gated, whose output is not linear in its input"),
        (Dynamic(4, 8, 3), "layer '0' is a Dynamic, which makes another kernel for each input"),
        (Wide(4, 8, 3), "layer '0' is a Wide, whose output depends on more of its input than its kernel covers"),
        (Detached(4, 8, 3), "layer '0' is a Detached, through which no gradient passes"),
        (Two(4, 8, 3), r"layer '0' is a Two that does not run on its own \(TypeError: .*style"),
        (Text(4, 8, 3), "layer '0' is a Text, which returns something else than its channels at each place"),
        (nn.LayerNorm((4, 8, 8)), "is a LayerNorm and has no kernels"),
        (nn.Bilinear(2, 3, 4), "is a Bilinear and has no kernels"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_kernel_of_its_own_is_refused(layer, match):
    net = nn.Sequential(layer)
    with pytest.raises(LayerError, match=match):
        kernels(net, "0")
    assert kernels_now({"0": layer}) == {}


def test_what_cannot_be_copied_is_named():
    layer = Standardised(4, 8, 3)
    layer.lock = iter([])
    layer.file = (x for x in [])
    with pytest.raises(LayerError, match="this module is a Standardised that cannot be copied: 'file' of Standardised"):
        kernel_of(layer)


def test_a_block_that_is_linear_is_drawn_as_a_whole_where_it_is_named():
    class ConvNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(self.conv(x))

    block = ConvNorm()
    block(torch.rand(4, 4, 9, 9))
    net = nn.Sequential(block)
    found = planes_of(net, "0")
    factor = (block.norm.weight / (block.norm.running_var + block.norm.eps).sqrt()).detach()
    torch.testing.assert_close(found.weight, block.conv.weight.detach() * factor[:, None, None, None])
    assert found.notes == ("as ConvNorm makes it at each call",)
    assert not has_kernel(block)
    assert kernels_now({"0": block}) == {}


# Adapters by their structure


@pytest.mark.parametrize("groups", [1, 2])
def test_adapters_are_known_by_what_they_hold(groups):
    conv = nn.Conv2d(4, 8, 3, groups=groups)
    for kind in (Peft, Pair):
        assert base_of(kind(conv)) is conv
    assert base_of(LinearPair()) is not None
    if groups == 1:
        assert base_of(Matrices(conv)) is conv


def test_other_modules_are_no_adapters():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.skip = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(4, 8, 1)

    for module in (Attention(), Block(), nn.Sequential(*Pair(nn.Conv2d(4, 8, 3)).children()), nn.Conv2d(1, 1, 1)):
        assert base_of(module) is None
