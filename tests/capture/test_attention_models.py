"""Captured attention of torch.nn, torchvision, timm and transformers, against eager attention and windows by loops."""

import copy
import itertools
from collections import deque

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch_featviz as fv
from torch_featviz.errors import LayerError

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]
ATOL = 1e-6


def close(found, wanted):
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weighted(net, std=0.3):
    """With scores that differ."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    return net.eval()


def both(net, *args, queries=(0, -1), **kwargs):
    """All rows, after a check that some rows are the same, and that the output is what it is without a capture."""
    expected = net(*args, **kwargs)
    with fv.capture(net, of="attention") as att:
        assert same(net(*args, **kwargs), expected)
    with fv.capture(net, list(att), of=fv.Attention(queries)) as rows:
        assert same(net(*args, **kwargs), expected)
    for name in att:
        close(rows[name], att[name][:, :, list(queries)])
    return att


def same(a, b):
    first = lambda output: output if isinstance(output, torch.Tensor) else output[0]
    return torch.equal(first(a), first(b))


# torch.nn

PADDED = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
MASKS = {
    "none": {},
    "keys": {"key_padding_mask": PADDED},
    "boolean": {"attn_mask": torch.ones(5, 5).triu(1).bool()},
    "numbers": {"attn_mask": random(5, 5)},
    "per head": {"attn_mask": random(8, 5, 5)},
    "both": {"attn_mask": torch.ones(5, 5).triu(1).bool(), "key_padding_mask": PADDED},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("extra", [{}, {"add_zero_attn": True}, {"add_bias_kv": True}, {"kdim": 6, "vdim": 7}], ids=str)
def test_multihead_attention(mask, batch_first, extra):
    net = weighted(nn.MultiheadAttention(16, 4, batch_first=batch_first, **extra))
    query, key, value = random(2, 5, 16), random(2, 5, extra.get("kdim", 16)), random(2, 5, extra.get("vdim", 16))
    inputs = (query, key, value) if extra.get("kdim") else (query, query, query)
    inputs = [x if batch_first else x.transpose(0, 1).contiguous() for x in inputs]
    with torch.enable_grad():  # the slow path, which returns them
        wanted = net(*inputs, **MASKS[mask], average_attn_weights=False)[1].detach()
    for mode, need_weights in itertools.product(MODES, (False, True)):
        with mode():
            close(both(net, *inputs, **MASKS[mask], need_weights=need_weights)[""], wanted)


def test_an_unbatched_attention():
    net, x = weighted(nn.MultiheadAttention(16, 4)), random(5, 16)
    close(both(net, x, x, x)[""], net(x, x, x, average_attn_weights=False)[1].detach()[None])


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [None, PADDED], ids=["whole", "padded"])
def test_the_fast_path_of_an_encoder_is_the_slow_one(norm_first, padded):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first, activation="gelu")
    net = weighted(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), std=0.1)
    x = random(2, 5, 16)
    slow = both(net, x, src_key_padding_mask=padded)
    assert list(slow) == ["layers.0.self_attn", "layers.1.self_attn"]
    with torch.no_grad():
        fast = both(net, x, src_key_padding_mask=padded)
        many = both(net, x.repeat(1, 3, 1))  # more rows than channels
    for name in slow:
        close(fast[name], slow[name])
    close(many["layers.0.self_attn"], both(net, x.repeat(1, 3, 1))["layers.0.self_attn"])


@pytest.mark.filterwarnings("ignore:Converting mask without torch.bool dtype")
def test_numbers_in_a_mask_of_the_fast_path_hide_as_the_kernel_has_it():
    net, x = weighted(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), std=0.1), random(2, 5, 16)
    mask = torch.eye(5) * -2
    with torch.no_grad():
        fast = both(net, x, mask)
        if torch.allclose(net(x, mask), net(x, mask.masked_fill(mask != 0, -torch.inf))) is False:
            pytest.skip("this release takes numbers for what they are")
    assert fast["self_attn"].diagonal(dim1=-2, dim2=-1).eq(0).all()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused():
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1).eval()
    with (
        torch.no_grad(),
        pytest.raises(
            LayerError, match=r"'layers.0.self_attn' is computed on nested tensors.*enable_nested_tensor=Fal"
        ),
        fv.capture(net, of="attention"),
    ):
        net(random(2, 5, 16), src_key_padding_mask=PADDED)


class Lying(TorchDispatchMode):
    """A fused attention of other weights than it is given."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.startswith(("_native_multi_head", "_transformer_encoder_layer")):
            args = self.change(list(args), [argument.name for argument in func._schema.arguments])
        return func(*args, **(kwargs or {}))


def scaled(args, names):
    """The queries' part of the projection 3 % larger."""
    at = names.index("qkv_weight")
    args[at] = torch.cat([args[at][:16] * 1.03, args[at][16:]])
    return args


