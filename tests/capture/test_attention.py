"""Captured attention against softmax written as loops in NumPy; planted faults; what is refused, and how it is said."""

import copy
import itertools
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch_featviz as fv
from torch_featviz.errors import DtypeError, LayerError, OptionError

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


class Attends(nn.Module):
    """Self-attention as it is written in tutorials: through one kernel, or by matrix products."""

    def __init__(self, channels=12, heads=3, shared=None, fused=True, **options):
        super().__init__()
        self.heads, self.shared, self.fused, self.options = heads, shared or heads, fused, options
        size = channels // heads
        self.q, self.k, self.v = (nn.Linear(channels, size * n) for n in (heads, self.shared, self.shared))
        self.drop = nn.Dropout(options.pop("dropout", 0.0))

    def split(self, x):
        b, n, _ = x.shape
        parts = (self.q, self.heads), (self.k, self.shared), (self.v, self.shared)
        return [layer(x).view(b, n, heads, -1).transpose(1, 2) for layer, heads in parts]

    def forward(self, x):
        q, k, v = self.split(x)
        if self.fused:
            drop = self.drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(
                q, k, v, dropout_p=drop, enable_gqa=self.shared < self.heads, **self.options
            )
        else:
            k, v = (part.repeat_interleave(self.heads // self.shared, dim=1) for part in (k, v))
            scores = q @ k.transpose(-2, -1) * self.options.get("scale", q.shape[-1] ** -0.5)
            out = self.drop(scores.softmax(dim=-1)) @ v
        return out.transpose(1, 2).flatten(2)


class Two(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.first, self.mlp, self.second = Attends(**options), nn.Linear(12, 12), Attends(**options)

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(self.mlp(x))


def made(kind=Two, **options):
    torch.manual_seed(0)
    return kind(**options).eval()


def tokens(b=2, n=5, c=12, seed=1):
    return torch.randn(b, n, c, generator=torch.Generator().manual_seed(seed))


def softmaxed(q, k, mask=None, causal=False, scale=None):
    """Of NumPy arrays `b heads n d`, one score after the other; `mask` is boolean or added, as large as the scores."""
    b, heads, rows, size = q.shape
    weights = np.zeros((b, heads, rows, k.shape[2]))
    for i, h, r in itertools.product(range(b), range(heads), range(rows)):
        scores = np.array([float(q[i, h, r] @ row) for row in k[i, h * k.shape[1] // heads]])
        scores *= size**-0.5 if scale is None else scale
        if mask is not None:
            scores = np.where(mask[i, h, r], scores, -np.inf) if mask.dtype == bool else scores + mask[i, h, r]
        if causal:
            scores[r + 1 :] = -np.inf
        if np.isfinite(scores).any():
            exponentials = np.exp(scores - scores.max())
            weights[i, h, r] = exponentials / exponentials.sum()
    return weights


def oracle(layer, x, **options):
    with torch.no_grad():
        q, k, _ = (part.double().numpy() for part in layer.split(x))
    return softmaxed(q, k, **options)


def close(found, wanted, atol=1e-6):
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_the_weights_are_those_of_loops_and_the_model_is_as_it_was(mode, fused):
    net, x = made(fused=fused), tokens()
    with mode():
        expected = net(x)
        inner = x + net.first(x)
        for _ in range(2):  # the first forward is followed
            with fv.capture(net, of="attention") as att:
                assert torch.equal(net(x), expected)
                assert torch.equal(net(x), expected)
            assert list(att) == ["first", "second"]
            assert not att["first"].requires_grad
            close(att["first"], oracle(net.first, x))
            close(att["second"], oracle(net.second, net.mlp(inner.detach())))
    assert all("forward" not in vars(module) for module in net.modules())


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_heads_masks_and_scales(data):
    shared = data.draw(st.sampled_from([1, 2]))
    heads = shared * data.draw(st.sampled_from([1, 2, 3]))
    b, n, channels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7)), heads * data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    kind = data.draw(st.sampled_from(["none", "boolean", "numbers", "causal", "infinite", "per head"]))
    scale = data.draw(st.sampled_from([None, 0.3, 2.0]))
    full = (b, heads, n, n)
    small = full if kind == "per head" else data.draw(st.sampled_from([(n, n), (b, 1, 1, n), (b, 1, n, n)]))
    mask = {
        "boolean": rng.random(small) < 0.7,
        "numbers": rng.standard_normal(small),
        "per head": rng.standard_normal(small),
        "infinite": np.where(rng.random(small) < 0.7, 0, -np.inf),
    }.get(kind)
    given_mask = None if mask is None else torch.from_numpy(mask if mask.dtype == bool else np.float32(mask))
    options = {"scale": scale, "is_causal": kind == "causal", "attn_mask": given_mask}
    layer = made(Attends, channels=channels, heads=heads, shared=shared, **options)
    x = tokens(b, n, channels, seed=data.draw(st.integers(0, 99)))
    wide = None if mask is None else np.broadcast_to(mask, full)
    wanted = oracle(layer, x, mask=wide, causal=kind == "causal", scale=scale)
    queries = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=3))
    mode = data.draw(st.sampled_from(MODES))
    with mode():
        expected = layer(x)
        with fv.capture(layer, of="attention") as att:
            assert torch.equal(layer(x).nan_to_num(7), expected.nan_to_num(7))
        with fv.capture(layer, of=fv.Attention(queries=queries)) as rows:
            layer(x)
    close(att[""].nan_to_num(0), wanted)
    close(rows[""].nan_to_num(0), wanted[:, :, queries])


@pytest.mark.parametrize("n", [4, 160])  # head by head, too
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.bfloat16, 0.01), (torch.float16, 0.002)])
def test_other_dtypes(dtype, atol, n):
    layer, x = made(Attends).to(dtype), tokens(n=n).to(dtype)
    with torch.no_grad(), fv.capture(layer, of="attention") as att:
        layer(x)
    assert att[""].dtype == dtype
    close(att[""], oracle(layer, x), atol)


