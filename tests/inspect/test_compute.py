"""Multiply-adds of one layer of each kind, counted by hand, and of whole networks, as their authors published them."""

import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.ops import DeformConv2d

from torch_featviz.inspect.compute import counting
from torch_featviz.inspect.measure import measured
from torch_featviz.model.inputs import Inputs

IMAGE = torch.rand(1, 6, 10, 12)
SEQUENCES = torch.rand(2, 7, 6)  # two of seven places and six channels
SET = torch.rand(2, 3, 7, 6)  # of two images three heads


class Call(nn.Module):
    """A function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def attend(mode, **options):
    layer = nn.MultiheadAttention(6, 2, batch_first=True, **options).train(mode)
    return Call(lambda x: layer(x, x, x)[0])


def at_once(layer):
    """PyTorch's one call for all of a layer, which it takes where no gradients are wanted."""

    def call(x):
        torch.backends.mha.set_fastpath_enabled(True)
        return layer.eval()(x) if isinstance(layer, nn.TransformerEncoderLayer) else layer.eval()(x, x, x)[0]

    return Call(call)


def packed(layer):
    return Call(lambda x: layer(nn.utils.rnn.pack_padded_sequence(x, [7, 4], batch_first=True)))


def quantized(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch say that they will drop it
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {type(layer)}, dtype=torch.qint8)