def unmasked(args, names):
    args[names.index("mask")] = None
    return args


def turned(args, names):
    """Heads of values in another order."""
    at = names.index("qkv_weight")
    args[at] = torch.cat([args[at][:32], args[at][32:].roll(4, 0)])
    return args


@pytest.mark.parametrize("change", [scaled, unmasked, turned])
@pytest.mark.parametrize("queries", [None, [0]], ids=["all", "one"])
@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.TransformerEncoderLayer])
def test_a_planted_fault_of_a_fused_attention_is_found(change, queries, kind):
    if kind is nn.MultiheadAttention:
        net = weighted(kind(16, 4, batch_first=True))
        call = lambda x: net(x, x, x, key_padding_mask=PADDED, need_weights=False)
    else:
        net = weighted(kind(16, 4, 32, batch_first=True))
        call = lambda x: net(x, src_key_padding_mask=PADDED)
    with torch.no_grad():
        with fv.capture(net, of=fv.Attention(queries)):
            call(random(2, 5, 16))
        with (
            pytest.raises(LayerError, match="is not what its kernel computed"),
            fv.capture(net, of=fv.Attention(queries)),
            Lying(change),
        ):
            call(random(2, 5, 16))


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.MultiheadAttention, {}),
        (nn.TransformerEncoderLayer, {"norm_first": False}),
        (nn.TransformerEncoderLayer, {"norm_first": True}),
    ],
)
def test_a_fused_attention_of_16_bits_is_proven_and_its_faults_are_found(kind, options, scale, dtype):
    for seed, n in itertools.product(range(4), (5, 50)):
        torch.manual_seed(seed)
        net = kind(16, 4, *([32] if kind is nn.TransformerEncoderLayer else []), batch_first=True, **options).eval()
        for parameter in net.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
        net, x = net.to(dtype), (random(2, n, 16, seed=seed) * scale).to(dtype)
        inputs = (x, x, x) if kind is nn.MultiheadAttention else (x,)
        more = {"need_weights": False} if kind is nn.MultiheadAttention else {}
        with torch.no_grad():
            for queries in (None, [0]):
                with fv.capture(net, of=fv.Attention(queries)):
                    net(*inputs, **more)
        faults = [] if options.get("norm_first") and scale > 1 else [turned]  # a residual of 100 hides all of it
        faults += [scaled] if dtype == torch.float16 and scale == 1 and n == 5 else []
        for change in faults:
            with torch.no_grad(), pytest.raises(LayerError, match="is not what its kernel computed"):
                changed(net, change, inputs, more)


def changed(net, change, inputs, more):
    with fv.capture(net, of="attention"), Lying(change):
        net(*inputs, **more)


# Vision transformers


def test_torchvision_vit_on_both_paths():
    net = torchvision.models.VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    net, x = weighted(net, std=0.1), random(2, 3, 16, 16)
    slow = both(net, x)
    with torch.no_grad():
        fast = both(net, x)
    assert list(slow) == [f"encoder.layers.encoder_layer_{i}.self_attention" for i in (0, 1)]
    for name in slow:
        assert slow[name].shape == (2, 2, 17, 17)
        close(fast[name], slow[name])


def unfused(net):
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return net


TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 1},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 1},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 1},  # rotary positions
    "beit_base_patch16_224": {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 4},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},  # fewer keys than queries
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 1},  # and attention between channels
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_fused_and_unfused(name):
    torch.manual_seed(0)
    net = timm.create_model(name, **TIMM[name]).eval()
    x = random(2, 3, TIMM[name].get("img_size", 64), TIMM[name].get("img_size", 64))
    for mode in MODES:
        with mode():
            fused = both(net, x)
            assert len(fused) > 0
            assert not any("blocks.0" in layer and name.startswith("xcit") and "cls" not in layer for layer in fused)
            unfused(net)
            with fv.capture(net, of="attention") as eager:
                net(x)
            assert list(eager) == list(fused)
            for layer in eager:
                close(fused[layer], eager[layer])
                torch.testing.assert_close(fused[layer].sum(-1), torch.ones(fused[layer].shape[:3]))
        for module in net.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = True


# Windows


def on_grid(raw, h, w, size, shift, padded_first=True):
    """Attention of windows, `(images windows) heads n n`, put on the grid place by place.

    Some networks pad and then shift, others shift and then pad.
    """
    padded = [-(-extent // size) * size for extent in (h, w)]
    windows = [extent // size for extent in padded]
    shift = [0 if extent <= size else shift for extent in padded]
    raw = raw.reshape(-1, windows[0] * windows[1], *raw.shape[1:])
    grid = torch.zeros(len(raw), raw.shape[2], h * w, h * w)
    where = {}
    for i, j in itertools.product(range(h), range(w)):
        around = padded if padded_first else (h, w)
        row, column = (i - shift[0]) % around[0], (j - shift[1]) % around[1]
        window = row // size * windows[1] + column // size
        where[i * w + j] = window, row % size * size + column % size
    for p, q in itertools.product(where, where):
        if where[p][0] == where[q][0]:
            grid[:, :, p, q] = raw[:, where[p][0], :, where[p][1], where[q][1]]
    return grid


def raw_by_hook(net, names, of):
    """What `of` makes of each layer's output, by hooks."""
    seen = {}
    modules = dict(net.named_modules())
    for name in names:
        modules[name].register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: of(out).detach().clone()})
        )
    return seen


