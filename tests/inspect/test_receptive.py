"""Receptive fields against the support of gradients, in copies of the nets where every path carries something."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.inspect.receptive.field import described, receptive_field
from torch_featviz.inspect.receptive.trace import Tracer
from torch_featviz.views import effective_field

ALEXNET = {  # r, j, s0
    "features.0": (11, 4, -2),
    "features.2": (19, 8, -2),
    "features.3": (51, 8, -18),
    "features.5": (67, 16, -18),
    "features.6": (99, 16, -34),
    "features.8": (131, 16, -50),
    "features.10": (163, 16, -66),
    "features.12": (195, 32, -66),
}


@pytest.fixture(scope="module")
def alexnet():
    return torchvision.models.alexnet()


@pytest.mark.parametrize("layer", ALEXNET)
def test_alexnet_table(alexnet, layer):
    seen = receptive_field(alexnet, layer)
    assert (seen.size[0], seen.stride[0], seen.start[0]) == ALEXNET[layer]
    assert (seen.size[1], seen.stride[1], seen.start[1]) == ALEXNET[layer]
    assert seen.kind == "exact"
    r, j, s0 = ALEXNET[layer]
    for i in range(seen.map_size[0]):
        assert seen.box(i, 0)[0] == (max(0, s0 + i * j), min(224, s0 + i * j + r))


def positive(model):
    """A copy in which every weight is positive, nothing is cut off and max pools are means."""
    model = copy.deepcopy(model).double().eval()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU)):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                options = (child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, nn.AvgPool2d(*options))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.zero_(), module.running_var.fill_(1)
            nn.init.ones_(module.weight), nn.init.zeros_(module.bias)
        elif hasattr(module, "weight") and hasattr(module, "bias"):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def outputs_of(model, image, tracer=None):
    """Every map of a forward by layer name, or what it sees; layers that run more than once are left out."""
    found, hooks = {}, []
    for name, module in model.named_modules():

        def keep(module, inputs, output, name=name):
            if isinstance(output, torch.Tensor) and output.dim() == image.dim():
                what = (tuple(output.shape), tracer.read(output)) if tracer else output
                found[name] = None if name in found else what

        hooks.append(module.register_forward_hook(keep))
    if tracer:
        with tracer, torch.no_grad():
            model(image)
    else:
        model(image)
    for hook in hooks:
        hook.remove()
    return {name: what for name, what in found.items() if what is not None and name}


def supports(output, image, places):
    """Which positions of the input move each unit: the gradient of its channels' sum, unit `k` in sample `k`."""
    seed = torch.zeros_like(output)
    for k, place in enumerate(places):
        seed[(k, slice(None), *place)] = 1
    (gradient,) = torch.autograd.grad(output, image, seed, retain_graph=True, materialize_grads=True)
    return gradient.abs().sum(1) != 0


def hull(support):
    return tuple((int(at.min()), int(at.max()) + 1) if len(at) else (0, 0) for at in support.nonzero(as_tuple=True))


def inside(support, box):
    return support[tuple(slice(*interval) for interval in box)]


def check(seen, output, image, places):
    for place, support in zip(places, supports(output, image, places), strict=True):
        box = seen.box(*place)
        assert box == hull(support), (seen, place)
        assert seen.kind != "exact" or bool(inside(support, box).all()), (seen, place)


def small_vgg():
    """Without the weights that follow the last map."""
    with torch.device("meta"):
        net = torchvision.models.vgg11()
    net.classifier = nn.Flatten()
    net = net.to_empty(device="cpu")
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.01)
    return net


NETS = {
    "alexnet": (torchvision.models.alexnet, (96, 80)),
    "vgg11": (small_vgg, (64, 48)),
    "squeezenet": (torchvision.models.squeezenet1_1, (96, 75)),
    "googlenet": (lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False), (75, 48)),
    "resnet18": (torchvision.models.resnet18, (75, 64)),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, (75, 48)),
}


