"""Layers that are never called and yet compute: their weights are read by the module around them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_featviz as fv
from torch_featviz.capture import FeatureExtractor, Moments, capture
from torch_featviz.errors import LayerError
from torch_featviz.model.held import reads_weights
from torch_featviz.model.layers import resolve


class Reader(nn.Module):
    """Reads its first layer's weight, calls the second, and leaves the third alone."""

    def __init__(self):
        super().__init__()
        self.read, self.called, self.idle = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.called(F.linear(x, self.read.weight, self.read.bias))


class Loop(nn.Module):
    """No code says which layers it reads."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        for part in list(self.parts)[:2]:
            x = F.linear(x, part.weight, part.bias)
        return x


class Tied(nn.Module):
    """The decoder is never used, though its weight is."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.encoder(x)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, left=True):
        return (self.left if left else self.right)(x)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention, self.spare = (
            nn.Linear(6, 6),
            nn.MultiheadAttention(6, 2),
            nn.MultiheadAttention(6, 2),
        )

    def forward(self, x):
        x = self.embed(x)
        return self.attention(x, x, x)[0]


def is_used(model, name, x):
    """Whether the output depends on a layer's weights."""
    with torch.no_grad():
        before = model(x)
        for parameter in model.get_submodule(name).parameters():
            parameter.mul_(-2)
        after = model(x)
        for parameter in model.get_submodule(name).parameters():
            parameter.div_(-2)
    return not torch.equal(before, after)


MODELS = [Reader, Loop, Branches, Attending]


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("into", [None, Moments()], ids=["values", "figures"])
def test_a_layer_did_not_run_only_if_the_output_does_not_depend_on_it(build, grad, into):
    model, x = build().eval(), torch.randn(3, 6)
    layers = [name for name, _ in model.named_modules() if name and not name.endswith("attention")]
    with grad(), capture(model, layers, into=into) as acts:
        model(x)
    unused = [name for name in layers if list(model.get_submodule(name).parameters()) and not is_used(model, name, x)]
    assert [name for name in acts.not_run if name in unused] == unused
    assert set(acts.not_run) <= {*unused, "parts"}


def test_each_kind_of_block_tells_the_same_also_after_another_one():
    model, x = Loop().eval(), torch.randn(3, 6)
    for _ in range(2):
        for options in ({}, {"stop": True}, {"into": Moments()}, {"ops": True}, {"every": 1}):
            layers = ["parts.2"] if options.get("stop") else ["parts.0", "parts.1", "parts.2"]
            with torch.no_grad(), capture(model, layers, **options) as acts:
                model(x)
            assert acts.not_run == ["parts.2"], options


def test_what_stopped_before_it_is_no_proof():
    model, x = Attending().eval(), torch.randn(3, 6)
    with torch.no_grad(), capture(model, "embed", stop=True):
        model(x)
    with torch.no_grad(), capture(model, into=Moments(), layers=["embed", "attention.out_proj"]) as stats:
        model(x)
    assert stats.not_run == []


def test_a_weight_that_is_shared_with_a_layer_that_runs_tells_nothing_of_the_other():
    model = Tied().eval()
    with torch.no_grad(), capture(model) as acts:
        model(torch.randn(3, 6))
    assert acts.not_run == ["decoder"]


def test_a_shared_weight_that_is_also_read_by_itself():
    class Both(Tied):
        def forward(self, x):
            return F.linear(self.encoder(x), self.decoder.weight)

    model = Both().eval()
    with torch.no_grad(), capture(model) as acts:
        model(torch.randn(3, 6))
    assert acts.not_run == []


def test_a_branch_that_is_not_taken_did_not_run():
    model, x = Branches().eval(), torch.randn(3, 6)
    for left in (True, False, True):
        with torch.no_grad(), capture(model) as acts:
            model(x, left)
        assert acts.not_run == (["right"] if left else ["left"])


def test_an_attention_that_is_not_called_and_its_projection_did_not_run():
    model = Attending().eval()
    with torch.no_grad(), capture(model) as acts:
        model(torch.randn(3, 6))
    assert acts.not_run == ["spare.out_proj", "spare"]