@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_timm_swin(name, window):
    torch.manual_seed(0)
    options = {"img_size": 32, "window_size": window, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2)}
    net = weighted(timm.create_model(name, **options))
    x = random(2, 3, 32, 32)
    layers = ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn", "layers.1.blocks.0.attn"]
    fused = [dict(_with(mode, lambda: both(net, x, queries=(0, -1, 9)))) for mode in MODES]
    raw = raw_by_hook(unfused(net), [f"{layer}.softmax" for layer in layers], lambda out: out)
    eager = both(net, x)
    assert list(eager) == layers
    for layer, size, shift in zip(layers, (8, 8, 4), (0, window // 2, 0), strict=True):
        wanted = on_grid(raw[f"{layer}.softmax"], size, size, min(window, size), shift, padded_first=False)
        close(eager[layer], wanted)
        for found in fused:
            close(found[layer], wanted)


def _with(mode, call):
    with mode():
        return call()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_transformers_swin(implementation):
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2], num_heads=[2], window_size=3, num_labels=2
    )
    net = weighted(transformers.SwinModel._from_config(config, attn_implementation=implementation))
    x = random(2, 3, 32, 32)
    att = both(net, x)
    config._attn_implementation = "eager"
    layers = list(att)
    raw = raw_by_hook(net, layers, lambda out: out[1])
    net(x)
    for layer, shift in zip(layers, (0, 1), strict=True):
        close(att[layer], on_grid(raw[layer], 8, 8, 3, shift))


@pytest.mark.parametrize("kind", ["SwinTransformerBlock", "SwinTransformerBlockV2"])
def test_torchvision_swin(kind):
    block = getattr(torchvision.models.swin_transformer, kind)
    net = weighted(torchvision.models.SwinTransformer([4, 4], 8, [2], [2], [3, 3], block=block))
    x = random(2, 3, 32, 32)
    found = [dict(_with(mode, lambda: both(net, x))) for mode in MODES]
    raw, softmax = [], nn.functional.softmax
    try:
        nn.functional.softmax = lambda *args, **kwargs: (raw.append(softmax(*args, **kwargs)), raw[-1])[1]
        net(x)
    finally:
        nn.functional.softmax = softmax
    for att in found:
        assert list(att) == ["features.1.0.attn", "features.1.1.attn"]
        for layer, weights, shift in zip(att, raw, (0, 1), strict=True):
            close(att[layer], on_grid(weights.detach(), 8, 8, 3, shift))


def test_maxvit_windows_and_grids():
    net = torchvision.models.MaxVit(
        (32, 32), 4, 2, [8], [1], head_dim=4, stochastic_depth_prob=0.0, norm_layer=nn.BatchNorm2d
    )
    net, x = weighted(net), random(2, 3, 32, 32)
    window, grid = "window_attention.attn_layer.1", "grid_attention.attn_layer.1"
    prefix = "blocks.0.layers.0.layers."
    for mode in MODES:
        with mode():
            att = both(net, x)
            assert list(att) == [prefix + window, prefix + grid]
            places = np.arange(64).reshape(8, 8)
            rows, columns = np.divmod(places.flatten(), 8)
            near = (rows[:, None] // 2 == rows // 2) & (columns[:, None] // 2 == columns // 2)
            apart = (rows[:, None] % 4 == rows % 4) & (columns[:, None] % 4 == columns % 4)
            for name, seen in ((window, near), (grid, apart)):
                weights = att[prefix + name]
                assert weights.shape == (2, 2, 64, 64)
                assert torch.equal(weights.sum((0, 1)) > 0, torch.from_numpy(seen))
                torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 64))


# transformers

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
IMAGE = {"image_size": 16, "patch_size": 4}
IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])}
PIXELS = {"pixel_values": random(2, 3, 16, 16)}
TRANSFORMERS = {
    "ViT": (SMALL | IMAGE, PIXELS),
    "Dinov2": (SMALL | IMAGE, PIXELS),
    "Bert": (SMALL | {"vocab_size": 50}, TEXT),
    "Llama": (SMALL | {"vocab_size": 50, "num_key_value_heads": 2}, TEXT),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_eager_and_sdpa(name):
    options, inputs = TRANSFORMERS[name]
    config, kind = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}Model")
    nets = {}
    for implementation in ("eager", "sdpa"):
        net = kind._from_config(config(**options), attn_implementation=implementation)
        nets[implementation] = weighted(net, std=0.1)
    wanted = nets["eager"](**inputs, output_attentions=True).attentions
    for (implementation, net), mode in itertools.product(nets.items(), MODES):
        with mode():
            att = both(net, **inputs)
            assert len(att) == 2, implementation
            for found, expected in zip(att.values(), wanted, strict=True):
                close(found, expected.detach())