def test_half_the_forward_in_autocast():
    net, x = made(), tokens()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), fv.capture(net, of="attention") as att:
        net(x)
    close(att["first"], oracle(net.first, x), 0.01)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_dropout_drops_nothing_of_the_weights(fused):
    net, x = made(dropout=0.5, fused=fused).train(), tokens()
    torch.manual_seed(3)
    expected = net(x)
    with fv.capture(net, of="attention") as att:
        torch.manual_seed(3)
        assert torch.equal(net(x), expected)
    close(att["first"], oracle(net.first, x))


def test_gradients_and_random_numbers_are_those_without():
    x, gradients = tokens(), []
    for of in (None, "attention"):
        net = made(dropout=0.5).train()
        torch.manual_seed(3)
        if of is None:
            net(x).square().sum().backward()
        else:
            with fv.capture(net, of=of):
                net(x).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()] + [torch.rand(3)])
    assert all(map(torch.equal, *gradients))


# Which layers, which rows


def test_a_layer_around_the_attention_has_it_too_and_others_are_told_apart():
    net, x = nn.Sequential(made(), made()), tokens()
    with fv.capture(net, ["0", "1.*", "0.mlp"], of=fv.Attention([0])) as att:
        net(x)
    assert list(att) == ["0#1", "0#2", "1.first", "1.second"]
    assert att.not_run == ["0.mlp", "1.first.q", "1.first.k", "1.first.v", "1.first.drop", "1.mlp"] + [
        f"1.second.{name}" for name in ("q", "k", "v", "drop")
    ]
    close(att["0#1"], oracle(net[0].first, x)[:, :, :1])
    assert att.calls("0")[1].shape == (2, 3, 1, 5)
    with pytest.raises(LayerError, match=r"layer '0.mlp' computed no attention in its forward; these did: '0.first'"):
        att["0.mlp"]
    with pytest.raises(LayerError, match="layer '0' ran 2 times"):
        att["0"]