def test_in_a_compiled_model():
    model = Attending().eval()
    compiled = torch.compile(model, backend="eager")
    with (
        torch.no_grad(),
        capture(compiled, ["embed", "attention", "attention.out_proj", "spare", "spare.out_proj"]) as acts,
    ):
        compiled(torch.randn(3, 6))
    assert "attention.out_proj" not in acts.not_run
    assert "spare.out_proj" in acts.not_run


def test_gradients():
    model = Attending()
    with capture(model, ["embed", "attention.out_proj", "spare.out_proj"], of="grad") as acts:
        model(torch.randn(3, 6)).sum().backward()
    assert "embed" in acts


def test_the_error_says_what_to_capture():
    model = Attending().eval()
    with torch.no_grad(), capture(model, ["embed", "attention.out_proj"]) as acts:
        model(torch.randn(3, 6))
    match = (
        "layer 'attention.out_proj' is never called and returns nothing: .* that of layer 'attention', computes with"
    )
    with pytest.raises(LayerError, match=match):
        acts["attention.out_proj"]
    with torch.no_grad(), capture(model, ["embed", "attention.out_proj"], into=Moments()) as stats:
        model(torch.randn(3, 6))
    with pytest.raises(LayerError, match=match):
        stats["attention.out_proj"]
    with pytest.raises(LayerError, match=match):
        FeatureExtractor(model, ["attention.out_proj"])(torch.randn(3, 6))
    with pytest.raises(LayerError, match=r"layer 'spare\.out_proj' did not run: the model's forward never called it\."):
        FeatureExtractor(model, ["spare.out_proj"])(torch.randn(3, 6))


# Leaves


def test_what_computes_with_weights_that_it_reads_is_a_leaf():
    assert list(resolve(Attending(), None)) == ["embed", "attention.out_proj", "attention", "spare.out_proj", "spare"]
    assert list(resolve(nn.Sequential(Reader()), None)) == ["0.read", "0.called", "0.idle", "0"]
    model = Attending().eval()
    with torch.no_grad(), capture(model) as acts:
        output = model(torch.randn(3, 6))
    assert torch.equal(acts["attention"][0], output)


def test_swins_attention_is_a_leaf():
    from torchvision.models import SwinTransformer

    model = SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=3).eval()
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad(), capture(model) as acts:
        model(image)
    assert acts.not_run == []
    assert acts["features.1.0.attn"].shape == (1, 4, 4, 8)
    assert is_used(model, "features.1.0.attn.qkv", image)


def test_what_is_called_or_only_asked_for_its_dtype_makes_no_leaf():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6))

        def forward(self, x):
            return self.run(x.to(self.embed.weight.dtype))

        def run(self, x):
            return self.inner.forward(self.embed(x))

        def start(self):
            nn.init.zeros_(self.inner.weight)

    class AsksOnly(Asks):
        def forward(self, x):
            x = x.to(self.embed.weight.dtype).to(self.embed.weight.device)
            for part in self.children():
                x = part(x)
            return x

    assert not reads_weights(Asks())
    assert not reads_weights(AsksOnly())
    assert list(resolve(nn.Sequential(Asks(), nn.TransformerEncoderLayer(4, 2)), None)) == [
        *("0.embed", "0.inner.0", "1.self_attn.out_proj", "1.self_attn", "1.linear1", "1.dropout", "1.linear2"),
        *("1.norm1", "1.norm2", "1.dropout1", "1.dropout2"),
    ]


# What is told of the model as a whole


def test_overview_and_summary_do_not_say_that_it_did_not_run():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3
    ).eval()
    shown = fv.summary(model, (3, 16, 16))
    assert shown.not_run == ()
    assert "encoder.layers.encoder_layer_0.self_attention" in [layer.name for layer in shown.layers]
    assert not any("not run" in note for note in fv.overview(model, torch.rand(1, 3, 16, 16)).legend.notes)


def test_summary_still_tells_what_did_not_run():
    assert fv.summary(Branches(), (6,)).not_run == ("right",)
    assert fv.summary(Loop(), (6,)).not_run == ("parts.2",)