def test_an_encoder_and_a_decoder_of_three_attentions():
    options = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    config = transformers.T5Config(**options, decoder_start_token_id=0)
    net = weighted(transformers.T5Model._from_config(config, attn_implementation="eager"), std=0.1)
    inputs = TEXT | {"decoder_input_ids": IDS[:, :3]}
    with torch.no_grad():
        out = net(**inputs, output_attentions=True)
        att = both(net, **inputs)
    wanted = out.encoder_attentions + out.decoder_attentions + out.cross_attentions
    for found, expected in zip(att.values(), wanted, strict=True):
        close(found, expected)


class InADictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torchvision.models.SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=3)

    def forward(self, batch):
        return self.net(batch["x"])


def weights_of(net, *given):
    with torch.no_grad(), fv.capture(net, of="attention") as attention:
        net(*given)
    return {name: weights.clone() for name, weights in attention.items()}


def test_windows_of_images_in_a_dictionary_are_followed_anew_for_another_size():
    net = InADictionary().eval()
    weights_of(net, {"x": random(1, 3, 32, 64)})
    images = {"x": random(1, 3, 64, 32)}
    again, fresh = weights_of(net, images), weights_of(copy.deepcopy(net), images)
    assert len(fresh) == 2
    for name, weights in fresh.items():
        close(again[name], weights)


def test_windows_are_followed_anew_where_the_model_shifts_them_elsewhere():
    net = torchvision.models.SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=3).eval()
    images = random(1, 3, 32, 64)
    before = weights_of(net, images)
    net.features[1][1].attn.shift_size = [1, 1]
    again, fresh = weights_of(net, images), weights_of(copy.deepcopy(net), images)
    for name, weights in fresh.items():
        close(again[name], weights)
    assert not torch.equal(before["features.1.1.attn"], fresh["features.1.1.attn"])


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.attention = nn.Linear(8, 3), nn.MultiheadAttention(8, 2, batch_first=True)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = self.attention(x, x, x)[0]
        gate = self.gate(x).softmax(-1)
        return torch.einsum("bne,bned->bnd", gate, torch.stack([expert(x) for expert in self.experts], 2))


def test_a_gate_over_experts_is_passed_over_where_nobody_asks_for_it():
    assert list(weights_of(Experts().eval(), random(2, 7, 8))) == ["attention"]


class Wandering(nn.Module):
    """Windows of 2 x 2 places that are shifted elsewhere in each forward."""

    def __init__(self, move):
        super().__init__()
        self.move, self.shifts, self.attention = move, [], nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        shift = self.shifts.pop()
        x = self.move(x.movedim(1, -1), shift)
        windows = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
        flat = windows.flatten(3, 4).flatten(0, 2)
        flat = self.attention(flat, flat, flat)[0]
        x = flat.view(windows.shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return self.move(x, -shift)


MOVES = {
    "roll": lambda x, shift: x.roll((shift, shift), (1, 2)),
    "index": lambda x, shift: x[:, (torch.arange(4) - shift) % 4],
    "index_select": lambda x, shift: x.index_select(2, (torch.arange(4) - shift) % 4),
    "slice": lambda x, shift: torch.cat([x[:, 4 - shift % 4 :], x[:, : 4 - shift % 4]], 1),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("holds", [list, deque])
def test_windows_that_wander_from_forward_to_forward_are_followed_in_each(holds, move, mode):
    net, x = weighted(Wandering(MOVES[move])), random(2, 8, 4, 4)

    def once(net, shift):
        net.shifts = holds([shift])
        net(x)

    with mode():
        fresh = {}
        for shift in range(4):
            with fv.capture(copy.deepcopy(net), of="attention") as att:
                once(att._recorder.model(), shift)
            fresh[shift] = att["attention"]
        assert not torch.equal(fresh[0], fresh[1])
        with fv.capture(net, of="attention") as att:
            for _ in range(2):
                once(net, 1)
                close(att["attention"], fresh[1])
            if holds is deque:  # a list tells one forward from another beforehand, a deque does not
                with pytest.raises(LayerError, match=f"windows cannot be placed: '{move}' in the model moves tokens"):
                    once(net, 2)
            for shift in (2, 3, 0, 1):
                once(net, shift)
                close(att["attention"], fresh[shift])