def test_queries_are_checked():
    net, x = made(), tokens()
    with (
        pytest.raises(OptionError, match=r"no query 5 in the attention of 'first': it has 5, numbered from 0 to 4, or"),
        fv.capture(net, of=fv.Attention([5])),
    ):
        net(x)
    with fv.capture(net, of=fv.Attention([-5])) as att:
        net(x)
    assert att["first"].shape == (2, 3, 1, 5)
    with pytest.raises(OptionError, match="queries is empty"):
        fv.Attention([])
    with pytest.raises(DtypeError, match=r"queries must be a list of integers, or None for all; got 0\."):
        fv.Attention(0)
    with pytest.raises(DtypeError, match="queries must be integers, got 'a'"):
        fv.Attention(["a"])
    assert fv.Attention([1, 2]) == fv.Attention((1, 2)) != fv.Attention()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"of": "attentions"}, r"of must be 'output', 'grad', 'attention' or Attention\(queries=...\)"),
        ({"of": "attention", "stop": True}, "leave stop out"),
        ({"of": "attention", "ops": True}, "leave ops out"),
    ],
)
def test_options_that_exclude_each_other(options, words):
    with pytest.raises(OptionError, match=words):
        fv.capture(made(), **options)


def test_what_is_kept_of_the_weights():
    net, x = made(), tokens()
    wanted = oracle(net.first, x)
    with fv.capture(net, of="attention", into=fv.Ring(2)) as last:
        for factor in (1, 2, 3):
            net(x * factor)
    close(last["first"][0], oracle(net.first, x * 2))
    with fv.capture(net, "first", of="attention", into=lambda weights: weights.amax(dim=-1)) as largest:
        net(x)
    close(largest["first"], wanted.max(-1))
    with fv.capture(net, of="attention", into=fv.ToCPU()) as copies:
        net(x)
    close(copies["first"], wanted)
    for layers in (None, "first"):
        with fv.capture(net, layers, of="attention", into=fv.Moments(dim=1)) as moments:
            net(x)
            net(x)
        close(moments["first"].mean, wanted.mean((0, 2, 3)))
    assert moments["first"].count[0] == 2 * 2 * 5 * 5
    with fv.capture(net, of="attention", every=2) as att:
        net(x)
        net(x * 2)
    close(att["first"], wanted)
    assert "every=1" in repr(att.capture or fv.capture(net, of=fv.Attention([0])))


def test_a_part_of_the_model_alone():
    net, x = made(), tokens()
    with fv.capture(net, of="attention") as att:
        net.second(x)
    close(att["second"], oracle(net.second, x))


def test_a_compiled_model_runs_uncompiled_meanwhile():
    net, x = made(), tokens()
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        expected = compiled(x)
        with fv.capture(compiled, "second", of="attention") as att:
            assert torch.equal(compiled(x), expected)
    with fv.capture(net, "second", of="attention") as wanted, torch.no_grad():
        net(x)
    assert torch.equal(att["second"], wanted["second"])
    whole = torch.compile(lambda x: net(x), backend="eager")
    with fv.capture(net, of="attention"), pytest.raises(Exception, match=r"compiled code around it hides|set_stance"):
        whole(x)


# Faults and what hides


class Lying(TorchDispatchMode):
    """A kernel that computes something else than it is asked for."""

    def __init__(self, **changed):
        super().__init__()
        self.changed = changed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.__name__
        if "scaled_dot_product" in name or "multi_head" in name or "encoder_layer" in name:
            args = list(args)
            names = [argument.name for argument in func._schema.arguments]
            for key, change in self.changed.items():
                at = names.index(key)
                if at < len(args):
                    args[at] = change(args[at])
                else:
                    kwargs[key] = change(kwargs.get(key))
        return func(*args, **kwargs)


def seen_before(n):
    return torch.ones(n, n, dtype=torch.bool).tril()


def unmasked(mask):
    """The first query sees one key more."""
    mask = mask.clone()
    mask[0, 1] = 0
    return mask