def statically_quantized(layer):
    """As `convert` makes them, of a float layer and of what it saw."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(torch.ao.quantization.QuantStub(), layer).eval()
        net.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
        if isinstance(layer, nn.ConvTranspose2d):
            net.qconfig = torch.ao.quantization.default_qconfig
        torch.ao.quantization.prepare(net, inplace=True)(IMAGE)
        return torch.ao.quantization.convert(net)


def mkldnn(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is made with TorchScript
        from torch.utils.mkldnn import to_mkldnn

        converted = to_mkldnn(layer.eval())
    return Call(lambda x: converted(x.to_mkldnn()))


ATTENTION = 4 * 14 * 6 * 6 + 2 * 2 * 7 * 7 * 6  # four projections of 14 tokens; scores and sums for two sequences
OF_PLACES = 7 * 7 * (6 + 6)  # of one head

CASES = {
    # outputs x (kernel x channels of one group)
    "conv1d": (nn.Conv1d(7, 4, 3), SEQUENCES, (2 * 4 * 4) * (3 * 7)),
    "conv2d": (nn.Conv2d(6, 4, 3), IMAGE, (4 * 8 * 10) * (9 * 6)),
    "padded": (nn.Conv2d(6, 4, 3, padding="same", padding_mode="zeros"), IMAGE, (4 * 10 * 12) * (9 * 6)),
    "reflected": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), IMAGE, (4 * 10 * 12) * (9 * 6)),
    "strided": (nn.Conv2d(6, 4, (3, 2), stride=2), IMAGE, (4 * 4 * 6) * (6 * 6)),
    "dilated": (nn.Conv2d(6, 4, 3, dilation=2), IMAGE, (4 * 6 * 8) * (9 * 6)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2, bias=False), IMAGE, (4 * 8 * 10) * (9 * 3)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), IMAGE, (12 * 8 * 10) * 9),
    "conv3d": (nn.Conv3d(3, 4, 2), SET[:, :, None].expand(2, 3, 5, 7, 6), (2 * 4 * 4 * 6 * 5) * (8 * 3)),
    "one image": (nn.Conv2d(6, 4, 3), IMAGE[0], (4 * 8 * 10) * (9 * 6)),
    # inputs x (kernel x channels of one group that each is spread over)
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2), IMAGE, (6 * 10 * 12) * (9 * 4)),
    "transposed, grouped": (nn.ConvTranspose2d(6, 4, 3, groups=2), IMAGE, (6 * 10 * 12) * (9 * 2)),
    "transposed1d": (nn.ConvTranspose1d(7, 4, 3), SEQUENCES, (2 * 7 * 6) * (3 * 4)),
    "transposed3d": (nn.ConvTranspose3d(3, 4, 2), SET[:, :, None], (2 * 3 * 7 * 6) * (8 * 4)),
    "deformable": (Call(lambda x: DeformConv2d(6, 4, 3)(x, torch.zeros(1, 18, 8, 10))), IMAGE, (4 * 8 * 10) * (9 * 6)),
    "of sequences": (
        Call(lambda x: torch.conv_tbc(x.transpose(0, 1).contiguous(), torch.rand(3, 6, 4), torch.rand(4))),
        SEQUENCES,
        (2 * 5 * 4) * (3 * 6),
    ),
    # rows x inputs x outputs
    "linear": (nn.Linear(6, 4), SEQUENCES[0], 7 * 6 * 4),
    "linear, 1-D": (nn.Linear(6, 4), SEQUENCES[0, 0], 6 * 4),
    "linear, 3-D": (nn.Linear(6, 4), SEQUENCES, 2 * 7 * 6 * 4),
    "linear, 4-D": (nn.Linear(6, 4, bias=False), SET, 2 * 3 * 7 * 6 * 4),
    "bilinear": (Call(lambda x: F.bilinear(x, x[..., :5], torch.rand(4, 6, 5))), SEQUENCES, 14 * 4 * (6 * 5 + 5)),
    "matmul": (Call(lambda x: x @ x.mT), SEQUENCES, 2 * 7 * 6 * 7),
    "matmul of sets": (Call(lambda x: x @ x[:, :1].mT), SET, 2 * 3 * 7 * 6 * 7),
    "matmul, vector": (Call(lambda x: x[0] @ x[0, 0]), SEQUENCES, 7 * 6),
    "dot": (Call(lambda x: x[0, 0] @ x[0, 1]), SEQUENCES, 6),
    "addmv": (Call(lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 0])), SEQUENCES, 7 * 6),
    "baddbmm": (Call(lambda x: torch.baddbmm(torch.ones(()), x, x.mT)), SEQUENCES, 2 * 7 * 6 * 7),
    "addbmm": (Call(lambda x: torch.addbmm(torch.ones(()), x, x.mT)), SEQUENCES, 2 * 7 * 6 * 7),
    "addmm_": (Call(lambda x: torch.zeros(7, 7).addmm_(x[0], x[0].T)), SEQUENCES, 7 * 6 * 7),
    "tensordot": (Call(lambda x: torch.tensordot(x, x, ([1, 2], [1, 2]))), SEQUENCES, 2 * 2 * 7 * 6),
    "einsum": (Call(lambda x: torch.einsum("btc,bsc->bts", x, x)), SEQUENCES, 2 * 7 * 7 * 6),
    "einsum, heads": (Call(lambda x: torch.einsum("bhtc,bhsc->bhts", x, x)), SET, 2 * 3 * 7 * 7 * 6),
    # queries x keys x (channels of a key + channels of a value)
    "attention": (Call(lambda x: F.scaled_dot_product_attention(x, x, x)), SET, 6 * OF_PLACES),
    "attention, causal": (Call(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), SET, 6 * OF_PLACES),
    "attention, across": (
        Call(lambda x: F.scaled_dot_product_attention(x[:, :, :2], x[..., :5, :], x[..., :5, :4])),
        SET,
        6 * 2 * 5 * (6 + 4),
    ),
    "attention, dropout": (Call(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)), SET, 6 * OF_PLACES),
    "attention, shared keys": (
        Call(lambda x: F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True)),
        SET,
        6 * OF_PLACES,
    ),
    "multihead": (attend(False), SEQUENCES, ATTENTION),
    "multihead, training": (attend(True), SEQUENCES, ATTENTION),
    "multihead, bias of keys": (attend(False, add_bias_kv=True), SEQUENCES, ATTENTION + 2 * 2 * 7 * 6),
    "encoder": (nn.TransformerEncoderLayer(6, 2, 9, batch_first=True), SEQUENCES, ATTENTION + 2 * 14 * 6 * 9),
    "multihead, at once": (at_once(nn.MultiheadAttention(6, 2, batch_first=True)), SEQUENCES, ATTENTION),
    "encoder, at once": (
        at_once(nn.TransformerEncoderLayer(6, 2, 9, batch_first=True)),
        SEQUENCES,
        ATTENTION + 2 * 14 * 6 * 9,
    ),
    # steps x all weights
    "rnn": (nn.RNN(6, 5), SEQUENCES, 14 * 5 * (6 + 5)),
    "lstm": (nn.LSTM(6, 5), SEQUENCES, 14 * 4 * 5 * (6 + 5)),
    "lstm, packed": (packed(nn.LSTM(6, 5, batch_first=True)), SEQUENCES, 11 * 4 * 5 * (6 + 5)),
    "lstm, deep and both ways": (
        nn.LSTM(6, 5, num_layers=2, bidirectional=True),
        SEQUENCES,
        14 * 2 * 4 * 5 * ((6 + 5) + (10 + 5)),
    ),
    "lstm, projected": (nn.LSTM(6, 5, proj_size=3), SEQUENCES, 14 * (4 * 5 * (6 + 3) + 5 * 3)),
    "gru": (nn.GRU(6, 5, batch_first=True), SEQUENCES, 14 * 3 * 5 * (6 + 5)),
    "cell": (nn.LSTMCell(6, 5), SEQUENCES[0], 7 * 4 * 5 * (6 + 5)),
    # of other number formats
    "quantized linear": (quantized(nn.Linear(6, 4)), SEQUENCES, 2 * 7 * 6 * 4),
    "quantized lstm": (
        quantized(nn.LSTM(6, 5, num_layers=2, bidirectional=True)),
        SEQUENCES,
        14 * 2 * 4 * 5 * ((6 + 5) + (10 + 5)),
    ),
    "quantized gru": (quantized(nn.GRU(6, 5)), SEQUENCES, 14 * 3 * 5 * (6 + 5)),
    "quantized lstm, packed": (packed(quantized(nn.LSTM(6, 5, batch_first=True))[0]), SEQUENCES, 11 * 4 * 5 * 11),
    "quantized convolution": (statically_quantized(nn.Conv2d(6, 4, 3, groups=2)), IMAGE, (4 * 8 * 10) * (9 * 3)),
    "quantized, transposed": (statically_quantized(nn.ConvTranspose2d(6, 4, 3)), IMAGE, (6 * 10 * 12) * (9 * 4)),
    "mkldnn convolution": (mkldnn(nn.Conv2d(6, 4, 3, groups=2)), IMAGE, (4 * 8 * 10) * (9 * 3)),
    "mkldnn linear": (mkldnn(nn.Linear(6, 4)), SEQUENCES, 2 * 7 * 6 * 4),
    "half": (nn.Conv2d(6, 4, 3).bfloat16(), IMAGE.bfloat16(), (4 * 8 * 10) * (9 * 6)),
    # nothing is multiplied and summed
    "embedding": (nn.Embedding(9, 5), torch.tensor([[1, 2]]), 0),
    "norms": (nn.Sequential(nn.BatchNorm2d(6), nn.LayerNorm(12), nn.GroupNorm(2, 6)), IMAGE, 0),
    "pooling": (nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.GELU(), nn.Upsample(scale_factor=2)), IMAGE, 0),
}


@pytest.mark.filterwarnings("ignore")  # several formats are to be dropped from torch
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("case", CASES)
def test_by_hand(case, mode):
    net, given, expected = CASES[case]
    with mode(), counting() as count:
        net(given)
    assert count.multiply_adds == expected
    assert count.unknown == []


ATEN = torch.ops.aten
GPU = {
    "flash": (lambda x: ATEN._scaled_dot_product_flash_attention(x, x, x), 6 * OF_PLACES),
    "efficient": (lambda x: ATEN._scaled_dot_product_efficient_attention(x, x, x, None, False), 6 * OF_PLACES),
    "cudnn": (lambda x: ATEN._scaled_dot_product_cudnn_attention(x, x, x, None, False), 6 * OF_PLACES),
    "lstm": (
        lambda x: ATEN._cudnn_rnn(
            x[:, 0], [*(torch.rand(20, n, device="meta") for n in (6, 5)), *torch.rand(2, 20, device="meta")],
            4, None, *torch.rand(2, 1, 2, 5, device="meta"), 2, 5, 0, 1, True, 0.0, False, False, [], None,
        ),
        14 * 4 * 5 * (6 + 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GPU)
def test_operators_of_gpus(case):
    """They run without values, so that no GPU is needed."""
    function, expected = GPU[case]
    with counting() as count:
        function(SET.to("meta"))
    assert count.multiply_adds == expected


PUBLISHED = [
    *("alexnet", "vgg11", "resnet18", "resnext50_32x4d", "densenet121", "squeezenet1_1", "mobilenet_v2"),
    *("shufflenet_v2_x1_0", "efficientnet_b0", "convnext_tiny", "googlenet", "vit_b_32"),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    """torchvision states billions of multiply-adds with three digits after the point.

    Convolutional networks run without values: what they compute follows from shapes.
    """
    published = next(iter(models.get_model_weights(name))).meta["_ops"]
    untrained = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("cpu" if name == "vit_b_32" else "meta"), torch.no_grad():
        net = models.get_model(name, weights=None, **untrained).eval()
        total = measured(net, Inputs(torch.rand(1, 3, 224, 224))).total
    assert round(total / 1e9, 3) == published


def test_layers_have_the_same_figures_in_inference_mode():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Flatten(2), nn.Linear(80, 8), encoder).eval()
    with torch.no_grad():
        expected = measured(net, Inputs(IMAGE))
    with torch.inference_mode():
        assert measured(net, Inputs(IMAGE)).multiply_adds == expected.multiply_adds
    assert expected.multiply_adds["0"] == [4 * 8 * 10 * 54]
    assert expected.multiply_adds["3.self_attn"] == [4 * 4 * 8 * 8 + 2 * 4 * 4 * 8]
    parts = ("0", "2", "3.self_attn", "3.linear1", "3.linear2")
    assert expected.total == sum(sum(expected.multiply_adds[name]) for name in parts)


@pytest.mark.filterwarnings("ignore")  # nested tensors are a prototype
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_ragged_tensors_are_not_counted_and_this_is_said(layout):
    linear = nn.Linear(6, 4)
    with torch.no_grad(), counting() as count:
        linear(torch.nested.nested_tensor([SEQUENCES[0], SEQUENCES[1, :4]], layout=layout))
    assert count.multiply_adds == 0
    assert "aten.linear" in count.unknown


def test_the_fast_path_is_as_it_was():
    for enabled in (False, True):  # which it is by default
        torch.backends.mha.set_fastpath_enabled(enabled)
        with pytest.raises(RuntimeError, match="shapes"), counting():
            nn.Linear(3, 2)(torch.rand(1, 4))
        assert torch.backends.mha.get_fastpath_enabled() is enabled


def test_counting_does_not_import_dynamo():
    """It takes three seconds."""
    script = (
        "import sys, torch\n"
        "from torch_featviz.inspect.compute import counting\n"
        "with counting() as count: torch.nn.Linear(3, 2)(torch.rand(1, 3))\n"
        "print(count.multiply_adds, 'torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "6 False\n"


@pytest.mark.filterwarnings("error")
def test_compiled_parts_are_counted_and_the_counting_is_not_compiled():
    torch.compiler.reset()

    @torch.compile(backend="eager")
    def square(x):
        return x @ x.mT

    for _ in range(2):
        with torch.no_grad(), counting() as count:
            square(SEQUENCES)
        assert count.multiply_adds == 2 * 7 * 6 * 7
        square(SEQUENCES)
