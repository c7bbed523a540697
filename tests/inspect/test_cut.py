"""The map that an answer depends on, against gradients that are cut by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.explain import attribute
from torch_featviz.inspect.cut import AnswerMap, answer_map
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.twin import twin


def conv(a, b, size=3, **options):
    return nn.Conv2d(a, b, size, padding=size // 2, **options)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.last = conv(3, 4), conv(4, 4), conv(4, 4), nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(x + self.b(F.relu(self.a(x)))).mean((2, 3)))


class Branches(nn.Module):
    """As in GoogLeNet, but that no module returns what is put together."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 4), conv(4, 2), conv(4, 3), nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([self.a(x), self.b(x)], 1).mean((2, 3)))


class Gate(nn.Module):
    """Channels weighed by a convolution over channels, as in ECA-Net."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = conv(3, 4), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))[:, None]))[:, 0, :, None, None]
        return self.head(x.mean((2, 3)))


class Adapted(nn.Module):
    """A frozen layer and what was learnt beside it, as LoRA has it."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up, self.head = conv(3, 4), conv(3, 1), conv(1, 4, 1), nn.Linear(4, 3)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.head(F.relu(self.base(x) + self.up(self.down(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, mean=False):
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks, self.norm, self.head = nn.Sequential(Block(), Block(), Block()), nn.LayerNorm(8), nn.Linear(8, 3)
        self.mean = mean

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1)))
        return self.head(x[:, 1:].mean(1) if self.mean else x[:, 0])


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep, self.up, self.out = conv(3, 4), conv(4, 4), conv(8, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        first = F.relu(self.down(x))
        deep = F.interpolate(F.relu(self.deep(F.max_pool2d(first, 2))), scale_factor=2)
        return self.out(F.relu(self.up(torch.cat([first, deep], 1))))


class Towers(nn.Module):
    """Two networks side by side, which nothing brings together before the answer."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse, self.heads = (
            conv(3, 4),
            conv(3, 4, stride=2),
            nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]),
        )

    def forward(self, x):
        return self.heads[0](F.relu(self.fine(x)).mean((2, 3))) + self.heads[1](F.relu(self.coarse(x)).mean((2, 3)))


class Crossed(nn.Module):
    """A class token of one branch that attends to the tokens of another, as in CrossViT; both answer."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 8, 8, 8)
        self.norm, self.q, self.k, self.v = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        fine = self.norm(self.fine(x).flatten(2).transpose(1, 2))
        query, key, value = self.q(fine[:, :1]), self.k(fine), self.v(fine)
        return self.head((query @ key.transpose(1, 2)).softmax(-1) @ value)[:, 0] + self.head(
            self.coarse(x).mean((2, 3))
        )


class Merging(nn.Module):
    """Patches of four places put among the channels by a view, as timm's Swin does it."""

    def __init__(self):
        super().__init__()
        self.stem, self.merge, self.norm, self.head = conv(3, 4), nn.Linear(16, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.head(self.norm(self.merge(x)).mean((1, 2)))


class Hard(nn.Module):
    """Every activation after which the map was once lost."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv(3, 4), conv(4, 4), nn.Linear(4, 3)
        self.hard, self.log = nn.Hardswish(inplace=True), nn.LogSigmoid()

    def forward(self, x):
        return self.head(self.log(self.second(self.hard(self.first(x)))).mean((2, 3)))


class LateToken(Transformer):
    """Its class token joins before the last block, as in PVT: what goes round the norm there is of no image."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.last = Block()

    def forward(self, x):
        x = self.blocks(self.embed(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(self.last(torch.cat([self.token.expand(len(x), -1, -1), x], 1)))[:, 0])


NETS = {
    "a late class token": (LateToken, ("last.norm1",)),
    "patches merged": (Merging, ("norm",)),
    "tokens beside a map": (Crossed, ("norm", "coarse")),
    "hard activations": (Hard, ("log",)),
    "residual": (Residual, ("last",)),
    "branches": (Branches, ("a.cat",)),
    "gate": (Gate, ("stem.mul",)),
    "adapter": (Adapted, ("base.relu",)),
    "class token": (Transformer, ("blocks.1",)),
    "mean of tokens": (lambda: Transformer(mean=True), ("norm",)),
    "two towers": (Towers, ("fine.relu", "coarse.relu")),
}


def found(net, target=lambda output: output[:, 1], images=None):
    images = torch.rand(1, 3, 16, 24) if images is None else images
    return answer_map(twin(net), Inputs(images), target)


@pytest.mark.parametrize("name", NETS)
def test_the_latest_map_through_which_the_answer_passes(name):
    build, layers = NETS[name]
    assert found(build()).layers == layers


def test_a_pixel_of_a_segmentation():
    where = found(UNet(), lambda output: output[:, 1, 3:5, 7].sum((1,)))
    assert where.layers == ("out",)


def without(net, images, layers, target):
    """The gradient at the image where none passes these modules, by hooks that put zeros in its place."""
    hooks, image = [], images.clone().requires_grad_()

    def blocked(_module, _inputs, output):
        output.register_hook(torch.zeros_like)

    for name, module in net.named_modules():
        if name in layers:
            hooks.append(module.register_forward_hook(blocked))
    (gradient,) = torch.autograd.grad(target(net(image)).sum(), image)
    for hook in hooks:
        hook.remove()
    return gradient


@pytest.mark.parametrize("build", [Residual, Transformer, lambda: Transformer(mean=True)])
def test_no_gradient_goes_past_it_and_past_no_later_one_with_live_places(build):
    net, images = build().eval(), torch.rand(1, 3, 16, 24)
    target = lambda output: output[:, 1]
    (layer,) = found(net, target, images).layers
    assert not without(net, images, [layer], target).any()
    order, live = [], {}

    def note(module, _inputs, output):
        name = names[module]
        order.append(name)
        if isinstance(output, torch.Tensor) and output.dim() > 2:
            output.register_hook(lambda gradient, name=name: live.update({name: gradient.flatten(2)}))

    names = {module: name for name, module in net.named_modules() if name}
    hooks = [module.register_forward_hook(note) for module in names]
    image = images.clone().requires_grad_()
    target(net(image)).sum().backward()
    for hook in hooks:
        hook.remove()
    for later in order[order.index(layer) + 1 :]:
        if later in live:
            tokens = live[later].abs().sum(-1)[0] if live[later].shape[2] == 8 else live[later].abs().sum(1)[0]
            whole = not without(net, images, [later], target).any()
            assert not whole or int((tokens > 0).sum()) < 2, later


def test_a_head_of_zeros_is_said():
    net = Residual()
    nn.init.zeros_(net.head.weight)
    with pytest.raises(OptionError, match="the gradient of the answer of Residual is 0 everywhere"):
        found(net)


def test_a_network_without_maps():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 24, 3))
    with pytest.raises(LayerError, match="Sequential has no feature map that its answer depends on; choose one"):
        found(net)


def test_it_is_sought_once():
    net, images = Residual().eval(), torch.rand(2, 3, 16, 24)
    calls = []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    attribute(net, images, target=1)
    first, calls[:] = len(calls), []
    attribute(net, images, target=0)
    assert (first, len(calls)) == (2, 1)
    calls.clear()
    attribute(net, torch.rand(2, 3, 20, 20), target=0)
    assert len(calls) == 2, "images of another size are another question"


def test_the_figures_of_two_callables_may_depend_on_two_maps():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = conv(3, 2), conv(3, 2, stride=2)

        def forward(self, x):
            return {"fine": self.fine(x), "coarse": self.coarse(x)}

    net, images = Scales().eval(), torch.rand(1, 3, 16, 24)
    for scale in ("fine", "coarse", "fine"):
        assert attribute(net, images, target=lambda output: output[scale].sum((1, 2, 3))).layer == scale  # noqa: B023


def test_words():
    assert str(AnswerMap((), ())) == ""
    assert str(found(Transformer())) == "blocks.1, tokens as 4 × 6, 1 without a place"
    assert str(found(Towers())) == "fine.relu and coarse.relu: each by its own maximum, then the larger"


def test_a_map_that_was_turned_round_is_not_drawn_as_if_it_lay_on_the_image():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = conv(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x.flip(2, 3)).relu().mean((2, 3)))

    with pytest.raises(ShapeError, match=r"layer 'conv' returns shape .*, not a map of the images"):
        attribute(Turned(), torch.rand(1, 3, 8, 8), layer="conv")