FAULTS = {
    "scale": {"scale": lambda scale: (scale or 0.5) * 1.1},
    "mask": {"attn_mask": lambda _: None},
    "one key more": {"attn_mask": unmasked},
    "heads of queries": {"query": lambda q: q.flip(1)},
    "heads of values": {"value": lambda v: v.roll(1, 1)},
    "images": {"key": lambda k: k.flip(0)},
    "causal": {"is_causal": lambda _: True, "attn_mask": lambda _: None},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("queries", [None, [0]], ids=["all", "one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "channels"), [(5, 12), (130, 96), (260, 96)], ids=["few", "many", "head by head"])
def test_a_planted_fault_is_found(fault, queries, dtype, n, channels):
    if fault == "causal":
        mask = None
        queries = queries and [-1]
    else:
        mask = torch.where(seen_before(n), 0, -torch.inf).to(dtype)
    if fault == "causal" and queries:
        pytest.skip("the last query sees all keys either way")
    layer, x = made(Attends, channels=channels, attn_mask=mask).to(dtype), tokens(2, n, channels).to(dtype)
    queries = queries and [0 if fault == "one key more" else 3]
    with torch.no_grad():
        with fv.capture(layer, of=fv.Attention(queries)):
            layer(x)
        with (
            pytest.raises(LayerError, match="the attention of '' is not what its kernel computed: weights times"),
            fv.capture(layer, of=fv.Attention(queries)),
            Lying(**FAULTS[fault]),
        ):
            layer(x)


@pytest.mark.parametrize("n", [130, 260], ids=["many", "head by head"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"shared": 1}], ids=["plain", "causal", "grouped"])
def test_many_rows(n, options):
    """So many that outputs are compared along some directions only."""
    layer, x = made(Attends, channels=96, **options), tokens(2, n, 96)
    with torch.no_grad():
        with fv.capture(layer, of="attention") as att:
            layer(x)
        q, k, _ = (part.double().numpy() for part in layer.split(x))
    scores = np.einsum("bhqd,bhkd->bhqk", q, np.repeat(k, 3 // k.shape[1], axis=1)) * q.shape[-1] ** -0.5
    if options.get("is_causal"):
        scores = np.where(np.tril(np.ones((n, n), dtype=bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    close(att[""], weights / weights.sum(-1, keepdims=True))


def test_the_fault_is_told_of_the_layer_that_has_it():
    net, x = made(), tokens()
    only_second = iter([lambda scale: scale, lambda _: 0.1])
    with (
        torch.no_grad(),
        pytest.raises(
            LayerError, match=r"attention of 'second' .* by [\d.e-]+, [\d.e+]+ times what rounding in float32"
        ),
        fv.capture(net, of="attention"),
        Lying(scale=lambda scale: next(only_second)(scale)),
    ):
        net(x)


@torch.library.custom_op("flash_attn_of_a_test::forward", mutates_args=())
def hiding(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


class Hides(Attends):
    def forward(self, x):
        return hiding(*self.split(x)).transpose(1, 2).flatten(2)


def test_a_kernel_that_hides_it_is_refused_by_name():
    net, x = nn.Sequential(made(Attends), made(Hides)), tokens()
    with (
        torch.no_grad(),
        pytest.raises(LayerError, match=r"attention of '1' is computed by flash_attn_of_a_test.forward.default, which"),
        fv.capture(net, of="attention"),
    ):
        net(x)
    with torch.no_grad(), fv.capture(net, "0", of="attention") as att:  # which nobody asks for
        net(x)
    close(att["0"], oracle(net[0], x))


class Flexible(Attends):
    def forward(self, x):
        flexible = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention
        return flexible(*self.split(x)).transpose(1, 2).flatten(2)


@pytest.mark.slow  # it imports Dynamo
@pytest.mark.filterwarnings("ignore")
def test_flex_attention_is_refused_by_name():
    net, x = made(Flexible, channels=32, heads=2), tokens(2, 128, 32)
    with (
        torch.no_grad(),
        pytest.raises(LayerError, match="attention of '' is computed by flex_attention, which returns no weights"),
        fv.capture(net, of="attention"),
    ):
        net(x)


class Plain(nn.Module):
    """`body(x)` as a forward."""

    def __init__(self, body):
        super().__init__()
        self.body, self.part = body, nn.Identity()

    def forward(self, x):
        return self.body(x)


def attention_of(body, x, heads=1):
    with fv.capture(Plain(body), of="attention") as att:
        att._recorder.model()(x)
    return att


def by_hand(x):
    return (x @ x.transpose(-2, -1)).softmax(dim=-1)


NO_ATTENTION = {
    "softmaxed classes": (lambda x: x.mean(1).softmax(-1) @ torch.ones(4, 3), "never"),
    "heads that talk": (lambda x: by_hand(x) * 0.5 @ x, "goes through 'mul' before it meets values"),
    "over channels": (lambda x: by_hand(x.mT) @ x.mT, "over channels, not over tokens"),
    "kernel over channels": (lambda x: F.scaled_dot_product_attention(*[x.mT.unsqueeze(1)] * 3), "over channels"),
    "over queries": (lambda x: (x @ x.mT).softmax(dim=-2) @ x, "never"),
}


@pytest.mark.parametrize("kind", NO_ATTENTION)
def test_what_is_no_attention_between_tokens(kind):
    body, why = NO_ATTENTION[kind]
    net, x = Plain(body), tokens(2, 3, 4)
    with fv.capture(net, of="attention") as att:
        net(x)
    assert len(att) == 0
    with fv.capture(net, ["", "part"], of="attention") as att:
        net(x)
    assert att.not_run == ["", "part"]
    with pytest.raises(LayerError, match="computed no attention" if why == "never" else why):
        att[""]


def turned(x):
    return (x.mT @ by_hand(x).mT).mT


def by_einsum(x):
    return torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", x, x).softmax(-1), x)


def in_bits(x):
    return by_hand(x.float()).to(x.dtype).expand(*x.shape[:2], -1).clone() @ x


@pytest.mark.parametrize("body", [lambda x: by_hand(x) @ x, turned, by_einsum, in_bits])
@pytest.mark.parametrize("mode", MODES)
def test_written_by_hand_in_other_ways(body, mode):
    net, x = Plain(body), tokens(2, 3, 4)
    with mode(), fv.capture(net, of="attention") as att:
        net(x)
    rows = x.double().numpy()[:, None]
    close(att[""], softmaxed(rows, rows, scale=1.0))


def test_one_image_without_a_batch_axis():
    net, x = Plain(lambda x: by_hand(x) @ x), tokens(1, 3, 4)[0]
    with fv.capture(net, of="attention") as att:
        net(x)
    rows = x.double().numpy()[None, None]
    close(att[""], softmaxed(rows, rows, scale=1.0))


def test_heads_folded_into_images():
    x = tokens(2, 5, 12)

    def folded(x, order=(0, 2, 1, 3)):
        parts = x.view(2, 5, 3, 4).permute(order).reshape(6, 5, 4)
        return by_hand(parts) @ parts

    rows = x.view(2, 5, 3, 4).transpose(1, 2).double().numpy()
    for order in ((0, 2, 1, 3), (2, 0, 1, 3)):  # heads of an image beside each other, and images of a head
        net = Plain(lambda x, order=order: folded(x, order))
        for _ in range(2):
            with fv.capture(net, of="attention") as att:
                net(x)
            close(att[""], softmaxed(rows, rows, scale=1.0))


def test_a_softmax_that_is_overwritten_by_dropout_is_what_it_was():
    torch.manual_seed(0)
    net, x = Plain(lambda x: F.dropout(by_hand(x), 0.5, inplace=True) @ x), tokens(2, 3, 4)
    with fv.capture(net, of="attention") as att:
        net(x)
    rows = x.double().numpy()[:, None]
    close(att[""], softmaxed(rows, rows, scale=1.0))


def test_a_copy_made_in_the_block_is_not_captured():
    net, x = made(), tokens()
    with fv.capture(net, of="attention") as att:
        net(x)
        twin = copy.deepcopy(net)
        twin(x * 3)
    close(att["first"], oracle(net.first, x))
    assert all("forward" not in vars(module) for module in twin.modules())


def test_an_error_in_the_forward_leaves_nothing_behind():
    net = made()
    with pytest.raises(RuntimeError), fv.capture(net, of="attention"):
        net(torch.zeros(2, 5, 7))
    assert all("forward" not in vars(module) for module in net.modules())
    with fv.capture(net, of="attention") as att:
        net(tokens())
    assert list(att) == ["first", "second"]


JOINED = {
    "cat": lambda x: torch.cat([x, x * 2]),
    "turned": lambda x: torch.cat([x, x.flip(1)]),
    "parts": lambda x: torch.cat([x[:, :4], x[:, 1:]]),
    "one image": lambda x: torch.cat([x[:1], x]),
    "stack": lambda x: torch.stack([x, x * 2]).flatten(0, 1),
    "repeat": lambda x: x.repeat(2, 1, 1),
    "chosen": lambda x: x.index_select(0, torch.arange(len(x)).repeat(2)),
    "expand": lambda x: x[None].expand(2, -1, -1, -1).flatten(0, 1),
    "interleave": lambda x: x.repeat_interleave(2, 0),
}


@pytest.mark.parametrize("join", JOINED)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("b", [1, 2])
def test_views_of_images_that_are_joined_to_one_batch_are_refused(join, fused, b):
    layer, x = made(Attends, fused=fused), tokens(b)
    net = Plain(lambda x: layer(JOINED[join](x)))
    with torch.no_grad(), pytest.raises(LayerError, match=r"image each of them belongs to could not|views of an image"):
        asked_by_name(net, x)


def asked_by_name(net, x):
    with fv.capture(net, [""], of="attention") as att:
        net(x)
    return att[""]


def test_heads_of_several_images_in_one_group_are_refused():
    """Or they are told apart: where torch attends without an axis of heads, as up to 2.11, each group is one."""
    x = tokens(2, 5, 12).view(2, 5, 3, 4).transpose(1, 2)
    net = Plain(lambda x: F.scaled_dot_product_attention(*[x.flatten(0, 1)] * 3))
    with fv.capture(net, of="attention") as att:
        net(x[:1])
    rows = x[:1].double().numpy()
    close(att[""], softmaxed(rows, rows))
    try:
        with fv.capture(net, of="attention") as att:
            net(x)
    except LayerError as error:
        assert "what stands in the place of its heads are different images, views or windows" in str(error)  # noqa: PT017
    else:
        rows = x.double().numpy()
        close(att[""], softmaxed(rows, rows))


class Depth(nn.Module):
    """Notes how many modes see its operators."""

    def __init__(self):
        super().__init__()
        self.seen, self.inner = deque(), nn.Identity()  # a list would make each forward another kind

    def forward(self, x):
        self.seen.append(torch._C._len_torch_dispatch_stack())
        return self.inner(x)


class Skipped(nn.Module):
    """Blocks of which some are skipped, as in training with layer drop."""

    def __init__(self):
        super().__init__()
        self.blocks, self.beside, self.skip = nn.ModuleList(Attends() for _ in range(3)), Depth(), deque([1])

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            if i not in self.skip:
                x = x + block(self.beside(x))
        return x


def test_operators_are_seen_in_the_layers_that_attend_only():
    net, x = made(Skipped), tokens()
    with torch.no_grad(), fv.capture(net, of="attention") as att:
        net(x)
        assert list(net.beside.seen) == [2, 2]  # one follows places
        net(x)
        assert list(net.beside.seen)[2:] == [0, 0]
        assert len(att) == 2


def test_a_block_that_was_skipped_at_first_is_captured_later():
    net, x = made(Skipped), tokens()
    with torch.no_grad(), fv.capture(net, of="attention") as att:
        for skip in (1, 0, 2, None):
            net.skip[0] = skip
            net(x)
            kept = [i for i in range(3) if i != skip]
            inner = x
            for i in kept:
                close(att[f"blocks.{i}"], oracle(net.blocks[i], inner))
                inner = inner + net.blocks[i](inner)
    assert list(net.beside.seen)[-3:] == [0, 0, 0]


class Scores(nn.Module):
    def __init__(self, nested):
        super().__init__()
        self.inner = nn.Identity()
        self.nested = Scores(nested - 1) if nested else None

    def forward(self, q, k):
        if self.nested is not None:
            return self.nested(q, k)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)


class Mixes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, weights, v):
        return weights @ v


class Apart(Attends):
    """The softmax in one part, the product with the values in another."""

    def __init__(self, nested=0, **options):
        super().__init__(**options)
        self.scores, self.mixes = Scores(nested), Mixes()

    def forward(self, x):
        q, k, v = self.split(x)
        weights = self.drop(self.scores(q, k)).flatten(0, 1).view(*q.shape[:2], q.shape[2], -1)
        return self.mixes(weights, v).transpose(1, 2).flatten(2)


class TwoApart(Two):
    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = Apart(**options), Apart(**options)


class Switched(Attends):
    on = False

    def forward(self, x):
        return super().forward(x) if self.on else x


def test_a_layer_that_begins_to_attend_is_captured():
    net, x = made(lambda: nn.Sequential(Attends(), Switched())), tokens()
    with torch.no_grad(), fv.capture(net, of="attention") as att:
        for net[1].on in (False, True, False, True):
            net(x)
            assert list(att) == (["0", "1"] if net[1].on else ["0"])
        close(att["1"], oracle(net[1], net[0](x)))


@pytest.mark.parametrize("nested", [0, 1])  # deeper, and it is given up
def test_the_softmax_and_the_product_may_be_in_different_parts(nested):
    net, x = made(TwoApart, nested=nested), tokens()
    with torch.no_grad():
        inner = net.mlp(x + net.first(x))
        with fv.capture(net, ["first", "second"], of="attention") as att:
            for _ in range(3):
                net(x)
                assert list(att) == ([] if nested else ["first", "second"])
                if not nested:
                    close(att["first"], oracle(net.first, x))
                    close(att["second"], oracle(net.second, inner))


VIEWS = {
    "cat": lambda x: torch.cat([x, x.flip(1)]),
    "repeat": lambda x: x.repeat(2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 0),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1).flatten(0, 1),
    "stack": lambda x: torch.stack([x, x * 2], 1).flatten(0, 1),
    "index": lambda x: x[torch.arange(2 * len(x)) // 2],
}


class Folded(Attends):
    """Heads are folded into the batch, so that nothing tells them from images."""

    def forward(self, x):
        q, k, v = (part.flatten(0, 1) for part in self.split(x))
        weights = (torch.bmm(q, k.mT) * q.shape[-1] ** -0.5).softmax(-1)
        return torch.bmm(weights, v).view(len(x), self.heads, *v.shape[1:]).transpose(1, 2).flatten(2)


class Views(nn.Module):
    def __init__(self, how, kind):
        super().__init__()
        self.how, self.linear, self.attend = how, nn.Linear(12, 12), kind()

    def forward(self, x):
        return self.attend(self.how(self.linear(x)))


@pytest.mark.parametrize("kind", [Attends, Folded])
@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("how", VIEWS)
def test_views_that_a_model_joins_are_no_heads(how, b, kind):
    net, x = made(lambda: Views(VIEWS[how], kind)), tokens(b)
    with (
        torch.no_grad(),
        pytest.raises(LayerError, match=r"could not be followed|views of an image are joined"),
        fv.capture(net, "attend", of="attention"),
    ):
        net(x)


class Sharing(Folded):
    """Keys of fewer heads, repeated as in language models."""

    def split(self, x):
        q, k, v = super().split(x)
        b, _, n, d = q.shape
        k, v = (part.unsqueeze(2).expand(-1, -1, q.shape[1] // part.shape[1], -1, -1) for part in (k, v))
        return q, k.reshape(b, -1, n, d), v.reshape(b, -1, n, d)


def test_heads_that_share_keys_are_no_views():
    net, x = made(lambda: nn.Sequential(nn.Identity(), Sharing(heads=6, shared=3))), tokens(2)
    with torch.no_grad(), fv.capture(net, "1", of="attention") as att:
        net(x)
    close(att["1"], oracle(net[1], x))