@pytest.mark.parametrize("name", NETS)
def test_every_layer_of_a_net(name):
    build, size = NETS[name]
    net = build().eval()
    linear = positive(net)
    image = torch.ones(3, 3, *size, dtype=torch.double, requires_grad=True)
    probe = torch.zeros(1, 3, *size)
    expected = outputs_of(linear, image)
    found = outputs_of(net, probe, Tracer(probe))
    whole = set()
    assert len(expected) > 10
    for layer, output in expected.items():
        if name == "googlenet" and layer.endswith(".bn"):
            continue  # its convolution's, and its block's
        shape, trace = found[layer]
        seen = described(layer, size, shape, trace)
        assert seen.map_size == output.shape[2:]
        h, w = seen.map_size
        check(seen, output, image, [(0, 0), (h // 2, w // 2), (h - 1, w - 1)])
        if seen.kind == "whole":
            whole.add(layer)
    layers = list(expected)
    first = {"squeezenet": "classifier.3", "googlenet": "avgpool", "resnet18": "avgpool"}
    first["mobilenet_v3_small"] = "features.1.block.1.avgpool"
    assert whole == set(layers[layers.index(first[name]) :] if name in first else ())


class Function(nn.Module):
    """A net written as a function, whose whole output is the layer `end`."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        self.end = nn.Identity()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.end(self.function(self, x))


def conv(n, c, d, *args, **kwargs):
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1](c, d, *args, **kwargs)


def two(**options):
    """Two convolutions and what is between."""
    return {"a": conv(2, 1, 2, 3, stride=2, padding=1), "b": conv(2, 2, 1, 3, **options)}


def gated(m, x):
    return m.a(x) * x.mean((2, 3), keepdim=True)


def rows_times_matrix(m, x):
    """As PyTorch up to 2.11 runs a linear layer whose weight wants no gradient."""
    rows = m.a(x).permute(0, 2, 3, 1)
    b, h, w, c = rows.shape
    products = torch.bmm(rows.reshape(b * h, w, c), m.l.weight.T.expand(b * h, c, 4))
    return products.view(b, h, w, 4).permute(0, 3, 1, 2)


def padded_batch(m, x):
    """As torchvision's detectors make it: each image is resized, and copied into a batch of zeros."""
    images = [F.interpolate(image[None], scale_factor=1.5, mode="bilinear")[0] for image in x]
    batch = images[0].new_full((len(x), 1, 16, 16), 0.0)
    for number in range(len(x)):
        image = images[number]
        batch[number, : image.shape[0], : image.shape[1], : image.shape[2]].copy_(image)
    return m.a(batch)


def written_into_zeros(m, x):
    y = x.new_zeros(len(x), 1, 12, 10)
    y[:, :, 3:11, 2:9] = x
    y.mul_(2)[:, :, 1:].add_(1)
    return m.a(y[:, :, 2:])


def halves(m, x):
    y = torch.zeros(len(x), 1, 9, 7).to(x)
    y[:, :, :4], y[:, :, 5:] = x[:, :, 1:5], x[:, :, 4:]
    return m.a(y)


def written_twice(m, x):
    y = torch.empty_like(x)
    y[:, :, :6] = x[:, :, 2:]
    y[:] = x.flip(3)
    return m.a(y)


def tiles(m, x):
    """That overlap, and hold the same where they do; the first is written a second time."""
    y = torch.ones_like(x)
    for rows in (slice(5), slice(3, 8), slice(2)):
        y[:, :, rows] = x[:, :, rows]
    return m.a(y)


SMALL = {
    "tiles": ((8, 7), "exact", Function(tiles, a=conv(2, 1, 1, 3))),
    "an axis more in place": (
        (8, 7),
        "exact",
        Function(lambda m, x: m.a((1 * x)[:, 0].unsqueeze_(-3)), a=conv(2, 1, 1, 3)),
    ),
    "a padded batch": ((9, 10), "exact", Function(padded_batch, a=conv(2, 1, 1, 3))),
    "written into zeros": ((8, 7), "exact", Function(written_into_zeros, a=conv(2, 1, 1, 3))),
    "two halves": ((8, 7), "exact", Function(halves, a=conv(2, 1, 1, 3, padding=1))),
    "written twice": ((8, 7), "exact", Function(written_twice, a=conv(2, 1, 1, 3))),
    "dilated": ((20, 17), "hull", Function(lambda m, x: m.b(m.a(x)), **two(dilation=3))),
    "dilated, filled": (
        (20, 17),
        "exact",
        Function(lambda m, x: m.b(m.a(x)), a=conv(2, 1, 1, 2), b=conv(2, 1, 1, 3, dilation=2)),
    ),
    "holes by strides": (
        (20, 17),
        "hull",
        Function(lambda m, x: m.b(m.a(x)), a=conv(2, 1, 1, 1, stride=2), b=conv(2, 1, 1, 3, padding=1)),
    ),
    "ceil_mode": (
        (20, 18),
        "exact",
        Function(lambda m, x: F.avg_pool2d(m.a(x), 3, 2, ceil_mode=True), a=conv(2, 1, 2, 3)),
    ),
    "asymmetric padding": (
        (15, 16),
        "exact",
        Function(lambda m, x: m.b(F.pad(m.a(x), (0, 3, 2, 1))), **two(stride=2)),
    ),
    "padding cut off": ((15, 16), "exact", Function(lambda m, x: m.b(F.pad(m.a(x), (-1, 2, 0, -2))), **two())),
    "padding same": ((9, 8), "exact", Function(lambda m, x: m.a(x), a=conv(2, 1, 1, (3, 5), padding="same"))),
    "reflected": (
        (9, 8),
        "exact",
        Function(lambda m, x: m.a(x), a=conv(2, 1, 1, 5, padding=2, padding_mode="reflect")),
    ),
    "replicated": (
        (9, 8),
        "exact",
        Function(lambda m, x: m.a(F.pad(x, (1, 3, 0, 2), mode="replicate")), a=conv(2, 1, 1, 3)),
    ),
    "adaptive": ((15, 10), "exact", Function(lambda m, x: F.adaptive_avg_pool2d(m.a(x), (5, 4)), a=conv(2, 1, 1, 3))),
    "transposed": (
        (7, 6),
        "exact",
        Function(lambda m, x: m.t(m.a(x)), a=conv(2, 1, 2, 3, padding=1), t=nn.ConvTranspose2d(2, 1, 4, 2, 1)),
    ),
    "nearest": ((7, 6), "exact", Function(lambda m, x: m.a(F.interpolate(x, scale_factor=2)), a=conv(2, 1, 1, 3))),
    "every third, nearest": ((9, 6), "hull", Function(lambda m, x: m.a(F.interpolate(x, (3, 2))), a=conv(2, 1, 1, 2))),
    "bilinear, of its own size": (
        (7, 6),
        "exact",
        Function(lambda m, x: m.a(F.interpolate(x, (7, 6), mode="bilinear")), a=conv(2, 1, 1, 3)),
    ),
    "bilinear": (
        (7, 6),
        "exact",
        Function(lambda m, x: F.interpolate(m.a(x), (12, 9), mode="bilinear", align_corners=False), a=conv(2, 1, 1, 3)),
    ),
    "branches that contain each other": (
        (12, 11),
        "exact",
        Function(lambda m, x: torch.cat([m.a(x), x], 1), a=conv(2, 1, 1, 3, padding=1)),
    ),
    "a cross": (
        (12, 11),
        "hull",
        Function(
            lambda m, x: m.a(x) + m.b(x),
            a=conv(2, 1, 1, (1, 5), padding=(0, 2)),
            b=conv(2, 1, 1, (5, 1), padding=(2, 0)),
        ),
    ),
    "two strips": (
        (12, 11),
        "exact",
        Function(lambda m, x: m.a(F.pad(x, (0, 0, 2, 0))) + m.a(F.pad(x, (0, 0, 0, 2))), a=conv(2, 1, 1, (3, 2))),
    ),
    "slices": ((12, 11), "exact", Function(lambda m, x: m.a(x)[:, :, 1:, ::2], a=conv(2, 1, 1, 2))),
    "flipped": ((12, 11), "exact", Function(lambda m, x: m.a(x.flip(3)), a=conv(2, 1, 1, 2))),
    "side by side": (
        (5, 6),
        "exact",
        Function(
            lambda m, x: m.a(torch.cat([x, x.new_zeros(1, 1, 5, 3).expand(len(x), -1, -1, -1)], 3)), a=conv(2, 1, 1, 2)
        ),
    ),
    "channels last": (
        (8, 7),
        "exact",
        Function(lambda m, x: m.a(x).permute(0, 2, 3, 1).transpose(1, 3).transpose(2, 3), a=conv(2, 1, 2, 3)),
    ),
    "a matrix for each row": ((8, 7), "exact", Function(rows_times_matrix, a=conv(2, 1, 2, 3), l=nn.Linear(2, 4))),
    "linear on channels": (
        (8, 7),
        "exact",
        Function(
            lambda m, x: m.l(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=conv(2, 1, 2, 3), l=nn.Linear(2, 4)
        ),
    ),
    "linear on a row": ((6, 5), "whole", Function(lambda m, x: m.l(x), l=nn.Linear(5, 4))),
    "pixel shuffle": ((8, 7), "exact", Function(lambda m, x: F.pixel_shuffle(m.a(x), 2), a=conv(2, 1, 4, 3))),
    "pixel unshuffle": ((8, 6), "exact", Function(lambda m, x: m.a(F.pixel_unshuffle(x, 2)), a=conv(2, 4, 1, 3))),
    "gated": ((8, 7), "whole", Function(gated, a=conv(2, 1, 1, 3, padding=1))),
    "nothing but padding": ((4, 4), "exact", Function(lambda m, x: m.a(x), a=conv(2, 1, 1, 2, padding=4))),
    "1-D": ((30,), "exact", Function(lambda m, x: F.avg_pool1d(m.a(x), 3, 2, 1), a=conv(1, 1, 2, 5, stride=2))),
    "3-D": (
        (7, 6, 8),
        "exact",
        Function(lambda m, x: F.avg_pool3d(m.a(x), 2, 2, ceil_mode=True), a=conv(3, 1, 2, 3, padding=1)),
    ),
}


UNEVEN = {  # axes along which the fields are not evenly spaced
    **{"adaptive": [0], "side by side": [1]},
    **{name: [0, 1] for name in ("transposed", "nearest", "bilinear", "pixel shuffle", "a padded batch")},
    **{name: [0] for name in ("two halves", "tiles")},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_unit_of_small_nets(name):
    size, kind, net = SMALL[name]
    seen = receptive_field(net, "end", size, channels=1)
    assert seen.kind == kind
    places = [tuple(place) for place in torch.ones(seen.map_size).nonzero().tolist()]
    image = torch.ones(len(places), 1, *size, dtype=torch.double, requires_grad=True)
    output = positive(net)(image)
    assert output.shape[2:] == seen.map_size
    check(seen, output, image, places)
    for i, (r, j, s0) in enumerate(zip(seen.size, seen.stride, seen.start, strict=True)):
        assert (j is None) == (s0 is None) == (i in UNEVEN.get(name, ()))
        boxes = [(place[i], seen.box(*place)[i]) for place in places]
        if j is None:
            assert r == max(high - low for _, (low, high) in boxes)
            continue
        formula = [(at, (max(0, s0 + at * j), min(size[i], s0 + at * j + r))) for at, _ in boxes]
        assert any(high - low == r for _, (low, high) in boxes)
        assert all(box == by for box, by in zip(boxes, formula, strict=True) if box[1][1] - box[1][0] == r)


def test_adaptive_bins_overlap():
    seen = receptive_field(nn.Sequential(nn.AdaptiveMaxPool2d((3, 4))), "0", (7, 8))
    assert [seen.box(i, 0)[0] for i in range(3)] == [(0, 3), (2, 5), (4, 7)]
    assert (seen.size, seen.stride, seen.start) == ((3, 2), (None, 2), (None, 0))


def test_all_pooled():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    pooled, flat = receptive_field(net, "1", (9, 8)), receptive_field(net, net[3], (9, 8))
    assert pooled.kind == flat.kind == "whole"
    assert (pooled.size, pooled.stride, pooled.start) == ((9, 8), (0, 0), (0, 0))
    assert pooled.box(0, 0) == ((0, 9), (0, 8))
    assert (flat.map_size, flat.layer) == ((), "3")
    with pytest.raises(ShapeError, match=r"layer '3' returns no map"):
        flat.box(0, 0)


def unknown(m, x):
    return m.a(torch.fft.fft2(x).real)


def by_value(m, x):
    return m.a(x) * float(x[0, 0, 0, 0])


def overwritten(m, x):
    y = m.a(x)
    rows = y[:, :, 1:]
    rows += x[:, :, :1, 2:]
    return y


def every_other_row(m, x):
    y = x.new_zeros(1, 1, 16, 8)
    y[:, :, ::2] = x
    return m.a(y)


def more_than_was_written(m, x):
    y = x.new_zeros(1, 1, 10, 10)
    part = y[:, :, 3:]
    y[:, :, 2:, 2:] = x
    return m.a(part)


def transposed_part(m, x):
    y = x.new_zeros(1, 1, 8, 8)
    y[0, 0].copy_(x[0, 0])
    return m.a(y.as_strided((1, 1, 8, 7), (64, 64, 1, 9), 0))


def windows_of_a_part(m, x):
    y = x.new_zeros(1, 1, 12, 8)
    windows = y.unfold(2, 8, 2)
    y[:, :, :4] = x[:, :, :4]
    return m.a(windows[:, :, 1])


def many_rows(m, x):
    """More parts than are told apart."""
    y = x.new_zeros(1, 1, 64, 8)
    for row in range(64):
        y[:, :, row : row + 1] = x[:, :, row % 8 : row % 8 + 1]
    return m.a(y)


def an_axis_less_in_place(m, x):
    y = (1 * x)[:, :, None].squeeze_(2)
    return m.a(y)


def blanked(m, x):
    y = m.a(x)
    y[:, :, :1] = 0
    return y


def turned_beside(m, x):
    y = x.new_zeros(1, 1, 8, 16)
    y[..., :8], y[..., 8:] = x, x.transpose(2, 3)
    return m.a(y)


def batch_statistics(m, x):
    return F.batch_norm(m.a(x), None, None, training=True)


UNKNOWN = [
    unknown,
    by_value,
    overwritten,
    every_other_row,
    more_than_was_written,
    transposed_part,
    windows_of_a_part,
    many_rows,
    an_axis_less_in_place,
    turned_beside,
    blanked,
    batch_statistics,
]


@pytest.mark.parametrize("function", UNKNOWN)
def test_what_is_not_known_is_everything(function):
    seen = receptive_field(Function(function, a=conv(2, 1, 1, 3)), "end", (8, 8))
    assert seen.kind == "whole"
    assert seen.box(3, 3) == ((0, 8), (0, 8))


@pytest.mark.parametrize(("groups", "kind"), [(2, "hull"), (1, "exact")])
def test_a_choice_of_channels_may_see_less(groups, kind):
    net = Function(
        lambda m, x: m.b(torch.cat([x, m.a(x)], 1))[:, :1],
        a=conv(2, 1, 1, 3, padding=1),
        b=conv(2, 2, 2, 1, groups=groups),
    )
    assert receptive_field(net, "end", (8, 8)).kind == kind


@pytest.mark.parametrize("build", ["fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn"])
def test_a_detector_that_resizes_and_pads_its_images(build):
    """From the pixels that are given, although the images are resized and copied into a batch."""
    options = {} if "ssd" in build else {"min_size": 60, "max_size": 90}
    net = getattr(torchvision.models.detection, build)(weights=None, weights_backbone=None, **options).eval()
    convolution = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    seen = receptive_field(net, convolution, (50, 70))
    assert seen.kind == "exact"
    image, kept = torch.rand(1, 3, 50, 70, requires_grad=True), []
    module = net.get_submodule(convolution)
    module.weight = nn.Parameter(torch.rand_like(module.weight))  # no channel cancels another
    module.register_forward_hook(lambda *given: kept.append(given[2]))
    net(image)
    for place in ((0, 0), (3, 5), (9, 12)):
        (gradient,) = torch.autograd.grad(kept[0][(0, slice(None), *place)].sum(), image, retain_graph=True)
        assert seen.box(*place) == hull(gradient[0].abs().sum(0) != 0)


def row_by_row(m, x):
    y = torch.zeros_like(x)
    for row in range(x.shape[2]):
        y[:, :, row] = x[:, :, row]
    return y


def partly_written_again(m, x):
    y = torch.zeros_like(x)
    y[:, :, :5], y[:, :, 3:] = x[:, :, :5], x[:, :, 2:7]
    return y


def taken_apart(m, x):
    return torch.stack(x.unbind(2), 2)


@pytest.mark.parametrize("function", [row_by_row, partly_written_again, taken_apart])
def test_places_that_may_see_less_than_their_box(function):
    net = Function(function)
    seen = receptive_field(net, "end", (8, 7), channels=1)
    assert seen.kind == "hull"
    image = torch.ones(56, 1, 8, 7, dtype=torch.double, requires_grad=True)
    places = torch.ones(8, 7).nonzero().tolist()
    for place, support in zip(places, supports(net(image), image, places), strict=True):
        outside = support.clone()
        inside(outside, seen.box(*place)).fill_(False)
        assert support.any()
        assert not outside.any()


def test_a_part_of_numbers_of_another_type():
    """Of each complex number the real part, by a view of all."""

    def real(m, x):
        y = torch.zeros(1, 1, 8, 2, dtype=torch.cfloat)
        numbers = torch.view_as_real(y)
        y[:, :, 2:4] = x[:, :, :2].to(torch.cfloat)
        return numbers[..., 0]

    seen = receptive_field(Function(real), "end", (8, 2), channels=1)
    boxes = [seen.box(row, 1) for row in range(8)]
    assert boxes == [((0, 0),) * 2] * 2 + [((0, 1), (1, 2)), ((1, 2), (1, 2))] + [((0, 0),) * 2] * 4


@pytest.mark.parametrize(("chosen", "kind"), [(1, "hull"), (3, "exact")])
def test_a_choice_of_channels_written_beside_zeros_may_see_less(chosen, kind):
    def beside(m, x):
        y = x.new_zeros(1, 3, 8, 8)
        y[:, 1:] = x
        return m.a(y)[:, :chosen]

    grouped = Function(beside, a=conv(2, 3, 3, 3, groups=3 if chosen == 1 else 1))
    seen = receptive_field(grouped, "end", (8, 8), channels=2)
    assert (seen.kind, seen.size) == (kind, (3, 3))


def test_in_place_on_itself_is_followed():
    net = Function(lambda m, x: F.relu_(m.b(x)).add_(m.a(x)), a=conv(2, 1, 1, 3), b=conv(2, 1, 1, 3))
    seen = receptive_field(net, "end", (8, 8))
    assert (seen.kind, seen.size) == ("exact", (3, 3))


@pytest.mark.parametrize("effective", [False, True])
def test_nothing_is_touched(effective):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout()).train()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    random = torch.get_rng_state()
    with torch.inference_mode():
        receptive_field(net, "2", (9, 9), effective=effective)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in net.modules()]
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_effective_field():
    """Of one convolution and a ReLU that all units pass: the mean |weight|, there and nowhere else."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=True), nn.ReLU())
    nn.init.constant_(net[0].bias, 100)
    seen = receptive_field(net, "1", (9, 8), effective=True)
    expected = torch.zeros(9, 8)
    expected[3:6, 3:6] = net[0].weight.detach().sum(0).abs().mean(0)
    torch.testing.assert_close(seen.effective, expected)
    assert seen.box(3, 3) == ((3, 6), (3, 6))
    assert receptive_field(net, "1", (9, 8)).effective is None


@pytest.mark.parametrize("size", [(40,), (20, 16), (9, 8, 10)])
def test_picture(size):
    net = nn.Sequential(conv(len(size), 1, 2, 3), nn.ReLU())
    seen = receptive_field(net, "1", size, effective=True)
    picture = effective_field(seen)
    by = " × ".join(["3"] * len(size))
    assert picture.title == f"Effective receptive field of 1: size {by}, stride {by.replace('3', '1')}, start " + (
        f"({', '.join(['0'] * len(size))}) (exact)"
    )
    assert torch.equal(picture.pixels, effective_field(receptive_field(net, "1", size, effective=True)).pixels)
    if len(size) == 2:
        (top, bottom), (left, right) = seen.box(9, 7)
        cell = picture.cells[0].min(0).values
        white = (cell == 255).nonzero()
        assert white.min(0).values.tolist() == [top - 1, left - 1]
        assert white.max(0).values.tolist() == [bottom, right]
        assert len(white) == 2 * (5 + 5) - 4


def test_the_outline_covers_nothing():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, (1, 9), padding=(0, 4)), nn.Flatten())
    seen = receptive_field(net, "1", (12, 7), effective=True)
    assert seen.box(6, 3) == ((5, 8), (0, 7))
    assert (effective_field(seen).cells[0].min(0).values == 255).all(1).nonzero()[:, 0].tolist() == [4, 8]
    assert not (effective_field(receptive_field(net, "2", (12, 7), effective=True)).pixels == 255).all(0).any()


def test_the_rest_of_the_net_need_not_fit():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 1))
    assert receptive_field(net, "0", (9, 9), effective=True).map_size == (7, 7)


def lstm(m, x):
    return m.a(x.flatten(2))[0]


def test_refusals():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    seen = receptive_field(net, "1", (9, 8))
    with pytest.raises(OptionError, match=r"no unit \(7, 0\) in '1': its map is 7 × 6, the last unit is \(6, 5\)"):
        seen.box(7, 0)
    with pytest.raises(OptionError, match=r"no unit \(-1, 0\)"):
        seen.box(-1, 0)
    with pytest.raises(ShapeError, match=r"has 2 coordinates, got \(1,\)"):
        seen.box(1)
    with pytest.raises(OptionError, match=r"call receptive_field"):
        effective_field(seen)
    with pytest.raises(LayerError, match=r"no layer '7'"):
        receptive_field(net, "7")
    with pytest.raises(OptionError, match=r"1 to 3 positive numbers, such as \(224, 224\), got \(0, 9\)"):
        receptive_field(net, "0", (0, 9))
    with pytest.raises(OptionError, match=r"got 9\."):
        receptive_field(net, "0", 9)
    with pytest.raises(OptionError, match=r"channels must be at least 1, got 0"):
        receptive_field(net, "0", (9, 9), channels=0)
    with pytest.raises(ShapeError, match=r"does not accept inputs of shape \(1, 5, 9, 9\).*channels="):
        receptive_field(net, "0", (9, 9), channels=5)
    twice = Function(lambda m, x: m.a(m.a(x)), a=conv(2, 1, 1, 3))
    with pytest.raises(LayerError, match=r"'a' ran 2 times in one forward"):
        receptive_field(twice, "a", (9, 9))
    with pytest.raises(ShapeError, match=r"layer 'a' returns a tuple, not a map; choose a convolution\."):
        receptive_field(Function(lstm, a=nn.LSTM(12, 4, batch_first=True)), "a", (3, 4), channels=2)
    flat = Function(lambda m, x: torch.round(m.a(x)).detach(), a=conv(2, 1, 1, 3))
    with pytest.raises(OptionError, match=r"no gradient flows from layer 'end'"):
        receptive_field(flat, "end", (9, 9), effective=True)


def test_an_operator_of_the_same_name_with_other_arguments_sees_everything():
    class Concatenated(nn.Module):
        def forward(self, x):
            return torch.ops.test_receptive.cat([x, x])

    with torch.library._scoped_library("test_receptive", "DEF") as library:
        library.define("cat(Tensor[] parts) -> Tensor")
        library.impl("cat", lambda parts: torch.ops.aten.cat(parts, 1), "CompositeExplicitAutograd")
        assert receptive_field(nn.Sequential(nn.Conv2d(3, 4, 3), Concatenated()), "1", (8, 8)).kind == "whole"


class Patches(nn.Module):
    """Tokens behind a class token: what each of them sees of the image is known until attention mixes them."""

    def __init__(self, kernel, stride, padding, swapped=False):
        super().__init__()
        self.embed, self.cls = nn.Conv2d(1, 4, kernel, stride, padding), nn.Parameter(torch.randn(1, 1, 4))
        self.swapped, self.norm, self.mlp = swapped, nn.LayerNorm(4), nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.attn = nn.MultiheadAttention(4, 1, batch_first=True)
        self.mixed, self.head = nn.Identity(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        h, w = x.shape[2:]
        x = x.transpose(2, 3) if self.swapped else x
        x = torch.cat([self.cls.expand(len(x), -1, -1), x.flatten(2).mT], 1)
        x = x + self.mlp(self.norm(x))
        y = x[:, 1:].mT.reshape(len(x), 4, *((w, h) if self.swapped else (h, w)))
        x = torch.cat([x[:, :1], self.conv(y).flatten(2).mT], 1)
        return self.head(self.mixed(self.attn(x, x, x)[0])[:, 0])


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.booleans(), st.data())
def test_tokens_see_their_patches_until_attention(kernel, stride, padding, swapped, data):
    torch.manual_seed(0)
    net, sizes = Patches(kernel, stride, min(padding, kernel // 2), swapped).double().eval(), (9, 13)
    grid = tuple(net.embed(torch.zeros(1, 1, *sizes).double()).shape[2:])
    row, column = (data.draw(st.integers(0, n - 1)) for n in grid)
    images, seen = torch.rand(1, 1, *sizes).double().requires_grad_(), {}
    for name in ("mlp", "conv"):
        getattr(net, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    net(images)
    token = (column * grid[0] + row) if swapped else (row * grid[1] + column)
    place = (column, row) if swapped else (row, column)
    units = {"mlp": seen["mlp"][0, 1 + token], "conv": seen["conv"][0][(slice(None), *place)]}
    for name, unit in units.items():
        found = receptive_field(net, name, sizes)
        (gradient,) = torch.autograd.grad(unit.sum(), images, retain_graph=True)
        rows, columns = (gradient[0, 0] != 0).nonzero().unbind(1)
        box = tuple((int(at.min()), int(at.max()) + 1) if len(at) else (0, 0) for at in (rows, columns))
        assert found.along == ((1, 0) if swapped else (0, 1)) or 1 in grid
        assert found.box(*place) == box
        assert found.kind != "whole"
    assert receptive_field(net, "mixed", sizes).kind == "whole"


def test_a_patch_embedding_has_a_size_and_a_stride():
    found = receptive_field(Patches(4, 4, 0), "mlp", (16, 24))
    assert (found.map_size, found.size, found.stride, found.start, found.kind) == (
        (4, 6),
        (4, 4),
        (4, 4),
        (0, 0),
        "exact",
    )
    mixed = receptive_field(Patches(4, 4, 0), "mixed", (16, 24))
    assert (mixed.size, mixed.kind) == ((16, 24), "whole")


class Along(nn.Module):
    """A convolution along tokens, which wraps from the end of one row to the beginning of the next."""

    def __init__(self):
        super().__init__()
        self.embed, self.conv, self.out = nn.Conv2d(1, 3, 2, 2), nn.Conv1d(3, 3, 3, padding=1), nn.Identity()

    def forward(self, x):
        x = self.embed(x)
        return self.out(self.conv(x.flatten(2)).mT)


def test_what_wraps_from_row_to_row_is_within_the_box():
    net, images = Along().eval(), torch.rand(1, 1, 8, 12, requires_grad=True)
    tokens, found = net(images), receptive_field(net, "out", (8, 12))
    assert found.kind != "exact"
    for number in range(24):
        (gradient,) = torch.autograd.grad(tokens[0, number].sum(), images, retain_graph=True)
        rows, columns = (gradient[0, 0] != 0).nonzero().unbind(1)
        (top, bottom), (left, right) = found.box(number // 6, number % 6)
        assert set(rows.tolist()) <= set(range(top, bottom))
        assert set(columns.tolist()) <= set(range(left, right))
